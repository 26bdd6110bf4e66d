"""A4, A6, A7 and A8 derived: weights and counts of survivors from the law of the masks. q = 1 - p throughout."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import aggregation, survivors
from lossproof.theory.derive.steps import (
    Derivation,
    N,
    Step,
    algebra,
    expectation,
    given,
    p,
    recursion,
    same_terms,
)

q = 1 - p
j, k = sp.symbols("j k", integer=True, positive=True)
z, B = sp.symbols("z B", positive=True)
gbar, g_cut = sp.symbols(r"\bar{g} g_r", real=True)


def inverse_probability() -> Derivation:
    """A4: conditionally on the past, only each link's own marginal enters, whatever the joint law."""
    q_i, a_i, g_i = sp.symbols("q_i a_i g_i", positive=True)
    weight, assumed = sp.symbols(r"E[m_ig_i/q_i|past] E[m_ig_i/a_i|past]")
    spelled: list[Step] = []
    for n in (1, 2, 3):
        g, arrival, a = ([sp.Symbol(f"{name}_{i}", positive=True) for i in range(1, n + 1)] for name in "gqa")
        share = sum(each * right / wrong for each, right, wrong in zip(g, arrival, a, strict=True))
        name = sp.Symbol(rf"E[\hat{{g}}|past]_{{N={n}}}")
        spelled += [
            algebra(name, survivors.inverse_probability(g, arrival, a), "spelled out, probabilities a_i assumed",
                    {name: share / n}),
            algebra(name, survivors.inverse_probability(g, arrival), "spelled out, the right probabilities",
                    {name: sum(g) / n}, conclusion=n == 3),
        ]  # fmt: skip
    return Derivation(
        (
            given(sp.Symbol(r"P(m_i=1|past)"), q_i, "the conditional marginal, given all that g_i depends on"),
            expectation(assumed, [(1 - q_i, 0), (q_i, g_i / a_i)], g_i * q_i / a_i, "g_i is fixed by the past"),
            algebra(
                weight, g_i, "the right probability, a_i = q_i", {weight: assumed, assumed: g_i * q_i / a_i, a_i: q_i}
            ),
            given(
                sp.Symbol(r"E[\hat{g}|past]"),
                sp.Symbol(r"\textstyle\frac1N\sum_i E[m_ig_i/a_i|past]"),
                "the rule, and linearity: dependence between links does not enter",
            ),
            *spelled,
            given(
                sp.Symbol(r"E[\hat{g}-\bar{g}]"),
                sp.Symbol(r"E[E[\hat{g}-\bar{g}|past]]"),
                "tower rule: 0 given every past is 0, also where g and q_i depend on past losses",
            ),
        )
    )


