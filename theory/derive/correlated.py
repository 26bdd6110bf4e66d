"""B5 and B6 derived: the drift of steps with a mean or a memory. q = 1 - p throughout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy as sp

from lossproof.theory import correlated, staleness
from lossproof.theory.derive.steps import (
    Derivation,
    Step,
    algebra,
    expectation,
    given,
    p,
    recursion,
    sigma2,
    t,
    vanishes,
)

q = 1 - p
rho = sp.Symbol("rho", real=True)
G2 = sp.Symbol("G^2", positive=True)
mu2 = sp.Symbol(r"|\mu|^2", positive=True)


def fades(of: Any, right: Any, reason: str, bounded: Mapping[Any, sp.Symbol] | None = None, **marks: bool) -> Step:
    """The limit t -> infinity of a polynomial in p^t whose coefficients grow at most like a power of t: p^t t^k -> 0.

    `bounded` names what stays within [-1, 1], such as rho^t. What does not vanish with p^t must not depend on t.
    """
    X = sp.Symbol("X")

    def proof() -> bool:
        named = sp.expand_power_exp(sp.expand_power_base(sp.expand(of), force=True)).subs(p**t, X)
        for power, symbol in (bounded or {}).items():
            named = named.subs(power, symbol)
        numerator, denominator = sp.fraction(sp.cancel(sp.together(named)))
        varying = {X, t, *(bounded or {}).values()}
        if denominator.free_symbols & varying or not numerator.is_polynomial(*varying):
            return False
        return not numerator.subs(X, 0).free_symbols & varying and vanishes(numerator.subs(X, 0) / denominator - right)

    return Step(sp.Limit(of, t, sp.oo), right, reason, proof, **marks)


def worst() -> Derivation:
    """B5: the lag of a replica is a sum of A steps, that of a pair a sum of |A_i - A_j| steps."""
    n, S, Q, u = sp.symbols("n S Q u", positive=True)
    now, lag = sp.symbols(r"E[A_t^2] E[(A_{t-1}+1)^2]")
    apart, before = sp.symbols(r"E[(A_i-A_j)_t^2] E[(A_i-A_j)_{t-1}^2]")
    square, cross = sp.symbols(r"E|x_t-\theta_t|^2 E[x_{t-1}-\theta_{t-1}]\cdot\mu")
    square_before = sp.Symbol(r"E|x_{t-1}-\theta_{t-1}|^2")
    m = staleness.age_mean(p, t)
    return Derivation(
        (
            given(
                sp.Symbol(r"x_t-\theta_t"),
                sp.Symbol(r"\textstyle\sum_{s=t-A_t+1}^{t}u_s"),
                "the steps since the replica was last refreshed, A_t of them; between two replicas |A_i - A_j| steps",
            ),
            algebra(
                (n + 1) * (Q + u**2) - (S + u) ** 2,
                (1 + 1 / n) * (n * Q - S**2) + (S - n * u) ** 2 / n,
                "per coordinate, induction on n: n Q >= S^2 for Q = sum u_k^2, S = sum u_k; so |sum of n steps| <= n G",
            ),
            expectation(
                now,
                [(q, 0), (p, lag)],
                p * lag,
                "refreshed, or one step older; so on every path E|x_t-theta_t|^2 <= G^2 E[A_t^2], = for constant steps",
            ),
            recursion(
                now * G2,
                lambda s: correlated.owner_worst(p, s, G2),
                sp.Integer(0),
                lambda M: p * (M + G2 * (2 * m + 1)),
                "E[(A+1)^2] = E[A^2] + 2 E[A] + 1 with B1 for E[A]; common start, induction on t",
                conclusion=True,
            ),
            fades(correlated.owner_worst(p, t, G2), correlated.owner_worst(p, None, G2), "t p^t -> 0", conclusion=True),
            expectation(
                apart,
                [(q * q, 0), (q * p, lag), (p * q, lag), (p * p, before)],
                p**2 * before + 2 * p * q * lag,
                "both arrive: ages equal; one arrives: 0 against A+1; none arrives: as before",
            ),
            recursion(
                apart * G2,
                lambda s: correlated.pair_worst(p, s, G2),
                sp.Integer(0),
                lambda D: p**2 * D + 2 * p * q * (correlated.owner_worst(p, t, G2) + G2 * (2 * m + 1)),
                "common start, induction on t",
                conclusion=True,
            ),
            fades(correlated.pair_worst(p, t, G2), correlated.pair_worst(p, None, G2), "t p^t -> 0", conclusion=True),
            recursion(
                cross,
                lambda s: mu2 * staleness.age_mean(p, s),
                sp.Integer(0),
                lambda c: p * (c + mu2),
                "u = mu + martingale difference: E[x_t - theta_t] = p (E[x_(t-1) - theta_(t-1)] + mu)",
            ),
            expectation(
                square,
                [(q, 0), (p, square_before + 2 * cross + mu2 + sigma2)],
                p * (square_before + 2 * cross + mu2 + sigma2),
                "the gap before the parameter phase is the old one plus u_t; its noise is orthogonal to the past",
            ),
            recursion(
                square,
                lambda s: correlated.owner_biased(p, s, mu2, sigma2),
                sp.Integer(0),
                lambda V: p * (V + 2 * mu2 * m + mu2 + sigma2),
                "induction on t",
                conclusion=True,
            ),
            recursion(
                sp.Symbol(r"E|\theta_i-\theta_j|^2"),
                lambda s: correlated.pair_biased(p, s, mu2, sigma2),
                sp.Integer(0),
                lambda D: p**2 * D + 2 * q * correlated.owner_biased(p, t + 1, mu2, sigma2),
                "p^2 D_(t-1) + 2pq times the gap to a stale copy, and that gap is V_t/p",
                conclusion=True,
            ),
            fades(
                correlated.pair_biased(p, t, mu2, sigma2),
                correlated.pair_biased(p, None, mu2, sigma2),
                "t p^t -> 0",
                conclusion=True,
            ),
            fades(
                correlated.owner_biased(p, t, mu2, sigma2),
                correlated.owner_biased(p, None, mu2, sigma2),
                "t p^t -> 0",
                conclusion=True,
            ),
        )
    )


def correlation() -> Derivation:
    """B6: steps with E<u_k, u_l> = sigma^2 rho^|k-l|, independent of the masks."""
    Y = sp.Symbol("Y")
    bounded = {rho**t: Y}
    c, c_before = sp.symbols(r"E[(x_t-\theta_t)\cdot{u}_{t+1}] E[(x_{t-1}-\theta_{t-1})\cdot{u}_t]")
    V, V_before, D, D_before = sp.symbols("V_t V_{t-1} D_t D_{t-1}")
    beta, eta, noise2 = sp.symbols(r"\beta \eta E|g|^2", positive=True)
    variance, covariance = sp.symbols(r"E|u|^2 E[u_{t+k}\cdot{u}_t]")
    return Derivation(
        (
            given(
                sp.Symbol(r"E[u_s\cdot{u}_{t+1}]"),
                rho * sp.Symbol(r"E[u_s\cdot{u}_t]"),
                "s <= t: autocorrelation rho^k; so too for any sum of steps up to t chosen by the masks alone",
            ),
            expectation(
                c,
                [(q, 0), (p, rho * (c_before + sigma2))],
                p * rho * (c_before + sigma2),
                "lost: the old gap plus u_t, each of them rho times as aligned with u_(t+1) as with u_t",
            ),
            recursion(
                c,
                lambda s: correlated.overlap(p, rho, s, sigma2),
                sp.Integer(0),
                lambda x: p * rho * (x + sigma2),
                "common start, induction on t",
                conclusion=True,
            ),
            fades(
                correlated.overlap(p, rho, t, sigma2),
                correlated.overlap(p, rho, None, sigma2),
                "(p rho)^t -> 0",
                bounded,
                conclusion=True,
            ),
            expectation(
                V,
                [(q, 0), (p, V_before + 2 * c_before + sigma2)],
                p * (V_before + 2 * c_before + sigma2),
                "V_t = E|x_t - theta_t|^2: no gap if the packet arrives, the old gap plus u_t if not",
            ),
            recursion(
                V,
                lambda s: correlated.owner(p, rho, s, sigma2),
                sp.Integer(0),
                lambda v: p * (v + 2 * correlated.overlap(p, rho, t, sigma2) + sigma2),
                "common start, induction on t",
                conclusion=True,
            ),
            fades(
                correlated.owner(p, rho, t, sigma2),
                correlated.owner(p, rho, None, sigma2),
                "p^t -> 0",
                bounded,
                conclusion=True,
            ),
            expectation(
                D,
                [(q * q, 0), (q * p, V / p), (p * q, V / p), (p * p, D_before)],
                p**2 * D_before + 2 * q * V,
                "both arrive: equal; one arrives: fresh against stale, V_t/p; none arrives: as before",
            ),
            recursion(
                D,
                lambda s: correlated.pair(p, rho, s, sigma2),
                sp.Integer(0),
                lambda d: p**2 * d + 2 * q * correlated.owner(p, rho, t + 1, sigma2),
                "common start, induction on t",
                conclusion=True,
            ),
            fades(
                correlated.pair(p, rho, t, sigma2),
                correlated.pair(p, rho, None, sigma2),
                "p^t -> 0",
                bounded,
                conclusion=True,
            ),
            given(
                variance,
                beta**2 * variance + eta**2 * noise2,
                "heavy ball u_t = beta u_(t-1) - eta g_t, stationary, g white",
            ),
            algebra(
                variance - beta**2 * variance,
                eta**2 * noise2,
                "solved",
                {variance: correlated.heavy_ball(eta, beta, noise2)},
                conclusion=True,
            ),
            recursion(
                covariance,
                lambda k: beta**k * correlated.heavy_ball(eta, beta, noise2),
                correlated.heavy_ball(eta, beta, noise2),
                lambda gamma: beta * gamma,
                "later gradients are uncorrelated with u_t: autocorrelation beta^k (t stands for k)",
                conclusion=True,
            ),
        )
    )
