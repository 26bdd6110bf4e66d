"""B8 derived: drift under any stationary losses that do not depend on the steps, then for three laws."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import bursts
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

r = sp.Symbol("r", positive=True)
L = 1 / (1 - r)
"""The mean burst: a loss is followed by another with probability r = 1 - 1/L."""
a, b, c = sp.symbols("a_k b_k c_k")


def any_losses() -> Derivation:
    """B8: the formula for all losses; Gilbert-Elliott with two and four parameters and either clock; renewal bursts."""
    return Derivation((*_any_losses(), *_two_parameters(), *_clock(), *_four_parameters(), *_renewal(), *_heavy_tail()))


def _any_losses() -> tuple[Step, ...]:
    term, gap = sp.symbols(r"E|\theta_i-\theta_j|^2_k E|x-\theta_i|^2_k")
    return (
        given(
            sp.Symbol(r"x-\theta_i"),
            sp.Symbol(r"\textstyle\sum_k{u_{t-k+1}1\{A_i\ge{k}\}}"),
            "a replica lacks the last A steps; uncorrelated and independent of A, so the squares add up over k",
        ),
        expectation(
            gap, [(a, sigma2), (1 - a, 0)], bursts.owner([a], sigma2), "step k is missing if A >= k", conclusion=True
        ),
        expectation(
            term,
            [(c, 0), (a - c, sigma2), (b - c, sigma2), (1 - a - b + c, 0)],
            bursts.pair([a], [b], [c], sigma2),
            "both, only i, only j or none of the links lost the last k: step k counts where exactly one lacks it",
            conclusion=True,
        ),
        algebra(
            bursts.pair([a], [b], [c], sigma2),
            bursts.pair_independent([a], sigma2),
            "independent links of one law: c_k = a_k b_k, b_k = a_k",
            {c: a * b, b: a},
            conclusion=True,
        ),
    )


def _two_parameters() -> tuple[Step, ...]:
    """Every packet is lost in the bad state, which lasts for one more tick with probability r."""
    mean, again, tail, tail_before, start = sp.symbols("L E[T] a_{t+1} a_t V_0")
    stay = expectation(
        again, [(1 - r, 1), (r, 1 + mean)], 1 + r * mean, "a burst of length T ends after a loss or goes on"
    )
    burst = fixed_point(mean, L, stay, mean, "solved for the mean")
    shares = given(sp.Symbol("a_1"), p, "stationary start: the loss")
    law = expectation(tail, [(r, tail_before), (1 - r, 0)], r * tail_before, "one more loss: the chain stays bad")
    lost = recursion(
        tail, lambda s: bursts.gilbert_tail(s + 1, p, burst.right), shares.right, following(law, tail_before),
        "induction on t", conclusion=True,
    )  # fmt: skip
    equal = given(start, sp.Integer(0), "common start; likewise D_0")
    owner, pair = (
        recursion(
            sp.Symbol(name),
            lambda s: form(p, burst.right, s, sigma2),
            equal.right,
            lambda before: before + term([lost.right], sigma2),
            "one more term of the sum",
            conclusion=True,
        )
        for name, form, term in (
            ("V_t", bursts.gilbert_owner, bursts.owner),
            ("D_t", bursts.gilbert_pair, bursts.pair_independent),
        )
    )
    return (
        stay,
        burst,
        shares,
        law,
        lost,
        equal,
        owner,
        limit(owner.right, bursts.gilbert_owner(p, burst.right, None, sigma2), "r^t -> 0", base=r, conclusion=True),
        pair,
        limit(pair.right, bursts.gilbert_pair(p, burst.right, None, sigma2), "r^t -> 0", base=r, conclusion=True),
    )


def _clock() -> tuple[Step, ...]:
    """A chain that ticks M times a step is one that ticks once, with another mean burst; t stands for M."""
    bad, bad_before, memory, mean = sp.symbols("b_{t+1} b_t m L", positive=True)
    enter, leave, out = sp.symbols("e l 1/L'", positive=True)
    balance = given(enter, p * leave / (1 - p), "stationary: the bad state, of share p, is entered as often as left")
    left = given(leave, 1 / mean, "the mean stay is L")
    eigenvalue = given(memory, 1 - enter - leave, "the second eigenvalue of one tick")
    of_L = algebra(memory, 1 - 1 / (mean * (1 - p)), "by both",
                   {memory: eigenvalue.right, enter: balance.right, leave: left.right})  # fmt: skip
    of_m = algebra(leave, (1 - p) * (1 - memory), "and solved for l", {memory: eigenvalue.right, enter: balance.right})
    stay, come = 1 - of_m.right, balance.right.subs(leave, of_m.right)
    tick = expectation(
        bad,
        [(bad_before * stay, 1), ((1 - bad_before) * come, 1), (bad_before * (1 - stay), 0),
         ((1 - bad_before) * (1 - come), 0)],
        p + memory * (bad_before - p),
        "bad after one more tick",
    )  # fmt: skip
    ticks = recursion(bad_before, lambda s: p + (1 - p) * memory**s, sp.Integer(1), following(tick, bad_before),
                      "from a loss; induction on t")  # fmt: skip
    return (
        balance,
        left,
        eigenvalue,
        of_L,
        of_m,
        tick,
        ticks,
        algebra(
            out,
            1 / bursts.effective_burst(p, mean, t),
            "to leave the bad state within the t ticks of a step",
            {out: 1 - ticks.right, memory: of_L.right},
            conclusion=True,
        ),
    )


def _four_parameters() -> tuple[Step, ...]:
    """The tail obeys a linear recurrence, and so its sum, and that of its squares, solve linear equations."""
    enter, leave, good, bad = sp.symbols("e l g b", positive=True)
    a_1, a_2, trace, det, x, y = sp.symbols(r"a_1 a_2 \tau \delta a_k a_{k+1}")
    S, Q, P = sp.symbols(r"\sum{a_k} \sum{a_k^2} \sum{a_k{a_{k+1}}}")
    S_split, Q_split, P_split, V, D = sp.symbols(
        r"a_1+a_2+\sum_{k>2}a_k a_1^2+a_2^2+\sum_{k>2}a_k^2 a_1a_2+\sum_{k>1}a_k{a_{k+1}} V D"
    )
    tick = sp.Matrix([[1 - enter, enter], [leave, 1 - leave]])
    shares = sp.Matrix([[leave, enter]]) / (enter + leave)
    lost = sp.diag(good, bad)
    M = tick * lost
    one = sp.Matrix([1, 1])
    closed = dict(zip((a_1, a_2, trace, det), bursts.chain_recurrence(enter, leave, good, bad), strict=True))
    rest = M * M - closed[trace] * M + closed[det] * sp.eye(2)
    later = given(sp.Symbol("a_{k+2}"), trace * y - det * x, "so for the tails, whatever the first two are")
    over_k = {y**2: Q - a_1**2, x * y: P, x**2: Q, y: S - a_1, x: S}  # y begins with a_2, x with a_1
    sums, products, squares = (
        algebra(split, right, "the recurrence, summed over k", {split: sp.expand(terms), **over_k})
        for split, right, terms in (
            (S_split, a_1 + a_2 + trace * (S - a_1) - det * S, a_1 + a_2 + later.right),
            (P_split, a_1 * a_2 + trace * (Q - a_1**2) - det * P, a_1 * a_2 + y * later.right),
            (
                Q_split,
                a_1**2 + a_2**2 + trace**2 * (Q - a_1**2) - 2 * trace * det * P + det**2 * Q,
                a_1**2 + a_2**2 + later.right**2,
            ),
        )
    )
    total = fixed_point(S, bursts.recurrent_sum(a_1, a_2, trace, det), sums, S, "solved", conclusion=True)
    cross = fixed_point(P, (a_1 * a_2 + trace * (Q - a_1**2)) / (1 + det), products, P, "solved")
    alone = algebra(Q_split, squares.right.subs(P, cross.right), "with that", {Q_split: squares.right, P: cross.right})
    closed_square = bursts.recurrent_square_sum(a_1, a_2, trace, det)
    square = fixed_point(Q, closed_square, alone, Q, "solved", conclusion=True)
    return (
        *_entries("\\pi{T}", shares * tick, shares, "stationary shares of the good and the bad state"),
        algebra(a_1, closed[a_1], "a loss in either", {a_1: (shares * lost * one)[0]}),
        algebra(a_2, closed[a_2], "one tick and one loss more: the matrix M", {a_2: (shares * lost * M * one)[0]}),
        *_entries("M^2-\\tau{M}+\\delta", rest, sp.zeros(2), "Cayley-Hamilton"),
        later,
        sums,
        total,
        products,
        cross,
        squares,
        alone,
        square,
        algebra(
            V,
            bursts.chain_owner(enter, leave, good, bad, None, sigma2),
            "the sum of the tail",
            {V: sigma2 * total.right, **closed},
            conclusion=True,
        ),
        algebra(
            D,
            bursts.chain_pair(enter, leave, good, bad, None, sigma2),
            "independent links: twice the sum of a_k - a_k^2",
            {D: sp.expand(bursts.pair_independent([x], sigma2)), x**2: square.right, x: total.right, **closed},
            conclusion=True,
        ),
    )


def _entries(name: str, found: sp.Matrix, claimed: sp.Matrix, reason: str) -> tuple[Step, ...]:
    """Two matrices are equal entry by entry."""
    names = [sp.Symbol(f"({name})_{{{i}}}") for i in range(len(found))]
    return tuple(
        algebra(entry, right, reason, {entry: left}) for entry, left, right in zip(names, found, claimed, strict=True)
    )


def _renewal() -> tuple[Step, ...]:
    """Bursts of any length T; a lost packet is met at place j of its burst, and then the last j packets were lost."""
    T, mean, variance = sp.symbols(r"T L \mathrm{Var}T")
    chance, place, tail, gap = sp.symbols(r"P(T\ge{j}) P(\mathrm{place}=j) a_k E|x-\theta_i|^2")
    j, k = sp.symbols("j k", integer=True, positive=True)
    at_j = given(place, p * chance / mean, "lost, and at place j of a burst: each burst has one if T >= j")
    later = given(tail, sp.Sum(at_j.right, (j, k, sp.oo)), "the last k packets were lost if the place is k or later")
    counted = recursion(
        sp.Symbol(r"\textstyle\sum_{j\le{t}}{j}"),
        lambda s: s * (s + 1) / 2,
        sp.Integer(0),
        lambda before: before + t + 1,
        "summed over k, place j counts j times: E[1 + ... + T]",
    )
    moment = sp.expand(counted.right.subs(t, T))
    weight = later.right.function / chance
    return (
        at_j,
        later,
        counted,
        algebra(
            gap,
            bursts.renewal_owner(p, mean, variance, sigma2),
            "E T^2 = Var T + L^2",
            {gap: sigma2 * weight * moment, T**2: variance + mean**2, T: mean},
            conclusion=True,
        ),
    )


def _heavy_tail() -> tuple[Step, ...]:
    """Bursts with P(T >= j) = 2/(j(j+1))."""
    n = sp.Symbol("n", integer=True, positive=True)
    rest, mean, tail = sp.symbols(r"\textstyle\sum_{j\ge{n}}P(T\ge{j}) L a_n")
    sum_from = given(rest, 2 / n, "the next step, added up from n on; it tends to 0")
    average = given(mean, sum_from.right.subs(n, 1), "the mean of a count is the sum of its tail")
    return (
        sum_from,
        algebra(
            bursts.heavy_length_tail(n),
            sum_from.right - sum_from.right.subs(n, n + 1),
            "bursts with P(T >= j) = 2/(j(j+1)): the sum telescopes",
        ),
        average,
        algebra(
            tail,
            bursts.heavy_tail(n, p),
            "as above: the drift to the owner is p sigma^2 times the harmonic sum, which has no bound",
            {tail: p * sum_from.right / average.right},
            conclusion=True,
        ),
    )
