"""B5 and B6 derived: the drift of steps with a mean or a memory. q = 1 - p throughout."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import correlated, staleness
from lossproof.theory.derive.drift import age
from lossproof.theory.derive.steps import (
    Derivation,
    Step,
    algebra,
    expectation,
    fixed_point,
    following,
    given,
    limit,
    p,
    recursion,
    sigma2,
    t,
)

q = 1 - p
rho = sp.Symbol("rho", real=True)
G2 = sp.Symbol("G^2", positive=True)
mu2 = sp.Symbol(r"|\mu|^2", positive=True)


def _pair_law(now: sp.Symbol, before: sp.Symbol, gap: sp.Symbol) -> Step:
    return expectation(
        now,
        [(q * q, 0), (q * p, gap), (p * q, gap), (p * p, before)],
        p**2 * before + 2 * p * q * gap,
        "both arrive: equal; one arrives: fresh against stale; none arrives: as before",
    )


def worst() -> Derivation:
    """B5: the lag of a replica is a sum of A steps, that of a pair a sum of |A_i - A_j| steps."""
    return Derivation((*_bounded(), *_biased()))


def _bounded() -> tuple[Step, ...]:
    n, S, Q, u = sp.symbols("n S Q u", positive=True)
    A = sp.Symbol("A_t")
    now, before, lag = sp.symbols(r"E[A_{t+1}^2] E[A_t^2] E[(A_t+1)^2]")
    apart, apart_before = sp.symbols(r"E[(A_i-A_j)_{t+1}^2] E[(A_i-A_j)_t^2]")
    start, to_owner, pair = sp.symbols(r"A_0 \max{E|x_t-\theta_t|^2} \max{E|\theta_i-\theta_j|^2}")
    ages = age()
    mean = next(step for step in ages.conclusions if step.left == sp.Symbol("E[A_t]"))
    first = given(start, sp.Integer(0), "common start: all ages are 0, and so are their differences and squares")
    opened = algebra(
        lag, before + 2 * mean.right + 1, "expanded, with B1 for E[A_t]",
        {lag: sp.expand((A + 1) ** 2), A**2: before, A: mean.right},
    )  # fmt: skip
    older = expectation(now, [(q, 0), (p, lag)], p * lag, "refreshed, or one step older")
    moment = recursion(
        sp.Symbol("E[A_t^2]"),
        lambda s: correlated.owner_worst(p, s),
        first.right,
        following(older, before, {lag: opened.right}),
        "induction on t",
    )
    law = _pair_law(apart, apart_before, lag)
    gap_moment = recursion(
        sp.Symbol("E[(A_i-A_j)_t^2]"),
        lambda s: correlated.pair_worst(p, s),
        first.right,
        following(law, apart_before, {lag: opened.right.subs(before, moment.right)}),
        "induction on t",
    )
    return (
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
        *ages.steps,
        first,
        opened,
        older,
        moment,
        algebra(
            to_owner,
            correlated.owner_worst(p, t, G2),
            "on every path E|x_t - theta_t|^2 <= G^2 E[A_t^2], with equality for constant steps",
            {to_owner: G2 * moment.right},
            conclusion=True,
        ),
        limit(correlated.owner_worst(p, t, G2), correlated.owner_worst(p, None, G2), "t p^t -> 0", conclusion=True),
        law,
        gap_moment,
        algebra(
            pair,
            correlated.pair_worst(p, t, G2),
            "between two replicas the same",
            {pair: G2 * gap_moment.right},
            conclusion=True,
        ),
        limit(correlated.pair_worst(p, t, G2), correlated.pair_worst(p, None, G2), "t p^t -> 0", conclusion=True),
    )


def _biased() -> tuple[Step, ...]:
    """u = mu + a martingale difference. Written for step t + 1, from what the masks of step t left."""
    cross, cross_before = sp.symbols(r"E[x_{t+1}-\theta_{t+1}]\cdot\mu E[x_t-\theta_t]\cdot\mu")
    aligned, size = sp.symbols(r"E[(x_t-\theta_t)\cdot{u_{t+1}}] E|u_{t+1}|^2")
    V, before, gap, start = sp.symbols(r"V_{t+1} V_t E|x_{t+1}-\theta_t|^2 V_0")
    D, D_before, D_now = sp.symbols(r"D_{t+1} D_t E|\theta_i-\theta_j|_t^2")
    first = given(start, sp.Integer(0), "V_t = E|x_t - theta_t|^2; common start: all gaps are 0")
    meets = given(aligned, cross_before, "u = mu + noise of zero mean given the past")
    step = given(size, mu2 + sigma2, "mu and the noise are orthogonal")
    mean_law = expectation(
        cross, [(q, 0), (p, cross_before + mu2)], p * (cross_before + mu2), "no gap, or the old one plus u_(t+1)"
    )
    mean = recursion(
        cross_before,
        lambda s: mu2 * staleness.age_mean(p, s),
        first.right,
        following(mean_law, cross_before),
        "induction on t",
    )
    stale = algebra(
        gap,
        before + 2 * mean.right + mu2 + sigma2,
        "the old gap plus u_(t+1); its square, expanded",
        {gap: before + 2 * aligned + size, aligned: meets.right, cross_before: mean.right, size: step.right},
    )
    law = expectation(V, [(q, 0), (p, gap)], p * gap, "no gap if the packet arrives")
    owner = recursion(
        before,
        lambda s: correlated.owner_biased(p, s, mu2, sigma2),
        first.right,
        following(law, before, {gap: stale.right}),
        "induction on t",
        conclusion=True,
    )
    pair_law = _pair_law(D, D_before, gap)
    return (
        first,
        meets,
        step,
        mean_law,
        mean,
        stale,
        law,
        owner,
        pair_law,
        recursion(
            D_now,
            lambda s: correlated.pair_biased(p, s, mu2, sigma2),
            first.right,
            following(pair_law, D_before, {gap: stale.right.subs(before, owner.right)}),
            "induction on t",
            conclusion=True,
        ),
        *(
            limit(form(p, t, mu2, sigma2), form(p, None, mu2, sigma2), "t p^t -> 0", conclusion=True)
            for form in (correlated.owner_biased, correlated.pair_biased)
        ),
    )


def correlation() -> Derivation:
    """B6: steps with E<u_k, u_l> = sigma^2 rho^|k-l|, independent of the masks; then heavy ball, an instance."""
    return Derivation((*_remembered(), *_heavy_ball()))


def _remembered() -> tuple[Step, ...]:
    """Written for step t + 1, from what the masks of step t left."""
    within = {rho**t: sp.Symbol("Y")}
    c, c_before, W, now, start = sp.symbols(
        r"E[(x_{t+1}-\theta_{t+1})\cdot{u_{t+2}}] E[(x_t-\theta_t)\cdot{u_{t+1}}]"
        r" E[w\cdot{u_{t+1}}] E[w\cdot{u_{t+2}}] V_0"
    )
    V, before, gap, D, D_before = sp.symbols(r"V_{t+1} V_t E|x_{t+1}-\theta_t|^2 D_{t+1} D_t")
    first = given(start, sp.Integer(0), "V_t = E|x_t - theta_t|^2; common start: all gaps are 0")
    fades = given(
        now, rho * W, "autocorrelation rho^k; for every sum w of steps up to t + 1 that the masks alone choose"
    )
    overlap_law = expectation(
        c,
        [(q, 0), (p, fades.right.subs(W, c_before + sigma2))],
        p * rho * (c_before + sigma2),
        "lost: w is the old gap plus u_(t+1)",
    )
    overlap = recursion(
        c_before,
        lambda s: correlated.overlap(p, rho, s, sigma2),
        first.right,
        following(overlap_law, c_before),
        "induction on t",
        conclusion=True,
    )
    stale = algebra(
        gap,
        before + 2 * overlap.right + sigma2,
        "the old gap plus u_(t+1); its square, expanded",
        {gap: before + 2 * c_before + sigma2, c_before: overlap.right},
    )
    law = expectation(V, [(q, 0), (p, gap)], p * gap, "no gap if the packet arrives")
    owner = recursion(
        before,
        lambda s: correlated.owner(p, rho, s, sigma2),
        first.right,
        following(law, before, {gap: stale.right}),
        "induction on t",
        conclusion=True,
    )
    pair_law = _pair_law(D, D_before, gap)
    pair = recursion(
        D_before,
        lambda s: correlated.pair(p, rho, s, sigma2),
        first.right,
        following(pair_law, D_before, {gap: stale.right.subs(before, owner.right)}),
        "induction on t",
        conclusion=True,
    )
    limits = (
        limit(
            form(p, rho, t, sigma2), form(p, rho, None, sigma2), "p^t, (p rho)^t -> 0", bounded=within, conclusion=True
        )
        for form in (correlated.overlap, correlated.owner, correlated.pair)
    )
    return (first, fades, overlap_law, overlap, stale, law, owner, pair_law, pair, *limits)


def _heavy_ball() -> tuple[Step, ...]:
    beta, eta, noise2 = sp.symbols(r"\beta \eta E|g|^2", positive=True)
    now, u, g, w = sp.symbols("u_t u_{t-1} g_t u_{t-k}")
    variance, before, product, product_before = sp.symbols(
        r"E|u_t|^2 E|u_{t-1}|^2 E[u_t\cdot{u_{t-k}}] E[u_{t-1}\cdot{u_{t-k}}]"
    )
    ball = given(
        now, beta * u - eta * g, "heavy ball; stationary, and g_t is white: uncorrelated with all that went before"
    )
    square = algebra(
        variance,
        beta**2 * before + eta**2 * noise2,
        "squared",
        {variance: sp.expand(ball.right**2), u * g: 0, u**2: before, g**2: noise2},
    )
    law = algebra(product, beta * product_before, "times an earlier step",
                  {product: sp.expand(ball.right * w), u * w: product_before, g * w: 0})  # fmt: skip
    stationary = fixed_point(
        variance, correlated.heavy_ball(eta, beta, noise2), square, before, "stationary", conclusion=True
    )
    return (
        ball,
        square,
        stationary,
        law,
        recursion(
            product,
            lambda k: stationary.right * beta**k,
            stationary.right,
            following(law, product_before),
            "autocorrelation beta^k, by induction on k (t stands for k): B6 with rho = beta",
            conclusion=True,
        ),
    )
