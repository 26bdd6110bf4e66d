"""P4 derived: drift between non-owners from two sums, and clipping where most gradients are stand-ins."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import attached
from lossproof.theory.derive.steps import Derivation, N, algebra, given


def attachment() -> Derivation:
    """P4: pairs of non-owners by induction on their number; the stand-in of a tensor has its norm."""
    a, b = sp.symbols("a b", real=True)
    apart, squares = sp.symbols(r"\sum_{i<j}|a_i-a_j|^2 \sum_i|a_i|^2", nonnegative=True)
    sum_a, more, grown = sp.symbols(r"\sum_ia_i \sum_i|a_i-b|^2 \sum_{+b}", real=True)
    own, other, norm, c, both = sp.symbols("g_own n_other |g| c_max |g'|", positive=True)
    before = given(apart, (N - 1) * squares - sum_a**2, "for N - 1 gaps a_i; for one gap both sides are 0")
    extra = algebra(more, squares - 2 * b * sum_a + (N - 1) * b**2, "one more gap b, expanded and summed",
                    {more: squares - 2 * b * sum_a + (N - 1) * b**2})  # fmt: skip
    step = algebra(grown, attached.pair_drift(N + 1, squares + b**2, (sum_a + b) ** 2) * attached.pairs(N + 1),
                   "so for N gaps, by induction", {grown: before.right + extra.right}, conclusion=True)  # fmt: skip
    one = algebra(attached.pair_drift(sp.Integer(3), a**2 + b**2, (a + b) ** 2), (a - b) ** 2, "N = 3: one pair",
                  conclusion=True)  # fmt: skip
    start = algebra(attached.pairs(N + 1) - attached.pairs(N), N - 1, "a new non-owner makes N - 1 new pairs")
    stand_in = given(norm, sp.sqrt(own**2 + other**2), "the stand-in of a tensor holds its norm, then zeros")
    owner = algebra(attached.owner_drift(N + 1, squares) * N, squares, "the owner's own gap is 0", conclusion=True)
    clip = algebra(attached.clipped(own, own**2 + other**2, c), c * own / norm, "clipping on a rank, as on one process",
                   {norm: stand_in.right}, conclusion=True)  # fmt: skip
    after = algebra(both**2, c**2, "and the norm afterwards is the largest allowed",
                    {both: sp.sqrt(attached.clipped(own, own**2 + other**2, c) ** 2
                                   + attached.clipped(other, own**2 + other**2, c) ** 2)}, conclusion=True)  # fmt: skip
    return Derivation((before, extra, step, one, start, owner, stand_in, clip, after))
