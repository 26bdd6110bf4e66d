"""Closed forms, derivations and certificates: against brute force by other means, and against planted errors."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import comb

import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st
from sympy.polys.polyerrors import CoercionFailed

from lossproof.proofs_checks.judge import find_claims
from lossproof.theory import aggregation, certify, drift, staleness
from lossproof.theory.derive import steps

losses = st.fractions(0, Fraction(95, 100), max_denominator=40)
ranks = st.integers(2, 9)
times = st.integers(0, 7)
DERIVATIONS = {claim.id: claim.derive for claim in find_claims()}


def ages(p: Fraction, t: int) -> dict[int, Fraction]:
    """The law of the age, by walking through the steps."""
    law = {0: Fraction(1)}
    for _ in range(t):
        law = {0: (1 - p) * sum(law.values())} | {a + 1: p * chance for a, chance in law.items()}
    return law


@given(losses, times)
def test_ages_and_drift_agree_with_the_law_of_the_age(p, t):
    law = ages(p, t)
    for a in range(t):
        assert staleness.age_pmf(a, p) == law[a]
    assert staleness.age_tail(t, p) == law[t]
    assert staleness.age_mean(p, t) == sum(a * c for a, c in law.items())
    # With orthonormal steps the gap to the owner is A, the gap between two replicas |A_i - A_j|.
    assert drift.owner(p, t) == staleness.age_mean(p, t)
    assert drift.pair(p, t) == sum(abs(a - b) * c * d for (a, c), (b, d) in product(law.items(), law.items()))
    if t:
        before = ages(p, t - 1)
        assert drift.stale_gap(p, t) == sum((a + 1) * c for a, c in before.items())


@given(losses, ranks, times, st.integers(1, 5))
def test_the_drift_scales_with_sigma2_and_mixes_over_owners(p, n, t, sigma2):
    mixed = (Fraction(n - 2, n) * drift.pair(p, t) + Fraction(2, n) * drift.owner(p, t)) * sigma2
    assert drift.model_pair(p, n, t, sigma2) == mixed
    assert drift.pair(p, t, sigma2) == sigma2 * drift.pair(p, t)


@given(losses, ranks)
def test_steady_states_are_limits(p, n):
    far = 4000
    for form in (drift.pair, drift.owner, drift.stale_gap, staleness.age_mean):
        assert float(form(float(p), far)) == pytest.approx(float(form(p)), rel=1e-12)
    assert drift.model_pair(float(p), n, far) == pytest.approx(float(drift.model_pair(p, n)), rel=1e-12)
    assert drift.pair(p) == drift.reported_constant(p) * drift.stale_gap(p)


@given(losses, ranks)
def test_the_owners_weight_is_the_mean_of_one_over_k(p, n):
    law = {k: comb(n - 1, k - 1) * (1 - p) ** (k - 1) * p ** (n - k) for k in range(1, n + 1)}
    weight = aggregation.owner_weight(n, p)
    assert weight == sum(chance / k for k, chance in law.items())
    others = (1 - weight) / (n - 1)
    g = list(range(n))
    gbar = aggregation.survivor_mean(g)
    assert aggregation.owner_bias(g[0], gbar, n, p) == weight * g[0] + others * sum(g[1:]) - gbar


@given(losses, ranks, st.lists(st.integers(-5, 5), min_size=9, max_size=9))
def test_what_no_survivor_costs_by_summing_over_patterns(p, n, values):
    n, g = min(n, 5), values[: min(n, 5)]
    gbar = aggregation.survivor_mean(g)
    totals = dict.fromkeys(("zero", "own", "zero fill"), Fraction(0))
    for arrived in product((0, 1), repeat=n):
        weight = Fraction(1)
        for bit in arrived:
            weight *= (1 - p) if bit else p
        summed = sum(gi for gi, bit in zip(g, arrived, strict=True) if bit)
        count = sum(arrived)
        mean = Fraction(summed, count) if count else None
        totals["zero"] += weight * (0 if mean is None else mean)
        totals["own"] += weight * (g[0] if mean is None else mean)
        totals["zero fill"] += weight * Fraction(summed, n)
    assert totals["zero"] == aggregation.survivor_mean_or_zero(gbar, n, p)
    assert totals["own"] == aggregation.survivor_mean_or_own(gbar, g[0], n, p)
    assert totals["zero fill"] == aggregation.zero_fill(gbar, p)


@given(losses, ranks, times)
def test_hold_solves_its_recursion(p, n, t):
    estimate = Fraction(7)
    for _ in range(t):
        estimate = (1 - p**n) * 3 + p**n * estimate
    assert aggregation.survivor_mean_or_hold(3, 7, n, p, t) == estimate


def test_closed_forms_answer_in_kind():
    third, symbol = Fraction(1, 3), sp.Symbol("p", positive=True)
    for form in (drift.pair, drift.owner, drift.stale_gap, drift.reported_constant, staleness.age_mean):
        assert isinstance(form(third), Fraction)
        assert form(1 / 3) == pytest.approx(float(form(third)))
        assert form(symbol).subs(symbol, sp.Rational(1, 3)) == sp.Rational(form(third))


@pytest.mark.parametrize("name", DERIVATIONS)
def test_every_derivation_is_proved_step_by_step_and_says_why(name):
    derivation = DERIVATIONS[name]()
    assert derivation.first_failure() is None
    assert derivation.conclusions
    for step in derivation.steps:
        assert step.reason


def test_every_kind_of_step_rejects_a_wrong_right_side():
    p, t, f = steps.p, steps.t, sp.Symbol("f")
    k = sp.Symbol("k", integer=True)
    for right, wrong in ((steps.algebra(p + p, 2 * p, ""), steps.algebra(p + p, 3 * p, "")),
        (steps.algebra(f, p, "", {f: p}), steps.algebra(f, p, "", {f: p**2})),
        (steps.expectation(f, [(p, 1), (1 - p, 0)], p, ""), steps.expectation(f, [(p, 1), (1 - p, 0)], 1 - p, "")),
        (steps.expectation(f, [(p, 1), (1 - p, 0)], p, ""), steps.expectation(f, [(p, 1)], p, "masks not exhausted")),
        (steps.recursion(f, lambda s: 1 - p**s, 0, lambda x: p * x + 1 - p, ""),
         steps.recursion(f, lambda s: 1 - p**s, 1, lambda x: p * x + 1 - p, "")),
        (steps.recursion(f, lambda s: 1 - p**s, 0, lambda x: p * x + 1 - p, ""),
         steps.recursion(f, lambda s: 1 - p**s, 0, lambda x: p * x + p, "")),
        (steps.limit((1 - p ** (2 * t)) * p, p, ""), steps.limit((1 - p ** (2 * t)) * p, 0, "")),
        (steps.limit(p**t, 0, ""), steps.limit(t + p**t, 0, "depends on t")),
        (steps.same_terms(sp.Sum(k + 1, (k, 0, 3)), sp.Sum(k, (k, 1, 4)), 1, ""),
         steps.same_terms(sp.Sum(k + 1, (k, 0, 3)), sp.Sum(k, (k, 1, 5)), 1, "")),
        (steps.same_terms(sp.Sum(k + 1, (k, 0, 3)), sp.Sum(k, (k, 1, 4)), 1, ""),
         steps.same_terms(sp.Sum(k + 2, (k, 0, 3)), sp.Sum(k, (k, 1, 4)), 1, "")),
    ):  # fmt: skip
        assert right.proof()
        assert not wrong.proof()


polynomials = st.dictionaries(
    st.tuples(st.integers(0, 3), st.integers(0, 2)), st.fractions(-4, 4, max_denominator=6), min_size=1, max_size=6
)


@given(polynomials, st.fractions(0, 1, max_denominator=12), st.fractions(0, 1, max_denominator=12))
def test_the_bernstein_form_is_the_same_polynomial(polynomial, x, y):
    form = certify.bernstein(polynomial, 2)
    n, m = (max(powers[d] for powers in form) for d in range(2))
    value = sum(
        c * comb(n, i) * x**i * (1 - x) ** (n - i) * comb(m, j) * y**j * (1 - y) ** (m - j)
        for (i, j), c in form.items()
    )
    assert value == sum(c * x**i * y**j for (i, j), c in polynomial.items())


@given(polynomials, st.lists(st.tuples(*[st.fractions(0, 1, max_denominator=9)] * 2), min_size=1, max_size=8))
def test_nothing_negative_is_certified(polynomial, points):
    x, y = sp.symbols("x y")
    expression = sum(sp.Rational(c) * x**i * y**j for (i, j), c in polynomial.items())
    values = [sum(c * u**i * v**j for (i, j), c in polynomial.items()) for u, v in points]
    if min(values) < 0:
        assert not certify.is_nonnegative(expression, (x, y))


def test_certificates_by_example():
    x, p, t, X = sp.Symbol("x"), sp.Symbol("p", positive=True), sp.Symbol("t", integer=True), sp.Symbol("X")
    assert certify.is_nonnegative(2 * x * (1 - x) / (1 + x), (x,))
    assert certify.is_nonnegative((x - 1) / (x - 2), (x,))
    assert not certify.is_nonnegative(x - sp.Rational(1, 2), (x,))
    assert not certify.is_nonnegative(-x, (x,))
    assert certify.is_zero(p ** (2 * t + 1) - p * (p**t) ** 2, {p**t: X})
    assert not certify.is_zero(p ** (2 * t + 1) - p * p**t, {p**t: X})
    with pytest.raises(ValueError, match="rational"):
        certify.is_zero(sp.sqrt(x))
    with pytest.raises(CoercionFailed):
        certify.coefficients(sp.pi * x, (x,))
