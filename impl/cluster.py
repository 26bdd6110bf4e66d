"""N ranks that really train, in one process: each has its own stale replica and takes its gradient there.

The forward and backward passes of all replicas are one vectorised call (`torch.func.vmap`). Memory: every replica costs
its parameters, its gradients twice (as tensors, as packets) and its activations; the owners' copy and the optimizer's
state exist once. `chunk` bounds the activations to that many replicas at a time and changes no digit.

Legend: N ranks, H of them hosted in this process (here all); P packets, Q of them owned by hosted ranks; E elements of
a packet.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch.func import functional_call, grad_and_value, vmap
from torch.utils._pytree import tree_map

from lossproof.impl.aggregate import NoSurvivor, Rule
from lossproof.impl.channel import Channel, SimulatedChannel
from lossproof.impl.layout import Layout, LayoutKind, Piece
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

        owner_P = torch.tensor(self.layout.owner_P, device=device)
        self.hosted = self._hosts(owner_P)
        arrivals = Arrivals(law, self.layout.owner_P, ranks, seed, own_link, self.hosted)
        self.round = self._round_kind.in_process(
            self.layout.pack([p.detach() for _, p in named]),
            owner_P,
            self._channel(arrivals, device),
            self.hosted,
            rule=rule,
            no_survivor=no_survivor,
            arrival_probability_NQ=arrivals.gradient_probability() if rule == "inverse_probability" else None,
        )
        self._payload_HPE = torch.zeros_like(self.replicas_HPE)
        self._places: dict[torch.nn.Parameter, Piece] = {}
        self._owned = self._held()
        self.optimizer = optimizer(list(zip(self._owned_names(), self._owned, strict=True)))
        self._gradients = vmap(
            grad_and_value(self._loss), in_dims=(0, 0), randomness="different", chunk_size=self.chunk
        )

    # What a cluster in several processes does in another way: see `lossproof.impl.distributed.cluster` ---------------

    _round_kind = Round

    def _hosts(self, owner_P: torch.Tensor) -> range:
        """The ranks hosted in this process."""
        return range(self.ranks)

    def _channel(self, arrivals: Arrivals, device: torch.device) -> Channel:
        return SimulatedChannel(arrivals, device)

    def _gathered(self, fresh_QE: torch.Tensor) -> torch.Tensor:
        """The owners' packets (P, E) from those of all processes."""
        return fresh_QE

    def _every(self, values_H: torch.Tensor) -> torch.Tensor:
        """The values of all ranks (N, ...) from those of all processes."""
        return values_H

    # -----------------------------------------------------------------------------------------------------------------

    def _held(self) -> list[torch.nn.Parameter]:
        """What the optimizer holds of all pieces: of hosted ranks' their part of the owned packets, noted in `_places`;
        in place of any other a constant of its shape, which takes no memory and never gets a gradient."""
        fresh_QE, E = self.round.fresh_QE, self.layout.packet_elements
        before_P = [0, *accumulate(owner in self.hosted for owner in self.layout.owner_P)]  # own packets before each
        held = []
        for piece in self.layout.pieces:
            if piece.owner in self.hosted:
                packet, offset = divmod(piece.position, E)
                here = replace(piece, position=before_P[packet] * E + offset)
                held.append(torch.nn.Parameter(self.layout.view(fresh_QE, here)))
                self._places[held[-1]] = here
            else:
                held.append(torch.nn.Parameter(fresh_QE.new_zeros(()).expand(piece.shape)))
        return held

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
        """The replicas of all ranks."""
        return self.replicas_HPE

    @property
    def replicas_HPE(self) -> torch.Tensor:
        """What each hosted rank computes its gradients at."""
        return self.round.replicas_HPE

    def owners_model(self) -> dict[str, torch.Tensor]:
        """The owners' parameters by name, for `model.load_state_dict(..., strict=False)`; copies."""
        fresh = self.layout.unpack(self._gathered(self.round.fresh_QE))
        return {name: value.clone() for name, value in zip(self._names, fresh, strict=True)}

    def gradients(self, batch_H: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Hosted ranks' gradients at their replicas, packed (H, P, E), and losses (H,). The buffer is used again."""
        gradients, losses_H = self._gradients(self._parameters(self.replicas_HPE), batch_H)
        self.layout.pack([gradients[name] for name in self._names], out=self._payload_HPE)
        return self._payload_HPE, losses_H

    def step(self, batch_N: Any) -> torch.Tensor:
        """One round of training; `batch_N` is a tensor or a pytree of tensors with leading dimension N. Losses (N,)."""
        batch_H = tree_map(lambda values_N: values_N[self.hosted.start :: self.hosted.step], batch_N)
        payload_HPE, losses_H = self.gradients(batch_H)
        self.round.step(payload_HPE, self._update)
        return self._every(losses_H)

    @torch.no_grad()
    def evaluate(self, batch: Any) -> torch.Tensor:
        """The loss of every replica, then of the owners' model, on one and the same batch: (N + 1,)."""
        loss = vmap(self._loss, in_dims=(0, None), randomness="different", chunk_size=self.chunk)
        owners_1PE = self._gathered(self.round.fresh_QE)[None]
        replicas_H, owners_1 = (loss(self._parameters(models), batch) for models in (self.replicas_HPE, owners_1PE))
        return torch.cat([self._every(replicas_H), owners_1])

    def _parameters(self, packets: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(self._names, self.layout.unpack(packets), strict=True))

    def _loss(self, parameters: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
        return self.objective(partial(self._call, parameters), batch)

    def _call(self, parameters: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.model, {**self._fixed, **parameters}, args, kwargs)

    def _update(self, estimate_QE: torch.Tensor) -> None:
        for parameter, piece in self._places.items():
            parameter.grad = self.layout.view(estimate_QE, piece)
        self.optimizer.step()
        for parameter in self._places:
            parameter.grad = None
            if parameter.untyped_storage().data_ptr() != self.round.fresh_QE.untyped_storage().data_ptr():
                raise RuntimeError("optimizer must change parameters in place; it replaced the storage of one")

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-for-bit resume needs, given the same arguments; a copy, which later steps leave as it is."""
        return {"round": self.round.state_dict(), "optimizer": deepcopy(self.optimizer.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.round.load_state_dict(state["round"])
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
