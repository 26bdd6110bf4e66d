"""Packets between the ranks of a process group, reliably: what the simulated losses and a resync travel over.

Legend: N ranks; P packets, Q of them owned by this rank; E elements of a packet.
"""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_map_only

from lossproof.impl.loss import Arrivals


class RankLost(RuntimeError):
    """A rank of the group did not answer: it died, or was stopped for longer than the group's timeout."""


class Exchange:
    """A reduce-scatter without the reduction, in portions, and an all-gather of unequal shards.

    Args:
        owner_P: the owner of each packet, on the device of the packets.
        group: the process group; every method is called by all its ranks, in the same order.
    """

    def __init__(self, owner_P: torch.Tensor, group: dist.ProcessGroup) -> None:
        self.group, self.ranks, self.rank = group, group.size(), group.rank()
        self.owner_P = owner_P
        self.own_Q = (owner_P == self.rank).nonzero().squeeze(-1)
        self.place_P = torch.full_like(owner_P, -1)  # of an own packet, its place among the own ones
        self.place_P[self.own_Q] = torch.arange(len(self.own_Q), device=owner_P.device)
        self._shards = [int(n) for n in torch.bincount(owner_P, minlength=self.ranks)]
        by_owner_P = owner_P.argsort(stable=True)
        self._position_P = by_owner_P.argsort()
        self._plans: dict[tuple[range, ...], tuple[torch.Tensor, list[int], torch.Tensor]] = {}
        self._buffers: dict[Any, torch.Tensor] = {}
        self._under_way: list[tuple[Any, torch.Tensor, torch.Tensor]] = []
        self._sent = 0
        # a channel's own way for small values, where the group's (TCP) would wait for retransmissions
        self.small: Callable[[torch.Tensor], tuple[torch.Tensor, Any] | None] | None = None

    def send(self, payload_PE: torch.Tensor, packets: Sequence[range]) -> None:
        """Starts to send these packets of the payload to their owners; a packet is sent once between two `collect`."""
        portion, E = tuple(packets), payload_PE.shape[1]
        order, to_each, place = self._plan(portion)
        outgoing = self._buffer(("out", portion), payload_PE, len(order), E)
        torch.index_select(payload_PE, 0, order, out=outgoing)
        incoming = self._buffer(("in", portion), payload_PE, self.ranks * len(place), E)
        work = self._start(
            dist.all_to_all_single, incoming, outgoing, [len(place)] * self.ranks, to_each, group=self.group
        )
        self._under_way.append((work, incoming, place))
        self._sent += len(order)

    def collect(self, payload_PE: torch.Tensor) -> torch.Tensor:
        """What every rank sent of this rank's packets since the last `collect`, (N, Q, E); sends all if none was.

        The buffer is used again.
        """
        if not self._sent:
            self.send(payload_PE, [range(len(self.owner_P))])
        if self._sent != len(self.owner_P):
            raise RuntimeError(f"{self._sent} of {len(self.owner_P)} packets were sent before they were collected")
        received_NQE = self._buffer("received", payload_PE, self.ranks, len(self.own_Q), payload_PE.shape[1])
        for work, incoming, place in self._under_way:
            self._wait(work)
            received_NQE[:, place] = incoming.view(self.ranks, len(place), payload_PE.shape[1])
        self.forget()
        return received_NQE

    def forget(self) -> None:
        """Drops what is under way: after an error."""
        self._under_way, self._sent = [], 0

    def gather(self, fresh_QE: torch.Tensor) -> torch.Tensor:
        """The packets of all owners, (P, E), from each owner's (Q, E)."""
        by_owner_PE = self._buffer("by owner", fresh_QE, len(self.owner_P), fresh_QE.shape[1])
        shards: tuple[torch.Tensor, ...] = torch.split(by_owner_PE, self._shards)
        shards[self.rank].copy_(fresh_QE)
        works = [
            self._start(dist.broadcast, shard, group=self.group, group_src=owner)
            for owner, shard in enumerate(shards)
            if len(shard)
        ]
        for work in works:
            self._wait(work)
        return by_owner_PE[self._position_P]

    def spread(self, values: torch.Tensor) -> None:
        """Rank 0's values to all ranks, in place: a broadcast."""
        self._wait(self._start(dist.broadcast, values, group=self.group, group_src=0))

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place: an all-reduce. Ranks that a channel has given up count as zero."""
        if self.small and (found := self.small(values)):
            return values.copy_(found[0].sum(0))
        self._wait(self._start(dist.all_reduce, values, group=self.group))
        return values

    def every(self, values: torch.Tensor, to: int | None = None) -> torch.Tensor:
        """All ranks' tensors of one shape, stacked: an all-gather, or a gather on rank `to`; others get none.

        Of ranks that a channel has given up there is NaN, or 0 of integers.
        """
        if to is None and self.small and (found := self.small(values)):
            rows, there_N = found
            if rows.is_floating_point():
                rows[torch.from_numpy(~there_N)] = torch.nan
            return rows
        return self._gathered(values, to)

    def _gathered(self, values: torch.Tensor, to: int | None = None) -> torch.Tensor:
        parts = [torch.empty_like(values) for _ in range(self.ranks if to in (None, self.rank) else 0)]
        if to is None:
            self._wait(self._start(dist.all_gather, parts, values.contiguous(), group=self.group))
        else:
            self._wait(self._start(dist.gather, values.contiguous(), parts or None, group=self.group, group_dst=to))
        return torch.stack(parts) if parts else values.new_empty(0, *values.shape)

    def objects(self, value: Any, to: int | None = None) -> list[Any]:
        """All ranks' values, Python objects: an all-gather, or a gather on rank `to`; elsewhere an empty list."""
        bytes_B = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8).to(self.owner_P.device)
        sizes = self._gathered(torch.tensor([len(bytes_B)], device=bytes_B.device)).flatten().tolist()
        padded_B = bytes_B.new_zeros(max(sizes))
        padded_B[: len(bytes_B)] = bytes_B
        every = self._gathered(padded_B, to).cpu().numpy()
        return [pickle.loads(row[:size].tobytes()) for row, size in zip(every, sizes, strict=False)]

    def run(self, collective: Any, *args: Any, **options: Any) -> None:
        """Any collective, waited for: `RankLost` if it fails."""
        self._wait(self._start(collective, *args, **options))

    def _start(self, collective: Any, *args: Any, **options: Any) -> Any:
        try:
            return _UnderWay(collective, *args, **options)
        except RuntimeError as error:
            raise self._lost(error) from error

    def _wait(self, work: Any) -> None:
        try:
            work.wait()
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> RankLost:
        self.forget()
        return RankLost(
            f"rank {self.rank} of {self.ranks} waited for packets that never came: another rank died, or did not "
            f"answer within the group's timeout ({' '.join(str(error).split())[:200]})"
        )

    def _buffer(self, key: Any, like: torch.Tensor, *shape: int) -> torch.Tensor:
        """A buffer kept from step to step: fresh pages cost as much as the copies into them."""
        kept = self._buffers.get(key)
        if kept is None or kept.shape != shape or kept.dtype != like.dtype:
            kept = self._buffers[key] = like.new_empty(shape)
        return kept

    def _plan(self, packets: tuple[range, ...]) -> tuple[torch.Tensor, list[int], torch.Tensor]:
        """For a portion: its packets by owner, how many go to each, and the places of those that come here."""
        if packets not in self._plans:
            chosen = torch.cat([torch.arange(part.start, part.stop) for part in packets]).to(self.owner_P.device)
            owner = self.owner_P[chosen]
            order = chosen[owner.argsort(stable=True)]
            to_each = [int(n) for n in torch.bincount(owner, minlength=self.ranks)]
            self._plans[packets] = order, to_each, self.place_P[chosen[owner == self.rank]]
        return self._plans[packets]


