"""The cluster of `lossproof.impl.cluster` in several processes: its ranks shared out among them, or one for each.

For equal arguments the masks are those of one process, and the parameters up to rounding.

Legend: N ranks, H of them hosted in each of W processes; P packets, Q of them owned by hosted ranks, S of them watched;
E elements of a packet.
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

from lossproof.impl.channel import Channel
from lossproof.impl.cluster import Cluster, NamedParameters, Objective
from lossproof.impl.distributed.attachment import attach
from lossproof.impl.distributed.exchange import Exchange, ProcessChannel
from lossproof.impl.distributed.launch import hosted_ranks
from lossproof.impl.loss import Arrivals
from lossproof.impl.round import Counts, Round
from lossproof.theory.laws import Law

WATCHED_PACKETS = 64


class _Peers:
    """What is asked of all processes of a cluster, and what an observer of the drift sees of it."""

    ranks: int
    exchange: Exchange
    round: Any  # the `Stages` of this process
    _owner_P: torch.Tensor
    _watched: tuple[int, torch.Tensor] | None = None

    def _packets(self, packet_S: torch.Tensor) -> torch.Tensor:
        """Some packets of the hosted replicas, (H, S, E)."""
        raise NotImplementedError

    def _every(self, values_H: torch.Tensor) -> torch.Tensor:
        """The values of all ranks (N, ...), which are hosted by turns, from those of all processes."""
        return self.exchange.every(values_H).transpose(0, 1).flatten(0, 1)

    def agreed(self, wish: bool) -> bool:
        """Whether any process wishes it: Ctrl-C may reach them in different steps."""
        return bool(self.exchange.total(torch.tensor([float(wish)], device=self._owner_P.device)))

    @property
    def counts(self) -> Counts:
        every = [asdict(counts) for counts in self.exchange.objects(self.round.counts)]
        return Counts(**{name: sum(counts[name] for counts in every) for name in every[0]})

    @property
    def _watched_S(self) -> torch.Tensor:
        packets = len(self._owner_P)
        sample = torch.linspace(0, packets - 1, min(WATCHED_PACKETS, packets)).long()
        return sample.to(self._owner_P.device)

    @property
    def owner_P(self) -> tuple[int, ...]:
        return tuple(self._owner_P[self._watched_S].tolist())

    @property
    def replicas_NPE(self) -> torch.Tensor:
        step = self.round.step_number
        if self._watched is None or self._watched[0] != step:
            self._watched = step, self._every(self._packets(self._watched_S))
        return self._watched[1]

    @property
    def fresh_PE(self) -> torch.Tensor:
        owner_S = self._owner_P[self._watched_S]
        return self.replicas_NPE[owner_S, torch.arange(len(owner_S), device=owner_S.device)]


class HostedChannel(ProcessChannel):
    """One process's end of a simulated network: the packets of all its ranks travel, those for its own included."""

    def __init__(self, exchange: Exchange, arrivals: Arrivals) -> None:
        super().__init__(exchange, arrivals)
        self.ranks = arrivals.ranks
        self._received_NQE: torch.Tensor | None = None

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        W, (_, _, E) = self.exchange.ranks, payload_HPE.shape
        if self._received_NQE is None:
            self._received_NQE = payload_HPE.new_empty(self.ranks, len(self.exchange.own_Q), E)
        for h, payload_PE in enumerate(payload_HPE):  # one rank of each process at a time: ranks hW to hW + W - 1
            self._received_NQE[h * W : (h + 1) * W] = self.exchange.collect(payload_PE)
        return self._received_NQE, self.arrivals.gradients(step)


