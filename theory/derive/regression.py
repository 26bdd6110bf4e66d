"""C4 derived in one coordinate: the noise of a minibatch, and what its growing part makes of C1's steady state.

f = E x^4 and h = E x^2 over the rows, B rows of a batch, e the residual at the solution, S = E x^2 e^2.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from lossproof.theory import dynamics, redundancy, regression, stability
from lossproof.theory.derive.stability import SHARES, alpha, kappa, s, w, w2
from lossproof.theory.derive.steps import Derivation, N, Step, algebra, given, p, recursion, t

eta, h, f, B, S, C, T = sp.symbols("eta h f B S E[y^2] T", positive=True)


def noise_that_grows() -> Derivation:
    """C4: a batch; the steady state with it, from C1's; to first order in the step."""
    batch = _batch()
    steady = _steady(batch[-1])
    firsts = (
        *_first("lossy", stability.lossy_shares(N, kappa, alpha), alpha / kappa),
        *_first("reliable", stability.reliable_shares(w, w2), 1 / w),
        *_first("server", dynamics.server_shares(kappa, alpha), alpha / kappa),
    )
    return Derivation((*batch, *steady, *firsts))


def _batch() -> tuple[Step, ...]:
    total, square, mean, second, one, y = sp.symbols(r"E[(\sum{g_b})^2] E[g^2] E[g_b]^2 E[g_b^2] E[g_b|y] y")
    single = given(one, h * y, "a row's gradient x^2 y - x e; E x e = 0 at the solution")
    row = given(second, f * C + S, "E (x^2 y - x e)^2; the product vanishes, as copies have mean 0")
    between = algebra(
        mean, h**2 * C, "two rows of a batch, given y: independent", {mean: one**2, one: single.right, y**2: C}
    )
    many = recursion(
        total, lambda b: b * row.right + b * (b - 1) * between.right, sp.Integer(0),
        lambda before: before + row.right + 2 * t * between.right, "one row more: its square, and the t rows before",
    )  # fmt: skip
    whole = algebra(square, h**2 * C + (f - h**2) / B * C + S / B, "a batch of B, squared: noise that grows, S/B",
                    {square: many.right.subs(t, B) / B**2}, conclusion=True)  # fmt: skip
    return single, row, between, many, whole


def _steady(batch: Step) -> tuple[Step, ...]:
    """In steady state E y^2 = E x^2, so the growing part is noise of variance (f - h^2) E[x^2]/B on every rank."""
    x, v, factor = sp.symbols(r"E[x^2] v E[x^2]/E[x^2]_{C1}")
    share = dynamics.noise_share(SHARES)
    grown = algebra(v, eta**2 * share * (S / B + (f - h**2) / B * x), "what a batch adds to C1's h^2 E[y^2], owner's "
                    "and replicas' alike, as E y^2 = E x^2",
                    {v: eta**2 * share * (batch.right - h**2 * C).subs(C, x)})  # fmt: skip
    solved = sp.solve(sp.Eq(x, T * grown.right), x)[0]
    closed = regression.steady_factor(T, eta, f, h, B, share)
    return (
        grown,
        given(T, sp.Symbol(r"E[x^2]_{C1}(v=1)"), "C1: its steady state is proportional to the noise"),
        algebra(
            factor, closed, "E x^2 = T v, solved", {factor: solved / (T * eta**2 * share * S / B)}, conclusion=True
        ),
    )


def _first(model: dynamics.Model, of: stability.Shares, effective: Any) -> tuple[Step, ...]:
    """The slope at 0: T is 1/(2 rate s) to leading order."""
    left = sp.Symbol(rf"1+s\,\partial_s|_0_{{\mathrm{{{model}}}}}")
    ranks = sp.Symbol(rf"N_{{\mathrm{{eff}},\mathrm{{{model}}}}}")
    steady = dynamics.steady_of(of, N, p, model)
    closed: Any = regression.steady_factor(
        steady.moments(p, s, sp.Integer(1)).xx, s / h, f, h, B, dynamics.noise_share(of)
    )
    inverse = sp.cancel((1 - 1 / closed) / s).subs(s, 0)
    return (
        algebra(ranks, effective, f"{model}: weights over what is left of the noise of one rank",
                {ranks: redundancy.of_shares(SHARES), **dict(zip(SHARES, of, strict=True))}),
        algebra(left, regression.first_order(s, f, h, B, effective), "to first order in s = eta h",
                {left: 1 + s * inverse}, conclusion=True),
    )  # fmt: skip
