"""A8: two ways in which lost gradients bias the mean for good, each with its smallest counterexample.

Legend: N ranks, P packets = patterns, E elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations, product
from math import comb, lcm
from typing import Any

import sympy as sp
import torch

from lossproof.impl.channel import SimulatedChannel
from lossproof.impl.loss import Arrivals
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import estimates, mistakes
from lossproof.proofs_checks.instruments.patterns import all_patterns, exact_sum
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import aggregation, certify, survivors
from lossproof.theory.aggregation import divide
from lossproof.theory.derive import survivors as derive
from lossproof.theory.laws import Bernoulli, Draw, Law, Mask, Memory

A8 = Claim(
    "A8",
    "Loss that looks at the gradients, or a sender that is always cut, biases every rule",
    derive.limits,
    assumes=(
        "(the larger one dropped) which packet is lost depends on the gradients, even if all links lose equally often",
        "(cut) one sender's packets never arrive; the others are exchangeable and one of them arrives",
    ),
    not_claimed=(
        "that a repair exists in stage 1: use packets whose size and priority do not depend on their contents, resend "
        "what is lost until q_r > 0 and weight by 1/q_r (A4), or give the cut sender's data to the others",
        "unequal losses below 1: those are biased by A6 and repaired by A4",
    ),
    witness="g = (0, 1), the larger dropped: mean 0, gbar 1/2, bias -1/2; the same if sender 1 is cut",
)
WRONG_BIAS = (
    plant("bias over N", survivors, "cut_bias", lambda g, gbar, N: divide(gbar - g, N)),
    plant("bias of the other sign", survivors, "cut_bias", lambda g, gbar, N: divide(g - gbar, N - 1)),
    plant("no bias", survivors, "cut_bias", lambda g, gbar, N: 0 * g),
)
WRONG_FLOOR = (
    plant("floor twice as high", survivors, "cut_floor", lambda change, N: divide(abs(change), N)),
    plant("floor without 1/N", survivors, "cut_floor", lambda change, N: divide(abs(change), 2)),
)
A8.derived(*WRONG_BIAS, *WRONG_FLOOR)


@A8.rung("certified", *WRONG_BIAS, *WRONG_FLOOR)
def _for_all_ranks(run: Run) -> Evidence:
    N, g, gbar, e, change = sp.symbols("N g gbar e Delta", positive=True)
    rest = (N * gbar - g) * aggregation.survivor_weight(N - 1)  # the mean of the N - 1 others
    require(certify.is_zero(rest - gbar - survivors.cut_bias(g, gbar, N)), "not the bias of the mean of the others")
    # b and b' are the biases of one rule, of mean e, for two gradients of r that it cannot tell apart.
    first, second = e - gbar, e - gbar - change / N
    floor = survivors.cut_floor(change, N)
    middle = (first + second) / 2
    require(
        certify.is_zero(first**2 + second**2 - 2 * floor**2 - 2 * middle**2), "b^2 + b'^2 - 2 floor^2 is not 2 middle^2"
    )
    best = {e: gbar + change / N / 2}
    require(
        certify.is_zero(first.subs(best) - floor) and certify.is_zero(second.subs(best) + floor),
        "the floor is not attained",
    )
    return Evidence("bias for all N and g; max(|b|, |b'|) >= |Delta|/(2N) by a square, attained")


Dropper = Callable[[tuple[int, ...]], Iterator[tuple[int, ...]]]
"""For the gradients the sets of senders that are lost, each equally likely."""


def _largest(g: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    yield (g.index(max(g)),)


def _anyone(g: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    yield from ((r,) for r in range(len(g)))


def _first_biased(drop: Dropper, ranks: int, size: int) -> tuple[tuple[int, ...], Fraction] | None:
    """The smallest gradients (few ranks, then small numbers) whose mean the implementation biases, and the bias."""
    for N in range(2, ranks + 1):
        for g in sorted(product(range(size + 1), repeat=N), key=lambda g: (max(g), sum(g), g)):
            bias = _bias(g, list(drop(g)))
            claimed = survivors.cut_bias(max(g), aggregation.survivor_mean(g), N) if drop is _largest else 0
            require(bias == claimed, f"g = {g}: bias {bias}, claimed {claimed}")
            if bias:
                return g, bias
    return None


def _bias(g: tuple[int, ...], lost: list[tuple[int, ...]]) -> Fraction:
    N, scale = len(g), lcm(*range(1, len(g) + 1))
    arrived_NP = torch.tensor([[i not in who for who in lost] for i in range(N)])
    estimate_PE = estimates.of_patterns(arrived_NP, scale * torch.tensor(g)[:, None])
    return exact_sum(estimate_PE) / len(lost) / scale - Fraction(sum(g), N)


@A8.rung(
    "enumerated",
    mistakes.DIVIDE_BY_N,
    mistakes.COUNT_PLUS_ONE,
    mistakes.IGNORE_LOSS,
    mistakes.NEXT_SENDERS_MASK,
    mistakes.NOT_ZEROED,
    *WRONG_BIAS,
    *WRONG_FLOOR,
)
def _smallest(run: Run) -> Evidence:
    found = _first_biased(_largest, 3, 1)
    require(found == ((0, 1), Fraction(-1, 2)), f"the smallest counterexample is {found}")
    limit = run.pick(3, 4)
    require(_first_biased(_anyone, limit, 2) is None, "a loss that does not look is biased")
    for N in range(2, limit + 1):  # larger cases of the same law, in any order of the senders
        for g in permutations(range(N)):
            bias, claimed = _bias(g, list(_largest(g))), survivors.cut_bias(N - 1, Fraction(N - 1, 2), N)
            require(bias == claimed, f"g = {g}, the largest dropped: bias {bias}, claimed {claimed}")
    # Both orders of (0, 1) equally likely: each link loses half of its packets, exchangeably, and the bias stays.
    orders = [_bias(g, list(_largest(g))) for g in ((0, 1), (1, 0))]
    require(sum(orders) / 2 == Fraction(-1, 2), f"equal marginals: bias {sum(orders) / 2}")
    cut = next(
        (N, r, g, _cut(g, r)) for N in range(2, 4) for g in product((0, 1), repeat=N) for r in range(N) if _cut(g, r)
    )
    for N in range(2, run.pick(4, 6) + 1):
        for r in range(N):
            _cut(tuple(i * i + 1 for i in range(N)), r)
            for change in (2 * N, -2 * N):
                _nothing_to_reweight(N, r, change)
    return Evidence(
        f"smallest: g = (0, 1), the larger dropped, bias -1/2, unbiased if any one is dropped (N <= {limit}); "
        f"cut: N = {cut[0]}, sender {cut[1]}, g = {cut[2]}, bias {cut[3]}; no rule sees a cut gradient"
    )


def _cut(g: tuple[int, ...], r: int) -> Fraction:
    """The bias if sender r is cut: the same for every K >= 1 of the others, so for every exchangeable law of theirs."""
    N, scale = len(g), lcm(*range(1, len(g) + 1))
    arrived_NP = all_patterns(N)
    estimate_PE = estimates.of_patterns(arrived_NP, scale * torch.tensor(g)[:, None])
    claimed = survivors.cut_bias(g[r], aggregation.survivor_mean(g), N)
    for k in range(1, N):
        rows = estimate_PE[~arrived_NP[r] & (arrived_NP.sum(0) == k)]
        bias = exact_sum(rows) / comb(N - 1, k) / scale - Fraction(sum(g), N)
        require(bias == claimed, f"g = {g}, sender {r} cut, K = {k}: bias {bias}, claimed {claimed}")
    return Fraction(claimed)


def _nothing_to_reweight(N: int, r: int, change: int) -> None:
    """Two gradients of the cut sender, every rule, some weights: equal estimates, so the biases differ by Delta/N."""
    arrived_NP = all_patterns(N)
    arrived_NP[r] = False
    columns = torch.arange(N)[:, None] + 1
    other = columns.clone()
    other[r] += change
    rules: list[dict[str, Any]] = [{}, {"rule": "zero_fill"}] + [
        {
            "rule": "inverse_probability",
            "arrival_probability_NQ": torch.tensor([0.5**w] * r + [0.25] + [0.5] * (N - 1 - r)),
        }
        for w in (0, 1, 3)
    ]
    for options in rules:
        one, two = (estimates.of_patterns(arrived_NP, g, **options)[:, 0] for g in (columns, other))
        means = [Fraction(int(g.sum()), N) for g in (columns, other)]
        for a, b in zip(one.tolist(), two.tolist(), strict=True):
            gap = (Fraction(a) - means[0]) - (Fraction(b) - means[1])
            require(abs(gap) == 2 * survivors.cut_floor(change, N), f"N = {N}, {options}: the biases differ by {gap}")


@dataclass(frozen=True)
class Cut:
    """A law of which one sender's packets are always lost, those to itself included."""

    law: Law
    sender: int

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        return Fraction(1) if src == self.sender else self.law.marginal(src, dst)

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return Fraction(1) if src == self.sender else self.law.age_tail(k, src, dst, ticks)

    def sample(self, draw: Draw, memory: Memory) -> tuple[Mask, Memory]:
        lost, memory = self.law.sample(draw, memory)
        return lost | (draw.src == self.sender), memory


