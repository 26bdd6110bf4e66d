"""One round: gradients -> channel -> aggregate -> optimizer step on owned packets -> channel -> retain.

Legend: N ranks; H hosted here; P packets, Q of them owned here; E elements of a packet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lossproof.impl.aggregate import NoSurvivor, Rule, aggregate
from lossproof.impl.channel import Channel
from lossproof.impl.retain import retain


@dataclass
class Counts:
    """Packets since the start, a rank's messages to itself excepted; and gradient packets without a survivor."""

    gradients_offered: int = 0
    gradients_lost: int = 0
    parameters_offered: int = 0
    parameters_lost: int = 0
    no_survivor: int = 0


class Round:
    """The protocol of the hosted ranks: the owners' fresh packets, the replicas, and the round that moves both.

    Args:
        fresh_QE: the owners' packets; the round reads this tensor and `update` changes it in place.
        owner_Q: the rank that owns each of them.
        start_PE: the parameters that all replicas start from (`fresh_QE` itself when all packets are owned here).
        own_HP: bool, whether packet p is hosted rank h's own.
        channel: how packets travel.
        rule, no_survivor: see `aggregate`.
        arrival_probability_NQ: for `inverse_probability`.
    """

    def __init__(
        self,
        fresh_QE: torch.Tensor,
        owner_Q: torch.Tensor,
        start_PE: torch.Tensor,
        own_HP: torch.Tensor,
        channel: Channel,
        rule: Rule = "survivor_mean",
        no_survivor: NoSurvivor = "zero",
        arrival_probability_NQ: torch.Tensor | None = None,
    ) -> None:
        self.fresh_QE = fresh_QE
        self.replicas_HPE = start_PE.repeat(own_HP.shape[0], 1, 1)
        self.channel, self.rule, self.no_survivor = channel, rule, no_survivor
        self.step_number = 0
        self.counts = Counts()
        self._own_HP, self._owner_Q, self._arrival_probability_NQ = own_HP, owner_Q, arrival_probability_NQ
        self._estimate_QE = torch.zeros_like(fresh_QE)

    @classmethod
    def in_process(cls, start_PE: torch.Tensor, owner_P: torch.Tensor, channel: Channel, **options: Any) -> Round:
        """A round that hosts all ranks; `start_PE` is copied."""
        owner_P = owner_P.to(start_PE.device)
        own_NP = torch.arange(channel.ranks, device=start_PE.device)[:, None] == owner_P
        return cls(start_PE.clone(), owner_P, start_PE, own_NP, channel, **options)

    def step(self, payload_HPE: torch.Tensor, update: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """One round; `update(estimate_QE)` is the optimizer and moves `fresh_QE` in place. Returns K of each packet."""
        received_NQE, arrived_NQ = self.channel.gradients(self.step_number, payload_HPE)
        estimate_QE, count_Q = aggregate(
            received_NQE,
            arrived_NQ,
            self.rule,
            no_survivor=self.no_survivor,
            arrival_probability_N=self._arrival_probability_NQ,
            previous_PE=self._estimate_QE,
            owner=self._owner_Q,
        )
        if self.no_survivor == "hold":
            self._estimate_QE = estimate_QE.clone()
        update(estimate_QE)
        received_PE, arrived_HP = self.channel.parameters(self.step_number, self.fresh_QE)
        self.replicas_HPE = retain(self.replicas_HPE, received_PE, arrived_HP)
        self._count(arrived_NQ, count_Q, arrived_HP)
        self.step_number += 1
        return count_Q

    def _count(self, arrived_NQ: torch.Tensor, count_Q: torch.Tensor, arrived_HP: torch.Tensor) -> None:
        own_NQ = torch.arange(arrived_NQ.shape[0], device=arrived_NQ.device)[:, None] == self._owner_Q
        counts = self.counts
        counts.gradients_offered += int((~own_NQ).sum())
        counts.gradients_lost += int((~arrived_NQ & ~own_NQ).sum())
        counts.parameters_offered += int((~self._own_HP).sum())
        counts.parameters_lost += int((~arrived_HP & ~self._own_HP).sum())
        counts.no_survivor += int((count_Q == 0).sum())

    def state_dict(self) -> dict[str, Any]:
        return {
            "fresh": self.fresh_QE.clone(),
            "replicas": self.replicas_HPE.clone(),
            "estimate": self._estimate_QE.clone(),
            "step_number": self.step_number,
            "counts": asdict(self.counts),
            "channel": self.channel.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fresh_QE.copy_(state["fresh"])
        self.replicas_HPE = state["replicas"].to(self.replicas_HPE.device, copy=True)
        self._estimate_QE = state["estimate"].to(self._estimate_QE.device, copy=True)
        self.step_number = state["step_number"]
        self.counts = Counts(**state["counts"])
        self.channel.load_state_dict(state["channel"])
