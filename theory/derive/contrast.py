"""B10 and B12 derived: sharing updates, and a reliable broadcast every R steps. q = 1 - p throughout."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import contrast, drift
from lossproof.theory.derive.steps import Derivation, algebra, expectation, given, limit, p, recursion, sigma2, t

q = 1 - p


def updates() -> Derivation:
    """B10: a lost update is never made up for; the four outcomes of one step."""
    D, D_before, V, V_before = sp.symbols("D_t D_{t-1} V_t V_{t-1}")
    c, g, u2 = sp.symbols(r"E[(\theta_i-\theta_j)_{t-1}\cdot{u}_t] E[(x-\theta)_{t-1}\cdot{u}_t] E|u_t|^2")
    squares, total, x = sp.symbols(r"S_{t-1} E|X_{t-1}|^2 E[X_{t-1}\cdot{u}_t]")
    x_w, u_w = sp.symbols(r"X_{t-1}\cdot{w} u_t\cdot{w}")
    return Derivation(
        (
            given(
                sp.Symbol(r"\theta_{i,t}"),
                sp.Symbol(r"\theta_{i,t-1}") + sp.Symbol("m_{i,t}") * sp.Symbol("u_t"),
                "the owner sends u_t, a receiver adds it if it arrives; S_t, X_t: sums of E|u_s|^2 and of u_s, s <= t",
            ),
            expectation(
                D,
                [(q * q, D_before), (q * p, D_before + 2 * c + u2), (p * q, D_before - 2 * c + u2), (p * p, D_before)],
                D_before + 2 * p * q * u2,
                "masks of step t independent of the past and of u_t: c cancels, whatever the steps depend on",
            ),
            algebra(sp.Symbol("D_0"), sp.Integer(0), "common start", {sp.Symbol("D_0"): contrast.updates_pair(p, 0)}),
            algebra(
                D,
                contrast.updates_pair(p, squares + u2),
                "induction on t: S_t = S_(t-1) + E|u_t|^2",
                {D: D_before + 2 * p * q * u2, D_before: contrast.updates_pair(p, squares)},
                conclusion=True,
            ),
            expectation(
                V,
                [(q, V_before), (p, V_before + 2 * g + u2)],
                V_before + p * (2 * g + u2),
                "to the owner: what was lost adds up",
            ),
            expectation(
                sp.Symbol(r"E[(x-\theta)_t\cdot{w}]"),
                [(q, p * x_w), (p, p * x_w + u_w)],
                p * (x_w + u_w),
                "steps independent of all masks, so fixed: by induction each was lost with probability p; any fixed w",
            ),
            algebra(
                V,
                contrast.updates_owner(p, squares + u2, total + 2 * x + u2),
                "the same with w = u_t for g; induction on t, V_0 = 0",
                {V: V_before + p * (2 * g + u2), g: p * x, V_before: contrast.updates_owner(p, squares, total)},
                conclusion=True,
            ),
            algebra(
                contrast.updates_pair(p, sigma2 * contrast.updates_overtake(p)),
                drift.pair(p, None, sigma2),
                "S_t = t sigma^2: more than sharing parameters ever drifts after 1/((1-p)^2 (1+p)) steps",
                conclusion=True,
            ),
            algebra(
                contrast.updates_pair(p, sigma2 * contrast.updates_overtake_worst(p)),
                2 * p / (1 - p) ** 2 * sigma2,
                "and more than its worst case (B5, G^2 = sigma^2) after 1/(1-p)^3",
                conclusion=True,
            ),
        )
    )


def resync() -> Derivation:
    """B12: every reliable phase is a common start."""
    total, owner_total = sp.symbols(r"\textstyle\sum_{r<R}D_r \textstyle\sum_{r<R}V_r")
    pair, owner = drift.pair(p, None, sigma2), drift.owner(p, None, sigma2)
    return Derivation(
        (
            given(
                sp.Symbol("D_{nR+r}"),
                drift.pair(p, sp.Symbol("r", integer=True, nonnegative=True), sigma2),
                "all copies are equal after a reliable phase: B2 at t = r, 0 <= r < R; to the owner B3",
            ),
            recursion(
                total,
                lambda R: pair * (R - contrast.resync_pair_saved(p, R)),
                sp.Integer(0),
                lambda s: s + drift.pair(p, t, sigma2),
                "R + 1 phases are R and one more: induction on R (t stands for R)",
            ),
            algebra(
                total / t,
                contrast.resync_pair_average(p, t, sigma2),
                "the average over a period",
                {total: pair * (t - contrast.resync_pair_saved(p, t))},
                conclusion=True,
            ),
            algebra(
                contrast.resync_pair_peak(p, t + 2, sigma2) - contrast.resync_pair_peak(p, t + 1, sigma2),
                2 * sigma2 * p ** (t + 1) * (1 - p ** (t + 1)),
                "D_r grows within a period: the peak is its last phase, r = R - 1",
            ),
            algebra(
                contrast.resync_pair_peak(p, t, sigma2),
                drift.pair(p, t - 1, sigma2),
                "the peak, R = t",
                conclusion=True,
            ),
            limit(
                contrast.resync_pair_saved(p, t),
                contrast.resync_pair_saved(p),
                "what a period saves stays finite: the share saved is at most this over R",
                conclusion=True,
            ),
            recursion(
                owner_total,
                lambda R: owner * (R - contrast.resync_owner_saved(p, R)),
                sp.Integer(0),
                lambda s: s + drift.owner(p, t, sigma2),
                "to the owner, the same induction on R",
            ),
            algebra(
                owner_total / t,
                contrast.resync_owner_average(p, t, sigma2),
                "the average over a period",
                {owner_total: owner * (t - contrast.resync_owner_saved(p, t))},
                conclusion=True,
            ),
            limit(contrast.resync_owner_saved(p, t), contrast.resync_owner_saved(p), "p^R -> 0", conclusion=True),
        )
    )
