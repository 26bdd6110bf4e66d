"""Drift of bounded, biased and correlated steps (B5, B6): against sums over the law of the ages and over paths."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from lossproof.theory import correlated, drift

losses = st.fractions(0, Fraction(95, 100), max_denominator=40)
correlations = st.fractions(-1, 1, max_denominator=12)
times = st.integers(0, 6)


def ages(p, t):
    """The law of the age after t steps, step by step."""
    law = {0: Fraction(1)}
    for _ in range(t):
        law = {0: (1 - p) * sum(law.values())} | {a + 1: p * chance for a, chance in law.items()}
    return law


def mean_square(p, t, square):
    """(owner, pair): means over ages, and pairs of ages, of square(first, last), the squared sum of those steps."""
    law = ages(p, t)
    owner = sum(chance * square(t - a + 1, t) for a, chance in law.items())
    pair = sum(
        chance * other * square(t - max(a, b) + 1, t - min(a, b))
        for (a, chance), (b, other) in product(law.items(), law.items())
    )
    return owner, pair


@given(losses, times, st.integers(1, 4), st.integers(0, 4), st.integers(0, 4))
def test_worst_and_biased_drift_by_summing_over_ages(p, t, G2, mu2, sigma2):
    worst = mean_square(p, t, lambda first, last: G2 * (last - first + 1) ** 2)
    assert (correlated.owner_worst(p, t, G2), correlated.pair_worst(p, t, G2)) == worst
    biased = mean_square(p, t, lambda first, last: mu2 * (last - first + 1) ** 2 + sigma2 * (last - first + 1))
    assert correlated.owner_biased(p, t, mu2, sigma2) == biased[0]
    assert correlated.pair_biased(p, t, mu2, sigma2) == biased[1]


@given(losses, correlations, times, st.integers(1, 4))
def test_correlated_drift_by_summing_over_ages_and_pairs_of_steps(p, rho, t, sigma2):
    def square(first, last):
        steps = range(first, last + 1)
        return sigma2 * sum(rho ** abs(k - l) for k, l in product(steps, steps))

    assert (correlated.owner(p, rho, t, sigma2), correlated.pair(p, rho, t, sigma2)) == mean_square(p, t, square)
    to_next = sum(
        chance * sigma2 * sum((rho ** (t + 1 - s) for s in range(t - a + 1, t + 1)), Fraction(0))
        for a, chance in ages(p, t).items()
    )
    assert correlated.overlap(p, rho, t, sigma2) == to_next


@given(st.fractions(Fraction(1, 20), Fraction(9, 10), max_denominator=20), times)
def test_the_correlation_that_equals_the_loss_is_no_exception(p, t):
    def square(first, last):
        return sum(p ** abs(k - l) for k, l in product(range(first, last + 1), repeat=2))

    assert (correlated.owner(p, p, t), correlated.pair(p, p, t)) == mean_square(p, t, square)
    assert correlated.power_sum(p, p, t) == sum(p ** (t - 1) for _ in range(t))


@given(losses, st.fractions(Fraction(-11, 12), Fraction(11, 12), max_denominator=12))
def test_steady_states_are_limits_and_the_ends_are_b2_b3_and_b5(p, rho):
    far, x, r = 3000, float(p), float(rho)
    assert correlated.owner_worst(x, far) == pytest.approx(float(correlated.owner_worst(p)))
    assert correlated.pair_worst(x, far) == pytest.approx(float(correlated.pair_worst(p)))
    for form in (correlated.owner, correlated.pair, correlated.overlap):
        assert form(x, r, far) == pytest.approx(float(form(p, rho)))
    assert (correlated.owner(p, 0), correlated.pair(p, 0)) == (drift.owner(p), drift.pair(p))
    assert (correlated.owner(p, 1), correlated.pair(p, 1)) == (correlated.owner_worst(p), correlated.pair_worst(p))
    assert correlated.pair_biased(p, None, 0) == drift.pair(p)


@given(losses, times, st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=6, max_size=6))
def test_no_path_exceeds_the_worst_case(p, t, path):
    G2 = max(x * x + y * y for x, y in path)

    def square(first, last):
        return sum(sum(u[d] for u in path[first - 1 : last]) ** 2 for d in (0, 1))

    owner, pair = mean_square(p, t, square)
    assert owner <= correlated.owner_worst(p, t, G2)
    assert pair <= correlated.pair_worst(p, t, G2)


@given(st.fractions(0, Fraction(9, 10), max_denominator=10), st.integers(1, 3), st.integers(1, 3))
def test_the_variance_of_heavy_ball_is_its_own_image(momentum, rate, noise2):
    variance = correlated.heavy_ball(rate, momentum, noise2)
    assert variance == momentum**2 * variance + rate**2 * noise2
    summed = sum(rate**2 * noise2 * float(momentum) ** (2 * k) for k in range(400))
    assert float(variance) == pytest.approx(summed)


def test_closed_forms_answer_in_kind():
    third, p, rho = Fraction(1, 3), sp.Symbol("p", positive=True), sp.Symbol("rho")
    for form in (correlated.owner_worst, correlated.pair_worst):
        assert isinstance(form(third), Fraction)
        assert form(p).subs(p, sp.Rational(1, 3)) == sp.Rational(form(third))
    for form in (correlated.owner, correlated.pair, correlated.overlap):
        assert isinstance(form(third, third, 3), Fraction)
        assert form(1 / 3, 1 / 3) == pytest.approx(float(form(third, third)))
        assert form(p, rho).subs({p: sp.Rational(1, 3), rho: sp.Rational(1, 3)}) == sp.Rational(form(third, third))
