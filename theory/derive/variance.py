"""A5 derived: second moments of sampling without replacement, and of inverse probability. q = 1 - p throughout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy as sp

from lossproof.theory import aggregation, survivors, variance
from lossproof.theory.derive.steps import Derivation, N, algebra, expectation, given, p

k = sp.Symbol("k", integer=True, positive=True)
s2, m2 = sp.symbols(r"s^2 |\bar{g}|^2", positive=True)
h, P0 = sp.symbols(r"E[1/K|K\ge1] P(K=0)", positive=True)


def _root(linear: Callable[[int], Any]) -> Any:
    """Where a linear function of r is 0."""
    return -linear(0) / (linear(1) - linear(0))


def spread() -> Derivation:
    """A5: both spreads and where they cross."""
    own, cross = sp.symbols(r"P(m_i=1|K=k) P(m_i=m_j=1|K=k)")
    squares = N * m2 + (N - 1) * s2  # sum of |g_i|^2
    products = N**2 * m2 - squares  # sum over i != j of <g_i, g_j>
    square_sum, second, given_k, conditional = sp.symbols(
        r"\sum|g_i|^2 E[|\hat{g}|^2|K=k] E[|\hat{g}-\bar{g}|^2|K=k] E[|\hat{g}-\bar{g}|^2|K\ge1]"
    )
    error, link = sp.symbols(r"E[|\hat{g}_0-\bar{g}|^2] E[(m_i/q_i)^2]")
    p_i, one, two, a, b = sp.symbols("p_i |g_1|^2 |g_2|^2 p_1 p_2", positive=True)
    weighted, equal = sp.symbols(r"E[|\hat{g}_{ip}-\bar{g}|^2] E[|\hat{g}_{ip}-\bar{g}|^2]_{p_i=p}")
    square_i, term = sp.symbols(r"|g_i|^2 \mathrm{term}_i", positive=True)
    above, above_all = sp.symbols(r"r^* r^*_0")
    return Derivation(
        (
            given(sp.Symbol("s^2"), sp.Symbol(r"\textstyle\sum|g_i-\bar{g}|^2/(N-1)"), "definition"),
            algebra(square_sum, squares, "sum |g_i - gbar|^2 = sum |g_i|^2 - N |gbar|^2",
                    {square_sum: (N - 1) * s2 + N * m2}),
            algebra(sp.binomial(N - 1, k - 1) / sp.binomial(N, k), k / N, "exchangeable: the share of k-sets with i"),
            algebra(sp.binomial(N - 2, k - 2) / sp.binomial(N, k), k * (k - 1) / (N * (N - 1)), "and with i and j"),
            algebra(second, (own * squares + cross * products) / k**2, "expand the square",
                    {second: own * squares / k**2 + cross * products / k**2}),
            algebra(given_k, variance.survivor_mean(s2, N, 1 / k), "the mean is gbar (A1): subtract |gbar|^2",
                    {given_k: (own * squares + cross * products) / k**2 - m2, own: k / N,
                     cross: k * (k - 1) / (N * (N - 1))},
                    conclusion=True),
            algebra(conditional, variance.survivor_mean(s2, N, h), "average over k >= 1: linear in 1/k",
                    {conditional: variance.survivor_mean(s2, N, 1 / k).subs(1 / k, h)}, conclusion=True),
            expectation(error, [(P0, m2), (1 - P0, s2 * (h - 1 / N))],
                        variance.survivor_mean_or_zero(s2, m2, N, h, P0), "the estimate 0 is |gbar| away",
                        conclusion=True),
            expectation(link, [(p_i, 0), (1 - p_i, 1 / (1 - p_i) ** 2)], 1 / (1 - p_i), "one link; its mean is 1 (A4)"),
            algebra(term, square_i * p_i / (1 - p_i), "variance of m_i g_i/q_i, summed over elements",
                    {term: square_i * (link - 1), link: 1 / (1 - p_i)}),
            algebra(weighted, variance.inverse_probability([one, two], [a, b]), "independent links add up; here N = 2",
                    {weighted: (one * a / (1 - a) + two * b / (1 - b)) / 4}, conclusion=True),
            algebra(equal, variance.inverse_probability_equal(s2, m2, N, p), "equal losses, sum |g_i|^2 as above",
                    {equal: p / (1 - p) * squares / N**2}, conclusion=True),
            *(
                algebra(variance.inverse_probability([sp.Symbol(f"x_{i}") for i in range(n)], [p] * n), equal,
                        "spelled out for few ranks",
                        {equal: p / (1 - p) * sum(sp.Symbol(f"x_{i}") for i in range(n)) / n**2})
                for n in (1, 3)
            ),
            algebra(above, variance.crossover_given_survivor(N, p, h), "equal spread given a survivor, |gbar|^2 = rs^2",
                    {above: _root(lambda r: variance.survivor_mean(s2, N, h)
                                  - variance.inverse_probability_equal(s2, r * s2, N, p))}, conclusion=True),
            algebra(above_all, variance.crossover(N, p, h, P0), "equal error over all rounds",
                    {above_all: _root(lambda r: variance.survivor_mean_or_zero(s2, r * s2, N, h, P0)
                                      - variance.inverse_probability_equal(s2, r * s2, N, p))}, conclusion=True),
            *(
                algebra(form(2, p), form(2, p, h, *none), "two ranks: E[1/K | K >= 1] = (1+3p)/(2(1+p)), P(K=0) = p^2",
                        {h: (1 + 3 * p) / (2 * (1 + p)), P0: aggregation.no_survivor(2, p)})
                for form, none in ((variance.crossover_given_survivor, ()), (variance.crossover, (P0,)))
            ),
            algebra(sp.Symbol("h_2"), survivors.inverse_count(2, p), "pattern 11 counts 1/2, 10 and 01 count 1",
                    {sp.Symbol("h_2"): ((1 - p) ** 2 / 2 + 2 * p * (1 - p)) / (1 - p**2)}),
        )
    )  # fmt: skip
