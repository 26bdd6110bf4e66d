"""A round whose rule is inverse probability around the last message received, made of `aggregate` and a memory (D6).

It is no rule of `impl`, for it does not earn its state there: see claim D6.

Legend: N ranks, P packets, E elements, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lossproof.impl.channel import Channel
from lossproof.impl.round import Round


class Remembering(Round):
    """A round whose estimate is mean(h) + (1/N) sum m_i (g_i - h_i)/q_i; all ranks are hosted by this process.

    h_i is the gradient packet last received from rank i, zeros before the first: N packets of state for each packet
    owned. Pass `arrival_probability_NQ`; the rule is always inverse probability, of the changes.
    """

    memory_NPE: torch.Tensor | None = None

    def reduce(self, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.memory_NPE is None:
            self.memory_NPE = torch.zeros_like(payload_HPE)
        change_PE, count_P = super().reduce(payload_HPE - self.memory_NPE)
        estimate_PE = change_PE + self.memory_NPE.mean(0)
        self.memory_NPE = remembered(self.memory_NPE, payload_HPE, self.arrived["gradients"])
        return estimate_PE, count_P

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"memory": None if self.memory_NPE is None else self.memory_NPE.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.memory_NPE = None if state["memory"] is None else state["memory"].clone()


def remembered(memory_NPE: torch.Tensor, payload_NPE: torch.Tensor, arrived_NP: torch.Tensor) -> torch.Tensor:
    """The memory after a step: what arrived replaces what was remembered of its sender."""
    return torch.where(arrived_NP[:, :, None], payload_NPE, memory_NPE)


def estimates(channel: Channel, gradients_TNPE: torch.Tensor, q_NP: torch.Tensor, memory_NPE: Any = None) -> Any:
    """The estimates (T, P, E) of a sequence of gradients, from this memory or none; rank 0 owns all packets."""
    round_ = _round(channel, torch.zeros_like(gradients_TNPE[0, 0]), q_NP)
    round_.memory_NPE = memory_NPE
    found: list[torch.Tensor] = []
    for payload_NPE in gradients_TNPE:
        round_.step(payload_NPE.contiguous(), lambda estimate_PE: found.append(estimate_PE.clone()))
    return torch.stack(found)


def squares(
    channel: Channel, start: float, centres: Sequence[float], noise_TNP: torch.Tensor, step: float, q_NP: torch.Tensor
) -> torch.Tensor:
    """x_T^2 (P,) of descent on (x - c_i)^2 / 2 with this noise of the gradients; no parameters are lost."""
    c_N1 = torch.tensor(centres, dtype=torch.float64)[:, None]
    round_ = _round(channel, torch.full((noise_TNP.shape[2], 1), start, dtype=torch.float64), q_NP)
    for noise_NP in noise_TNP:
        payload_NPE = (round_.replicas_HPE[..., 0] - c_N1 + noise_NP)[..., None]
        round_.step(payload_NPE, lambda estimate_PE: _descend(round_, step, estimate_PE))
    return round_.fresh_QE[:, 0].square()


def _descend(round_: Round, step: float, estimate_PE: torch.Tensor) -> None:
    round_.fresh_QE.sub_(step * estimate_PE)


def _round(channel: Channel, start_PE: torch.Tensor, q_NP: torch.Tensor) -> Remembering:
    owner_P = torch.zeros(len(start_PE), dtype=torch.long)
    round_ = Remembering.in_process(start_PE, owner_P, channel, rule="inverse_probability", arrival_probability_NQ=q_NP)
    assert isinstance(round_, Remembering)
    return round_