class DropsLargest(SimulatedChannel):
    """Loses the largest gradient of every packet, besides what its law loses."""

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        received, arrived_NP = super().gradients(step, payload_HPE)
        return received, arrived_NP.scatter(0, payload_HPE[..., 0].argmax(0, keepdim=True), False)


@A8.rung(
    "sampled",
    mistakes.DIVIDE_BY_N,
    mistakes.COUNT_PLUS_ONE,
    mistakes.IGNORE_LOSS,
    mistakes.NEXT_SENDERS_MASK,
    *WRONG_BIAS,
)
def _many_ranks(run: Run) -> Evidence:
    ranks, packets, loss = 16, run.pick(30_000, 120_000), 0.2
    gradients = torch.arange(ranks, dtype=torch.float64) / (ranks - 1)
    gbar, sender = 0.5, ranks - 1
    claimed = gbar + survivors.cut_bias(1.0, gbar, ranks)
    estimate_PE, count_P = estimates.of_law(Cut(Bernoulli(loss), sender), ranks, packets, run.seed, gradients[:, None])
    require(bool(count_P.any()), "no packet has a survivor")
    require_mean("a sender cut: E[mean | K >= 1]", estimate_PE[count_P > 0, 0], claimed, 0, 1, ALPHA / 2)
    # The largest gradient lies with another sender in every packet, so that all links lose equally often.
    payload_NPE = gradients[(torch.arange(ranks)[:, None] + torch.arange(packets)) % ranks][..., None].contiguous()
    channel = DropsLargest(Arrivals(Bernoulli(loss), [0] * packets, ranks, run.seed, "lossy"))
    estimate_P, count_P = estimates.estimate(channel, payload_NPE)
    some = estimate_P[count_P > 0, 0].numpy()
    require(some.size > 0, "no packet has a survivor")
    require_mean("the largest dropped: E[mean | K >= 1]", some, claimed, 0, 1, ALPHA / 2)
    return Evidence(f"N = {ranks}, p = {loss} for the others, {packets} packets: mean {claimed:.4f}, gbar 0.5", ALPHA)


A8.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