class _UnderWay:
    """A collective that was started, and the tensors that the group holds for it, made for it alone.

    A thread of gloo says that the work is done before it lets go of the tensors, and it takes the GIL for that: a
    process that ends in between is aborted. So waiting is also waiting for the thread to let go.
    """

    patience = 10.0  # seconds; then somebody else keeps the tensors, which does no harm and is not waited for again

    def __init__(self, collective: Any, *args: Any, **options: Any) -> None:
        self._gone: SimpleQueue[Any] = SimpleQueue()
        self._held: list[weakref.ref[torch.Tensor]] = []
        self._work = collective(*tree_map_only(torch.Tensor, self._alias, args), **options, async_op=True)

    def wait(self) -> None:
        self._work.wait()
        self._work = None
        try:
            for _ in self._held:
                self._gone.get(timeout=_UnderWay.patience)
        except Empty:
            _UnderWay.patience = 0.0

    def _alias(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "cpu":
            return tensor  # what these wait for is not a thread
        alias = tensor.detach()
        self._held.append(weakref.ref(alias, self._gone.put))  # in C from end to end: no thread switch within
        return alias


class ProcessChannel:
    """One rank's end of a lossy network simulated on a process group: all travels, and `Arrivals` says what was lost.

    Equal seed, layout and packet size give the masks of `SimulatedChannel`.
    """

    def __init__(self, exchange: Exchange, arrivals: Arrivals) -> None:
        self.exchange, self.arrivals, self.ranks = exchange, arrivals.to(exchange.owner_P.device), exchange.ranks

    def send(self, payload_1PE: torch.Tensor, packets: Sequence[range]) -> None:
        """Starts sending a portion of the gradients early, while others are still being computed."""
        self.exchange.send(payload_1PE[0], packets)

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        received_NQE = self.exchange.collect(payload_HPE[0])
        return received_NQE, self.arrivals.gradients(step)

    def parameters(self, step: int, fresh_QE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        received_PE = self.exchange.gather(fresh_QE)
        return received_PE, self.arrivals.parameters(step)

    @property
    def independent(self) -> bool:
        """Whether every packet is lost by itself, so that the probability of no loss is a plain product."""
        return self.arrivals.memoryless and getattr(self.arrivals.law, "independent_links", True)

    def skip(self, step: int) -> None:
        """The parameter phase of a step that sends nothing: the links' clocks tick all the same."""
        self.arrivals.parameters(step)

    def state_dict(self) -> dict[str, Any]:
        return self.arrivals.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.arrivals.load_state_dict(state)
