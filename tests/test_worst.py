"""The worst of many replicas against sums over the joint law of their ages, and at sizes where sums must be stable."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import mpmath
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from lossproof.theory import staleness, worst

losses = st.fractions(Fraction(1, 20), Fraction(19, 20), max_denominator=20)


@given(losses, st.integers(1, 4), st.integers(0, 4))
def test_the_worst_age_sums_over_all_ages(p, n, t):
    law = [staleness.age_pmf(a, p) for a in range(t)] + [staleness.age_tail(t, p)]
    mean, tail = Fraction(0), dict.fromkeys(range(t + 1), Fraction(0))
    for ages in product(range(t + 1), repeat=n):
        weight = math.prod((law[a] for a in ages), start=Fraction(1))
        mean += weight * max(ages)
        for k in range(max(ages) + 1):
            tail[k] += weight
    assert worst.age_max_mean(n, p, t) == mean
    assert [worst.age_max_tail(k, n, p) for k in range(t + 1)] == list(tail.values())
    assert worst.age_max_mean(n, float(p), t) == pytest.approx(float(mean), rel=1e-12, abs=1e-15)


@given(losses, st.integers(1, 30))
def test_the_steady_state_is_the_limit_and_lies_in_the_sandwich(p, n):
    exact = worst.age_max_mean(n, p)
    assert float(exact) == pytest.approx(worst.age_max_mean(n, float(p), 3000), rel=1e-9)
    lower, upper = worst.age_max_bounds(worst.harmonic(n, 1.0), -math.log(p))
    assert lower < exact < upper
    assert upper - lower == pytest.approx(1)
    assert worst.drift_bounds(exact, 3) == (3 * exact, 6 * exact)


@pytest.mark.parametrize("p", [1e-9, 0.01, 0.5, 0.99, 0.998, 0.9985, 0.9995, 1 - 1e-9])
@pytest.mark.parametrize("n", [1, 2, 3, 64, 10**6])
def test_floats_are_stable(n, p):
    value = worst.age_max_mean(n, p)
    with mpmath.workdps(40):
        x = mpmath.mpf(p)
        if n <= 64:  # inclusion and exclusion in 40 digits (60 for the signs)
            with mpmath.workdps(60):
                x = mpmath.mpf(p)
                exact = sum((-1) ** (j + 1) * mpmath.binomial(n, j) * x**j / (1 - x**j) for j in range(1, n + 1))
        elif p <= 0.5:
            exact = sum(-mpmath.expm1(n * mpmath.log1p(-(x**k))) for k in range(1, 200))
        else:  # Euler-Maclaurin: the summand is flat at k = 0, so only half of its first term is left
            exact = mpmath.harmonic(n) / -mpmath.log(x) - mpmath.mpf(1) / 2
            assert value == pytest.approx(float(exact), rel=1e-9)
            return
        assert value == pytest.approx(float(exact), rel=1e-11)


def test_edges():
    assert worst.age_max_mean(5, 0) == worst.age_max_mean(5, 0.0) == 0
    assert worst.age_max_mean(5, 0.5, 0) == worst.age_max_mean(5, Fraction(1, 2), 0) == 0
    assert worst.harmonic(4) == Fraction(25, 12)
    p = sp.Symbol("p", positive=True)
    assert sp.simplify(worst.age_max_mean(2, p) - (2 * p / (1 - p) - p**2 / (1 - p**2))) == 0


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_the_worst_age_grows_with_the_logarithm_of_n(p):
    growth = worst.age_max_mean(10**6, p) - worst.age_max_mean(10**3, p)
    assert growth == pytest.approx(3 * math.log(10) / -math.log(p), rel=0.01)


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=5), st.fractions(0, 1, max_denominator=6))
def test_backward_sums_of_a_martingale_stay_below_twice_their_end(sizes, odds):
    # Every path of a martingale whose step is up by b with chance a/(a+b), else down by a, sizes set by the path.
    def walk(path, chance):
        if len(path) == len(sizes):
            backward = [sum(path[-k:]) for k in range(1, len(path) + 1)]
            return chance * max(s * s for s in backward), chance * sum(path) ** 2
        a = 1 + abs(sizes[len(path)] + sum(path)) % 3
        b = 1 + int(odds * 6) * (len(path) % 2)
        up, down = walk([*path, b], chance * Fraction(a, a + b)), walk([*path, -a], chance * Fraction(b, a + b))
        return up[0] + down[0], up[1] + down[1]

    largest, end = walk([], Fraction(1))
    assert end <= largest <= worst.drift_bounds(end)[1]
