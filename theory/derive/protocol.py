"""P1 to P3 and C3 derived: what a word loses, what owners hold, what a round does, what rounding may change."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import protocol
from lossproof.theory.derive.steps import Derivation, N, algebra, expectation, given, p, recursion


def masks() -> Derivation:
    """P1: a word is below T = floor(p 2^32) with probability T/2^32, which is p less a fraction of 2^-32."""
    T, f, lost = sp.symbols("T f P(lost)", nonnegative=True)
    src, dst, other_src, other_dst = sp.symbols("i j i' j'", integer=True, nonnegative=True)
    word = sp.Integer(protocol.WORD)
    floor = given(T, p * 2**32 - f, "T = floor(p 2^32), so that 0 <= f < 1 is the fractional part of p 2^32")
    exact = expectation(lost, [(T / 2**32, 1), (1 - T / 2**32, 0)], T / word, "2^32 equally likely words, T below T")
    return Derivation(
        (
            floor,
            algebra(protocol.threshold(p), sp.floor(p * 2**32), "the threshold"),
            exact,
            algebra(p - lost, f / word, "so 0 <= p - P(lost) < 2^-32",
                    {lost: exact.right, T: floor.right}, conclusion=True),
            algebra(lost, protocol.sampled_loss(p), "what is really sampled",
                    {lost: exact.right, T: sp.floor(p * 2**32)}, conclusion=True),
            algebra(protocol.link(src, dst) - protocol.link(other_src, other_dst),
                    (src - other_src) * 2**16 - (other_dst - dst),
                    "equal only if 2^16 divides j' - j, and |j' - j| < 2^16: then j = j' and i = i'", conclusion=True),
        )
    )  # fmt: skip


def layouts() -> Derivation:
    """P2: the heaviest owner L got its last tensor s when all others held at least as much as it did, L - s."""
    L, s, r, total, largest, given_up = sp.symbols("L s r W w_max w_less", nonnegative=True)
    least = given(total, N * (L - s) + s + r, "when s came, all N owners held at least L - s; r >= 0 is the rest")
    small = given(s, largest - given_up, "no tensor is larger than the largest, w_less >= 0")
    bound = protocol.heaviest_owner(total, largest, N)
    return Derivation(
        (
            least,
            small,
            algebra(bound - L, (r + (N - 1) * given_up) / N, "not negative, so L <= bound",
                    {total: least.right, largest: s + given_up}, conclusion=True),
        )
    )  # fmt: skip


def rounds() -> Derivation:
    """P3: the gap of a replica: closed at an arrival, grown by the owner's step at a loss."""
    x, theta, u, before, m, after = sp.symbols(r"x_{t-1} \theta_{t-1} u_t d_{t-1} m_t d_t")
    owner = given(sp.Symbol("x_t"), x + u, "the owner moves between the phases")
    gap = given(before, x - theta, "the gap to the owner")
    kept = algebra(sp.Symbol(r"\theta_t"), protocol.replica(m, x + u, theta), "fresh if it arrived, else stale",
                   {sp.Symbol(r"\theta_t"): m * (x + u) + (1 - m) * theta})  # fmt: skip
    step = algebra(after, protocol.gap(m, before, u), "owner less replica",
                   {after: owner.right - kept.right, before: gap.right}, conclusion=True)  # fmt: skip
    return Derivation(
        (
            owner,
            gap,
            kept,
            step,
            algebra(step.right.subs(m, 1), sp.Integer(0), "an arrival closes it", conclusion=True),
            algebra(step.right.subs(m, 0), before + u, "a loss adds the owner's step", conclusion=True),
            recursion(sp.Symbol("d_{s+t}"), lambda k: before + k * u, before,
                      lambda d: protocol.gap(sp.Integer(0), d, u), "t losses in a row under constant steps"),
        )
    )  # fmt: skip


def lossless() -> Derivation:
    """C3: with no loss every sender survives; what is left is the rounding of one mean."""
    K, G, e, u = sp.symbols("K G e u", positive=True)
    every = given(K, N, "p = 0: a word is never below floor(0) = 0, so all N arrive")
    error = sp.Symbol("e_t")
    return Derivation(
        (
            every,
            algebra(protocol.sampled_loss(sp.Integer(0)), sp.Integer(0), "no word is a loss"),
            algebra(G / K, G / N, "the survivor mean is the mean", {K: every.right}, conclusion=True),
            algebra(protocol.gap(sp.Integer(1), e, u), sp.Integer(0), "every replica is the owner's copy",
                    conclusion=True),
            recursion(error, lambda k: protocol.mean_rounding(k, u), 0, lambda before: (1 + before) * (1 + u) - 1,
                      "relative error after t operations, each off by at most u; a mean of N needs N",
                      conclusion=True),
        )
    )  # fmt: skip