def weights() -> Derivation:
    """A6: one link at a time; G_i(z) = E z^(K of the others)."""
    p_j, w, G_i = sp.symbols("p_j w_i G_{-i}")
    G = sp.Function("G")(z)
    grown = (p_j + (1 - p_j) * z) * G
    factor, p_i = sp.symbols("E[z^{m_j}] p_i")
    spelled: list[Step] = []
    for n in (1, 2, 3):
        losses = [sp.Symbol(f"p_{i}", positive=True) for i in range(1, n + 1)]
        links = [loss + (1 - loss) * z for loss in losses]
        product = sp.expand(sp.prod(links[1:]))
        name = sp.Symbol(rf"w_1^{{(N={n})}}")
        spelled.append(
            algebra(name, survivors.weights(losses)[0], "spelled out: expanded in z and integrated",
                    {name: (1 - losses[0]) * sp.integrate(product, (z, 0, 1))}, conclusion=n == 3)
        )  # fmt: skip
        total, some = sp.Symbol(rf"\textstyle\sum_i w_i^{{(N={n})}}"), sp.symbols(rf"P(K\ge1)^{{(N={n})}}")
        spelled += [
            algebra(some, 1 - survivors.counts(losses)[0], "somebody survives", {some: 1 - sp.prod(losses)}),
            algebra(total, sum(survivors.weights(losses)), "the integral of G' from 0 to 1",
                    {total: sp.prod(links).subs(z, 1) - sp.prod(links).subs(z, 0)}),
        ]  # fmt: skip
    first, g1, g2, a, b = sp.symbols(r"E[\hat{g}|K\ge1]-\bar{g} g_1 g_2 p_1 p_2")
    return Derivation(
        (
            expectation(factor, [(p_j, 1), (1 - p_j, z)], p_j + (1 - p_j) * z, "one link"),
            given(G_i, sp.Symbol(r"\textstyle\prod_{j\ne i}(p_j+q_jz)"), "E z^(survivors but i): independent links"),
            algebra(sp.Derivative(z ** (k + 1) / (k + 1), z), z**k, "so 1/(1+k) is the integral of z^k over [0, 1]",
                    {sp.Derivative(z ** (k + 1) / (k + 1), z): sp.diff(z ** (k + 1) / (k + 1), z)}),
            given(w, (1 - p_i) * sp.Integral(G_i, (z, 0, 1)), "m_i/K is 1/(1 + survivors but i) if i arrives, else 0"),
            *spelled,
            algebra(
                sp.Derivative(grown, z),
                (p_j + (1 - p_j) * z) * sp.diff(G, z) + (1 - p_j) * G,
                "one more sender: G' stays the sum of q_i G_i, for all N by induction; the weights sum to G(1) - G(0)",
                {sp.Derivative(grown, z): sp.diff(grown, z)},
            ),
            algebra(first, survivors.unequal_bias([g1, g2], [a, b]), "two senders: patterns 11, 10 and 01",
                    {first: ((1 - a) * (1 - b) * (g1 + g2) / 2 + (1 - a) * b * g1 + a * (1 - b) * g2) / (1 - a * b)
                     - (g1 + g2) / 2}, conclusion=True),
        )
    )  # fmt: skip


