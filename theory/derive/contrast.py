"""B10 and B12 derived: sharing updates, and a reliable broadcast every R steps. q = 1 - p throughout."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import sympy as sp

from lossproof.theory import contrast, correlated, drift
from lossproof.theory.derive.steps import (
    Derivation,
    Step,
    algebra,
    expectation,
    following,
    given,
    limit,
    p,
    recursion,
    sigma2,
    t,
)

q = 1 - p


def updates() -> Derivation:
    """B10: a lost update is never made up for."""
    return Derivation((*_sharing(), *_overtaking()))


def _sharing() -> tuple[Step, ...]:
    theta_i, before_i, before_j = sp.symbols(r"{\theta_i}_t {\theta_i}_{t-1} {\theta_j}_{t-1}")
    x, x_before, u, m_i, m_j, d, e = sp.symbols(r"x_t x_{t-1} u_t m_i m_j (\theta_i-\theta_j)_{t-1} (x-\theta_i)_{t-1}")
    apart, behind = sp.symbols(r"(\theta_i-\theta_j)_t (x-\theta_i)_t")
    D, D_before, V, V_before, u2 = sp.symbols("D_t D_{t-1} V_t V_{t-1} E|u_t|^2")
    e_u = sp.Symbol(r"E[(x-\theta_i)_{t-1}\cdot{u}_t]")
    S, S_before, T, T_before, X_u = sp.symbols(r"S_t S_{t-1} E|X_t|^2 E|X_{t-1}|^2 E[X_{t-1}\cdot{u}_t]")
    X_w, u_w, lost_w = sp.symbols(r"X_{t-1}\cdot{w} u_t\cdot{w} E[(x-\theta_i)_t\cdot{w}]")
    X, start = sp.symbols("X_{t-1} D_0")

    def squared(gap: Any) -> Any:
        """E|gap|^2, the masks being independent of the past and of u_t; products d u cancel, so they get no name."""
        meaning = {e * u: e_u, d**2: D_before, e**2: V_before, u**2: u2}
        return sp.expand(gap**2).subs(meaning)

    owner = given(x, x_before + u, "the owner moves")
    replica = given(theta_i, before_i + m_i * u, "and sends u_t; a receiver adds it if it arrives")
    pair_gap = algebra(
        apart,
        d + (m_i - m_j) * u,
        "the same for j, subtracted",
        {apart: replica.right - replica.right.subs({before_i: before_j, m_i: m_j}), before_i: d + before_j},
    )
    pair = expectation(
        D,
        [
            ((q if i else p) * (q if j else p), squared(pair_gap.right.subs({m_i: i, m_j: j})))
            for i, j in product((0, 1), repeat=2)
        ],
        D_before + 2 * p * q * u2,
        "the masks of step t are independent of the past and of u_t: whatever the steps depend on, products cancel",
    )
    squares = given(S, S_before + u2, "S_t is the sum of E|u_s|^2 over s <= t")
    gap = algebra(
        behind, e + (1 - m_i) * u, "subtracted", {behind: owner.right - replica.right, x_before: e + before_i}
    )
    law = expectation(
        V,
        [(chance, squared(gap.right.subs(m_i, arrived))) for chance, arrived in ((q, 1), (p, 0))],
        V_before + p * (2 * e_u + u2),
        "to the owner: what was lost adds up",
    )

    def lost(total: Any) -> Any:
        """Of fixed steps, what a replica lacks on average."""
        return p * total

    missing = expectation(
        lost_w,
        [(q, lost(X_w)), (p, lost(X_w) + u_w)],
        lost(X_w + u_w),
        "steps independent of all masks, so fixed: p X_t for their sum X_t, induction on t; times any fixed w",
    )
    sums = algebra(T, T_before + 2 * X_u + u2, "X_t = X_(t-1) + u_t, squared",
                   {T: sp.expand((X + u) ** 2), X * u: X_u, X**2: T_before, u**2: u2})  # fmt: skip
    return (
        owner,
        replica,
        pair_gap,
        pair,
        squares,
        algebra(start, sp.Integer(0), "common start: nothing was sent", {start: contrast.updates_pair(p, 0)}),
        algebra(
            D,
            contrast.updates_pair(p, squares.right),
            "induction on t",
            {D: following(pair, D_before)(contrast.updates_pair(p, S_before))},
            conclusion=True,
        ),
        gap,
        law,
        missing,
        sums,
        algebra(
            V,
            contrast.updates_owner(p, squares.right, sums.right),
            "induction on t, with w = u_t for the product; V_0 = 0 as D_0",
            {V: following(law, V_before)(contrast.updates_owner(p, S_before, T_before)), e_u: lost(X_u)},
            conclusion=True,
        ),
    )


def _overtaking() -> tuple[Step, ...]:
    def after(steps: Callable[[Any], Any]) -> Any:
        return contrast.updates_pair(p, sigma2 * steps(p))

    return (
        algebra(
            after(contrast.updates_overtake),
            drift.pair(p, None, sigma2),
            "S_t = t sigma^2: more than sharing parameters ever drifts after 1/((1-p)^2 (1+p)) steps",
            conclusion=True,
        ),
        algebra(
            after(contrast.updates_overtake_worst),
            correlated.pair_worst(p, None, sigma2),
            "and more than its worst case (B5, G^2 = sigma^2) after 1/(1-p)^3",
            conclusion=True,
        ),
    )


def resync() -> Derivation:
    """B12: every reliable phase is a common start."""
    r = sp.Symbol("r", integer=True, nonnegative=True)
    grows, peak = sp.symbols(r"D_{nR+r+1}-D_{nR+r} \max_rD_{nR+r}")
    phase = given(
        sp.Symbol("D_{nR+r}"),
        drift.pair(p, r, sigma2),
        "all copies are equal after a reliable phase: B2 at t = r, 0 <= r < R",
    )
    owner_phase = given(sp.Symbol("V_{nR+r}"), drift.owner(p, r, sigma2), "to the owner B3 at t = r")
    return Derivation(
        (
            phase,
            algebra(
                grows,
                2 * sigma2 * p ** (r + 1) * (1 - p ** (r + 1)),
                "positive: it grows within a period",
                {grows: phase.right.subs(r, r + 1) - phase.right},
            ),
            algebra(
                peak,
                contrast.resync_pair_peak(p, t, sigma2),
                "the peak is the last phase, r = R - 1 (t stands for R)",
                {peak: phase.right.subs(r, t - 1)},
                conclusion=True,
            ),
            *_averaged(r"\frac{1}{R}\sum_{r<R}D_{nR+r}", phase, r, drift.pair, contrast.resync_pair_saved,
                       contrast.resync_pair_average),
            owner_phase,
            *_averaged(r"\frac{1}{R}\sum_{r<R}V_{nR+r}", owner_phase, r, drift.owner, contrast.resync_owner_saved,
                       contrast.resync_owner_average),
        )
    )  # fmt: skip


def _averaged(
    name: str, phase: Step, r: sp.Symbol, steady: Callable[..., Any], saved: Callable[..., Any], average: Any
) -> tuple[Step, ...]:
    """The average over a period is the steady state less the share saved; t stands for R."""
    mean, total = sp.Symbol(name), sp.Symbol(name.removeprefix(r"\frac{1}{R}"))
    summed = recursion(
        total,
        lambda R: steady(p, None, sigma2) * (R - saved(p, R)),
        sp.Integer(0),
        lambda s: s + phase.right.subs(r, t),
        "R + 1 phases are R and one more: induction on R",
    )
    return (
        summed,
        algebra(
            mean, average(p, t, sigma2), "the average over a period", {mean: summed.right / t}, conclusion=True
        ),
        limit(saved(p, t), saved(p), "what a period saves stays finite: the share saved is at most this over R",
              conclusion=True),
    )  # fmt: skip
