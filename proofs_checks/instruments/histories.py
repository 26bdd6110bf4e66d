"""Replicas under given or drawn losses, driven by steps whose sums have known squares; what drift is measured on.

Rank 0 owns every packet of a scripted history; packet j has the j-th history.

Legend: N ranks, R receivers = ranks 1.., P packets, B links = steps times receivers, E elements, T steps, H hosted
ranks (all of them), Q packets owned here (all).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch

from lossproof.impl.channel import Channel, SimulatedChannel
from lossproof.impl.loss import Arrivals
from lossproof.impl.round import Round
from lossproof.proofs_checks.instruments.patterns import Scripted, all_patterns, play
from lossproof.theory.laws import Bernoulli, Law

Gaps = tuple[torch.Tensor, torch.Tensor]


class Through:
    """A channel that passes everything on to another one; what behaves differently overrides one method."""

    def __init__(self, channel: Channel) -> None:
        self.channel, self.ranks = channel, channel.ranks

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.channel.gradients(step, payload_HPE)

    def parameters(self, step: int, fresh_QE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.channel.parameters(step, fresh_QE)

    def state_dict(self) -> dict[str, Any]:
        return self.channel.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.channel.load_state_dict(state)


def at_rest(channel: Channel, owner_P: Sequence[int] | torch.Tensor, elements: int) -> Round:
    """A round all of whose copies are 0."""
    owners = torch.as_tensor(owner_P)
    return Round.in_process(torch.zeros(len(owners), elements, dtype=torch.float64), owners, channel)


def run(channel: Channel, owner_P: Sequence[int] | torch.Tensor, steps: Sequence[torch.Tensor]) -> Round:
    """A round played over `steps`, each (P, E) or of a shape that broadcasts to it; all copies start at 0."""
    return play(at_rest(channel, owner_P, steps[0].shape[-1]), steps)


def losing(lost_TRP: torch.Tensor) -> Channel:
    """The receivers lose what is True in `lost_TRP`; rank 0 owns."""
    T, R, P = lost_TRP.shape
    return Scripted(R + 1, parameters_TNP=torch.cat([torch.ones(T, 1, P, dtype=torch.bool), ~lost_TRP], 1))


def scripted(lost_TRP: torch.Tensor, steps: Sequence[torch.Tensor]) -> Round:
    """The receivers lose what is True in `lost_TRP`; rank 0 owns."""
    return run(losing(lost_TRP), [0] * lost_TRP.shape[2], steps)


def drawn(
    law: Law, owner_P: Sequence[int] | torch.Tensor, ranks: int, seed: int, steps: Sequence[torch.Tensor]
) -> Round:
    """Losses drawn from a law, as in training."""
    return run(SimulatedChannel(Arrivals(law, owner_P, ranks, seed)), owner_P, steps)


def orthonormal(steps: int) -> list[torch.Tensor]:
    """u_1, u_2, ...: |sum of c_s u_s|^2 = sum of c_s^2, what uncorrelated steps of size 1 give on average."""
    return list(torch.eye(steps, dtype=torch.float64))


def links(steps: int, times: int = 1) -> torch.Tensor:
    """All loss histories of two links, (B, P), True for an arrival; all of them `times` over."""
    return all_patterns(2 * steps).repeat(1, times)


def two_replicas(arrived_BP: torch.Tensor, steps: int) -> Channel:
    """Rank 0 owns, ranks 1 and 2 receive what is True in `arrived_BP`, such as `links(steps)`."""
    return losing(~arrived_BP.view(steps, 2, -1))


def scripted_gaps(arrived_BP: torch.Tensor, steps: Sequence[torch.Tensor]) -> Gaps:
    """The gaps of two replicas after these arrivals."""
    return gaps(run(two_replicas(arrived_BP, len(steps)), [0] * arrived_BP.shape[1], steps))


def drawn_gaps(seed: int, loss: float, packets: int, steps: Sequence[torch.Tensor]) -> Gaps:
    """The gaps of two replicas whose links lose independently."""
    return gaps(drawn(Bernoulli(loss), [0] * packets, 3, seed, steps))


def gaps(round_: Round) -> Gaps:
    """From rank 1 to the owner, and between ranks 1 and 2, (P, E)."""
    return round_.fresh_QE - round_.replicas_HPE[1], round_.replicas_HPE[1] - round_.replicas_HPE[2]


def square(gap_PE: torch.Tensor) -> torch.Tensor:
    """|gap|^2, (P,)."""
    return gap_PE.square().sum(-1)


def owner_gaps(round_: Round) -> torch.Tensor:
    """|x - theta_i|^2 of all ranks, (N, P)."""
    return square(round_.replicas_HPE - round_.fresh_QE)


def pair_gaps(round_: Round, i: int, j: int) -> torch.Tensor:
    """|theta_i - theta_j|^2, (P,)."""
    return square(round_.replicas_HPE[i] - round_.replicas_HPE[j])


def weighted(values_P: torch.Tensor, weights: Sequence[Fraction]) -> Fraction:
    """The exact expectation of whole numbers."""
    return sum((int(v) * w for v, w in zip(values_P.tolist(), weights, strict=True)), Fraction(0))