class _AgreedRound(Round):
    """A round that fails in all processes if in one: who cannot aggregate must not leave the others waiting."""

    channel: HostedChannel

    def reduce(self, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found, problem = None, None
        try:
            found = super().reduce(payload_HPE)
        except ValueError as error:
            problem = error
        exchange = self.channel.exchange
        if exchange.total(payload_HPE.new_tensor([problem is not None])):
            raise next(filter(None, exchange.objects(problem)))
        assert found
        return found


class HostedCluster(_Peers, Cluster):
    """N ranks in the W processes of the default group, each of which hosts N/W of them and has their replicas only.

    Made by all processes together, with the arguments of `Cluster`; all of them call every method with the same
    arguments, and what it returns is the same on all.
    `fresh_PE`, `replicas_NPE` and `owner_P` are of a sample of packets: what an observer of the drift sees.
    """

    _round_kind = _AgreedRound

    def _hosts(self, owner_P: torch.Tensor) -> range:
        group = dist.group.WORLD
        assert group is not None
        hosted = hosted_ranks(self.ranks, group.size(), group.rank())
        self._owner_P, self.exchange = owner_P, Exchange(owner_P % group.size(), group)
        return hosted

    def _channel(self, arrivals: Arrivals, device: torch.device) -> Channel:
        return HostedChannel(self.exchange, arrivals)

    def _gathered(self, fresh_QE: torch.Tensor) -> torch.Tensor:
        return self.exchange.gather(fresh_QE)

    def _packets(self, packet_S: torch.Tensor) -> torch.Tensor:
        return self.replicas_HPE[:, packet_S]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._watched = None


class ProcessCluster(_Peers):
    """This rank's replica of a model that all ranks of the default process group train over lossy links, under DDP.

    Made by all ranks together, with the arguments of `Cluster` but `chunk` (`options`, such as a channel in place of
    the law, go to `attach`); all of them call every method, and what it returns is the same on all.
    `fresh_PE`, `replicas_NPE` and `owner_P` are of a sample of packets: what an observer of the drift sees.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        objective: Objective,
        optimizer: Callable[[NamedParameters], torch.optim.Optimizer],
        law: Law | None,
        ranks: int,
        **options: Any,
    ) -> None:
        if ranks != dist.get_world_size():
            raise ValueError(f"ranks must be the number of processes, {dist.get_world_size()}, got {ranks}")
        self.model, self.objective, self.law, self.ranks = model, objective, law, ranks
        self.optimizer = optimizer([(name, p) for name, p in model.named_parameters() if p.requires_grad])
        self.ddp = DistributedDataParallel(model)
        self.ddp.broadcast_buffers = False  # a language model's are constants
        self.attachment = attach(self.ddp, self.optimizer, law, drift_every=0, log_every=0, **options)
        self.round, self.exchange = self.attachment.stages, self.attachment.exchange
        self._owner_P = self.exchange.owner_P
        self._fresh: tuple[int, dict[str, torch.Tensor]] | None = None

    def step(self, batch_N: torch.Tensor) -> torch.Tensor:
        """One round of training; the losses of all ranks (N,)."""
        self.optimizer.zero_grad()
        loss = self.objective(self.ddp, batch_N[self.exchange.rank])
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return self._every(loss.detach().reshape(1))

    @torch.no_grad()
    def evaluate(self, batch: Any) -> torch.Tensor:
        """The loss of every replica, then of the owners' model, on one and the same batch: (N + 1,)."""
        if self._fresh is None or self._fresh[0] != self.round.step_number:
            self._fresh = self.round.step_number, self.attachment.owners_model()
        owners = self.objective(partial(self._call, self._fresh[1]), batch)
        return torch.cat([self._every(self.objective(self.model, batch).reshape(1)), owners.reshape(1)])

    def _packets(self, packet_S: torch.Tensor) -> torch.Tensor:
        packed_PE = self.attachment.layout.pack([p.detach() for p in self.attachment.parameters])
        return packed_PE[None, packet_S]

    def _call(self, parameters: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.model, parameters, args, kwargs)

    def state_dict(self) -> dict[str, Any]:
        """This rank's part of what a bit-for-bit resume needs."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._watched = self._fresh = None
