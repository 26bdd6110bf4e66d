"""Other designs as clusters that train: what `lossproof train` runs, but for what is exchanged.

None of them is a protocol of this package. They call its one `aggregate` and its one `retain`, over its masks.

Legend: N ranks, P packets, E elements of a packet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lossproof.impl.cluster import Cluster, NamedParameters, Objective
from lossproof.proofs_checks.instruments.other_rounds import Averaging, SharingUpdates
from lossproof.theory.laws import Law


class UpdateSharing(Cluster):
    """Owners send updates instead of parameters (claim B10); nothing else is different."""

    _round_kind = SharingUpdates


class _LocalSteps(Cluster):
    """Every rank takes steps of its own, with an optimizer of its own; there are no owners' parameters to broadcast.

    One optimizer over all replicas (N, P, E) is N optimizers as long as it treats each element by itself: SGD, AdamW.
    What `evaluate` calls the owners' model is made of each packet as its owner holds it.
    """

    _round_kind = Averaging
    round: Averaging

    def __init__(
        self,
        model: torch.nn.Module,
        objective: Objective,
        optimizer: Callable[[NamedParameters], torch.optim.Optimizer],
        law: Law,
        ranks: int,
        **options: Any,
    ) -> None:
        super().__init__(model, objective, optimizer, law, ranks, **options)
        self._models = torch.nn.Parameter(self.replicas_HPE)
        self.optimizer = optimizer([("models", self._models)])

    def _step(self, gradient_NPE: torch.Tensor) -> torch.Tensor:
        """The ranks' models after their own steps."""
        self._models.data, self._models.grad = self.replicas_HPE, gradient_NPE
        self.optimizer.step()
        self._models.grad = None
        return self._models.data

    def _hold(self, models_NPE: torch.Tensor) -> None:
        """What the ranks hold at the end of a step; the round keeps it, and so do checkpoints."""
        self.round.replicas_HPE = models_NPE
        self.round.fresh_QE.copy_(models_NPE[torch.tensor(self.owner_P), torch.arange(len(self.owner_P))])


class ModelAveraging(_LocalSteps):
    """RPS (Yu et al., ICML 2019; claim B11): a step of one's own, then the models are averaged. A rank that misses an
    average keeps its own model there."""

    def step(self, batch_N: Any) -> torch.Tensor:
        gradient_NPE, losses_N = self.gradients(batch_N)
        self._hold(self.round.average(self._step(gradient_NPE)))
        return losses_N


class OwnGradient(_LocalSteps):
    """Averages gradients and never sends parameters: a rank that misses the average steps by its own gradient, as after
    a lossy all-reduce whose lost results stay as they were. Lost gradients count by the `rule`."""

    def step(self, batch_N: Any) -> torch.Tensor:
        gradient_NPE, losses_N = self.gradients(batch_N)
        models_NPE = self.replicas_HPE
        averaged_NPE = self.round.average(gradient_NPE)
        self.round.replicas_HPE = models_NPE
        self._hold(self._step(averaged_NPE))
        return losses_N
