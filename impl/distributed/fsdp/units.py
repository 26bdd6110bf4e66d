"""What FSDP2 moves together: the units of a model, and where their shards lie in packets.

All that is read of FSDP2 beside its public methods is read here.

Legend: N ranks; S elements of a rank's shard of a unit, padding included; P packets of a unit, Q of them owned by this
rank; E elements of a packet; R rows of a gathered tensor, one for each rank that it was gathered from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from lossproof.impl.layout import Layout


@dataclass(frozen=True)
class Slot:
    """Where a parameter lies: all its shards, and its packets.

    Attributes:
        gathered, reduced: where it begins in a rank's shard, of the parameters and of the gradients, which a frozen one
            has not.
        padded: elements of a rank's shard of it.
        first: its first packet in the unit. per_owner: packets of a whole chunk.
        whole: how many ranks have a whole chunk. rest: elements of the rank after them; the others have none.
    """

    gathered: int
    reduced: int
    padded: int
    first: int
    per_owner: int
    whole: int
    rest: int

    def held(self, rank: int) -> int:
        """Elements of this rank's shard, padding not counted."""
        return self.padded if rank < self.whole else self.rest if rank == self.whole else 0


@dataclass(frozen=True)
class Unit:
    """The parameters of one FSDP module (or of a list of them), which travel together.

    Attributes:
        module: takes the collectives. groups: FSDP2's own record of the unit, of which there is one.
        names: the trainable parameters; numbers: of these in the layout; slots: of these in the unit.
        packet_P: its packets' numbers in the layout. frozen: whether other parameters travel with them.
        shard, reduced_shard: S, of the parameters and of the gradients.
    """

    module: FSDPModule
    record: Any
    names: tuple[str, ...]
    slots: tuple[Slot, ...]
    packet_P: torch.Tensor
    frozen: bool
    shard: int
    reduced_shard: int
    ranks: int
    packet_elements: int

    @property
    def sharded_parameters(self) -> list[torch.nn.Parameter]:
        return [of.sharded_param for of in self.record.fsdp_params if of.sharded_param.requires_grad]

    def accumulates(self) -> bool:
        """Whether gradients that were reduced before are still there to be added to."""
        partial = self.record._partial_reduce_output is not None  # on a hybrid mesh, before the all-reduce
        return partial or any(parameter.grad is not None for parameter in self.sharded_parameters)

    def shards(self, dtype: torch.dtype) -> torch.Tensor:
        """This rank's shards as FSDP2 gathers them, (S,)."""
        return torch.cat([of._sharded_param_data.detach().to(dtype) for of in self.record.fsdp_params])

    def gather_dtype(self) -> torch.dtype:
        policy, parameter = self.record.mp_policy, self.record.fsdp_params[0].sharded_param
        found: torch.dtype = policy.param_dtype or parameter.dtype
        return found

    def pack(self, gathered_NS: torch.Tensor) -> torch.Tensor:
        """The packets (P, E) of all ranks' shards; the padding of short packets is zero."""
        E = self.packet_elements
        packets_PE = gathered_NS.new_zeros(len(self.packet_P), E)
        for slot in self.slots:
            source_NS = gathered_NS[:, slot.gathered : slot.gathered + slot.padded]
            whole, rest = self._parts(packets_PE, slot)
            whole.copy_(source_NS[: slot.whole])
            if slot.rest:
                rest.copy_(source_NS[slot.whole, : slot.rest])
        return packets_PE

    def unpack(self, packets_PE: torch.Tensor, gathered_RS: torch.Tensor) -> None:
        """The reverse, into what was gathered from any number of ranks; padding stays as it is."""
        R, N = len(gathered_RS), self.ranks
        for slot in self.slots:
            target = gathered_RS[:, slot.gathered * N // R : (slot.gathered + slot.padded) * N // R]
            rows_NS = target if R == N else packets_PE.new_zeros(N, slot.padded)
            whole, rest = self._parts(packets_PE, slot)
            rows_NS[: slot.whole].copy_(whole)
            if slot.rest:
                rows_NS[slot.whole, : slot.rest].copy_(rest)
            if R != N:
                target.copy_(rows_NS.view(R, -1))

    def pack_own(self, received_NS: torch.Tensor, rank: int, own: int) -> torch.Tensor:
        """What every rank sent of this rank's shard of the gradients, in packets (N, Q, E)."""
        E, place = self.packet_elements, 0
        packets_NQE = received_NS.new_zeros(len(received_NS), own, E)
        flat = packets_NQE.view(len(received_NS), -1)
        for slot in self.slots:
            held = slot.held(rank)
            flat[:, place : place + held] = received_NS[:, slot.reduced : slot.reduced + held]
            place += -(-held // E) * E
        return packets_NQE

    def unpack_own(self, packets_QE: torch.Tensor, rank: int, shard_S: torch.Tensor) -> None:
        """This rank's packets of the gradients into its shard; padding becomes zero."""
        flat, place = packets_QE.reshape(-1), 0
        shard_S.zero_()
        for slot in self.slots:
            held = slot.held(rank)
            shard_S[slot.reduced : slot.reduced + held] = flat[place : place + held]
            place += -(-held // self.packet_elements) * self.packet_elements

    def _parts(self, packets_PE: torch.Tensor, slot: Slot) -> tuple[torch.Tensor, torch.Tensor]:
        """A parameter's part of the packets: of the ranks with whole chunks, (ranks, elements), and of the next one."""
        end = slot.first + slot.whole * slot.per_owner
        whole = packets_PE[slot.first : end].view(slot.whole, -1)[:, : slot.padded]
        return whole, packets_PE[end:].view(-1)[: slot.rest]


def records(model: FSDPModule) -> list[tuple[FSDPModule, Any]]:
    """The FSDP modules that hold parameters, once each, with FSDP2's records of their units."""
    found: list[tuple[FSDPModule, Any]] = []
    seen = set()
    for module in model.modules():  # type: ignore[attr-defined]
        if not isinstance(module, FSDPModule):
            continue
        state = module._get_fsdp_state()
        if id(state) not in seen:
            seen.add(id(state))
            found += [(module, record) for record in state._fsdp_param_groups]
    return found


def make_units(model: FSDPModule, names: Sequence[str], layout: Layout, rank: int) -> list[Unit]:
    """The units with trainable parameters; `names` in the layout's order."""
    parameters = dict(model.named_parameters())  # type: ignore[attr-defined]
    number_of = {id(parameters[name]): number for number, name in enumerate(names)}
    pieces_of: dict[int, list[Any]] = {}
    for piece in layout.pieces:
        pieces_of.setdefault(piece.parameter, []).append(piece)
    units, E = [], layout.packet_elements
    for module, record in records(model):
        sizes = [of.padded_sharded_param_size.numel() for of in record.fsdp_params]
        offsets = [0, *accumulate(sizes)]
        slots: list[Slot] = []
        numbers, packets, reduced, first = [], [], 0, 0
        for of, size, gathered in zip(record.fsdp_params, sizes, offsets[:-1], strict=True):
            number = number_of.get(id(of.sharded_param))
            if number is None:
                continue
            pieces = pieces_of[number]
            lengths = [piece.stop - piece.start for piece in pieces]
            rest = lengths[-1] if lengths[-1] < lengths[0] else 0
            assert lengths[0] == size, (names[number], lengths, size)
            begin, count = pieces[0].position // E, sum(-(-length // E) for length in lengths)
            slots.append(Slot(gathered, reduced, size, first, -(-size // E), len(lengths) - bool(rest), rest))
            packets.append(torch.arange(begin, begin + count))
            numbers.append(number)
            reduced, first = reduced + size, first + count
        if slots:
            units.append(
                Unit(module, record, tuple(names[n] for n in numbers), tuple(slots), torch.cat(packets),
                     len(slots) < len(sizes), offsets[-1], reduced, layout.ranks, E)
            )  # fmt: skip
    return units
