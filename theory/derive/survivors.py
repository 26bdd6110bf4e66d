"""A4, A6 and A8 derived: what each sender weighs, from the law of the masks."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import aggregation, survivors
from lossproof.theory.derive.steps import (
    Derivation,
    N,
    algebra,
    expectation,
    given,
)

k = sp.Symbol("k", integer=True, positive=True)
z = sp.Symbol("z", positive=True)
SPELLED = 3
"""Sums over unequal ranks are written out for this N; every other step is for all N."""


def _ranks(*names: str) -> tuple[list[sp.Symbol], ...]:
    return tuple([sp.Symbol(f"{name}_{i}", positive=True) for i in range(1, SPELLED + 1)] for name in names)


def inverse_probability() -> Derivation:
    """A4: conditionally on the past, only each link's own marginal enters, whatever the joint law."""
    q_i, a_i, g_i = sp.symbols("q_i a_i g_i", positive=True)
    chance, weight, estimate, bias, all_in_all, past = sp.symbols(
        r"P(m_i=1|past) E[m_ig_i/a_i|past] E[\hat{g}|past] E[\hat{g}-\bar{g}|past] E[\hat{g}-\bar{g}] P(past)"
    )
    g, arrival, a = _ranks("g", "q", "a")
    marginal = given(chance, q_i, "the conditional marginal, given all that g_i depends on")
    term = expectation(
        weight,
        [(1 - marginal.right, 0), (marginal.right, g_i / a_i)],
        g_i * q_i / a_i,
        "g_i is fixed by the past; a_i is the probability that the rule assumes",
    )
    terms = [term.right.subs({g_i: x, q_i: y, a_i: w}) for x, y, w in zip(g, arrival, a, strict=True)]
    linear = algebra(
        estimate,
        survivors.inverse_probability(g, arrival, a),
        f"the rule, and linearity: dependence between links does not enter; N = {SPELLED}",
        {estimate: sum(terms) / SPELLED},
    )
    right = dict(zip(a, arrival, strict=True))
    known = algebra(
        estimate,
        survivors.inverse_probability(g, arrival),
        "the right probabilities, a_i = q_i",
        {estimate: linear.right.subs(right)},
        conclusion=True,
    )
    unbiased = algebra(
        bias, sp.Integer(0), "less gbar, the mean of all", {bias: known.right - aggregation.survivor_mean(g)}
    )
    return Derivation(
        (
            marginal,
            term,
            linear,
            known,
            unbiased,
            expectation(
                all_in_all,
                [(past, unbiased.right), (1 - past, unbiased.right)],
                sp.Integer(0),
                "tower rule, over one past and all others: also where g and q_i depend on past losses",
                conclusion=True,
            ),
        )
    )


