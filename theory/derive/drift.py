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
    tail, mean, before = sp.symbols(r"P(A_t\ge{k}) E[A_t] E[A_{t-1}]")
    k = sp.Symbol("k", integer=True, positive=True)
    return Derivation(
        (
            given(sp.Symbol("A_0"), sp.Integer(0), "common start: all copies equal"),
            expectation(
                tail,
                [(q, 0), (p, staleness.age_tail(k - 1, p))],
                staleness.age_tail(k, p),
                "A_t >= k needs the packet lost and A_(t-1) >= k-1; induction on k <= t, from P(A >= 0) = 1",
                conclusion=True,
            ),
            algebra(
                sp.Symbol(r"P(A_t\ge0)"), sp.Integer(1), "base", {sp.Symbol(r"P(A_t\ge0)"): staleness.age_tail(0, p)}
            ),
            algebra(
                sp.Symbol("P(A_t=a)"),
                staleness.age_pmf(a, p),
                "a < t: difference of tails (and P(A_t = t) = P(A_t >= t) = p^t)",
                {sp.Symbol("P(A_t=a)"): staleness.age_tail(a, p) - staleness.age_tail(a + 1, p)},
                conclusion=True,
            ),
            expectation(mean, [(q, 0), (p, before + 1)], p * (before + 1), "refreshed, or one step older"),
            recursion(
                mean,
                lambda s: staleness.age_mean(p, s),
                sp.Integer(0),
                lambda m: p * (m + 1),
                "induction on t",
                conclusion=True,
            ),
            limit(staleness.age_mean(p, t), staleness.age_mean(p), "p^t -> 0", conclusion=True),
        )
    )


def _owner_steps() -> tuple[Step, ...]:
    now, before = sp.symbols("V_t V_{t-1}")
    return (
        given(
            sp.Symbol(r"E|x_t-\theta_{t-1}|^2"),
            before + sigma2,
            "x_t - theta_(t-1) is the old gap plus u_t; u_t is a martingale difference, so the cross term vanishes",
        ),
        expectation(
            now,
            [(q, 0), (p, before + sigma2)],
            p * (before + sigma2),
            "V_t = E|x_t - theta_t|^2: no gap if the packet arrives, the gap to the stale copy if not",
        ),
        recursion(
            now,
            lambda s: drift.owner(p, s, sigma2),
            sp.Integer(0),
            lambda v: p * (v + sigma2),
            "common start V_0 = 0, induction on t",
            conclusion=True,
        ),
        limit(drift.owner(p, t, sigma2), drift.owner(p, None, sigma2), "p^t -> 0", conclusion=True),
    )


def owner() -> Derivation:
    """B3: replica to owner."""
    return Derivation(_owner_steps())


def pair() -> Derivation:
    """B2: two non-owners with independent links: the four outcomes of one parameter phase."""
    now, before, gap = sp.symbols(r"D_t D_{t-1} \Gamma_t")
    shard = sp.Symbol(r"E|\theta_i-\theta_j|^2_{\mathrm{shard}}")
    each = sigma2 / N
    return Derivation(
        (
            *_owner_steps(),
            given(gap, sp.Symbol("V_{t-1}") + sigma2, "the gap between the fresh copy and a stale one"),
            expectation(
                now,
                [(q * q, 0), (q * p, gap), (p * q, gap), (p * p, before)],
                p**2 * before + 2 * p * q * gap,
                "both arrive: equal; one arrives: fresh against stale; none arrives: as before",
            ),
            algebra(
                gap,
                sigma2 * (1 - p ** (t + 1)) / (1 - p),
                "B3 for V, at step t + 1",
                {gap: drift.owner(p, t, sigma2) + sigma2},
            ),
            recursion(
                now,
                lambda s: drift.pair(p, s, sigma2),
                sp.Integer(0),
                lambda d: p**2 * d + 2 * p * q * (drift.owner(p, t, sigma2) + sigma2),
                "common start D_0 = 0, induction on t",
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
    D, gap = sp.symbols(r"D_\infty \Gamma")
    steady = drift.pair(p, None, sigma2)
    return Derivation(
        (
            given(
                gap, sp.Symbol(r"E|x_t-\theta_{t-1}|^2"), "mean squared gap between fresh and stale copy, steady state"
            ),
            expectation(
                D,
                [(q * q, 0), (2 * p * q, gap), (p * p, D)],
                p**2 * D + 2 * p * q * gap,
                "both arrive, one arrives, none arrives; steady state",
            ),
            algebra(
                D,
                drift.reported_constant(p) * gap,
                "solve for D: q/(1-p^2) = 1/(1+p)",
                {D: 2 * p * q * gap / (1 - p**2)},
                conclusion=True,
            ),
            recursion(
                sp.Symbol(r"\Gamma_{t+1}"),
                lambda s: drift.stale_gap(p, s + 1, sigma2),
                sigma2,
                lambda g: p * g + sigma2,
                "Gamma_(t+1) = V_t + sigma^2 and V_t = p Gamma_t",
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
