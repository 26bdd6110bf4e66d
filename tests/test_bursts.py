"""Bursts and common outages: closed forms and laws against brute force by other means.

Legend: L rows of links, P packets.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from lossproof.impl.loss import Arrivals
from lossproof.theory import bursts, common, drift
from lossproof.theory.laws import CommonOutage, GilbertElliott, HeavyTailed, Renewal, renewal

ALPHA = 1e-9
rates = st.fractions(Fraction(1, 20), Fraction(19, 20), max_denominator=20)
losses = st.fractions(Fraction(1, 20), Fraction(3, 5), max_denominator=20)
times = st.integers(0, 4)
lengths = st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any)


def geometric(x: Fraction, t: int) -> Fraction:
    return sum((x**k for k in range(1, t + 1)), Fraction(0))


@given(rates, rates, rates, rates, times)
def test_a_chain_sums_the_tail_over_all_its_paths(enter, leave, good, bad, t):
    chain = oracles.Chain(enter, leave, good, bad, "step")
    tail = [chain.age_tail(k) for k in range(1, t + 1)]
    assert bursts.chain_owner(enter, leave, good, bad, t) == sum(tail)
    assert bursts.chain_pair(enter, leave, good, bad, t) == 2 * sum(a - a * a for a in tail)


@given(rates, rates, rates, rates)
def test_the_steady_state_of_a_chain_is_the_limit(enter, leave, good, bad):
    M = np.array([[(1 - enter) * good, enter * bad], [leave * good, (1 - leave) * bad]], dtype=float)
    row = np.array([leave * good, enter * bad], dtype=float) / float(enter + leave)
    one, both = np.ones(2), np.kron(M, M)
    total = row @ np.linalg.solve(np.eye(2) - M, one)
    squares = np.kron(row, row) @ np.linalg.solve(np.eye(4) - both, np.kron(one, one))
    assert float(bursts.chain_owner(enter, leave, good, bad)) == pytest.approx(total, rel=1e-9)
    assert float(bursts.chain_pair(enter, leave, good, bad)) == pytest.approx(2 * (total - squares), rel=1e-9)


@given(losses, st.fractions(2, 9, max_denominator=8), times, st.integers(1, 3))
def test_two_parameters_are_a_chain_of_four(p, L, t, sigma2):
    chain = p / (L * (1 - p)), 1 / L, 0, 1
    for when in (None, t):
        assert bursts.gilbert_owner(p, L, when, sigma2) == bursts.chain_owner(*chain, when, sigma2)
        assert bursts.gilbert_pair(p, L, when, sigma2) == bursts.chain_pair(*chain, when, sigma2)
    assert [bursts.gilbert_tail(k, p, L) for k in range(1, 5)] == [
        GilbertElliott(p, L).age_tail(k) for k in range(1, 5)
    ]
    assert bursts.gilbert_pair(p, 1 / (1 - p), t) == drift.pair(p, t)


@given(losses, st.fractions(2, 9, max_denominator=8), st.integers(1, 5), st.integers(1, 6))
def test_several_ticks_a_step_are_a_channel_of_another_burst(p, L, ticks, k):
    slower = bursts.effective_burst(p, L, ticks)
    assert bursts.gilbert_tail(k, p, slower) == GilbertElliott(p, L, clock="packet").age_tail(k, ticks=ticks)


@given(st.lists(rates, min_size=1, max_size=5), st.lists(rates, min_size=1, max_size=5), st.integers(1, 4))
def test_the_general_formula_counts_steps_that_one_of_two_lacks(a, b, sigma2):
    size = min(len(a), len(b))
    a, b = a[:size], b[:size]
    c = [min(x, y) / 2 for x, y in zip(a, b, strict=True)]
    one_sided = sum((x - z) + (y - z) for x, y, z in zip(a, b, c, strict=True))
    assert bursts.pair(a, b, c, sigma2) == sigma2 * one_sided
    assert bursts.pair_independent(a) == sum(x * (1 - x) + (1 - x) * x for x in a)
    with pytest.raises(ValueError):
        bursts.pair(a, [*b, 0], c)


def burst_law(chances: list[int]) -> tuple[list[Fraction], list[Fraction]]:
    """P(T = 1), ... and P(T >= 1), ..."""
    total = sum(chances)
    pmf = [Fraction(c, total) for c in chances]
    return pmf, [sum(pmf[j:], Fraction(0)) for j in range(len(pmf))]


@given(lengths, st.integers(1, 9))
def test_ages_under_renewal_bursts_by_walking_along_a_long_cycle(chances, k):
    pmf, tail = burst_law(chances)
    mean = sum(j * c for j, c in enumerate(pmf, 1))
    p = mean / (1 + mean) / 2
    # In a cycle of bursts in their exact proportions, a burst of T has T - k + 1 places that end k losses in a row.
    places = sum(c * max(0, T - k + 1) for T, c in enumerate(pmf, 1))
    assert bursts.renewal_tail(k, p, tail) == p * places / mean == Renewal(p, pmf).age_tail(k)
    variance = sum(c * (T - mean) ** 2 for T, c in enumerate(pmf, 1))
    ages = [bursts.renewal_tail(j, p, tail) for j in range(1, len(pmf) + 1)]
    assert bursts.renewal_owner(p, mean, variance, 3) == 3 * sum(ages)


def test_a_finite_mean_burst_gives_an_infinite_mean_age():
    p, far = Fraction(1, 5), 4000
    lengths_to = sum(bursts.heavy_length_tail(j) for j in range(1, far + 1))
    assert lengths_to == 2 - Fraction(2, far + 1)
    assert bursts.heavy_tail(3, p) == p / 2 * (2 - sum(bursts.heavy_length_tail(j) for j in (1, 2)))
    drifts = [bursts.owner(bursts.heavy_tail(k, 0.2) for k in range(1, 10**n + 1)) for n in range(1, 6)]
    assert [b - a for a, b in pairwise(drifts)] == pytest.approx([0.2 * math.log(10)] * 4, rel=0.02)
    assert [HeavyTailed(p).age_tail(k) for k in range(1, 5)] == [bursts.heavy_tail(k, p) for k in range(1, 5)]


@given(losses, st.integers(0, 20), times)
def test_outages_by_summing_over_the_environment(loss, share, t):
    outage = loss * Fraction(share, 20)
    weights, inside = common.outage_environment(loss, outage)
    assert sum(weights) == 1
    p, c = common.moments(weights, inside)
    assert (p, c) == (loss, outage + (1 - outage) * ((loss - outage) / (1 - outage)) ** 2)
    assert c - p * p == common.variance(weights, inside) >= 0
    assert common.owner(p, t, 2) == 2 * geometric(p, t)
    assert common.pair(p, c, t, 3) == 6 * (geometric(p, t) - geometric(c, t)) <= drift.pair(p, t, 3)
    assert common.pair(p, p * p) == drift.pair(p)
    assert float(common.pair(p, c)) == pytest.approx(float(common.pair(p, c, 400)))


@given(st.lists(st.tuples(st.integers(1, 5), rates), min_size=1, max_size=5))
def test_the_variance_of_an_environment(states):
    total = sum(w for w, _ in states)
    weights, inside = [Fraction(w, total) for w, _ in states], [x for _, x in states]
    mean, square = common.moments(weights, inside)
    assert common.variance(weights, inside) == square - mean**2
    assert common.variance(weights, inside) == sum(w * (x - mean) ** 2 for w, x in zip(weights, inside, strict=True))


# -- samples


class Walk:
    """Renewal bursts one packet after another: a queue of losses to come for every phase, packet and link."""

    def __init__(self, loss: Fraction, tail: Any, residual: Any, mean: Fraction) -> None:
        self.loss, self.tail, self.residual, self.mean = loss, tail, residual, mean
        self.queues: dict[Any, list[bool]] = {}

    @staticmethod
    def longest(word: int, tail: Any) -> int:
        j = 0
        while oracles.is_lost(word, tail(j + 1)):
            j += 1
        return j

    def sample(self, draw: oracles.TableDraw) -> list[list[bool]]:
        lost = np.zeros(draw.words().shape, dtype=bool)
        for cell, src, dst, packet in draw.cells():
            name = src, dst, packet, draw.phase
            chance, length = int(draw.words(1)[cell]), int(draw.words(2)[cell])
            if name not in self.queues:
                in_burst = oracles.is_lost(chance, self.loss)
                self.queues[name] = [True] * (self.longest(length, self.residual) if in_burst else 0) or [False]
            elif not self.queues[name]:
                begins = oracles.is_lost(chance, self.loss / (self.mean * (1 - self.loss)))
                self.queues[name] = [True] * self.longest(length, self.tail) if begins else [False]
            lost[cell] = self.queues[name].pop(0)
            if lost[cell] and not self.queues[name]:
                self.queues[name] = [False]  # an arrival separates two bursts
        return lost.tolist()


def draws(seed: int, steps: int = 12) -> list[oracles.TableDraw]:
    words, rank_L1 = np.random.default_rng(seed), np.arange(3)[:, None]
    owner_P, packet_P = np.array([2, 0]), np.array([1, 0])
    result = []
    for _ in range(steps):
        for phase, src, dst in (("gradients", rank_L1, owner_P), ("parameters", owner_P, rank_L1)):
            high = 2 ** words.integers(25, 33, (4, 3, 2))  # small words make long bursts
            table = list((words.uniform(0.5, 1, (4, 3, 2)) * high).astype(np.int64))
            result.append(oracles.TableDraw(phase, 3, src, dst, packet_P, table))
    return result


@settings(deadline=None)
@given(st.integers(0, 2**32), st.booleans(), lengths)
def test_renewal_laws_sample_as_a_queue_does(seed, heavy, chances):
    if heavy:
        law: Any = HeavyTailed(Fraction(2, 5))
        walk = Walk(Fraction(2, 5), lambda j: Fraction(2, j * (j + 1)), lambda j: Fraction(1, j), Fraction(2))
    else:
        pmf, tail = burst_law(chances)
        mean = sum(tail, Fraction(0))
        p = mean / (1 + mean) * Fraction(3, 4)
        law = Renewal(p, pmf)
        walk = Walk(p, lambda j: sum(pmf[j - 1 :], Fraction(0)), lambda j: sum(tail[j - 1 :], Fraction(0)) / mean, mean)
    memory: Any = {}
    for draw in draws(seed):
        lost, memory = law.sample(draw, memory)
        assert lost.tolist() == walk.sample(draw)


@pytest.mark.parametrize("j", [1, 2, 3, 100, 92_680, 92_681])
def test_the_last_words_of_a_heavy_tailed_burst(j):
    for length, tail in ((renewal._heavy_length, Fraction(2, j * (j + 1))), (renewal._heavy_residual, Fraction(1, j))):
        edge = math.floor(tail * 2**32)
        at, after = length(np.array([edge - 1, edge if edge < 2**32 else edge - 1]))
        assert at >= j
        assert after < j or edge == 2**32


def test_outages_are_common_to_all_links_of_a_packet_and_to_nothing_else():
    loss, outage, packets = 0.5, 0.4, 40_000
    arrivals = Arrivals(CommonOutage(loss, outage), [0] * packets, 4, seed=11, own_link="lossy")
    first, second, other = ~arrivals.parameters(0), ~arrivals.parameters(1), ~arrivals.gradients(1)
    both = outage + (loss - outage) ** 2 / (1 - outage)
    independent = loss * loss
    for one, two, probability in (
        (first[1], first[2], both),
        (other[0], other[3], both),  # the owner's own lossy link too
        (first[1], second[1], independent),
        (second[2], other[2], independent),
        (first[1, 1:], first[2, :-1], independent),
    ):
        together = int((one & two).sum())
        assert binomtest(together, one.numel(), probability).pvalue > ALPHA
    for mask in (first[1], second[3], other[2]):
        assert binomtest(int(mask.sum()), packets, loss).pvalue > ALPHA


def test_common_words_collide_with_no_links():
    seen = set()
    for phase, step in product(("gradients", "parameters"), range(2)):
        draw = Arrivals(_Peek(), [0, 1], 2, seed=3)
        for s in range(step + 1):
            (draw.gradients if phase == "gradients" else draw.parameters)(s)
        words, shared = draw.law.seen
        assert shared.shape == (1, 2)
        seen |= {*words.ravel().tolist(), *shared.ravel().tolist()}
    assert len(seen) == 4 * (4 + 2)


class _Peek:
    """A law that remembers the words of its last draw."""

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        return Fraction(0)

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return Fraction(0)

    def sample(self, draw: Any, memory: Any) -> Any:
        self.seen = draw.words(), draw.common()
        return draw.words() < 0, memory
