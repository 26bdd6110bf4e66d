"""B11 derived: one round of RPS, column by column, then row by row. q = 1 - p; p_g and p_p as in the closed forms."""

from __future__ import annotations

from typing import Any

import sympy as sp

from lossproof.theory import rps
from lossproof.theory.derive.aggregation import owner_bias
from lossproof.theory.derive.steps import (
    Derivation,
    N,
    Step,
    algebra,
    expectation,
    following,
    given,
    p,
    recursion,
    same_terms,
    t,
)

r = sp.Symbol("p_p", positive=True)
"""Loss of the average on its way back; steps.p is p_g, the loss of a model on its way to the owner."""
w, w2 = sp.symbols("w E[1/S^2]")
s_m, r_m, r_k, delta, v, M = sp.symbols(r"s_m r_m r_k 1_{m=k} S^{-1} M")
s_i, s_j, r_i, r_j = sp.symbols("s_i s_j r_i r_j")
M_mean, M_square, kept_mean = sp.symbols(r"E[M] E[M^2] E[M(1-r_m)]")
apart = sp.Symbol("E[((s_i-s_j)/S)^2]")


def round_() -> Derivation:
    """a1 and a2 from traces (random owner); the two contractions of a fixed owner from two test vectors."""
    weight = owner_bias().steps[:4]  # w = E[1/S], from the binomial law of S (A3)
    meaning = {w: weight[-1].right}
    entry = given(
        sp.Symbol("W_{mk}"),
        r_k * s_m * v + (1 - r_k) * delta,
        "the average if receiver k received it, else its own model; owner: s = r = 1",
    )
    row = algebra(
        sp.Symbol("(W1)_m"),
        s_m * M * v + 1 - r_m,
        "its sum over k; M is the number of receivers, the sum of r_k",
        {sp.Symbol("(W1)_m"): sp.expand(entry.right), r_k * delta: r_m, delta: 1, r_k: M},
    )
    counts = _receivers()
    random_owner, a1, a2 = _random_owner(entry, row, meaning, counts)
    return Derivation(
        (
            *weight,
            entry,
            row,
            *counts,
            *random_owner,
            algebra(
                sp.Symbol(r"E|XW(I-A)|^2/|X(I-A)|^2"),
                rps.contraction(N, p, r),
                "(I-A)^2 = I-A, and E[W(I-A)W'] = (a1-a2)(I-A): what a round leaves of the distance to consensus",
                {sp.Symbol(r"E|XW(I-A)|^2/|X(I-A)|^2"): a1.right - a2.right},
                conclusion=True,
            ),
            *_fixed_owner(weight, entry, row, meaning, counts),
            algebra(
                (N - 2) * rps.among_others(N, p, r, w2) + rps.owner_to_others(N, p, r, w2),
                (N - 1) * rps.contraction(N, p, r),
                "the traces did not use which rank owns: the N - 1 contractions of a fixed owner sum to this",
                conclusion=True,
            ),
        )
    )


def _receivers() -> tuple[Step, ...]:
    """M among t + 1 ranks: the owner, and t others."""
    now, square, before, square_before = sp.symbols(r"E[M_{t+1}] E[M_{t+1}^2] E[M_t] E[M_t^2]")
    first = given(sp.Symbol("M_0"), sp.Integer(1), "the owner; M_t: among it and t others")
    one_more = expectation(now, [(r, before), (1 - r, before + 1)], before + 1 - r, "one more receives, or does not")
    mean = recursion(
        before, lambda n: rps.received(n + 1, r), first.right, following(one_more, before), "induction on t"
    )
    grown = sp.expand((M + 1) ** 2).subs({M**2: square_before, M: mean.right})
    one_more_square = expectation(
        square, [(r, square_before), (1 - r, grown)], square_before + (1 - r) * (2 * mean.right + 1), "squared"
    )
    moment = recursion(
        square_before,
        lambda n: rps.received_square(n + 1, r),
        first.right,
        following(one_more_square, square_before),
        "induction on t",
    )
    return first, one_more, mean, one_more_square, moment


def _among(step: Step, ranks: Any) -> Any:
    """A moment of M among so many ranks, the owner one of them."""
    return step.right.subs(t, ranks - 1)


def _random_owner(
    entry: Step, row: Step, meaning: dict[Any, Any], counts: tuple[Step, ...]
) -> tuple[tuple[Step, ...], Step, Step]:
    identity, average, a1, a2, lost = sp.symbols(r"I A a_1 a_2 1-r_m")
    column_square, rows = sp.symbols(r"E|W_k|^2 E|W1|^2")
    mean, square = counts[2], counts[4]
    shape = given(
        sp.Symbol("E[WW']"),
        a1 * identity + (1 - a1) * average,
        "symmetric under relabelling of ranks (random owner), and each column of W sums to 1; E[WAW'] alike",
    )
    trace = sp.Poly(N * shape.right.coeff(identity) + shape.right.coeff(average), a1)

    def solved(value: Any) -> Any:
        """a, from the trace of a I + (1 - a) A."""
        return (value - trace.coeff_monomial(1)) / trace.coeff_monomial(a1)

    def column(received: int) -> Any:
        """The sum over m of W_mk^2: s^2 = s sums to S = 1/v."""
        return sp.expand(entry.right.subs(r_k, received) ** 2).subs({s_m**2: 1 / v, delta**2: 1}).subs(v, w)

    one = expectation(column_square, [(r, column(0)), (1 - r, column(1))], r + (1 - r) * w, "a column, not the owner's")
    owners = one.right.subs(r, 0)
    spread = algebra(
        a1,
        rps.spread(N, p, r),
        "the trace, N a1 + 1 - a1, is the sum over the columns, the owner's among them",
        {a1: solved(owners + (N - 1) * one.right), **meaning},
        conclusion=True,
    )
    kept = expectation(
        kept_mean,
        [(r, _among(mean, N - 1)), (1 - r, 0)],
        r * _among(mean, N - 1),
        "rank m keeps its own: the owner and N - 2 others are left to receive",
    )
    total = algebra(
        rows,
        w * _among(square, N) + 2 * (1 - w) * kept.right + (N - 1) * r,
        "sum over m, with s^2 = s and (1-r)^2 = 1-r; E[(S-1)/S] = 1-w is the others' weight, r_owner = 1",
        {
            rows: sp.expand(row.right.subs(r_m, 1 - lost) ** 2),
            s_m**2 * M**2 * v**2: w * M_square,
            s_m * M * v * lost: (1 - w) * kept_mean,
            lost**2: N - M_mean,
            M_mean: _among(mean, N),
            M_square: _among(square, N),
            kept_mean: kept.right,
        },
    )
    shift = algebra(
        a2,
        rps.shift(N, p, r),
        "the trace of WAW' is |W1|^2/N",
        {a2: solved(total.right / N), **meaning},
        conclusion=True,
    )
    return (shape, one, spread, kept, total, shift), spread, shift


