"""Stage 2 of the implementation at work: owners that move by steps of length 1 in random directions, and replicas.

Legend: N ranks, of which rank 0 owns all packets; P packets, independent of each other; E elements of a packet.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from lossproof.impl.channel import SimulatedChannel
from lossproof.impl.loss import Arrivals
from lossproof.impl.retain import DriftSums, drift_sums
from lossproof.impl.round import Round
from lossproof.theory.laws import Law


def round_at_rest(law: Law, ranks: int, packets: int, elements: int, seed: int, start: float = 0.0) -> Round:
    """All copies at one point, in float64."""
    owner_P = torch.zeros(packets, dtype=torch.int64)
    channel = SimulatedChannel(Arrivals(law, owner_P, ranks, seed))
    return Round.in_process(torch.full((packets, elements), start, dtype=torch.float64), owner_P, channel)


def unit_steps(packets: int, elements: int, seed: int) -> Iterator[torch.Tensor]:
    """Independent directions (P, E), uniform on the sphere: steps of zero mean and E|u|^2 = 1."""
    random = np.random.default_rng(seed)
    while True:
        yield towards(torch.from_numpy(random.standard_normal((packets, elements))))


def towards(vector_PE: torch.Tensor) -> torch.Tensor:
    """Of length 1 in that direction."""
    return vector_PE / vector_PE.square().sum(-1, keepdim=True).sqrt()


def drifts(law: Law, ranks: int, packets: int, steps: int, seed: int, elements: int = 8) -> Iterator[DriftSums]:
    """The drift after each step, all copies equal at the start and the law stationary."""
    round_ = round_at_rest(law, ranks, packets, elements, seed)
    for _, step_PE in zip(range(steps), unit_steps(packets, elements, seed), strict=False):
        round_.fresh_QE.add_(step_PE)
        round_.replicas_HPE = round_.broadcast(round_.replicas_HPE, round_.fresh_QE)
        yield drift_sums(round_.replicas_HPE, round_.fresh_QE)
