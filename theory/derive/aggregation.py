"""A1 to A3 derived: the survivor mean from the law of the arrival vector. q = 1 - p throughout."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import aggregation
from lossproof.theory.derive.steps import (
    Derivation,
    N,
    algebra,
    binomial_theorem,
    expectation,
    following,
    given,
    limit,
    p,
    recursion,
    same_terms,
    t,
)

k = sp.Symbol("k", integer=True, positive=True)
i = sp.Symbol("i", integer=True, positive=True)
pi, g = sp.IndexedBase(r"\pi"), sp.IndexedBase("g")
gbar, g_owner, start = sp.symbols(r"\bar{g} g_o e_0", real=True)
TOTAL = sp.Sum(g[i], (i, 1, N))


def _mean(condition: str = "") -> sp.Symbol:
    return sp.Symbol(rf"E[\hat{{g}}{condition}]")


def survivor_mean() -> Derivation:
    """A1, for every exchangeable law: pi_k = P(K = k) is all that such a law leaves open."""
    weight_k, weight = sp.Symbol(r"E[m_i/K\,|\,K=k]"), sp.Symbol(r"E[m_i/K\,|\,K\ge1]")
    P_member, estimate = sp.Symbol(r"P(m_i=1\,|\,K=k)"), _mean(r"\,|\,K\ge1")
    uniform = given(
        sp.Symbol(r"P(S=s\,|\,K=k)"), 1 / sp.binomial(N, k), "exchangeable: given K = k all sets of k senders are alike"
    )
    member = algebra(
        P_member,
        k / N,
        "binomial(N-1, k-1) of the sets contain i",
        {P_member: sp.binomial(N - 1, k - 1) * uniform.right},
    )
    share = algebra(weight_k, 1 / N, "m_i/K is 1/k if i is among the k", {weight_k: member.right / k})
    some = given(sp.Sum(pi[k], (k, 1, N)), 1 - pi[0], "probabilities sum to 1: P(K >= 1)")
    average = algebra(
        weight,
        aggregation.survivor_weight(N),
        "average over k >= 1 with weights P(K=k)/P(K>=1); the share does not depend on k",
        {weight: some.left / some.right * share.right, some.left: some.right},
    )
    total = given(TOTAL, N * gbar, "the mean of all gradients")
    return Derivation(
        (
            uniform,
            member,
            share,
            some,
            average,
            total,
            algebra(
                estimate,
                gbar,
                "linearity: the gradients are fixed",
                {estimate: average.right * total.left, total.left: total.right},
                conclusion=True,
            ),
        )
    )


def no_survivor() -> Derivation:
    """A2: the four ways to fill in for a packet that nobody's copy of arrived."""
    none, previous, hold = sp.symbols("P(K=0) E_{t-1} E_t")
    arrives, filled = sp.Symbol("E[m_i]"), _mean(r"_{\mathrm{zero\ fill}}")
    independent = given(none, sp.Product(p, (i, 1, N)), "independent links; an exchangeable law has its own P(K=0)")
    P0 = aggregation.no_survivor(N, p)
    total = given(TOTAL, N * gbar, "the mean of all gradients")
    arrival = expectation(arrives, [(p, 0), (1 - p, 1)], 1 - p, "lost or arrived")
    held = expectation(
        hold,
        [(P0, previous), (1 - P0, gbar)],
        (1 - P0) * gbar + P0 * previous,
        "A1 where somebody survived, the previous estimate where nobody did (masks independent in time)",
        conclusion=True,
    )
    return Derivation(
        (
            independent,
            algebra(none, P0, "N equal factors", {none: independent.right.doit()}),
            expectation(
                _mean(r"_{\mathrm{zero}}"),
                [(P0, 0), (1 - P0, gbar)],
                aggregation.survivor_mean_or_zero(gbar, N, p),
                "A1 where somebody survived, 0 where nobody did",
                conclusion=True,
            ),
            total,
            arrival,
            algebra(
                filled,
                aggregation.zero_fill(gbar, p),
                "linearity: the sum of E[m_i] g_i / N",
                {filled: arrival.right * total.left / N, total.left: total.right},
                conclusion=True,
            ),
            held,
            recursion(
                hold,
                lambda s: aggregation.survivor_mean_or_hold(gbar, start, N, p, s),
                start,
                following(held, previous),
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
    w, bias = sp.Symbol("w"), sp.Symbol(r"E[\hat{g}]-\bar{g}")
    q = 1 - p
    whole = binomial_theorem(q, p, N, k, "binomial theorem")
    term = whole.left.function
    by_hand = given(
        w,
        sp.Sum(sp.binomial(N - 1, j) * q**j * p ** (N - 1 - j) / (j + 1), (j, 0, N - 1)),
        "definition: the owner's weight is 1/K = 1/(1+B), averaged over B ~ binomial(N-1, q)",
    )
    shifted = same_terms(
        by_hand.right,
        sp.Sum(term / (N * q), (k, 1, N)),
        1,
        "binomial(N-1, j)/(j+1) = binomial(N, j+1)/N, and k = j + 1",
    )
    weight = algebra(
        w,
        aggregation.owner_weight(N, p),
        "the sum from k = 0 without its first term",
        {w: (whole.right - term.subs(k, 0)) / (N * q)},
        conclusion=True,
    )
    others = (1 - w) / (N - 1)
    return Derivation(
        (
            by_hand,
            shifted,
            whole,
            weight,
            algebra(
                w + (N - 1) * others, sp.Integer(1), "the weights sum to 1; those of the others are equal, by symmetry"
            ),
            algebra(
                bias,
                aggregation.owner_bias(g_owner, gbar, N, p),
                "w for the owner's gradient, (1-w)/(N-1) for each other one; these sum to N gbar - g_o",
                {bias: w * g_owner + others * (N * gbar - g_owner) - gbar, w: weight.right},
                conclusion=True,
            ),
        )
    )