def _fixed_owner(
    weight: tuple[Step, ...], entry: Step, row: Step, meaning: dict[Any, Any], counts: tuple[Step, ...]
) -> tuple[Step, ...]:
    """y = e_i - e_j, neither of them the owner, |y|^2 = 2."""
    b, c, z, quadratic, gap, keeps = sp.symbols(r"E[s_i/S^2] E[s_is_j/S^2] E|y'W|^2 E(y'W1)^2 s_i-s_j r_i-r_j")
    own, others = sp.symbols(r"E(y'W_i)^2 E(y'W_k)^2")
    mean, square = counts[2], counts[4]
    series, moved = weight[0].right, weight[1].right
    (j, *_), (k, *_) = series.limits[0], moved.limits[0]
    by_hand = given(
        w2, sp.Sum(series.function / (j + 1), series.limits[0]), "from here on the owner is fixed; S = 1 + B as for w"
    )
    shifted = same_terms(by_hand.right, sp.Sum(moved.function / k, moved.limits[0]), 1, "k = j + 1, as for w")
    moments = {v**2: w2, v: w}
    one = algebra(
        b, (w - w2) / (N - 1), "s_i/S^2 summed over the N-1 non-owners, which are exchangeable, is (S-1)/S^2",
        {b: sp.expand((1 / v - 1) * v**2) / (N - 1), **moments},
    )  # fmt: skip
    two = algebra(
        c,
        (1 - 3 * w + 2 * w2) / ((N - 1) * (N - 2)),
        "s_i s_j/S^2 summed over ordered pairs of them is (S-1)(S-2)/S^2",
        {c: sp.expand((1 / v - 1) * (1 / v - 2) * v**2) / ((N - 1) * (N - 2)), **moments},
    )
    differ = algebra(
        apart,
        2 * (one.right - two.right),
        "squared, with s^2 = s",
        {apart: sp.expand(((s_i - s_j) * v) ** 2), s_i**2 * v**2: b, s_j**2 * v**2: b, s_i * s_j * v**2: c,
         b: one.right, c: two.right},
    )  # fmt: skip

    def column(received: int, delta_i: Any = delta) -> Any:
        """The mean square of y'W_k = W_ik - W_jk, where delta_jk = 0."""
        of_i = entry.right.subs({r_k: received, s_m: s_i, delta: delta_i})
        of_j = entry.right.subs({r_k: received, s_m: s_j, delta: 0})
        return sp.factor((of_i - of_j) ** 2).subs((s_i - s_j) ** 2 * v**2, apart)

    mine = expectation(own, [(r, column(0, 1)), (1 - r, column(1))], r + (1 - r) * apart, "columns i and j of y'W")
    other = expectation(others, [(r, column(0, 0)), (1 - r, column(1))], (1 - r) * apart, "N - 3 others; the owner's")
    whole = algebra(
        z,
        _among(mean, N) * apart + 2 * r,
        "summed over the columns",
        {z: 2 * mine.right + (N - 3) * other.right + other.right.subs(r, 0)},
    )
    of_i, of_j = row.right.subs({s_m: s_i, r_m: r_i}), row.right.subs({s_m: s_j, r_m: r_j})
    differently = expectation(
        sp.Symbol("E(r_i-r_j)^2"),
        [((1 - r) ** 2, 0), (2 * r * (1 - r), 1), (r**2, 0)],
        2 * r * (1 - r),
        "only one of the two received",
    )
    summed = algebra(
        quadratic,
        _among(square, N) * apart + 2 * r * (1 - r),
        "y'W1 = (s_i-s_j) M/S - (r_i-r_j); no cross term: s_i - s_j is symmetric and independent of r",
        {
            quadratic: sp.expand((of_i - of_j).subs({s_i: gap + s_j, r_i: keeps + r_j}) ** 2),
            gap * M * v * keeps: 0,
            gap**2 * M**2 * v**2: apart * _among(square, N),
            keeps**2: differently.right,
        },
    )
    among = algebra(
        sp.Symbol(r"E[|y'W|^2-(y'W1)^2/N]/|y|^2"),
        rps.among_others(N, p, r, w2),
        "the contraction of differences among the others",
        {
            sp.Symbol(r"E[|y'W|^2-(y'W1)^2/N]/|y|^2"): (whole.right - summed.right / N) / 2,
            apart: differ.right,
            **meaning,
        },
        conclusion=True,
    )
    return by_hand, shifted, one, two, differ, mine, other, whole, differently, summed, among