def weights() -> Derivation:
    """A6: one link at a time; G(z) = E z^K, and G_i(z) = E z^(survivors but i)."""
    p_j, p_i, factor, w, others, G_i = sp.symbols("p_j p_i E[z^{m_j}] w_i E[1/(1+K_{-i})] G_{-i}")
    G, G_slope, mixed, grown = sp.symbols(r"G G' \sum_iq_iG_{-i} (E[z^{m_j}]G)'")
    some, total, bias = sp.symbols(r"P(K\ge1) \sum_iw_i E[\hat{g}|K\ge1]-\bar{g}")
    losses, g, own = _ranks("p", "g", "w")
    link = expectation(factor, [(p_j, 1), (1 - p_j, z)], p_j + (1 - p_j) * z, "one link")
    slope = sp.Derivative(z ** (1 + k) / (1 + k), z)
    reciprocal = given(others, sp.Integral(G_i, (z, 0, 1)), "the mean of 1/(1+k), term by term")
    weight = expectation(w, [(p_i, 0), (1 - p_i, others)], (1 - p_i) * others, "m_i/K is 1/(1 + survivors but i), or 0")

    links = [link.right.subs(p_j, loss) for loss in losses]
    generating = algebra(
        G,
        sum(chance * z**n for n, chance in enumerate(survivors.counts(losses))),
        f"independent links, spelled out for N = {SPELLED}",
        {G: sp.prod(links)},
    )
    spelled = []
    for name, value, loss, its_link in zip(own, survivors.weights(losses), losses, links, strict=True):
        mean = reciprocal.right.subs(G_i, sp.expand(sp.prod(links) / its_link)).doit()
        share = weight.right.subs({p_i: loss, others: mean})
        spelled.append(algebra(name, value, "G_i likewise", {name: share}, conclusion=True))
    sum_rule = algebra(
        grown,
        link.right * mixed + (1 - p_j) * G,
        "one more link: G' stays the sum of q_i G_i, for all N by induction from G = 1",
        {grown: sp.diff(link.right, z) * G + link.right * G_slope, G_slope: mixed},
    )
    ends = [generating.right.subs(z, at) for at in (1, 0)]
    at_least_one = algebra(some, 1 - survivors.counts(losses)[0], "G(1) - G(0)", {some: ends[0] - ends[1]})
    return Derivation(
        (
            link,
            algebra(slope, z**k, "so 1/(1+k) is the integral of z^k over [0, 1]", {slope: slope.doit()}),
            reciprocal,
            weight,
            generating,
            *spelled,
            sum_rule,
            at_least_one,
            algebra(total, at_least_one.right, "the integral of G'", {total: sum(step.right for step in spelled)},
                    conclusion=True),
            algebra(
                bias,
                survivors.unequal_bias(g, losses),
                "linearity; given a survivor",
                {bias: sum(step.right / at_least_one.right * x for step, x in zip(spelled, g, strict=True))
                 - aggregation.survivor_mean(g)},
                conclusion=True,
            ),
        )
    )  # fmt: skip


def limits() -> Derivation:
    """A8: what is always lost has weight 0, and nothing that did not arrive can be reweighted."""
    gbar, g_cut = sp.symbols(r"\bar{g} g_r", real=True)
    bias, rest, larger = sp.symbols(r"E[\hat{g}|K\ge1]-\bar{g} \sum_{i\ne{r}}g_i b_{01}")
    b, b_2, e, e_2, change = sp.symbols(r"b b' E[\hat{g}] E[\hat{g}'] \Delta", positive=True)
    apart, floor = sp.symbols(r"b-b' \max(|b|\,|b'|)")
    share = given(
        sp.Symbol(r"E[m_i/K|K\ge1]"), aggregation.survivor_weight(N - 1), "A1 among the N - 1 others; m_r = 0"
    )
    others = given(rest, N * gbar - g_cut, "gbar is the mean of all N")
    cut = algebra(
        bias,
        survivors.cut_bias(g_cut, gbar, N),
        "linearity: the gradient of r has weight 0",
        {bias: share.right * rest - gbar, rest: others.right},
        conclusion=True,
    )
    pair = [sp.Integer(0), sp.Integer(1)]
    dropped = algebra(
        larger,
        sp.Rational(-1, 2),
        "the larger of two dropped, g = (0, 1): the mean of what is left, less gbar",
        {larger: aggregation.survivor_mean(pair[:1]) - aggregation.survivor_mean(pair)},
    )
    same = given(e_2, e, "any rule: the same for g_r and g_r + Delta, as neither ever arrives")
    gap = algebra(
        apart,
        change / N,
        "so its biases b and b' differ by the change of gbar",
        {apart: (e - gbar) - (e_2 - (gbar + change / N)), e_2: same.right},
    )
    return Derivation(
        (
            share,
            others,
            cut,
            dropped,
            algebra(
                larger,
                survivors.cut_bias(max(pair), aggregation.survivor_mean(pair), 2),
                "the same as if its sender were cut",
                {larger: dropped.right},
                conclusion=True,
            ),
            same,
            gap,
            algebra(
                b**2 + b_2**2,
                (b - b_2) ** 2 / 2 + (b + b_2) ** 2 / 2,
                "so the larger square is at least (b - b')^2/4, and b = -b' attains it",
            ),
            algebra(
                floor,
                survivors.cut_floor(change, N),
                "so the floor is |b - b'|/2",
                {floor: gap.right / 2},
                conclusion=True,
            ),
        )
    )
