"""C1 by exact arithmetic: signs of the steady state, its limit, symmetry, no loss; packets of one coordinate.

Legend: M copies, D coordinates.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments import second_moments
from lossproof.proofs_checks.instruments.regression_data import diabetes
from lossproof.theory import certify, coupled, dynamics, stability, staleness, survivors

p, s, N = (sp.Symbol(name, positive=True) for name in "psN")


def signs() -> None:
    """Means over K, here u: linear in the shares, so the sign at every K decides."""
    u, n, m = sp.symbols("u n m", positive=True)
    lossy, server = (form(N, p, 1 / u, 1) for form in (dynamics.lossy_steady, dynamics.server_steady))
    reliable = dynamics.reliable_steady(N, p, 1 / u, 1 / u**2)
    two, one, count = {N: 2 + n}, {N: 1 + n}, {N: u + m}
    for what, value in (
        ("lossy n1", lossy.n1.subs(two)),
        ("server n1", server.n1.subs(one)),
        ("server a", server.a.subs(count).subs(u, 1 + n)),
        ("reliable n1, K = 1", reliable.n1.subs(u, 1).subs(two)),
        ("reliable n1, K >= 2", reliable.n1.subs(count).subs(u, 2 + n)),
    ):
        numerator, denominator = certify.rational(sp.together(sp.sympify(value).subs(p, 1 / (1 + s))), {})
        terms = certify.coefficients(sp.expand(numerator * denominator), (s, n, m))
        require(all(c > 0 for c in terms.values()), f"no certificate for {what} >= 0")


def require_limit(N: int, model: dynamics.Model) -> None:
    """det(I - M) at nine points of degree 8 in s, and on both sides of s*."""
    for p_g, p in (
        (Fraction(1, 3), Fraction(1, 5)),
        (Fraction(3, 4), Fraction(2, 5)),
        (Fraction(1, 5), Fraction(1, 5)),
    ):
        what = f"{model}, N = {N}, p_g = {p_g}, p = {p}"
        of, copies, found = dynamics.shares(N, p_g, model), dynamics.copies(N, model), dynamics.steady(N, p_g, p, model)
        apart = []
        for j in range(1, 10):
            at = Fraction(j, 3)
            M = stability.second_moments(copies, p, at, of)
            apart.append(
                second_moments.determinant(second_moments.less(M)) - _factor(N, p_g, p, model) * at * found.slack(at)
            )
        require(not any(apart), f"{what}: not the determinant")
        step = dynamics.stable_step(N, p_g, p, model)
        below, above = (Fraction(step) * (1 + sign * Fraction(1, 10**13)) for sign in (-1, 1))
        require(found.slack(below) > 0 > found.slack(above), f"{what}: {step} is not the limit")
        if p_g == p and model != "server":
            same = found[3:] == stability.coefficients(N, p, model) and step == stability.stable_step(N, p, model)
            require(same, f"{what}: not D2")


def _factor(N: int, p_g: Fraction, p: Fraction, model: dynamics.Model) -> Fraction:
    share = Fraction(1, N - 1) if model == "reliable" else Fraction(survivors.some_survivor(N, p_g)) / N
    return share * (1 - p) ** 2


def require_symmetric(N: int, model: dynamics.Model) -> None:
    """Without symmetry, at ranks enough for four moments of each kind: the same in one coordinate."""
    p_g, p, one = Fraction(1, 3), Fraction(1, 5), np.array([[Fraction(1)]])
    whole = coupled.Coupled(N, p_g, p, model, one / 2, one * 3, [0], [0])
    C_MDMD = whole.start([Fraction(1)])
    for t, z in enumerate(dynamics.trajectory(N, p_g, p, Fraction(1, 2), 3, model, 1, 3)):
        for (i, j), found in np.ndenumerate(C_MDMD[:, 0, :, 0]):
            require(found == z[second_moments.kind(i, j)], f"{model}, N = {N}, step {t}: copies {i} and {j}, {found}")
        require(whole.risk(C_MDMD) == z.xx / 4, f"{model}, N = {N}, step {t}: risk {whole.risk(C_MDMD)}, not h x^2/2")
        C_MDMD = whole.after(C_MDMD)


def require_lossless(N: int, model: dynamics.Model) -> None:
    for at in (Fraction(1, 3), Fraction(7, 4)):
        risk = dynamics.excess_risk(N, Fraction(0), Fraction(0), at, model)
        require(risk == 1 / (2 * N * (2 - at)), f"{model}, N = {N}, s = {at}: without loss the risk is {risk}")
        for p_g, p in ((Fraction(1, 3), Fraction(1, 4)), (Fraction(0), Fraction(2, 3))):
            gap = dynamics.steady(N, p_g, p, model).gap(p, Fraction(0), 1)
            require(gap == staleness.age_mean(p), f"{model}, N = {N}: for eta h to 0 the drift is {gap}, not B3's")


def decoupled(
    h_D: Any, eigen_DD: Any, noise_DD: Any, start_D: Any, N: int, loss: float, model: dynamics.Model, steps: int
) -> float:
    """The risk by eigendirection."""
    noise_D = np.einsum("ak,ab,bk->k", eigen_DD, noise_DD, eigen_DD)
    paths = [dynamics.trajectory(N, loss, loss, h, steps, model, x**2, n)[-1].xx
             for h, n, x in zip(h_D.tolist(), noise_D.tolist(), start_D.tolist(), strict=True)]  # fmt: skip
    return float(h_D @ np.array(paths) / 2)


def path(of: coupled.Coupled, start_D: list[float], steps: int) -> Any:
    C_MDMD = of.start(start_D)
    for _ in range(steps):
        C_MDMD = of.after(C_MDMD)
    return C_MDMD


def packets(ranks: int, loss: float) -> str:
    """What the decoupled form is off by where every coordinate travels alone; exact on both sides."""
    H = diabetes().hessian / diabetes().curvature
    h_D, eigen_DD = np.linalg.eigh(H)
    D, steps, found = len(H), 100, []
    for name, at, noise in (("uncorrelated noise, eta h = 1", 1.0, np.eye(D)), ("noise ~ H, eta h = 1", 1.0, H),
                            ("noise ~ H, eta h = 0.1", 0.1, H)):  # fmt: skip
        one = decoupled(at * h_D, eigen_DD, noise, np.zeros(D), ranks, loss, "lossy", steps)
        many = coupled.Coupled(ranks, loss, loss, "lossy", at * H, noise, list(range(D)), [k % ranks for k in range(D)])
        found.append(f"{name} {many.risk(path(many, [0.0] * D, steps)) / one - 1:+.1%}")
    return f"ten packets of four owners against one, p = {loss}, {steps} steps, exact: {'; '.join(found)}"
