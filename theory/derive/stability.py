"""D2 derived: one step of SGD on a quadratic from the law of the masks, its second moments, and their stability limit.

q = 1 - p; m_o is the owner's mask, m_i and m_j those of two other ranks; K counts the survivors; s = eta h.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from lossproof.theory import aggregation, stability, survivors
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
    t,
)

q = 1 - p
s, kappa, alpha, w, w2 = sp.symbols(r"s \kappa \alpha w E[1/K^2]", positive=True)
K, v = sp.symbols("K K^{-1}", positive=True)
BEFORE = sp.symbols(r"E[x^2] E[xy_i] E[y_i^2] E[y_iy_j]")
AFTER = sp.symbols(r"[E[x'^2]] E[x'y_i'] E[y_i'^2] E[y_i'y_j']")
SHARES = stability.Shares(
    *sp.symbols(r"E[m_o/K] \sum{E[m_i/K]} E[m_o/K^2] \sum{E[m_om_i/K^2]} \sum{E[m_i/K^2]} \sum{E[m_im_j/K^2]}")
)
FRESH, STALE = sp.symbols(r"E[x'^2] E[x'y_i]")
F, G = sp.symbols("F_1:5"), sp.symbols("G_1:5")
DET = sp.Symbol("|I-M|")
TWO = int(stability.LOSSLESS)
SPELLED = 3
"""The coefficients are spelled out for this N; every other step is for all N."""


def limit_step() -> Derivation:
    """D2: the recursion; its determinant; the shares of either own link; which root ends the stable interval."""
    step = owner_step()
    refresh = broadcast()
    rows = matrix_rows(step, refresh)
    reduced = _reduced(refresh)
    lossy, reliable = lossy_shares(), reliable_shares()
    return Derivation(
        (
            *step,
            *refresh,
            *rows,
            *reduced,
            *_start(rows),
            *lossy,
            *_lossy_limit(_determinant(step, reduced[-1], lossy[-6:])),
            *reliable,
            *_reliable_limit(_determinant(step, reduced[-1], reliable[-6:]), reliable),
        )
    )


def owner_step() -> tuple[Step, ...]:
    """The owner's step, from the moments before it; e is the mean of the survivors' y."""
    x, y, e = sp.symbols("x y e")
    XX, XY, YY, YZ = BEFORE
    ee, xe, ye, first, apart = sp.symbols(r"E[e^2] E[xe] E[y_ie] E[e_0^2] E[e_n^2]")
    one_with, one_square, one_pair = sp.symbols(r"E[m_om_i/K^2] E[m_i/K^2] E[m_im_j/K^2]")
    owner = given(first, SHARES.owner_square * XX, "e_n: of n others alike; masks do not depend on x, y; y_o = x")
    added = 2 * one_with * XY + one_square * YY + 2 * t * one_pair * YZ
    square = recursion(
        apart,
        lambda n: owner.right + 2 * n * one_with * XY + n * one_square * YY + n * (n - 1) * one_pair * YZ,
        owner.right,
        lambda before: before + added,
        "one more: its product with the owner, its square, and its products with the t before it",
    )
    one = {one_with: SHARES.with_owner / (N - 1), one_square: SHARES.squares / (N - 1)}
    pairs = {one_pair: SHARES.pairs / ((N - 1) * (N - 2))}
    estimate = algebra(
        ee,
        SHARES.owner_square * XX + 2 * SHARES.with_owner * XY + SHARES.squares * YY + SHARES.pairs * YZ,
        "N - 1 others: N - 1 terms of one, (N - 1)(N - 2) ordered pairs",
        {ee: square.right.subs(t, N - 1), **one, **pairs},
    )
    other = SHARES.others / (N - 1)
    with_x = given(xe, SHARES.owner * XX + SHARES.others * XY, "linearity: the owner's y is x")
    with_y = given(ye, SHARES.owner * XY + other * (YY + (N - 2) * YZ), "linearity: y_i itself, N - 2 others")
    moved = algebra(
        FRESH, XX - 2 * s * with_x.right + s**2 * estimate.right, "x' = x - s e, squared; e = 0 without a survivor",
        {FRESH: sp.expand((x - s * e) ** 2), e**2: estimate.right, x * e: with_x.right, x**2: XX},
    )  # fmt: skip
    crossed = algebra(
        STALE, XY - s * with_y.right, "x' = x - s e, times a replica",
        {STALE: sp.expand((x - s * e) * y), x * y: XY, e * y: with_y.right},
    )  # fmt: skip
    return owner, square, estimate, with_x, with_y, moved, crossed


def broadcast() -> tuple[Step, ...]:
    """The broadcast: every replica is refreshed, y' = x', or keeps its y."""
    _, _, YY, YZ = BEFORE
    return (
        expectation(AFTER[1], [(q, FRESH), (p, STALE)], q * FRESH + p * STALE, "refreshed, y' = x', or not"),
        expectation(AFTER[2], [(q, FRESH), (p, YY)], q * FRESH + p * YY, "the same, squared"),
        expectation(
            AFTER[3],
            [(q**2, FRESH), (q * p, STALE), (p * q, STALE), (p**2, YZ)],
            q**2 * FRESH + 2 * p * q * STALE + p**2 * YZ,
            "two replicas: both, one or none refreshed",
        ),
    )


def matrix_rows(step: tuple[Step, ...], refresh: tuple[Step, ...]) -> tuple[Step, ...]:
    """The closed form of M, row by row."""
    closed = stability.second_moments(N, p, s, SHARES)
    meaning = {FRESH: step[-2].right, STALE: step[-1].right}
    return tuple(
        algebra(left, sum(c * z for c, z in zip(row, BEFORE, strict=True)), "so, as a matrix",
                {left: value, **meaning}, conclusion=True)
        for left, row, value in zip(AFTER, closed, (FRESH, *(r.right for r in refresh)), strict=True)
    )  # fmt: skip


def _reduced(refresh: tuple[Step, ...]) -> tuple[Step, ...]:
    """det(I - M) as one of order 2: M z = z gives E y^2 = E x^2 and E y_i y_j = (2 E xy - q E x^2)/(1 + p).

    F and G stand for the rows of E x'^2 and E x'y_i, whatever they are.
    """
    XX, XY, YY, YZ = BEFORE
    meaning = {FRESH: sum(f * z for f, z in zip(F, BEFORE, strict=True)),
               STALE: sum(g * z for g, z in zip(G, BEFORE, strict=True))}  # fmt: skip
    after = [sp.expand(value.subs(meaning)) for value in (FRESH, *(r.right for r in refresh))]
    matrix = sp.Matrix([[row.coeff(z) for z in BEFORE] for row in after])
    same, pair = sp.symbols(r"[E[y_i^2]] [E[y_iy_j]]")
    steady = {FRESH: XX, STALE: (XY - q * XX) / p}
    square = algebra(same, XX, "M z = z: the second equation of the three, solved",
                     {same: (refresh[1].right - p * YY) / q, **steady})  # fmt: skip
    product = algebra(pair, (2 * XY - q * XX) / (1 + p), "the third, solved",
                      {pair: (refresh[2].right - p**2 * YZ) / (1 - p**2), **steady})  # fmt: skip
    folded = {YY: square.right, YZ: product.right}
    left = [((1 + p) * (x - value.subs(meaning))).subs(folded) for x, value in ((XX, FRESH), (XY, refresh[0].right))]
    small = sp.Matrix([[sp.cancel(row.coeff(z)) for z in (XX, XY)] for row in map(sp.expand, left)])
    return (
        square,
        product,
        algebra(
            (1 + p) * DET,
            q**2 * minor(small),
            "so, with a factor q for the one, 1 - p^2 for the other, and both equations left times 1 + p",
            {DET: sp.expand((sp.eye(4) - matrix).det(method="laplace"))},
        ),
    )


def minor(matrix: sp.Matrix) -> Any:
    return matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]


def _determinant(step: tuple[Step, ...], reduced: Step, shares: tuple[Step, ...]) -> Any:
    """det(I - M) for these shares."""
    names = dict(zip(SHARES, [share.right for share in shares], strict=True))
    rows = {}
    for symbols, row in ((F, step[-2]), (G, step[-1])):
        rows.update({f: sp.expand(row.right).coeff(z).subs(names) for f, z in zip(symbols, BEFORE, strict=True)})
    return reduced.right.subs(rows) / (1 + p)


def counted(value: Any, moments: dict[Any, Any]) -> Any:
    """The mean of a polynomial in K over K^2: terms in 1, 1/K, 1/K^2 by `moments`."""
    polynomial = sp.Poly(sp.expand(value.subs(K, 1 / v)), v)
    return sum(c * moments[power] for (power,), c in polynomial.terms())


def lossy_shares(loss: Any = p) -> tuple[Step, ...]:
    """Own link lossy: N senders alike, and the sums over all of them are functions of K; `loss` that of gradients."""
    means = {0: alpha, 1: kappa}
    names = [
        (SHARES.owner, counted(K / K, means) / N, "all weights sum to 1 where K >= 1; N senders alike"),
        (SHARES.others, counted(K / K, means) * (N - 1) / N, "N - 1 of them"),
        (SHARES.owner_square, counted(1 / K, means) / N, "the sum of m_i/K^2 is 1/K; N senders alike"),
        (SHARES.with_owner, counted((K - 1) / K, means) / N,
         "the sum of m_i m_j/K^2 over ordered pairs is (K-1)/K; N - 1 of the N (N-1) pairs begin with the owner"),
        (SHARES.squares, counted(1 / K, means) * (N - 1) / N, "N - 1 squares"),
        (SHARES.pairs, counted((K - 1) / K, means) * (N - 2) / N, "(N-1)(N-2) of the N (N-1) pairs are without it"),
    ]  # fmt: skip
    closed = stability.lossy_shares(N, kappa, alpha)
    return (
        given(alpha, 1 - aggregation.no_survivor(N, loss), "own link lossy: P(K >= 1)"),
        given(kappa, sp.Symbol(r"E[1/K;K\ge1]"), "A7"),
        *(
            algebra(name, right, reason, {name: value})
            for (name, value, reason), right in zip(names, closed, strict=True)
        ),
    )


def reliable_shares(loss: Any = p) -> tuple[Step, ...]:
    """Own link reliable: m_o = 1, K = 1 + B with B ~ binomial(N - 1, 1 - loss)."""
    j, k = sp.Symbol("j", integer=True, nonnegative=True), sp.Symbol("k", integer=True, positive=True)
    by_hand = given(
        w2,
        sp.Sum(sp.binomial(N - 1, j) * (1 - loss) ** j * loss ** (N - 1 - j) / (j + 1) ** 2, (j, 0, N - 1)),
        "own link reliable: K = 1 + binomial(N-1, q); definition",
    )
    binomial = given(
        kappa, sp.Sum(sp.binomial(N, k) * (1 - loss) ** k * loss ** (N - k) / k, (k, 1, N)), "A7: definition"
    )
    shifted = same_terms(
        by_hand.right,
        sp.Sum(binomial.right.function / (N * (1 - loss)), binomial.right.limits[0]),
        1,
        "binomial(N-1, j)/(j+1) = binomial(N, j+1)/N, and k = j + 1",
    )
    means = {0: sp.Integer(1), 1: w, 2: w2}
    values = (1 / K, (K - 1) / K, 1 / K**2, (K - 1) / K**2, (K - 1) / K**2, (K - 1) * (K - 2) / K**2)
    reasons = "1/K", "(K-1)/K", "1/K^2", "K - 1 others survive", "K - 1 squares", "(K-1)(K-2) ordered pairs"
    closed = stability.reliable_shares(w, w2)
    return (
        given(w, aggregation.owner_weight(N, loss), "own link reliable: E[1/K], A3"),
        by_hand,
        binomial,
        shifted,
        algebra(w2, stability.inverse_square(N, loss, kappa), "so", {w2: kappa / (N * (1 - loss))}),
        *(
            algebra(name, right, f"m_o = 1: {reason}", {name: counted(value, means)})
            for name, value, right, reason in zip(SHARES, values, closed, reasons, strict=True)
        ),
    )


def _start(rows: tuple[Step, ...]) -> tuple[Step, ...]:
    """What is true of either own link: why the least root counts; and gradient loss alone."""
    eigenvalue, det, alone = sp.symbols(r"\lambda |\lambda-M(0)| E[x'^2]/E[x^2]")
    still = sp.Matrix([[sp.expand(row.right.subs(s, 0)).coeff(x) for x in BEFORE] for row in rows])
    return (
        given(
            sp.Symbol(r"\rho(M)"),
            sp.Symbol(r"\lambda_{\max}(M)"),
            "averaging over masks and names of replicas keeps the cone of covariance matrices, so the spectral "
            "radius is an eigenvalue (Krein and Rutman): it passes 1 only where det(I - M) = 0",
        ),
        algebra(
            det,
            (eigenvalue - 1) * (eigenvalue - p) ** 2 * (eigenvalue - p**2),
            "at s = 0 one eigenvalue is 1; det(I - M) rises from 0 there (c > 0 below): for small s all are below 1",
            {det: (eigenvalue * sp.eye(4) - still).det(method="laplace")},
        ),
        expectation(
            alone,
            [(1 - alpha, 1), (alpha, (1 - s) ** 2)],
            1 - alpha * s * (TWO - s),
            "if no parameter is lost all y are x: gradient loss alone leaves the limit at 2",
            conclusion=True,
        ),
    )


def _lossy_limit(determinant: Any) -> tuple[Step, ...]:
    a, b, c = stability.lossy_coefficients(N, p, kappa, alpha)
    name, whole = sp.symbols(r"a_{\mathrm{lossy}} |I-M|_{\mathrm{lossy}}")
    mean = counted(((1 + p) * (N - K) + (N - 2) * q) / K, {0: alpha, 1: kappa})
    meaning = {kappa: survivors.kappa(SPELLED, p), alpha: survivors.some_survivor(SPELLED, p), N: SPELLED}
    return (
        algebra(name, a, "p E[((1+p)(N-K) + (N-2)q)/K; K >= 1]: a > 0 for N >= 2, and c > 0, so there is one root, "
                "and beyond it det(I - M), below, is negative: an eigenvalue exceeds 1", {name: p * mean}),
        *_slope("lossy", (a, b, c), {alpha: 1, kappa: 1 / N}),
        algebra(whole, alpha * q**2 / N * s * (c - b * s - a * s**2), "expanded: s* is where a s^2 + b s = c",
                {whole: determinant}, conclusion=True),
        *_spelled("lossy", (a, b, c), meaning),
    )  # fmt: skip


def _reliable_limit(determinant: Any, reliable: tuple[Step, ...]) -> tuple[Step, ...]:
    a, b, c = stability.reliable_coefficients(N, p, w, w2)
    name, whole, at_two = sp.symbols(r"a_{\mathrm{reliable}} |I-M|_{\mathrm{reliable}} c-2b-4a")
    means = {0: sp.Integer(1), 1: w, 2: w2}
    mean = counted((2 * K * (N - K) + (N - 1) * q * (K - 2)) / K**2, means)
    never = counted((K - 1) * (K - 2) / K**2, means)
    meaning = {w2: reliable[4].right, kappa: survivors.kappa(SPELLED, p), w: reliable[0].right, N: SPELLED}
    return (
        algebra(name, a, "p E[(2K(N-K) + (N-1)q(K-2))/K^2], for K = 1 (N-1)(1+p): a > 0, and so on as above",
                {name: p * mean}),
        algebra(at_two, 4 * (N - 1) * p * q * never, "E[(K-1)(K-2)/K^2] >= 0 times that: s* >= 2 whatever p is, and "
                "s* = 2 only for N = 2", {at_two: c - TWO * b - TWO**2 * a}, conclusion=True),
        *_slope("reliable", (a, b, c), {w: 1 / N, w2: 1 / N**2}),
        algebra(whole, q**2 / (N - 1) * s * (c - b * s - a * s**2), "expanded: s* is where a s^2 + b s = c",
                {whole: determinant}, conclusion=True),
        *_spelled("reliable", (a, b, c), meaning),
    )  # fmt: skip


def _slope(link: str, coefficients: Any, without_loss: dict[Any, Any]) -> tuple[Step, ...]:
    """At p = 0 the root is that without loss; ds*/dp there, from a s^2 + b s = c (shares only enter times p)."""
    a, b, c = coefficients
    whole = a * s**2 + b * s - c
    at_zero = {**without_loss, s: TWO, p: 0}
    zero, slope = sp.Symbol(rf"(as^2+bs-c)_{{\mathrm{{{link}}}}}"), sp.Symbol(rf"ds^*/dp_{{\mathrm{{{link}}}}}")
    rate = -sp.diff(whole, p).subs(at_zero) / sp.diff(whole, s).subs(at_zero)
    return (
        algebra(zero, sp.Integer(0), "without loss s* = 2", {zero: whole.subs(at_zero)}),
        algebra(slope, 4 * (N - 1) * (N - 2) / N**2, "at p = 0: small loss raises s* for N >= 3", {slope: rate},
                conclusion=True),
    )  # fmt: skip


def _spelled(own_link: stability.OwnLink, coefficients: Any, meaning: dict[Any, Any]) -> tuple[Step, ...]:
    closed = stability.coefficients(SPELLED, p, own_link)
    names = sp.symbols(" ".join(rf"{x}_{{\mathrm{{{own_link}}}}}^{{(3)}}" for x in "abc"))
    return tuple(
        algebra(name, right, f"spelled out for N = {SPELLED}", {name: value, **meaning}, conclusion=True)
        for name, value, right in zip(names, coefficients, closed, strict=True)
    )
