"""The cluster of `lossproof.impl.cluster`, one process for each rank: DDP and `attach` under the same interface.

Legend: N ranks; P packets, S of them watched; E elements of a packet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from lossproof.impl.cluster import NamedParameters, Objective
from lossproof.impl.distributed.attachment import attach
from lossproof.impl.round import Counts
from lossproof.theory.laws import Law


class ProcessCluster:
    """This rank's replica of a model that all ranks of the default process group train over lossy links.

    Made by all ranks together, with the arguments of `Cluster` but `chunk` (`options` go to `attach`); all of them call
    every method, and what it returns is the same on all. For equal arguments the masks are those of `Cluster`, the
    parameters up to rounding.
    `fresh_PE`, `replicas_NPE` and `owner_P` are of a sample of packets: what an observer of the drift sees.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        objective: Objective,
        optimizer: Callable[[NamedParameters], torch.optim.Optimizer],
        law: Law,
        ranks: int,
        **options: Any,
    ) -> None:
        if ranks != dist.get_world_size():
            raise ValueError(f"ranks must be the number of processes, {dist.get_world_size()}, got {ranks}")
        self.model, self.objective, self.law, self.ranks = model, objective, law, ranks
        self.optimizer = optimizer([(name, p) for name, p in model.named_parameters() if p.requires_grad])
        self.ddp = DistributedDataParallel(model)
        self.attachment = attach(self.ddp, self.optimizer, law, drift_every=0, log_every=0, **options)
        self._watched_S = self.attachment.telemetry.sample_S
        self._watched: tuple[int, torch.Tensor] | None = None
        self._fresh: tuple[int, dict[str, torch.Tensor]] | None = None

    @property
    def owner_P(self) -> tuple[int, ...]:
        return tuple(self.attachment.exchange.owner_P[self._watched_S].tolist())

    @property
    def replicas_NPE(self) -> torch.Tensor:
        if self._watched is None or self._watched[0] != self._step:
            packed_PE = self.attachment.layout.pack([p.detach() for p in self.attachment.parameters])
            self._watched = self._step, self.attachment.exchange.every(packed_PE[self._watched_S])
        return self._watched[1]

    @property
    def fresh_PE(self) -> torch.Tensor:
        owner_S = self.attachment.exchange.owner_P[self._watched_S]
        return self.replicas_NPE[owner_S, torch.arange(len(owner_S), device=owner_S.device)]

    @property
    def counts(self) -> Counts:
        every = [asdict(counts) for counts in self.attachment.exchange.objects(self.attachment.stages.counts)]
        return Counts(**{name: sum(counts[name] for counts in every) for name in every[0]})

    def step(self, batch_N: torch.Tensor) -> torch.Tensor:
        """One round of training; the losses of all ranks (N,)."""
        self.optimizer.zero_grad()
        loss = self.objective(self.ddp, batch_N[self.attachment.exchange.rank])
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return self.attachment.exchange.every(loss.detach().reshape(1))[:, 0]

    @torch.no_grad()
    def evaluate(self, batch: Any) -> torch.Tensor:
        """The loss of every replica, then of the owners' model, on one and the same batch: (N + 1,)."""
        if self._fresh is None or self._fresh[0] != self._step:
            self._fresh = self._step, self.attachment.owners_model()
        owners = self.objective(partial(self._call, self._fresh[1]), batch)
        replicas_N1 = self.attachment.exchange.every(self.objective(self.model, batch).reshape(1))
        return torch.cat([replicas_N1[:, 0], owners.reshape(1)])

    def agreed(self, wish: bool) -> bool:
        """Whether any rank wishes it: Ctrl-C may reach them in different steps."""
        return any(self.attachment.exchange.objects(wish))

    @property
    def _step(self) -> int:
        return self.attachment.stages.step_number

    def _call(self, parameters: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.model, parameters, args, kwargs)

    def state_dict(self) -> dict[str, Any]:
        """This rank's part of what a bit-for-bit resume needs."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._watched = self._fresh = None
