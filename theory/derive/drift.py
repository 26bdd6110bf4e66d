"""B1 to B4 derived: ages and drift from the law of one parameter phase. q = 1 - p throughout."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import drift, staleness
from lossproof.theory.derive.steps import (
    Derivation,
    N,
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


def age() -> Derivation:
    """B1: a replica is refreshed with probability q and one step older otherwise."""
    a = sp.Symbol("a", integer=True, nonnegative=True)
    k = sp.Symbol("k", integer=True, positive=True)
    tail, mean, before, at_a, start = (
        sp.Symbol(name) for name in (r"P(A_t\ge{k})", "E[A_t]", "E[A_{t-1}]", "P(A_t=a)", "A_0")
    )
    first = given(start, sp.Integer(0), "common start: all copies equal")
    older = expectation(mean, [(q, 0), (p, before + 1)], p * (before + 1), "refreshed, or one step older")
    return Derivation(
        (
            first,
            expectation(
                tail,
                [(q, 0), (p, staleness.age_tail(k - 1, p))],
                staleness.age_tail(k, p),
                "A_t >= k needs the packet lost and A_(t-1) >= k-1; induction on k <= t",
                conclusion=True,
            ),
            algebra(staleness.age_tail(0, p), sp.Integer(1), "base: P(A_t >= 0)"),
            algebra(
                at_a,
                staleness.age_pmf(a, p),
                "a < t: difference of tails (and P(A_t = t) = P(A_t >= t) = p^t)",
                {at_a: staleness.age_tail(a, p) - staleness.age_tail(a + 1, p)},
                conclusion=True,
            ),
            older,
            recursion(
                mean,
                lambda s: staleness.age_mean(p, s),
                first.right,
                following(older, before),
                "induction on t",
                conclusion=True,
            ),
            limit(staleness.age_mean(p, t), staleness.age_mean(p), "p^t -> 0", conclusion=True),
        )
    )


V, V_before = sp.symbols("V_t V_{t-1}")


def _owner_steps() -> tuple[Step, ...]:
    gap, cross, start = sp.symbols(r"E|x_t-\theta_{t-1}|^2 E\langle{x_{t-1}-\theta_{t-1}}\cdot{u_t}\rangle V_0")
    no_cross = given(cross, sp.Integer(0), "u_t is a martingale difference: zero mean given all that went before")
    first = given(start, sp.Integer(0), "common start")
    stale = algebra(
        gap,
        V_before + sigma2,
        "x_t - theta_(t-1) is the old gap plus u_t; its square, expanded",
        {gap: V_before + 2 * cross + sigma2, cross: no_cross.right},
    )
    law = expectation(
        V,
        [(q, 0), (p, stale.right)],
        p * (V_before + sigma2),
        "V_t = E|x_t - theta_t|^2: no gap if the packet arrives, the gap to the stale copy if not",
    )
    return (
        no_cross,
        stale,
        law,
        first,
        recursion(
            V,
            lambda s: drift.owner(p, s, sigma2),
            first.right,
            following(law, V_before),
            "induction on t",
            conclusion=True,
        ),
        limit(drift.owner(p, t, sigma2), drift.owner(p, None, sigma2), "p^t -> 0", conclusion=True),
    )


def owner() -> Derivation:
    """B3: replica to owner."""
    return Derivation(_owner_steps())


def _four_outcomes(now: sp.Symbol, before: sp.Symbol, gap: sp.Symbol) -> Step:
    return expectation(
        now,
        [(q * q, 0), (q * p, gap), (p * q, gap), (p * p, before)],
        p**2 * before + 2 * p * q * gap,
        "both arrive: equal; one arrives: fresh against stale; none arrives: as before",
    )


def pair() -> Derivation:
    """B2: two non-owners with independent links: the four outcomes of one parameter phase."""
    now, before, gap, start = sp.symbols(r"D_t D_{t-1} \Gamma_{t+1} D_0")
    shard = sp.Symbol(r"E|\theta_i-\theta_j|^2_{\mathrm{shard}}")
    each = sigma2 / N
    owner_steps = _owner_steps()
    stale = owner_steps[1]
    law = _four_outcomes(now, before, gap)
    first = given(start, sp.Integer(0), "common start")
    opened = algebra(
        gap,
        sigma2 * (1 - p ** (t + 1)) / (1 - p),
        "the gap between the fresh copy and a stale one in step t + 1, by B3 for V_t",
        {gap: stale.right.subs(V_before, drift.owner(p, t, sigma2))},
    )
    return Derivation(
        (
            *owner_steps,
            law,
            opened,
            first,
            recursion(
                now,
                lambda s: drift.pair(p, s, sigma2),
                first.right,
                following(law, before, {gap: opened.right}),
                "induction on t",
                conclusion=True,
            ),
            limit(drift.pair(p, t, sigma2), drift.pair(p, None, sigma2), "p^t -> 0", conclusion=True),
            expectation(
                shard,
                [((N - 2) / N, drift.pair(p, t, each)), (2 / N, drift.owner(p, t, each))],
                drift.model_pair(p, N, t, sigma2) / N,
                "a shard of N equal ones has one of the two ranks as its owner with share 2/N; each has sigma^2/N",
            ),
            limit(
                drift.model_pair(p, N, t, sigma2),
                drift.model_pair(p, N, None, sigma2),
                "N shards; p^t -> 0",
                conclusion=True,
            ),
        )
    )


def reported() -> Derivation:
    """B4: the reading of sigma^2 under which the reported constant is exact."""
    D, now, gap, next_gap = sp.symbols(r"D_\infty D_t \Gamma \Gamma_{t+1}")
    owner_steps = _owner_steps()
    stale, owner_law = owner_steps[1], owner_steps[2]
    law = _four_outcomes(now, D, gap)
    steady = drift.pair(p, None, sigma2)
    return Derivation(
        (
            *owner_steps[:3],
            given(
                gap,
                sp.Symbol(r"E|x_t-\theta_{t-1}|^2"),
                "sigma^2 read as the gap given a one-sided miss; masks are new",
            ),
            law,
            fixed_point(
                D, drift.reported_constant(p) * gap, law, D, "the steady state of the outcomes", conclusion=True
            ),
            recursion(
                next_gap,
                lambda s: drift.stale_gap(p, s + 1, sigma2),
                stale.right.subs(V_before, 0),
                lambda g: stale.right.subs(V_before, owner_law.right.subs(V_before, g - sigma2)),
                "Gamma_(t+1) = V_t + sigma^2, and V_t from V_(t-1) = Gamma_t - sigma^2",
            ),
            limit(drift.stale_gap(p, t, sigma2), drift.stale_gap(p, None, sigma2), "p^t -> 0", conclusion=True),
            algebra(
                steady,
                drift.reported_constant(p) * drift.stale_gap(p, None, sigma2),
                "B2 again, by this reading",
                conclusion=True,
            ),
            algebra(
                steady / (drift.reported_constant(p) * sigma2),
                1 / (1 - p),
                "under the per-step reading the reported constant is too small by this factor",
                conclusion=True,
            ),
        )
    )
