"""A7 derived: E[1/K; K >= 1] from the law of the number of survivors. q = 1 - p throughout."""

from __future__ import annotations

from itertools import combinations

import sympy as sp

from lossproof.theory import aggregation, survivors
from lossproof.theory.derive.steps import (
    Derivation,
    N,
    Step,
    algebra,
    binomial_theorem,
    expectation,
    given,
    p,
    same_terms,
)

q = 1 - p
j, k = sp.symbols("j k", integer=True, positive=True)
z, B = sp.symbols("z B", positive=True)
SPELLED = 3
"""kappa is spelled out for this N; every other step is for all N."""


def kappa() -> Derivation:
    """A7: three expressions for E[1/K; K >= 1], K binomial(N, q), and a bound from below and from above."""
    return Derivation((*_expressions(), *_lower(), *_upper()))


def _expressions() -> tuple[Step, ...]:
    """The binomial sum; the integral; and the sum that the integral's recursion in N adds up to."""
    now, before, inside, rest, added = sp.symbols(r"\kappa_N \kappa_{N-1} E[z^{K-1};K\ge1] I_N-pI_{N-1} \int_0^1")
    nobody, by_B = aggregation.no_survivor(N, p), {z: (B - p) / q}
    whole = binomial_theorem(q * z, p, N, k, "binomial theorem, for E z^K")
    term = whole.left.function
    definition = given(now, sp.Sum(term.subs(z, 1) / k, (k, 1, N)), "definition; K is binomial(N, q)")
    _, first, _ = definition.right.limits[0]
    slope = sp.Derivative(definition.right.function * z**k, z)
    integrand = algebra(
        inside,
        ((p + q * z) ** N - nobody) / z,
        "the terms from K = 1 on, over z",
        {inside: (whole.right - sum(term.subs(k, n) for n in range(first))) / z},
    )
    integral = given(now, sp.Integral(integrand.right, (z, 0, 1)), "so, summed over k")
    _, low, high = integral.right.limits[0]
    grows = algebra(
        rest,
        q * (p + q * z) ** (N - 1),
        "I_N is this integrand; with B = p + qz",
        {rest: integrand.right - p * integrand.right.subs(N, N - 1), **by_B},
    )
    antiderivative = (p + q * z) ** N / N
    slope_B = sp.Derivative(antiderivative, z)
    area = algebra(
        added,
        survivors.kappa_term(N, N, p),
        "the integral of this difference",
        {added: antiderivative.subs(z, high) - antiderivative.subs(z, low)},
    )
    law = algebra(now, p * before + area.right, "so", {now: p * before + added, added: area.right})
    summed = sp.Sum(survivors.kappa_term(k, N, p), (k, 1, N))
    spelled = sp.Symbol(rf"\kappa_{SPELLED}")
    none = sp.Symbol(r"\kappa_0")
    return (
        definition,
        whole,
        algebra(slope, term / z, "so a term over z has the integral P(K = k)/k over [0, 1]", {slope: slope.doit()}),
        integrand,
        integral,
        grows,
        algebra(slope_B, grows.right, "an antiderivative", {slope_B: slope_B.doit(), **by_B}),
        area,
        law,
        same_terms(
            sp.Sum(p * survivors.kappa_term(k, N - 1, p), (k, 1, N - 1)),
            sp.Sum(summed.function, (k, 1, N - 1)),
            0,
            "p times the sum for N - 1 is the sum for N without its last term",
        ),
        algebra(none, sp.Integer(0), "no sender: nothing to add", {none: summed.subs(N, 0).doit()}),
        algebra(
            now,
            summed,
            "induction on N",
            {now: law.right, before: (summed - summed.function.subs(k, N)) / p},
            conclusion=True,
        ),
        algebra(spelled, survivors.kappa(SPELLED, p), "spelled out", {spelled: summed.subs(N, SPELLED).doit()}),
    )


def _lower() -> tuple[Step, ...]:
    """The inequality of Cauchy and Schwarz with what it leaves out."""
    one, mean, pair, excess = sp.symbols(r"E[m_i] E[K] \frac{j}{k}+\frac{k}{j}-2 E[1/K;K\ge1]E[K]-P(K\ge1)^2")
    arrives = expectation(one, [(p, 0), (q, 1)], q, "one link")
    K = algebra(mean, N * q, "linearity", {mean: N * arrives.right})
    square = algebra(pair, (j - k) ** 2 / (j * k), "never negative", {pair: j / k + k / j - 2})
    counts = dict(zip(sp.symbols("i j k"), sp.symbols("P_i P_j P_k"), strict=True))
    pairs = [counts[m] * counts[n] * square.right.subs({j: m, k: n}) for m, n in combinations(counts, 2)]
    inverse, linear = sum(c / n for n, c in counts.items()), sum(c * n for n, c in counts.items())
    return (
        arrives,
        K,
        square,
        algebra(
            excess,
            sum(pairs),
            "the sum over j < k of P_j P_k times it; spelled out for three counts",
            {excess: inverse * linear - sum(counts.values()) ** 2},
        ),
        algebra(
            mean,
            (1 - aggregation.no_survivor(N, p)) ** 2 / survivors.kappa_lower(N, p),
            "so kappa is at least P(K >= 1)^2 / E[K]",
            {mean: K.right},
            conclusion=True,
        ),
    )


def _upper() -> tuple[Step, ...]:
    """(N+1) (1 - p^N - (aq + bp) kappa) in the Bernstein basis of degree N + 1 has no negative coefficient."""
    by_q, by_p, first, later = sp.symbols("r_q r_p c_1 c_j")
    bound = (1 - aggregation.no_survivor(N, p)) / survivors.kappa_upper(N, p)
    a, b = (sp.expand(bound).subs(p, at) for at in (0, 1))
    raised_q = algebra(
        by_q, j / (N + 1), "a factor q raises the degree and j", {by_q: sp.binomial(N, j - 1) / sp.binomial(N + 1, j)}
    )
    raised_p = algebra(
        by_p, (N + 1 - j) / (N + 1), "a factor p raises the degree", {by_p: sp.binomial(N, j) / sp.binomial(N + 1, j)}
    )
    share = {by_q: raised_q.right, by_p: raised_p.right}
    return (
        algebra(bound, a * q + b * p, "a linear factor; kappa has coefficients 1/k, and 1 - p^N has 1, k >= 1"),
        raised_q,
        raised_p,
        algebra(first, 3 * N, "j = 1: only the factor p meets them; 0 for j = 0",
                {first: (N + 1) * by_p * (1 - b), **share, j: 1}, conclusion=True),
        algebra(later, (j - 2) * (N + 1 - j) / (j * (j - 1)), "j = 2..N+1",
                {later: (N + 1) * (by_q * (1 - a / (j - 1)) + by_p * (1 - b / j)), **share}, conclusion=True),
    )  # fmt: skip
