"""A4 to A8: closed forms against sums over all patterns, integrals and long arithmetic, for unseen parameters."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import comb

import mpmath
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from lossproof.theory import aggregation, survivors, variance

losses = st.fractions(0, Fraction(95, 100), max_denominator=40)
inner = st.fractions(Fraction(1, 50), Fraction(49, 50), max_denominator=50)
ranks = st.integers(1, 9)
unequal = st.lists(losses, min_size=1, max_size=5)


def patterns(chances):
    """(set of survivors, probability) for independent links."""
    for arrived in product((0, 1), repeat=len(chances)):
        weight = Fraction(1)
        for bit, p in zip(arrived, chances, strict=True):
            weight *= 1 - p if bit else p
        yield [i for i, bit in enumerate(arrived) if bit], weight


def scatter(vectors, target):
    return sum((x - m) ** 2 for vector in vectors for x, m in zip(vector, target, strict=True))


@settings(max_examples=40)
@given(losses, ranks)
def test_kappa_is_the_binomial_sum_and_the_integral_and_between_its_bounds(p, n):
    kappa = survivors.kappa(n, p)
    assert kappa == sum(comb(n, k) * (1 - p) ** k * p ** (n - k) / k for k in range(1, n + 1))
    z = sp.Symbol("z")
    integrand = sp.cancel(((sp.Rational(p) + sp.Rational(1 - p) * z) ** n - sp.Rational(p) ** n) / z)
    assert sp.Rational(kappa) == sp.integrate(integrand, (z, 0, 1))
    assert survivors.kappa_lower(n, p) <= kappa
    if n * (1 - p) > 2 * p:
        assert kappa <= survivors.kappa_upper(n, p)
    assert survivors.inverse_count(n, p) == kappa / (1 - p**n)
    assert survivors.kappa(n, float(p)) == pytest.approx(float(kappa), rel=1e-13)


@settings(max_examples=30)
@given(st.integers(1, 400), st.integers(1, 2**20 - 1))
def test_floats_agree_with_exact_rationals(n, numerator):
    for p in (Fraction(numerator, 2**20), 1 - Fraction(numerator, 2**45)):
        exact = Fraction(0)
        for k in range(1, n + 1):  # the recursion, not the sum
            exact = p * exact + (1 - p**k) / k
        assert abs(Fraction(survivors.kappa(n, float(p))) - exact) <= exact / 10**13


@pytest.mark.parametrize("p", [0.0, 1e-300, 1e-9, 0.1, 0.5, 0.999, 1 - 1e-6, 1 - 1e-9, 1 - 2**-53])
def test_kappa_is_stable_at_a_million(p):
    n = 10**6
    value = survivors.kappa(n, p)
    with mpmath.workdps(40):
        P, mean = mpmath.mpf(p), n * (1 - mpmath.mpf(p))
        cuts = [0, *(1 - c / mean for c in (300, 100, 30, 10, 3, 1) if c < mean), 1] if mean > 1 else [0, 1]
        right = mpmath.quad(lambda z: ((P + (1 - P) * z) ** n - P**n) / z if z else n * (1 - P) * P ** (n - 1), cuts)
    assert value == pytest.approx(float(right), rel=1e-12)
    assert survivors.inverse_count(n, p) == pytest.approx(float(right / (1 - mpmath.mpf(p) ** n)), rel=1e-9)


@given(unequal, st.data())
def test_unequal_weights_by_patterns(chances, data):
    n = len(chances)
    g = data.draw(st.lists(st.integers(-9, 9), min_size=n, max_size=n))
    weights, total, some = [Fraction(0)] * n, Fraction(0), Fraction(0)
    pmf = [Fraction(0)] * (n + 1)
    for alive, chance in patterns(chances):
        pmf[len(alive)] += chance
        if alive:
            some += chance
            total += chance * Fraction(sum(g[i] for i in alive), len(alive))
        for i in alive:
            weights[i] += chance / len(alive)
    assert survivors.counts(chances) == pmf
    assert survivors.weights(chances) == weights
    assert sum(weights) == some
    assert survivors.unequal_bias(g, chances) == total / some - Fraction(sum(g), n)
    better = [chances[0] / 2, *chances[1:]]
    if chances[0]:
        assert survivors.weights(better)[0] > weights[0]
    assert all(new <= old for new, old in zip(survivors.weights(better)[1:], weights[1:], strict=True))
    floats = survivors.weights([float(p) for p in chances])
    assert floats == pytest.approx([float(w) for w in weights], rel=1e-13)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-9, 9), inner), min_size=1, max_size=4), st.data())
def test_inverse_probability_under_any_joint_law(rows, data):
    """Random joint laws: weights on all patterns, from which the marginals follow."""
    n = len(rows)
    size = 2**n
    raw = data.draw(st.lists(st.integers(1, 9), min_size=size, max_size=size))
    law = dict(zip(product((0, 1), repeat=n), (Fraction(w, sum(raw)) for w in raw), strict=True))
    g, assumed = [row[1] for row in rows], [row[2] for row in rows]
    q = [sum(w for bits, w in law.items() if bits[i]) for i in range(n)]
    for a in (q, assumed):
        mean = sum(w * sum(b * x / y for b, x, y in zip(bits, g, a, strict=True)) / n for bits, w in law.items())
        assert mean == survivors.inverse_probability(g, q, a)
    assert survivors.inverse_probability(g, q) == aggregation.survivor_mean(g)


vectors = st.integers(2, 5).flatmap(lambda n: st.lists(st.tuples(*[st.integers(-6, 6)] * 2), min_size=n, max_size=n))


@settings(max_examples=50)
@given(vectors, inner, st.data())
def test_spreads_and_crossovers_by_patterns(g, p, data):
    n = len(g)
    gbar = [Fraction(sum(column), n) for column in zip(*g, strict=True)]
    s2, m2 = scatter(g, gbar) / (n - 1), sum(m * m for m in gbar)
    chances = data.draw(st.lists(inner, min_size=n, max_size=n))
    spread = dict.fromkeys(("survivors", "weighted", "weighted equal", "weighted and some"), Fraction(0))
    for alive, weight in patterns([p] * n):
        weighted = [sum(g[i][e] for i in alive) / (n * (1 - p)) for e in range(2)]
        spread["weighted equal"] += weight * scatter([weighted], gbar)
        if alive:
            mean = [Fraction(sum(g[i][e] for i in alive), len(alive)) for e in range(2)]
            spread["survivors"] += weight * scatter([mean], gbar)
            spread["weighted and some"] += weight * scatter([weighted], gbar)
    for alive, weight in patterns(chances):
        weighted = [sum((g[i][e] / (1 - chances[i]) for i in alive), Fraction(0)) / n for e in range(2)]
        spread["weighted"] += weight * scatter([weighted], gbar)
    inverse, none = survivors.inverse_count(n, p), p**n
    given_some, all_rounds = spread["survivors"] / (1 - none), spread["survivors"] + none * m2
    assert variance.survivor_mean(s2, n, inverse) == given_some
    assert variance.survivor_mean_or_zero(s2, m2, n, inverse, none) == all_rounds
    squares = [sum(x * x for x in row) for row in g]
    assert variance.inverse_probability(squares, chances) == spread["weighted"]
    assert variance.inverse_probability(squares, [p] * n) == spread["weighted equal"]
    assert variance.inverse_probability_equal(s2, m2, n, p) == spread["weighted equal"]
    if s2:
        r = m2 / s2
        for crossing, survivors_spread in (
            (variance.crossover_given_survivor(n, p), given_some),
            (variance.crossover(n, p), all_rounds),
        ):
            better = spread["weighted equal"] - survivors_spread
            assert (better > 0, better < 0) == (r > crossing, r < crossing)
        like = spread["weighted and some"] - spread["survivors"]
        assert (like > 0, like < 0) == (r > variance.crossover(n, p), r < variance.crossover(n, p))


@given(st.integers(2, 7), inner, st.integers(1, 40))
def test_spread_under_a_law_that_is_exchangeable_and_not_independent(n, p, share):
    """Common outages: with some chance nobody, else independent; only E[1/K | K >= 1] enters."""
    outage = Fraction(share, 41)
    pi = [(1 - outage) * chance for chance in survivors.counts([p] * n)]
    some = sum(pi[1:])
    inverse = sum(chance / k for k, chance in enumerate(pi) if k) / some
    g = [i * i for i in range(n)]
    gbar = Fraction(sum(g), n)
    spread = Fraction(0)
    for alive, weight in patterns([p] * n):
        if alive:
            mean = Fraction(sum(g[i] for i in alive), len(alive))
            spread += (1 - outage) * weight * (mean - gbar) ** 2
    assert variance.survivor_mean(scatter([[x] for x in g], [gbar]) / (n - 1), n, inverse) == spread / some


@given(st.integers(2, 12))
def test_the_crossover_is_lost_at_one_loss_and_stays_lost(n):
    for form in (variance.crossover_given_survivor, variance.crossover):
        signs = [form(n, Fraction(i, 60)) > 0 for i in range(1, 60)]
        assert signs[0]
        assert not signs[-1]
        assert signs == sorted(signs, reverse=True)


@given(vectors, st.data())
def test_a_sender_that_is_cut(g, data):
    n, g = len(g), [x for x, _ in g]
    r = data.draw(st.integers(0, n - 1))
    rest = [x for i, x in enumerate(g) if i != r]
    gbar = Fraction(sum(g), n)
    assert survivors.cut_bias(g[r], gbar, n) == Fraction(sum(rest), n - 1) - gbar
    changed = Fraction(sum(rest) + g[r] + 7, n)
    for estimate in (gbar, changed, (gbar + changed) / 2):
        assert max(abs(estimate - gbar), abs(estimate - changed)) >= survivors.cut_floor(7, n)
    assert abs((gbar + changed) / 2 - gbar) == survivors.cut_floor(-7, n)


def test_closed_forms_answer_in_kind():
    third, p = Fraction(1, 3), sp.Symbol("p", positive=True)
    for form in (
        lambda p: survivors.kappa(4, p), lambda p: survivors.inverse_count(4, p), lambda p: survivors.kappa_lower(4, p),
        lambda p: survivors.kappa_upper(4, p), lambda p: survivors.weights([p, p * p, 0])[1],
        lambda p: variance.crossover(3, p),
        lambda p: variance.crossover_given_survivor(3, p), lambda p: variance.inverse_probability([1, 2], [p, p * p]),
    ):  # fmt: skip
        assert isinstance(form(third), Fraction)
        assert isinstance(form(1 / 3), float)
        assert form(1 / 3) == pytest.approx(float(form(third)), rel=1e-11)
        assert form(p).subs(p, sp.Rational(1, 3)) == sp.Rational(form(third))
    assert survivors.kappa(5, 0) == Fraction(1, 5)
    assert survivors.kappa(0, third) == 0
