"""SGD on one-dimensional parabolas that differ between ranks, under bursts of gradient losses, through what trains.

Legend: N ranks, P packets = histories or independent runs, S states = patterns of arrivals, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lossproof.impl.cluster import Cluster
from lossproof.impl.loss import Arrivals
from lossproof.impl.round import Round
from lossproof.proofs_checks.instruments import descent
from lossproof.proofs_checks.instruments.patterns import Scripted, all_patterns
from lossproof.theory import burst_bias
from lossproof.theory.laws import Draw, Law, Mask, Memory

EXACT = [(Fraction(2, 3), Fraction(1, 4)), (Fraction(1, 2), Fraction(3, 5)), (Fraction(1, 2), Fraction(1, 3))]
"""Losses and memories all of whose arrival probabilities have an inverse that floats hold exactly."""


def step(
    x_P: torch.Tensor, h: Sequence[Any], c: Sequence[Any], eta: float, arrived_NP: torch.Tensor, rule: str, q_NP: Any
) -> torch.Tensor:
    """x after a step of the code that trains, all copies being x before it; q_NP for inverse probability."""
    N, P = arrived_NP.shape
    options = {} if q_NP is None else {"arrival_probability_NQ": q_NP}
    channel = Scripted(N, arrived_NP[None])
    round_ = Round.in_process(x_P[:, None], torch.zeros(P, dtype=torch.long), channel, rule=rule, **options)
    h_N1, c_N1 = (torch.tensor([float(v) for v in values], dtype=torch.float64)[:, None] for values in (h, c))
    payload_NPE = (h_N1 * (round_.replicas_HPE[..., 0] - c_N1))[..., None]
    round_.step(payload_NPE, partial(_descend, round_, eta))
    return round_.fresh_QE[:, 0]


def _descend(round_: Round, eta: float, estimate_PE: torch.Tensor) -> None:
    round_.fresh_QE.sub_(eta * estimate_PE)


def inverse_of(probabilities: Sequence[Sequence[Fraction]]) -> torch.Tensor:
    """(N, P) as floats, whose inverses must be exact."""
    for q in {q for row in probabilities for q in row}:
        if Fraction(1 / float(q)) != 1 / q:
            raise ValueError(f"probabilities must have inverses that floats hold, got {q}")
    return torch.tensor([[float(q) for q in row] for row in probabilities], dtype=torch.float64)


def probabilities(rule: str, before_NP: Any, N: int, P: int, p: Fraction, mu: Fraction) -> Any:
    """q_NP of a rule: none, the stationary ones, or those that the masks before foretell (None: no masks yet)."""
    if rule == "survivor_mean":
        return None
    if rule == "inverse_probability" or before_NP is None:
        return inverse_of([[1 - p] * P] * N)
    return inverse_of([[burst_bias.foretold(int(m), p, mu) for m in row] for row in before_NP.tolist()])


def settles(
    h: Sequence[int], c: Sequence[int], p: Fraction, mu: Fraction, eta: Fraction, rule: burst_bias.Rule
) -> Fraction:
    """lim E x_t: the step measured in every state from x = 0 and 1, and the means of x by state solved for."""
    N = len(h)
    states = list(product((0, 1), repeat=N))
    pairs = [(before, now, x) for before in states for now in states for x in (0, 1)]
    before_NP, now_NP = (torch.tensor([pair[k] for pair in pairs]).T == 1 for k in (0, 1))
    start_P = torch.tensor([pair[2] for pair in pairs], dtype=torch.float64)
    q_NP = probabilities(rule, before_NP, N, len(pairs), p, mu)
    aggregated = "survivor_mean" if rule == "survivor_mean" else "inverse_probability"
    after = [Fraction(v) for v in step(start_P, h, c, float(eta), now_NP, aggregated, q_NP).tolist()]
    moved = dict(zip(pairs, after, strict=True))
    M, added = [], []
    for now in states:
        chance = {before: burst_bias.chance(now, before, p, mu) for before in states}
        M.append([chance[b] * (moved[b, now, 1] - moved[b, now, 0]) for b in states])
        added.append(
            sum((chance[b] * burst_bias.chance(b, None, p, mu) * moved[b, now, 0] for b in states), Fraction(0))
        )
    return sum(descent.stationary(M, added), Fraction(0))


def history_means(
    h: Sequence[int], c: Sequence[int], p: Fraction, mu: Fraction, eta: Fraction, rule: burst_bias.Rule, steps: int
) -> list[Fraction]:
    """E x_1, ..., E x_T over all histories of the links, from x_0 = 0."""
    N = len(h)
    masks_TNP = all_patterns(N * steps).view(steps, N, -1)
    P = masks_TNP.shape[2]
    x_P, before_NP = torch.zeros(P, dtype=torch.float64), None
    found: list[Fraction] = []
    weights = [Fraction(1)] * P
    aggregated = "survivor_mean" if rule == "survivor_mean" else "inverse_probability"
    for now_NP in masks_TNP:
        q_NP = probabilities(rule, before_NP, N, P, p, mu)
        x_P = step(x_P, h, c, float(eta), now_NP, aggregated, q_NP)
        now = [tuple(int(m) for m in column) for column in now_NP.T.tolist()]
        last: list[Any] = [None] * P
        if before_NP is not None:
            last = [tuple(int(m) for m in column) for column in before_NP.T.tolist()]
        weights = [w * burst_bias.chance(n, b, p, mu) for w, n, b in zip(weights, now, last, strict=True)]
        later = 2 ** (N * (steps - 1 - len(found)))  # histories that differ only in what is yet to come
        found.append(sum((w * Fraction(v) for w, v in zip(weights, x_P.tolist(), strict=True)), Fraction(0)) / later)
        before_NP = now_NP
    return found


@dataclass(frozen=True)
class GradientsOnly:
    """A law whose parameter packets all arrive."""

    law: Law

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        return self.law.marginal(src, dst)

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return Fraction(k == 0)

    def sample(self, draw: Draw, memory: Memory) -> tuple[Mask, Memory]:
        if draw.phase == "parameters":
            return np.zeros(
                np.broadcast_shapes(draw.src.shape, draw.dst.shape, draw.packet.shape), dtype=np.bool_
            ), memory
        return self.law.sample(draw, memory)


class Scalars(torch.nn.Module):
    """Many parameters of one element each; rank i's loss is sum h_i (x - c_i)^2 / 2, its batch (h_i, c_i)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.zeros(count, dtype=torch.float64))

    def forward(self, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return (h * (self.x - c).square()).sum() / 2


def trained(
    law: Law, h: Sequence[float], c: Sequence[float], eta: float, rule: Any, packets: int, steps: int, seed: int
) -> NDArray[np.float64]:
    """x_T of independent runs, one a packet, in the running cluster; own link lossy."""
    cluster = Cluster(
        Scalars(packets),
        lambda model, batch: model(*batch),
        partial(torch.optim.SGD, lr=eta),
        GradientsOnly(law),
        len(h),
        seed=seed,
        own_link="lossy",
        rule=rule,
        packet_bytes=8,
    )
    batch = tuple(torch.tensor(values, dtype=torch.float64) for values in (h, c))
    for _ in range(steps):
        cluster.step(batch)
    return cluster.fresh_PE[:, 0].detach().numpy()


def trained_with_foresight(
    law: Any, h: Sequence[float], c: Sequence[float], eta: float, packets: int, steps: int, seed: int
) -> NDArray[np.float64]:
    """The same with the arrival probabilities that each link's last packet foretells."""
    arrivals = Arrivals(law, [0] * packets, len(h), seed, "lossy")
    first, lost, arrived = (
        torch.tensor(float(burst_bias.arrival_probability(law, seen)), dtype=torch.float64)
        for seen in ([], [False], [True])
    )
    x_P, q_NP = torch.zeros(packets, dtype=torch.float64), first.expand(len(h), packets)
    for t in range(steps):
        now_NP = arrivals.gradients(t)
        x_P = step(x_P, h, c, eta, now_NP, "inverse_probability", q_NP)
        q_NP = torch.where(now_NP, arrived, lost)
    return x_P.numpy()
