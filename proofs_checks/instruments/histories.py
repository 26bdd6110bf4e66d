"""Replicas under given or drawn losses, driven by steps whose sums have known squares; what B7 to B9 measure on.

Rank 0 owns every packet of a scripted history; packet j has the j-th history.

Legend: N ranks, R receivers = ranks 1.., P packets, E elements, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

from lossproof.impl.channel import Channel, SimulatedChannel
from lossproof.impl.loss import Arrivals
from lossproof.impl.round import Round
from lossproof.proofs_checks.instruments.patterns import Scripted, play
from lossproof.theory.laws import Law


def run(channel: Channel, owner_P: Sequence[int] | torch.Tensor, steps: Sequence[torch.Tensor]) -> Round:
    """A round played over `steps`, each (P, E) or of a shape that broadcasts to it; all copies start at 0."""
    owners = torch.as_tensor(owner_P)
    return play(
        Round.in_process(torch.zeros(len(owners), steps[0].shape[-1], dtype=torch.float64), owners, channel), steps
    )


def scripted(lost_TRP: torch.Tensor, steps: Sequence[torch.Tensor]) -> Round:
    """The receivers lose what is True in `lost_TRP`; rank 0 owns."""
    T, R, P = lost_TRP.shape
    masks_TNP = torch.cat([torch.ones(T, 1, P, dtype=torch.bool), ~lost_TRP], 1)
    return run(Scripted(R + 1, parameters_TNP=masks_TNP), [0] * P, steps)


def drawn(law: Law, owner_P: Sequence[int], ranks: int, seed: int, steps: Sequence[torch.Tensor]) -> Round:
    """Losses drawn from a law, as in training."""
    return run(SimulatedChannel(Arrivals(law, owner_P, ranks, seed)), owner_P, steps)


def orthonormal(steps: int) -> list[torch.Tensor]:
    """u_1, u_2, ...: |sum of c_s u_s|^2 = sum of c_s^2, what uncorrelated steps of size 1 give on average."""
    return list(torch.eye(steps, dtype=torch.float64))


def owner_gaps(round_: Round) -> torch.Tensor:
    """|x - theta_i|^2 of all ranks, (N, P)."""
    return (round_.replicas_HPE - round_.fresh_QE).square().sum(-1)


def pair_gaps(round_: Round, i: int, j: int) -> torch.Tensor:
    """|theta_i - theta_j|^2, (P,)."""
    return (round_.replicas_HPE[i] - round_.replicas_HPE[j]).square().sum(-1)


def weighted(values_P: torch.Tensor, weights: Sequence[Fraction]) -> Fraction:
    """The exact expectation of whole numbers."""
    return sum((int(v) * w for v, w in zip(values_P.tolist(), weights, strict=True)), Fraction(0))
