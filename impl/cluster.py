"""N ranks that really train, in one process: each has its own stale replica and takes its gradient there.

The forward and backward passes of all replicas are one vectorised call (`torch.func.vmap`). Memory: every replica costs
its parameters, its gradients twice (as tensors, as packets) and its activations; the owners' copy and the optimizer's
state exist once. `chunk` bounds the activations to that many replicas at a time and changes no digit.

Legend: N ranks; P packets; E elements of a packet.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch.func import functional_call, grad_and_value, vmap

from lossproof.impl.aggregate import NoSurvivor, Rule
from lossproof.impl.channel import SimulatedChannel
from lossproof.impl.layout import Layout, LayoutKind
from lossproof.impl.loss import Arrivals, OwnLink
from lossproof.impl.round import Counts, Round
from lossproof.theory.laws import Law

Objective = Callable[[Callable[..., Any], Any], torch.Tensor]
"""`objective(model, batch) -> scalar loss`, for one rank; `model` is called like the module itself."""
NamedParameters = list[tuple[str, torch.nn.Parameter]]


class Cluster:
    """N replicas of one model, trained over lossy links.

    Args:
        model: any module; all its trainable parameters have one dtype and device. It is left as it is.
        objective: the loss of one rank on its own batch.
        optimizer: makes a torch optimizer from the named parameters that the owners hold. With the layout `tensors`
            these are the model's parameters by name and shape; the other layouts hand over pieces, `name[start:stop]`,
            as a sharded optimizer would see them.
        law, ranks, seed, own_link: see `Arrivals`. rule, no_survivor: see `aggregate`.
        layout, packet_bytes: see `Layout`; the payload of one packet in bytes.
        chunk: at most that many replicas in memory at a time; None for all.

    Raises:
        TypeError, ValueError: unusable arguments, before anything is allocated.

    >>> from lossproof.theory.laws import Bernoulli
    >>> cluster = Cluster(
    ...     torch.nn.Linear(2, 1), lambda model, x: model(x).square().mean(), partial(torch.optim.SGD, lr=0.1),
    ...     Bernoulli(0.1), ranks=4)
    >>> cluster.step(torch.ones(4, 8, 2)).shape
    torch.Size([4])
    """

    def __init__(
        self,
        model: torch.nn.Module,
        objective: Objective,
        optimizer: Callable[[NamedParameters], torch.optim.Optimizer],
        law: Law,
        ranks: int,
        *,
        seed: int = 0,
        own_link: OwnLink = "reliable",
        rule: Rule = "survivor_mean",
        no_survivor: NoSurvivor = "zero",
        layout: LayoutKind = "tensors",
        packet_bytes: int = 1024,
        chunk: int | None = None,
    ) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        kinds = {(p.dtype, p.device) for _, p in named}
        if len(kinds) != 1:
            raise ValueError(
                f"model must have trainable parameters of one dtype and device, got {sorted(map(str, kinds))}"
            )
        dtype, device = kinds.pop()
        if packet_bytes < dtype.itemsize:
            raise ValueError(f"packet_bytes must be at least {dtype.itemsize} for {dtype}, got {packet_bytes}")
        self.model, self.objective, self.law, self.ranks, self.chunk = model, objective, law, ranks, chunk
        self.layout = Layout.build([tuple(p.shape) for _, p in named], ranks, packet_bytes // dtype.itemsize, layout)
        self._names = [name for name, _ in named]
        self._fixed = {name: p for name, p in model.named_parameters() if not p.requires_grad} | dict(
            model.named_buffers()
        )

        arrivals = Arrivals(law, self.layout.owner_P, ranks, seed, own_link)
        self.round = Round.in_process(
            self.layout.pack([p.detach() for _, p in named]),
            torch.tensor(self.layout.owner_P),
            SimulatedChannel(arrivals, device),
            rule=rule,
            no_survivor=no_survivor,
            arrival_probability_NQ=arrivals.gradient_probability() if rule == "inverse_probability" else None,
        )
        self._payload_NPE = torch.zeros_like(self.round.replicas_HPE)
        self._owned = [torch.nn.Parameter(self.layout.view(self.fresh_PE, piece)) for piece in self.layout.pieces]
        self.optimizer = optimizer(list(zip(self._owned_names(), self._owned, strict=True)))
        self._gradients = vmap(
            grad_and_value(self._loss), in_dims=(0, 0), randomness="different", chunk_size=self.chunk
        )

    def _owned_names(self) -> list[str]:
        names = []
        for piece in self.layout.pieces:
            name, whole = self._names[piece.parameter], piece.shape == self.layout.shapes[piece.parameter]
            names.append(name if whole else f"{name}[{piece.start}:{piece.stop}]")
        return names

    @property
    def owner_P(self) -> tuple[int, ...]:
        return self.layout.owner_P

    @property
    def counts(self) -> Counts:
        return self.round.counts

    def agreed(self, wish: bool) -> bool:
        """In one process a wish is an agreement; see `ProcessCluster`."""
        return wish

    @property
    def fresh_PE(self) -> torch.Tensor:
        """The owners' parameters, all packets: the model that is being trained."""
        return self.round.fresh_QE

    @property
    def replicas_NPE(self) -> torch.Tensor:
        """What each rank computes its gradients at."""
        return self.round.replicas_HPE

    def owners_model(self) -> dict[str, torch.Tensor]:
        """The owners' parameters by name, for `model.load_state_dict(..., strict=False)`; copies."""
        return {n: t.clone() for n, t in zip(self._names, self.layout.unpack(self.fresh_PE), strict=True)}

    def gradients(self, batch_N: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Every rank's gradient at its own replica, packed (N, P, E), and its loss (N,). The buffer is used again."""
        gradients, losses = self._gradients(self._parameters(), batch_N)
        self.layout.pack([gradients[name] for name in self._names], out=self._payload_NPE)
        return self._payload_NPE, losses

    def step(self, batch_N: Any) -> torch.Tensor:
        """One round of training; `batch_N` is a tensor or a pytree of tensors with leading dimension N. Losses (N,)."""
        payload_NPE, losses_N = self.gradients(batch_N)
        self.round.step(payload_NPE, self._update)
        return losses_N

    @torch.no_grad()
    def evaluate(self, batch: Any) -> torch.Tensor:
        """The loss of every replica, then of the owners' model, on one and the same batch: (N + 1,)."""
        every = torch.cat([self.replicas_NPE, self.fresh_PE[None]])
        parameters = dict(zip(self._names, self.layout.unpack(every), strict=True))
        loss = vmap(self._loss, in_dims=(0, None), randomness="different", chunk_size=self.chunk)
        losses: torch.Tensor = loss(parameters, batch)
        return losses

    def _parameters(self) -> dict[str, torch.Tensor]:
        return dict(zip(self._names, self.layout.unpack(self.replicas_NPE), strict=True))

    def _loss(self, parameters: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
        return self.objective(partial(self._call, parameters), batch)

    def _call(self, parameters: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.model, {**self._fixed, **parameters}, args, kwargs)

    def _update(self, estimate_PE: torch.Tensor) -> None:
        for parameter, piece in zip(self._owned, self.layout.pieces, strict=True):
            parameter.grad = self.layout.view(estimate_PE, piece)
        self.optimizer.step()
        for parameter in self._owned:
            parameter.grad = None
            if parameter.untyped_storage().data_ptr() != self.fresh_PE.untyped_storage().data_ptr():
                raise RuntimeError("optimizer must change parameters in place; it replaced the storage of one")

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-for-bit resume needs, given the same arguments; a copy, which later steps leave as it is."""
        return {"round": self.round.state_dict(), "optimizer": deepcopy(self.optimizer.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.round.load_state_dict(state["round"])
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
