"""A1 to A3 derived: the survivor mean from the law of the arrival vector. q = 1 - p throughout."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import aggregation
from lossproof.theory.derive.steps import Derivation, N, algebra, expectation, given, limit, p, recursion, same_terms, t

k = sp.Symbol("k", integer=True, positive=True)
pi = sp.IndexedBase(r"\pi")
gbar, g_owner, start = sp.symbols(r"\bar{g} g_o e_0", real=True)
SOME = sp.Sum(pi[k], (k, 1, N))
"""P(K >= 1), the sum of pi_k = P(K = k)."""


def _mean(condition: str = "") -> sp.Symbol:
    return sp.Symbol(rf"E[\hat{{g}}{condition}]")


def survivor_mean() -> Derivation:
    """A1, for every exchangeable law: pi_k = P(K = k) is all that such a law leaves open."""
    weight_k, weight = sp.symbols(r"E[m_i/K\,|\,K=k] E[m_i/K\,|\,K\ge1]")
    P_member = sp.Symbol(r"P(m_i=1\,|\,K=k)")
    g, i = sp.IndexedBase("g"), sp.Symbol("i", integer=True)
    total = sp.Sum(g[i], (i, 1, N))
    return Derivation(
        (
            given(
                P_member,
                sp.binomial(N - 1, k - 1) / sp.binomial(N, k),
                "exchangeable: given K = k all sets of k senders are equally likely; this share of them contains i",
            ),
            algebra(sp.binomial(N - 1, k - 1) / sp.binomial(N, k), k / N, "factorials cancel"),
            algebra(weight_k, 1 / N, "m_i/K is 1/k if i is among the k", {weight_k: 1 / k * (k / N)}),
            algebra(
                weight,
                aggregation.survivor_weight(N),
                "average over k >= 1 with weights P(K=k)/P(K>=1); the weight 1/N does not depend on k",
                {weight: SOME / (1 - pi[0]) / N, SOME: 1 - pi[0]},
            ),
            algebra(
                _mean(r"\,|\,K\ge1"),
                gbar,
                "linearity: the gradients are fixed, each has weight 1/N",
                {_mean(r"\,|\,K\ge1"): aggregation.survivor_weight(N) * total, total: N * gbar},
                conclusion=True,
            ),
        )
    )


def no_survivor() -> Derivation:
    """A2: the four ways to fill in for a packet that nobody's copy of arrived."""
    P0 = aggregation.no_survivor(N, p)
    previous = sp.Symbol("E_{t-1}")
    hold = sp.Symbol("E_t")
    return Derivation(
        (
            given(sp.Symbol("P(K=0)"), P0, "independent links; for an exchangeable law read P(K=0) for p^N below"),
            expectation(
                _mean(r"_{\mathrm{zero}}"),
                [(P0, 0), (1 - P0, gbar)],
                aggregation.survivor_mean_or_zero(gbar, N, p),
                "A1 where somebody survived, 0 where nobody did",
                conclusion=True,
            ),
            expectation(
                _mean(r"_{\mathrm{zero\ fill}}"),
                [(p, 0), (1 - p, gbar)],
                aggregation.zero_fill(gbar, p),
                "linearity: each sender contributes g_i/N with probability q",
                conclusion=True,
            ),
            expectation(
                hold,
                [(P0, previous), (1 - P0, gbar)],
                (1 - P0) * gbar + P0 * previous,
                "A1 where somebody survived, the previous estimate where nobody did (masks independent in time)",
                conclusion=True,
            ),
            recursion(
                hold,
                lambda s: aggregation.survivor_mean_or_hold(gbar, start, N, p, s),
                start,
                lambda before: (1 - P0) * gbar + P0 * before,
                "constant gradients: induction on t",
                conclusion=True,
            ),
            limit(
                aggregation.survivor_mean_or_hold(gbar, start, N, p, t),
                gbar,
                "(p^N)^t -> 0: the estimate forgets its start",
                base=P0,
            ),
            expectation(
                _mean(r"_{\mathrm{own}}"),
                [(P0, g_owner), (1 - P0, gbar)],
                aggregation.survivor_mean_or_own(gbar, g_owner, N, p),
                "A1 where somebody survived, the owner's own gradient where nobody did",
                conclusion=True,
            ),
        )
    )


def owner_bias() -> Derivation:
    """A3: the owner's own gradient always arrives, so K = 1 + B with B binomial(N - 1, q)."""
    j = sp.Symbol("j", integer=True, nonnegative=True)
    w = sp.Symbol("w")
    q = 1 - p
    by_hand = sp.Sum(sp.binomial(N - 1, j) * q**j * p ** (N - 1 - j) / (j + 1), (j, 0, N - 1))
    shifted = sp.Sum(sp.binomial(N, k) * q**k * p ** (N - k) / (N * q), (k, 1, N))
    whole = sp.Symbol(r"\textstyle\sum_{k=0}^{N}\binom{N}{k}q^k p^{N-k}")
    others = (1 - w) / (N - 1)
    closed = aggregation.owner_weight(N, p)
    return Derivation(
        (
            given(w, by_hand, "the owner's weight is 1/K = 1/(1+B), B ~ binomial(N-1, q)"),
            same_terms(by_hand, shifted, 1, "binomial(N-1, j)/(j+1) = binomial(N, j+1)/N, then k = j + 1"),
            algebra(
                w,
                closed,
                "the sum from k = 0 is (p+q)^N = 1; its first term is p^N",
                {w: (whole - p**N) / (N * q), whole: 1},
                conclusion=True,
            ),
            given(
                sp.Symbol(r"E[m_i/K]"), others, "the others' links are exchangeable: equal shares of the rest, i != o"
            ),
            algebra(
                sp.Symbol(r"E[\hat{g}]-\bar{g}"),
                aggregation.owner_bias(g_owner, gbar, N, p),
                "E = w g_o + (1-w)/(N-1) (N gbar - g_o)",
                {sp.Symbol(r"E[\hat{g}]-\bar{g}"): w * g_owner + others * (N * gbar - g_owner) - gbar, w: closed},
                conclusion=True,
            ),
        )
    )
