"""The two collectives that FSDP2 calls for a unit, with losses: the stages of one unit on this rank.

Everything travels, reliably, in FSDP2's own layout; then the masks say what was lost, and `aggregate` and `retain` what
that leaves.

Legend: N ranks; S elements of a rank's shard of a unit; P packets of the unit, Q of them owned by this rank; E elements
of a packet; R rows of a gathered tensor, one for each rank that it was gathered from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import ReduceOp
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter

from lossproof.impl.distributed.fsdp.units import Unit
from lossproof.impl.loss import Arrivals
from lossproof.impl.retain import retain
from lossproof.impl.round import Stages

if TYPE_CHECKING:
    from lossproof.impl.distributed.fsdp.attachment import ShardedAttachment


class StepMasks:
    """The masks of a whole step, drawn once, of which every unit takes its packets.

    The parameter mask of a step is drawn when the step ends, whenever the packets travel: a law with memory wants its
    draws in order.
    """

    def __init__(self, arrivals: Arrivals) -> None:
        self.arrivals = arrivals
        self.gradients_NQ: torch.Tensor | None = None

    def gradients(self, step: int) -> torch.Tensor:
        if self.gradients_NQ is None:
            self.gradients_NQ = self.arrivals.gradients(step)
        return self.gradients_NQ

    def close(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ends the step; its masks, (N, Q) and (1, P) of the whole layout."""
        gradients_NQ, self.gradients_NQ = self.gradients(step), None
        return gradients_NQ, self.arrivals.parameters(step)


