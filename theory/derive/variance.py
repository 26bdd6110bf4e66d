"""A5 derived: second moments of sampling without replacement, and of inverse probability. q = 1 - p throughout."""

from __future__ import annotations

from typing import Any

import sympy as sp

from lossproof.theory import aggregation, survivors, variance
from lossproof.theory.derive.steps import Derivation, N, Step, algebra, expectation, given, p

k = sp.Symbol("k", integer=True, positive=True)
s2, m2, r = sp.symbols(r"s^2 |\bar{g}|^2 r", positive=True)
h, P0 = sp.symbols(r"E[1/K|K\ge1] P(K=0)", positive=True)
SPELLED = 3
"""Sums over unequal ranks are written out for this N; every step before them is for all N."""


def spread() -> Derivation:
    """A5: both spreads and where they cross."""
    squares = _sum_of_squares()
    survivor, inverse = _survivor_mean(squares[-1]), _inverse_probability(squares[-1])
    crossing = _crossovers(survivor[-2], survivor[-1], inverse[-1])
    return Derivation((*squares, *survivor, *inverse, *crossing))


def _sum_of_squares() -> tuple[Step, ...]:
    g, gbar, total, apart = sp.symbols(r"g \bar{g} \sum|g_i|^2 \sum|g_i-\bar{g}|^2")
    definition = given(apart, (N - 1) * s2, "definition of s^2")
    sums = total, N * gbar, N  # of g_i^2, of g_i and of 1
    terms = zip(sp.Poly((g - gbar) ** 2, g).all_coeffs(), sums, strict=True)
    expanded = algebra(
        apart, total - N * m2, "expanded, term by term", {apart: sum(c * s for c, s in terms), gbar**2: m2}
    )
    return (
        definition,
        expanded,
        algebra(total, N * m2 + (N - 1) * s2, "so", {total: total - expanded.right + definition.right}),
    )


def _survivor_mean(squares: Step) -> tuple[Step, ...]:
    """What the last two steps give: the spread given a survivor, and over all rounds."""
    own, cross, off_diagonal = sp.symbols(r"P(m_i=1|K=k) P(m_i=m_j=1|K=k) \sum_{i\ne{j}}g_i\cdot{g_j}")
    second, at_k, some, error = sp.symbols(
        r"E[|\hat{g}|^2|K=k] E[|\hat{g}-\bar{g}|^2|K=k] E[|\hat{g}-\bar{g}|^2|K\ge1] E[|\hat{g}_0-\bar{g}|^2]"
    )
    uniform = given(sp.Symbol("P(S=s|K=k)"), 1 / sp.binomial(N, k), "exchangeable: all sets of k senders are alike")
    with_i = algebra(own, k / N, "the share of k-sets with i", {own: sp.binomial(N - 1, k - 1) * uniform.right})
    with_both = algebra(
        cross, k * (k - 1) / (N * (N - 1)), "and with i and j", {cross: sp.binomial(N - 2, k - 2) * uniform.right}
    )
    products = algebra(
        off_diagonal,
        N * (N - 1) * m2 - (N - 1) * s2,
        "the square of the sum N gbar, less its diagonal",
        {off_diagonal: N**2 * m2 - squares.right},
    )
    square = algebra(
        second,
        m2 + variance.survivor_mean(s2, N, 1 / k),
        "the square of the mean of k, expanded",
        {second: (with_i.right * squares.right + with_both.right * products.right) / k**2},
    )
    given_k = algebra(
        at_k,
        variance.survivor_mean(s2, N, 1 / k),
        "the mean is gbar (A1): subtract |gbar|^2",
        {at_k: square.right - m2},
        conclusion=True,
    )
    powers = sp.expand(given_k.right)
    average = algebra(
        some,
        variance.survivor_mean(s2, N, h),
        "average over k >= 1: linear in 1/k",
        {some: powers.coeff(k, 0) + powers.coeff(k, -1) * h},
        conclusion=True,
    )
    all_rounds = expectation(
        error,
        [(P0, m2), (1 - P0, average.right)],
        variance.survivor_mean_or_zero(s2, m2, N, h, P0),
        "the estimate 0 is |gbar| away",
        conclusion=True,
    )
    return (uniform, with_i, with_both, products, square, given_k, average, all_rounds)


