"""D4: mean ages and met bursts by walking along long cycles and chains, apart from the closed forms."""

from __future__ import annotations

from fractions import Fraction
from itertools import groupby
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossproof.theory import bursts, inspection
from lossproof.theory.laws import GilbertElliott, HeavyTailed, Renewal

losses = st.fractions(Fraction(1, 20), Fraction(19, 20), max_denominator=20)
runs_of = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 9)), min_size=1, max_size=8)


def walked(cycle: list[bool]) -> list[int]:
    """The age after every packet of a cycle that repeats for ever."""
    ages, age = [], 0
    for lost in cycle + cycle:
        age = age + 1 if lost else 0
        ages.append(age)
    return ages[len(cycle) :]


@given(runs_of)
def test_mean_age_and_met_burst_by_walking_along_a_cycle(runs):
    """Bursts in any order, with any runs of arrivals in between: only p, L and Var T count."""
    cycle = [lost for losses_, arrivals in runs for lost in [True] * losses_ + [False] * arrivals]
    lengths = [losses_ for losses_, _ in runs]
    p, mean = Fraction(sum(lengths), len(cycle)), Fraction(sum(lengths), len(lengths))
    variance = sum((length - mean) ** 2 for length in lengths) / len(lengths)
    ages = walked(cycle)
    assert inspection.mean_age(p, mean, variance) == Fraction(sum(ages), len(cycle))
    assert inspection.mean_age_of_runs(lengths, len(cycle)) == Fraction(sum(ages), len(cycle))
    met = [len(burst) for lost, group in groupby(cycle) if lost for burst in [list(group)] for _ in burst]
    assert inspection.met_length(mean, variance) == Fraction(sum(met), len(met))
    for j in range(1, 9):
        longer = Fraction(sum(length >= j for length in lengths), len(lengths))
        assert inspection.place(j, p, mean, longer) == Fraction(ages.count(j), len(cycle))


@given(losses, st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
def test_the_mean_age_is_that_of_the_shipped_law(share, chances):
    lengths = [Fraction(c, sum(chances)) for c in chances]
    mean = sum(j * c for j, c in enumerate(lengths, 1))
    variance = sum((j - mean) ** 2 * c for j, c in enumerate(lengths, 1))
    p = share * mean / (1 + mean)
    law = Renewal(p, lengths)
    ages = sum(law.age_tail(k) for k in range(1, len(lengths) + 1))
    assert inspection.mean_age(p, mean, variance) == ages == bursts.renewal_owner(p, mean, variance)
    assert inspection.burst_rate(p, mean) <= 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_no_whole_lengths_of_this_mean_vary_less(lengths):
    mean = Fraction(sum(lengths), len(lengths))
    variance = sum((length - mean) ** 2 for length in lengths) / len(lengths)
    whole = floor(mean)
    least = inspection.least_variance(whole, mean - whole)
    assert variance >= least
    assert (variance == least) == (set(lengths) <= {whole, whole + 1})


@given(st.floats(1.05, 40), st.floats(0.01, 0.5))
def test_geometric_bursts_by_their_own_sums(L, p):
    j = np.arange(1, 4000)
    chances = (1 - 1 / L) ** (j - 1) / L
    assert inspection.geometric_variance(L) == pytest.approx(float(((j - L) ** 2 * chances).sum()), rel=1e-6)
    assert inspection.mean_age(p, L, inspection.geometric_variance(L)) == pytest.approx(p * L)


@given(losses, st.integers(1, 4), st.sampled_from([Fraction(1, 3), Fraction(1), Fraction(2)]), st.integers(1, 40))
def test_bursts_of_any_mean_may_have_no_mean_age(p, whole, rest, i):
    far = 3000
    lengths = whole + sum(float(inspection.heavy_length_tail(k, rest)) for k in range(1, far))
    assert lengths == pytest.approx(float(whole + rest), abs=2e-3)
    beyond = (1 - sum(inspection.heavy_length_tail(k, Fraction(1)) for k in range(1, i))) * rest
    assert inspection.heavy_tail(i, p, whole, rest) == p / (whole + rest) * beyond
    block = sum(inspection.heavy_tail(k, p, whole, rest) for k in range(i + 1, 2 * i + 1))
    assert block >= p * rest / (2 * (whole + rest))
    assert inspection.heavy_tail(i, p, 0, 2) == HeavyTailed(p * Fraction(2, 3)).age_tail(i) * Fraction(3, 2)


@given(st.fractions(Fraction(1, 20), Fraction(1, 2), max_denominator=20), st.fractions(2, 20, max_denominator=4),
       st.integers(1, 6))  # fmt: skip
def test_the_clock_by_powers_of_the_chain(p, L, ticks):
    leave = 1 / L
    enter = p * leave / (1 - p)
    bad = Fraction(1)
    for _ in range(ticks):
        bad = bad * (1 - leave) + (1 - bad) * enter
    slower = inspection.burst_in_steps(p, L, ticks)
    assert slower == 1 / (1 - bad)
    assert slower <= L
    assert slower >= 1 / (1 - p)
    assert inspection.memory(p, L) == 1 - enter - leave
    law = GilbertElliott(p, L, clock="packet")
    first, second = (law.age_tail(k, ticks=ticks) for k in (1, 2))
    assert second / first == 1 - 1 / slower  # in steps it is a link of that mean burst
    assert inspection.mean_age(p, slower, inspection.geometric_variance(slower)) == p * slower


def test_regular_bursts_are_younger_than_rare_long_ones():
    p, mean = Fraction(1, 10), 2
    ages = [inspection.mean_age(p, mean, variance) for variance in (0, inspection.geometric_variance(mean), 99)]
    assert ages == [Fraction(3, 20), Fraction(1, 5), Fraction(21, 8)]  # 2 always; geometric; 1, but 101 one time in 100
    assert inspection.met_length(mean, 99) == Fraction(103, 2)
