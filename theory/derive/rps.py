"""B11 derived: one round of RPS, column by column, then row by row. q = 1 - p; p_g and p_p as in the closed forms."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import rps
from lossproof.theory.derive.aggregation import owner_bias
from lossproof.theory.derive.steps import Derivation, N, algebra, expectation, given, p, recursion, same_terms, t

r = sp.Symbol("p_p", positive=True)
"""Loss of the average on its way back; steps.p is p_g, the loss of a model on its way to the owner."""
k = sp.Symbol("k", integer=True, positive=True)
w, w2 = sp.symbols("w E[1/S^2]")


def round_() -> Derivation:
    """a1 and a2 from traces (random owner); the two contractions of a fixed owner from two test vectors."""
    weight = owner_bias().steps[:4]  # w = E[1/S], from the binomial law of S (A3)
    closed = weight[-1].right
    a1, a2, M2, kept = sp.symbols(r"a_1 a_2 E[M^2] E[M(1-r_m)]")
    squares, rows, column = sp.symbols(r"E\,\mathrm{tr}\,WW' E|W1|^2 E|W_k|^2")
    j = sp.Symbol("j", integer=True, nonnegative=True)
    b, c, z, quadratic, S = sp.symbols(r"E[s_i/S^2] E[s_is_j/S^2] E|y'W|^2 E(y'W1)^2 S")
    apart = 2 * (b - c)
    M, square = rps.received(N, r), rps.received_square(N, r)
    where = {w: closed}
    by_hand = sp.Sum(sp.binomial(N - 1, j) * (1 - p) ** j * p ** (N - 1 - j) / (j + 1) ** 2, (j, 0, N - 1))
    shifted = sp.Sum(sp.binomial(N, k) * (1 - p) ** k * p ** (N - k) / (N * (1 - p) * k), (k, 1, N))
    return Derivation(
        (
            *weight,
            given(
                sp.Symbol("E[WW']"),
                sp.Symbol("a_1") * sp.Symbol("I") + (1 - a1) * sp.Symbol("A"),
                "symmetric under relabelling of ranks (random owner), and each column of W sums to 1; E[WAW'] alike",
            ),
            expectation(
                column,
                [(r, 1), (1 - r, w)],
                r + (1 - r) * w,
                "a column, not the owner's: one entry 1 if lost, else S of 1/S, squares adding to 1/S; the owner's: w",
            ),
            algebra(
                a1,
                rps.spread(N, p, r),
                "the trace of a1 I + (1 - a1) A is 1 + (N-1) a1",
                {a1: (squares - 1) / (N - 1), squares: w + (N - 1) * (r + (1 - r) * w), w: closed},
                conclusion=True,
            ),
            recursion(
                sp.Symbol("E[M]"),
                lambda n: rps.received(n + 1, r),
                sp.Integer(1),
                lambda m: r * m + (1 - r) * (m + 1),
                "receivers of the average: the owner, and t others, one more by induction",
            ),
            recursion(
                M2,
                lambda n: rps.received_square(n + 1, r),
                sp.Integer(1),
                lambda m: r * m + (1 - r) * (m + 2 * rps.received(t + 1, r) + 1),
                "(M + 1)^2 = M^2 + 2 M + 1 if one more receives",
            ),
            expectation(
                kept,
                [(r, rps.received(N - 1, r)), (1 - r, 0)],
                r * rps.received(N - 1, r),
                "rank m keeps its own: the owner and N - 2 others are left to receive",
            ),
            given(
                sp.Symbol("(W1)_m"),
                sp.Symbol("s_m") * sp.Symbol("M") / sp.Symbol("S") + 1 - sp.Symbol("r_m"),
                "row m of W: s_m/S in the M columns that were received, 1 in its own if that was not",
            ),
            algebra(
                rows,
                square * w + 2 * (1 - w) * r * rps.received(N - 1, r) + (N - 1) * r,
                "sum over m, with s^2 = s and (1-r)^2 = 1-r; E[(S-1)/S] = 1-w is the others' weight, r_owner = 1",
                {rows: M2 * w + 2 * (1 - w) * kept + (N - M), M2: square, kept: r * rps.received(N - 1, r)},
            ),
            algebra(
                a2,
                rps.shift(N, p, r),
                "the trace of WAW' is |W1|^2/N",
                {
                    a2: (rows / N - 1) / (N - 1),
                    rows: square * w + 2 * (1 - w) * r * rps.received(N - 1, r) + (N - 1) * r,
                    **where,
                },
                conclusion=True,
            ),
            algebra(
                sp.Symbol(r"E\,|XW(I-A)|^2/|X(I-A)|^2"),
                rps.contraction(N, p, r),
                "(I-A)^2 = I-A, and E[W(I-A)W'] = (a1-a2)(I-A): what a round leaves of the distance to consensus",
                {sp.Symbol(r"E\,|XW(I-A)|^2/|X(I-A)|^2"): rps.spread(N, p, r) - rps.shift(N, p, r)},
                conclusion=True,
            ),
            given(w2, by_hand, "from here on the owner is fixed; S = 1 + B, B ~ binomial(N-1, 1-p_g)"),
            same_terms(by_hand, shifted, 1, "binomial(N-1, j)/(j+1) = binomial(N, j+1)/N, then k = j + 1"),
            algebra(
                (S - 1) / S**2,
                1 / S - 1 / S**2,
                "s_i/S^2 summed over the N-1 non-owners, which are exchangeable: E[s_i/S^2] = (w - E[1/S^2]) / (N-1)",
            ),
            algebra(
                (S - 1) * (S - 2) / S**2,
                1 - 3 / S + 2 / S**2,
                "s_i s_j/S^2 summed over ordered pairs of them: E[s_i s_j/S^2] = (1 - 3w + 2 E[1/S^2]) / ((N-1)(N-2))",
            ),
            expectation(
                column,
                [(r, 1), (1 - r, apart)],
                r + (1 - r) * apart,
                "y = e_i - e_j, both non-owners; columns i and j of y'W: 1 if lost, ((s_i-s_j)/S)^2 if not",
            ),
            algebra(
                z,
                M * apart + 2 * r,
                "with the other columns, the owner's and N-3: ((s_i-s_j)/S)^2 if received",
                {z: rps.received(N - 2, r) * apart + 2 * (r + (1 - r) * apart)},
            ),
            expectation(
                sp.Symbol("E(r_i-r_j)^2"),
                [((1 - r) ** 2, 0), (2 * r * (1 - r), 1), (r**2, 0)],
                2 * r * (1 - r),
                "y'W1 = (s_i-s_j) M/S - (r_i-r_j); no cross term: s_i - s_j is symmetric and independent of r",
            ),
            algebra(
                (z - quadratic / N) / 2,
                rps.among_others(N, p, r, w2),
                "|y|^2 = 2: the contraction of differences among the others",
                {
                    z: M * apart + 2 * r,
                    quadratic: square * apart + 2 * r * (1 - r),
                    b: (w - w2) / (N - 1),
                    c: (1 - 3 * w + 2 * w2) / ((N - 1) * (N - 2)),
                    **where,
                },
                conclusion=True,
            ),
            algebra(
                (N - 2) * rps.among_others(N, p, r, w2) + rps.owner_to_others(N, p, r, w2),
                (N - 1) * rps.contraction(N, p, r),
                "the traces did not use which rank owns: the N - 1 contractions of a fixed owner sum to this",
                conclusion=True,
            ),
        )
    )