def _inverse_probability(squares: Step) -> tuple[Step, ...]:
    mean, second, term, all_terms, equal = sp.symbols(
        r"E[m_i/q_i] E[(m_i/q_i-1)^2] E|m_ig_i/q_i-g_i|^2 E[|\hat{g}_{ip}-\bar{g}|^2] "
        r"E[|\hat{g}_{ip}-\bar{g}|^2]_{p_i=p}"
    )
    p_i, square_i = sp.symbols("p_i |g_i|^2", positive=True)
    factor = 1 / (1 - p_i)
    unbiased = expectation(mean, [(p_i, 0), (1 - p_i, factor)], sp.Integer(1), "one link: A4")
    apart = [(p_i, (0 - unbiased.right) ** 2), (1 - p_i, (factor - unbiased.right) ** 2)]
    link = expectation(second, apart, p_i / (1 - p_i), "and how far it is from its mean")
    spread_i = algebra(
        term,
        square_i * p_i / (1 - p_i),
        "a variance, summed over elements",
        {term: square_i * link.right},
    )
    losses, sizes = ([sp.Symbol(f"{name}_{i}", positive=True) for i in range(SPELLED)] for name in ("p", "|g|^2"))
    parts = (spread_i.right.subs({p_i: a, square_i: x}) for a, x in zip(losses, sizes, strict=True))
    independent = algebra(
        all_terms,
        variance.inverse_probability(sizes, losses),
        f"independent links: variances add up; N = {SPELLED}",
        {all_terms: sum(parts) / SPELLED**2},
        conclusion=True,
    )
    alike = algebra(
        equal,
        variance.inverse_probability_equal(s2, m2, N, p),
        "equal losses: the sum of all |g_i|^2 as above",
        {equal: spread_i.right.subs({p_i: p, square_i: squares.right}) / N**2},
        conclusion=True,
    )
    return (unbiased, link, spread_i, independent, alike)


def _crossovers(average: Step, all_rounds: Step, inverse: Step) -> tuple[Step, ...]:
    """Equal spread, with |gbar|^2 = r s^2: the difference is linear in r."""
    above, above_all, two = sp.symbols(r"r^* r^*_0 E[1/K|K\ge1]_{N=2}")

    def root(survivor_mean: Any) -> Any:
        difference = (survivor_mean - inverse.right).subs(m2, r * s2)
        at_0, at_1 = difference.subs(r, 0), difference.subs(r, 1)
        return -at_0 / (at_1 - at_0)

    given_survivor = algebra(
        above,
        variance.crossover_given_survivor(N, p, h),
        "equal spread given a survivor, |gbar|^2 = r s^2",
        {above: root(average.right)},
        conclusion=True,
    )
    over_all = algebra(
        above_all,
        variance.crossover(N, p, h, P0),
        "equal error over all rounds",
        {above_all: root(all_rounds.right)},
        conclusion=True,
    )
    both, one, none = (1 - p) ** 2, 2 * p * (1 - p), aggregation.no_survivor(2, p)
    pairs = expectation(
        two,
        [(both / (1 - none), sp.Rational(1, 2)), (one / (1 - none), 1)],
        survivors.inverse_count(2, p),
        "two ranks, one or both survive",
    )
    return (
        given_survivor,
        over_all,
        pairs,
        *(
            algebra(form(2, p), step.right.subs(N, 2), "two ranks", {h: pairs.right, P0: none})
            for form, step in (
                (variance.crossover_given_survivor, given_survivor),
                (variance.crossover, over_all),
            )
        ),
    )
