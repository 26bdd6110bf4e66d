"""One round of stage 1 through the code that trains, and exact means over its loss patterns under any law.

Legend: N ranks, P packets = patterns, E elements, T rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm
from typing import Any

import torch

from lossproof.impl.channel import Channel, SimulatedChannel
from lossproof.impl.loss import Arrivals, OwnLink
from lossproof.impl.round import Round
from lossproof.proofs_checks.instruments.patterns import Scripted
from lossproof.theory.laws import Law


def estimate(channel: Channel, payload_NPE: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the owner makes of the gradients: (estimate_PE, count_P); rank 0 owns all packets."""
    estimates_TPE, count_P = over_rounds(1, channel, payload_NPE, **options)
    return estimates_TPE[0], count_P


def over_rounds(
    rounds: int, channel: Channel, payload_NPE: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same gradients in every one of some rounds: (estimates_TPE, count_P of the last)."""
    _, P, E = payload_NPE.shape
    start_PE = torch.zeros(P, E, dtype=payload_NPE.dtype)
    round_ = Round.in_process(start_PE, torch.zeros(P, dtype=torch.long), channel, **options)
    estimates: list[torch.Tensor] = []
    for _ in range(rounds):
        count_P = round_.step(payload_NPE, lambda estimate_PE: estimates.append(estimate_PE.clone()))
    return torch.stack(estimates), count_P


def payload(columns_NE: torch.Tensor, packets: int) -> torch.Tensor:
    """(N, P, E) in float64: the same gradients in every packet."""
    return columns_NE.double()[:, None].expand(-1, packets, -1).contiguous()


def of_patterns(arrived_NP: torch.Tensor, columns_NE: torch.Tensor, **options: Any) -> torch.Tensor:
    """estimate_PE for the same gradients in every pattern of arrivals."""
    N, P = arrived_NP.shape
    return estimate(Scripted(N, arrived_NP[None]), payload(columns_NE, P), **options)[0]


def of_law(
    law: Law,
    ranks: int,
    packets: int,
    seed: int,
    columns_NE: torch.Tensor,
    *,
    own_link: OwnLink = "lossy",
    rounds: int = 1,
    **options: Any,
) -> tuple[Any, Any]:
    """(estimate_PE, count_P) of the last round as arrays, arrivals drawn from a law."""
    channel = SimulatedChannel(Arrivals(law, [0] * packets, ranks, seed, own_link))
    estimates_TPE, count_P = over_rounds(rounds, channel, payload(columns_NE, packets), **options)
    return estimates_TPE[-1].numpy(), count_P.numpy()


def basis(ranks: int) -> torch.Tensor:
    """(N, N + 1): a basis, so that the estimate shows every sender's weight, and one general vector; multiples of
    lcm(1..N), so that every mean is an integer."""
    scale = lcm(*range(1, ranks + 1))
    general = torch.tensor([[scale * (1 + i * i)] for i in range(ranks)])
    return torch.cat([scale * torch.eye(ranks, dtype=torch.int64), general], 1)


def product_law(arrived_NP: torch.Tensor, losses: Sequence[Fraction | int]) -> list[Fraction]:
    """The probability of every pattern under independent links."""
    law = [Fraction(1)] * arrived_NP.shape[1]
    for arrived_P, p in zip(arrived_NP.tolist(), losses, strict=True):
        law = [weight * (1 - p if arrived else p) for weight, arrived in zip(law, arrived_P, strict=True)]
    return law


def mean(values_P: torch.Tensor, law: Sequence[Fraction]) -> Fraction:
    """The sum of the values (float64, read as rationals) times their weights, exactly."""
    return sum((Fraction(v) * w for v, w in zip(values_P.tolist(), law, strict=True) if v and w), Fraction(0))