class UnitChannel:
    """A network on which all has travelled already: it adds the masks of the unit's packets.

    Attributes:
        arrived_1P: which parameter packets of the latest broadcast arrived; None for all.
    """

    def __init__(self, masks: StepMasks, ranks: int, own_Q: torch.Tensor) -> None:
        self.masks, self.ranks, self._own_Q = masks, ranks, own_Q  # own_Q: places among the layout's own packets
        self.arrived_1P: torch.Tensor | None = None

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return payload_HPE, self.masks.gradients(step)[:, self._own_Q]

    def parameters(self, step: int, fresh_QE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.arrived_1P is not None
        return fresh_QE, self.arrived_1P

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class UnitStages:
    """One unit: its stages, its stale copy, and where it stands in the step.

    Attributes:
        due: the owners have stepped, or the job begins, and nothing has been gathered since.
        delivered: gradients were reduced that no step has used. finite: whether all of them are.
        problem: why they could not be aggregated.
    """

    def __init__(self, at: ShardedAttachment, unit: Unit) -> None:
        self.at, self.unit = at, unit
        device, rank = at.exchange.owner_P.device, at.exchange.rank
        owner_P = at.exchange.owner_P[unit.packet_P.to(device)]
        self.packet_P = unit.packet_P.to(device)
        self.own_Q = (owner_P == rank).nonzero().squeeze(-1)
        self.channel = UnitChannel(at.masks, at.exchange.ranks, at.exchange.place_P[self.packet_P[self.own_Q]])
        self.stages: Stages = at.options.stages_of(at.exchange, self.packet_P, self.channel, at.arrivals)
        self.due, self.delivered, self.problem = True, False, ""
        place_P = torch.full_like(at.exchange.owner_P, -1)
        place_P[self.packet_P] = torch.arange(len(self.packet_P), device=device)
        place_S = place_P[at.telemetry.sample_S]
        self.sampled = (place_S >= 0).nonzero().squeeze(-1), place_S[place_S >= 0]  # in the sample, in the unit
        self.finite: torch.Tensor | None = None
        self._copy_PE: torch.Tensor | None = None

    # Stage 1 ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reduce(self, output_S: torch.Tensor, input: torch.Tensor, group: dist.ProcessGroup, op: Any) -> None:
        at, unit = self.at, self.unit
        if output_S.numel() != unit.reduced_shard:
            raise RuntimeError(
                f"trainable parameters among {', '.join(unit.names)} got no gradient in this backward pass, and their "
                "packets have to travel all the same: call model.set_reduce_scatter_unused_params(True)"
            )
        at.open(self)
        received = torch.empty_like(input)
        at.exchange.run(dist.all_to_all_single, received, input, group=group)
        own_NQE = unit.pack_own(received.view(at.exchange.ranks, -1), at.exchange.rank, len(self.own_Q))
        del received
        self.stages.step_number = at.step_number
        try:
            estimate_QE, _ = self.stages.reduce(own_NQE)
        except ValueError as error:  # the others must not wait for this rank: before the step all of them raise it
            self.problem, estimate_QE = str(error), torch.zeros_like(own_NQE[0])
        finite = estimate_QE.isfinite().all()
        self.finite = finite if self.finite is None else self.finite & finite
        self.delivered = True
        unit.unpack_own(estimate_QE, at.exchange.rank, output_S)
        factor = _of_mean(op, at.exchange.ranks, unit.record.gradient_divide_factor)
        if factor != 1:
            output_S.mul_(factor)

    # Stage 2 ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def gather(self, output: torch.Tensor, input_S: torch.Tensor, group: dist.ProcessGroup) -> None:
        """The replica of this step: what arrives when it is due; until the next step the same again."""
        at, unit = self.at, self.unit
        gathered_RS = output.view(group.size(), -1)
        all_ranks = group.size() == unit.ranks
        exact = self._keeps(output.dtype) == output.dtype
        if not all_ranks and (self.due or not exact):
            raise RuntimeError(
                f"the parameters {', '.join(unit.names)} were gathered from {group.size()} of {unit.ranks} ranks: "
                "after a step reshard them to all; and reshard_after_forward=int needs a stale copy in full precision"
            )
        at.before_gather()
        if not self.due and exact and all_ranks:
            self._require_untouched(input_S)
        if self.due or unit.frozen or not exact:
            at.exchange.run(dist.all_gather_single, output, input_S, group=group)
        if self.due:
            replica_PE = self._broadcast(unit.pack(gathered_RS))
            self.due = False
        elif exact:
            replica_PE = self.copy(output.dtype)
        elif self.channel.arrived_1P is None:
            return
        else:  # the copy has forgotten the last digits of what arrived; of what did not it is what was used before
            replica_PE = retain(self.copy(output.dtype), unit.pack(gathered_RS), self.channel.arrived_1P[0])
        unit.unpack(replica_PE, gathered_RS)

    def _broadcast(self, fresh_PE: torch.Tensor) -> torch.Tensor:
        replica_PE = fresh_PE
        if self.channel.arrived_1P is not None:
            self.stages.step_number = self.at.step_number - 1
            replica_PE = self.stages.broadcast(self.copy(fresh_PE.dtype)[None], fresh_PE)[0]
        self._copy_PE = None  # before there is another
        self._copy_PE = replica_PE.to(self.at.stale_device, self._keeps(fresh_PE.dtype))
        return replica_PE

    def refresh(self) -> None:
        """Gathers what is due although the unit takes no part in the forward pass."""
        shard_S = self.unit.shards(self.unit.gather_dtype())
        self.gather(shard_S.new_empty(self.unit.ranks * len(shard_S)), shard_S, self.at.exchange.group)

    def copy(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The stale copy, (P, E)."""
        assert self._copy_PE is not None
        return self._copy_PE.to(self.at.exchange.owner_P.device, dtype or self._copy_PE.dtype)

    def kept(self) -> torch.Tensor:
        """The stale copy where it is kept, to save it; before there is one, room to load it into."""
        if self._copy_PE is None:
            size, dtype = (len(self.packet_P), self.unit.packet_elements), self._keeps(self.unit.gather_dtype())
            return torch.zeros(size, dtype=dtype, device=self.at.stale_device)
        return self._copy_PE

    def keep(self, copy_PE: torch.Tensor | None) -> None:
        self._copy_PE = None if copy_PE is None else copy_PE.clone()

    @property
    def started(self) -> bool:
        return self._copy_PE is not None

    def _keeps(self, dtype: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if self.at.options.stale == "bfloat16" and dtype.itemsize > 2 else dtype

    def _require_untouched(self, input_S: torch.Tensor) -> None:
        unit, rank = self.unit, self.at.exchange.rank
        copy, E, place = self.copy(), unit.packet_elements, 0
        own = copy[self.own_Q].view(-1)
        for slot in unit.slots:
            held = slot.held(rank)
            if not torch.equal(input_S[slot.gathered : slot.gathered + held], own[place : place + held]):
                raise RuntimeError(
                    f"the parameters among {', '.join(unit.names)} have changed, but not by the step() of the attached "
                    "optimizer: call attachment.resync() on all ranks after setting them"
                )
            place += -(-held // E) * E


class LossyAllGather(AllGather):
    def __init__(self, unit: UnitStages) -> None:
        self.unit = unit

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> None:
        self.unit.gather(output_tensor, input_tensor, group)


class LossyReduceScatter(ReduceScatter):
    def __init__(self, unit: UnitStages) -> None:
        self.unit = unit

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        self.unit.reduce(output_tensor, input_tensor, group, op)


def _of_mean(op: Any, ranks: int, divide_factor: float | None) -> float:
    """What FSDP2 asks for, in units of the mean: the mean itself, the sum, or the sum over a factor of the user's."""
    if op == ReduceOp.AVG:
        return 1.0
    if op == ReduceOp.SUM:
        return float(ranks)
    assert divide_factor is not None, op
    return ranks / divide_factor