def kappa() -> Derivation:
    """A7: three expressions for E[1/K; K >= 1], K binomial(N, q), and a bound from below and from above."""
    now, before, factor, generating, slice_ = sp.symbols(r"\kappa_N \kappa_{N-1} E[z^m] E[z^K] E[z^{K-1};K\ge1]")
    P0 = aggregation.no_survivor(N, p)
    slope_z = sp.Derivative((p + q * z) ** N / N, z)
    binomial = sp.Sum(sp.binomial(N, k) * q**k * p ** (N - k) / k, (k, 1, N))
    pascal = sp.binomial(N - 1, k) / k + sp.binomial(N, k) / N
    summed = sp.Sum(survivors.kappa_term(k, N, p), (k, 1, N))
    small = [survivors.kappa(n, p) for n in range(4)]
    pair, Kbar = sp.symbols(r"\frac{j}{k}+\frac{k}{j}-2 E[K]")
    share = sp.Symbol("c_j")
    slope = sp.expand((1 - P0) / survivors.kappa_upper(N, p))  # linear in p
    at_0, at_1 = slope.subs(p, 0), slope.subs(p, 1)
    return Derivation(
        (
            given(now, binomial, "K is binomial(N, q)"),
            expectation(factor, [(p, 1), (q, z)], p + q * z, "one link"),
            recursion(generating, lambda n: (p + q * z) ** n, 1, lambda G: (p + q * z) * G, "t independent links"),
            given(now, sp.Integral(slice_, (z, 0, 1)), "1/K is the integral of z^(K-1) over [0, 1]"),
            algebra(slice_, ((p + q * z) ** N - P0) / z, "split z^K into K = 0 and K >= 1",
                    {slice_: (generating - P0) / z, generating: (p + q * z) ** N}, conclusion=True),
            algebra(
                (B**N - P0) / z,
                p * (B ** (N - 1) - p ** (N - 1)) / z + q * B ** (N - 1),
                "with B = p + qz: the integrand of N from that of N - 1",
                {z: (B - p) / q},
            ),
            algebra(slope_z, q * B ** (N - 1), "the second part integrates to (1 - p^N)/N",
                    {slope_z: sp.diff(B**N / N, B) * sp.diff(p + q * z, z)}),
            algebra(now, p * before + survivors.kappa_term(N, N, p), "both parts together",
                    {now: p * before + (1 - P0) / N}),
            algebra(sp.binomial(N, k) / k, pascal, "the binomial sum solves the same recursion, term by term"),
            same_terms(sp.Sum(p * survivors.kappa_term(k, N - 1, p), (k, 1, N - 1)),
                       sp.Sum(survivors.kappa_term(k, N, p), (k, 1, N - 1)), 0, "and so does the sum to be shown"),
            *(
                algebra(sp.Symbol(rf"\kappa_{n}"), small[n], "added up, from 0 for no sender",
                        {sp.Symbol(rf"\kappa_{n}"): p * small[n - 1] + (1 - p**n) / n if n else 0})
                for n in range(4)
            ),
            algebra(now, summed, "induction on N: the last term is what the recursion adds",
                    {now: p * before + (1 - P0) / N, before: (summed - survivors.kappa_term(N, N, p)) / p},
                    conclusion=True),
            algebra(pair, (j - k) ** 2 / (j * k),
                    "squares: E[1/K;K>=1] E[K] - P(K>=1)^2 is the sum over j < k of P_j P_k times it",
                    {pair: j / k + k / j - 2}),
            algebra(Kbar, (1 - P0) ** 2 / survivors.kappa_lower(N, p), "so (1 - p^N)^2/(Nq) <= kappa",
                    {Kbar: N * q}, conclusion=True),
            algebra(share, (j - 2) * (N + 1 - j) / (j * (j - 1)),
                    "coefficients of (N+1) (1 - p^N - (Nq-2p) kappa) in degree N+1, j = 2..N+1, none negative; "
                    "and 0 and 3N for j = 0 and 1",
                    {share: N + 1 - at_0 * j / (j - 1) - at_1 * (N + 1 - j) / j}, conclusion=True),
        )
    )  # fmt: skip


def limits() -> Derivation:
    """A8: what is always lost has weight 0, and nothing that did not arrive can be reweighted."""
    bias, rest, gap, floor = sp.symbols(r"E[\hat{g}|K\ge1]-\bar{g} \sum_{i\ne{r}}g_i b-b' \max(|b|\,|b'|)")
    e, change = sp.symbols(r"E[\hat{g}] \Delta", positive=True)
    least = survivors.cut_floor(change, N)
    return Derivation(
        (
            given(
                sp.Symbol(r"E[m_i/K|K\ge1]"), aggregation.survivor_weight(N - 1), "A1 among the N - 1 others; m_r = 0"
            ),
            algebra(bias, survivors.cut_bias(g_cut, gbar, N), "linearity: the gradient of r has weight 0",
                    {bias: aggregation.survivor_weight(N - 1) * rest - gbar, rest: N * gbar - g_cut}, conclusion=True),
            algebra(sp.Symbol("b"), survivors.cut_bias(sp.Integer(1), sp.Rational(1, 2), 2),
                    "the larger of two dropped, g = (0, 1): the mean of what is left is 0, gbar is 1/2",
                    {sp.Symbol("b"): sp.Rational(-1, 2)}, conclusion=True),
            given(e, sp.Symbol(r"E[\hat{g}']"), "any rule: the same for g_r and g_r + Delta, as neither ever arrives"),
            algebra(gap, change / N, "so its biases b and b' differ by the change of gbar",
                    {gap: (e - gbar) - (e - gbar - change / N)}),
            algebra(floor, least, "two numbers that differ by d are not both below d/2 in size; b = -b' attains it",
                    {floor: change / N / 2}, conclusion=True),
        )
    )  # fmt: skip
