"""One round: gradients -> channel -> aggregate -> optimizer step on owned packets -> channel -> retain.

Legend: N ranks; H hosted here; P packets, Q of them owned here; E elements of a packet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch

from lossproof.impl.aggregate import NoSurvivor, Rule, aggregate
from lossproof.impl.channel import Channel
from lossproof.impl.retain import DriftSums, retain, retain_and_measure
from lossproof.theory.laws import Phase


@dataclass
class Counts:
    """Packets since the start, a rank's messages to itself excepted; and gradient packets without a survivor."""

    gradients_offered: int = 0
    gradients_lost: int = 0
    parameters_offered: int = 0
    parameters_lost: int = 0
    no_survivor: int = 0


class Stages:
    """The two stages of the hosted ranks, and what they remember between steps: the step, the counts, the estimate.

    Args:
        owner_Q: the rank that owns each of the packets owned here.
        own_HP: bool, whether packet p is hosted rank h's own.
        channel: how packets travel.
        rule, no_survivor: see `aggregate`.
        arrival_probability_NQ: for `inverse_probability`.
        non_finite: see `aggregate`.
    """

    def __init__(
        self,
        owner_Q: torch.Tensor,
        own_HP: torch.Tensor,
        channel: Channel,
        rule: Rule = "survivor_mean",
        no_survivor: NoSurvivor = "zero",
        arrival_probability_NQ: torch.Tensor | None = None,
        non_finite: Literal["raise", "carry"] = "raise",
    ) -> None:
        self.channel, self.rule, self.no_survivor, self.non_finite = channel, rule, no_survivor, non_finite
        self.step_number = 0
        self.counts = Counts()
        self._own_HP, self._owner_Q, self._arrival_probability_NQ = own_HP, owner_Q, arrival_probability_NQ
        self._own_NQ = torch.arange(channel.ranks, device=owner_Q.device)[:, None] == owner_Q
        self._estimate_QE: torch.Tensor | None = None
        self.measures = False
        """Whether `broadcast` also measures the drift that it leaves; on a GPU that costs no pass of its own."""
        self.drift: DriftSums | None = None
        """What it measured in the latest step, where all receivers share the owners' packets."""
        self.arrived: dict[Phase, torch.Tensor] = {}
        """The latest mask of each phase, for whoever counts by link."""

    def reduce(self, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stage 1 of this step: the owners' estimates (Q, E) of the mean gradient, and K of each packet."""
        received_NQE, arrived_NQ = self.channel.gradients(self.step_number, payload_HPE)
        if self._estimate_QE is None and self.no_survivor == "hold":
            self._estimate_QE = torch.zeros_like(received_NQE[0])
        estimate_QE, count_Q = aggregate(
            received_NQE,
            arrived_NQ,
            self.rule,
            no_survivor=self.no_survivor,
            arrival_probability_N=self._arrival_probability_NQ,
            previous_PE=self._estimate_QE,
            owner=self._owner_Q,
            non_finite=self.non_finite,
        )
        if self.no_survivor == "hold":
            self._estimate_QE = estimate_QE.clone()
        self.arrived["gradients"] = arrived_NQ
        self.counts.gradients_offered += int((~self._own_NQ).sum())
        self.counts.gradients_lost += int((~arrived_NQ & ~self._own_NQ).sum())
        self.counts.no_survivor += int((count_Q == 0).sum())
        return estimate_QE, count_Q

    def broadcast(self, stale_HPE: torch.Tensor, fresh_QE: torch.Tensor) -> torch.Tensor:
        """Stage 2 of this step, which ends it: the replicas (H, P, E) after the broadcast of the owners' packets."""
        received_PE, arrived_HP = self.channel.parameters(self.step_number, fresh_QE)
        if self.measures and received_PE.ndim == 2:
            replicas_HPE, _, self.drift = retain_and_measure(stale_HPE, received_PE, arrived_HP)
        else:
            replicas_HPE = retain(stale_HPE, received_PE, arrived_HP)
        self.arrived["parameters"] = arrived_HP
        self.counts.parameters_offered += int((~self._own_HP).sum())
        self.counts.parameters_lost += int((~arrived_HP & ~self._own_HP).sum())
        self.step_number += 1
        return replicas_HPE

    def state_dict(self) -> dict[str, Any]:
        return {
            "estimate": None if self._estimate_QE is None else self._estimate_QE.clone(),
            "step_number": self.step_number,
            "counts": asdict(self.counts),
            "channel": self.channel.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        held = state["estimate"]
        self._estimate_QE = None if held is None else held.to(self._owner_Q.device, copy=True)
        self.step_number = state["step_number"]
        self.counts = Counts(**state["counts"])
        self.channel.load_state_dict(state["channel"])


class Round(Stages):
    """The protocol of the hosted ranks with the parameters that it moves: the owners' packets and the replicas.

    Args:
        fresh_QE: the owners' packets; the round reads this tensor and `update` changes it in place.
        start_PE: the parameters that all replicas start from (`fresh_QE` itself when all packets are owned here).
        owner_Q, own_HP, channel, options: see `Stages`.
    """

    def __init__(
        self,
        fresh_QE: torch.Tensor,
        owner_Q: torch.Tensor,
        start_PE: torch.Tensor,
        own_HP: torch.Tensor,
        channel: Channel,
        **options: Any,
    ) -> None:
        super().__init__(owner_Q, own_HP, channel, **options)
        self.fresh_QE = fresh_QE
        self.replicas_HPE = start_PE.repeat(own_HP.shape[0], 1, 1)

    @classmethod
    def in_process(
        cls,
        start_PE: torch.Tensor,
        owner_P: torch.Tensor,
        channel: Channel,
        hosted: range | None = None,
        **options: Any,
    ) -> Self:
        """The round of a process that hosts these ranks, all of them by default; `start_PE` is copied."""
        owner_P = owner_P.to(start_PE.device)
        rank_H = torch.tensor(range(channel.ranks) if hosted is None else hosted, device=start_PE.device)
        own_HP = rank_H[:, None] == owner_P
        own_P = own_HP.any(0)
        return cls(start_PE[own_P], owner_P[own_P], start_PE, own_HP, channel, **options)

    def step(self, payload_HPE: torch.Tensor, update: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """One round; `update(estimate_QE)` is the optimizer and moves `fresh_QE` in place. Returns K of each packet."""
        estimate_QE, count_Q = self.reduce(payload_HPE)
        update(estimate_QE)
        self.replicas_HPE = self.broadcast(self.replicas_HPE, self.fresh_QE)
        return count_Q

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"fresh": self.fresh_QE.clone(), "replicas": self.replicas_HPE.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.fresh_QE.copy_(state["fresh"])
        self.replicas_HPE = state["replicas"].to(self.replicas_HPE.device, copy=True)
