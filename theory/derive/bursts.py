"""B8 derived: drift under any stationary losses that do not depend on the steps, then for three laws."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import bursts
from lossproof.theory.derive.steps import Derivation, Step, algebra, expectation, given, limit, p, recursion, sigma2, t

r = sp.Symbol("r", positive=True)
L = 1 / (1 - r)
"""The mean burst: a loss is followed by another with probability r = 1 - 1/L."""
k, n = (sp.Symbol(name, integer=True, positive=True) for name in "kn")
a, b, c = sp.symbols("a_k b_k c_k")
TAIL_1, TAIL_2, TRACE, DET = sp.symbols(r"a_1 a_2 \tau \delta")


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
    following, owner, pair = sp.symbols("a_{k+1} V_t D_t")
    tail = bursts.gilbert_tail(k, p, L)
    new = bursts.gilbert_tail(t + 1, p, L)
    return (
        algebra(sp.Symbol("a_1"), p, "stationary start, r = 1 - 1/L", {sp.Symbol("a_1"): bursts.gilbert_tail(1, p, L)}),
        expectation(
            following,
            [(tail * r, 1), (1 - tail * r, 0)],
            bursts.gilbert_tail(k + 1, p, L),
            "one more loss: the chain stays in the bad state with probability r = 1 - 1/L",
        ),
        recursion(
            owner,
            lambda s: bursts.gilbert_owner(p, L, s, sigma2),
            sp.Integer(0),
            lambda before: before + sigma2 * new,
            "sum of the tail",
            conclusion=True,
        ),
        limit(
            bursts.gilbert_owner(p, L, t, sigma2),
            bursts.gilbert_owner(p, L, None, sigma2),
            "r^t -> 0",
            r,
            conclusion=True,
        ),
        recursion(
            pair,
            lambda s: bursts.gilbert_pair(p, L, s, sigma2),
            sp.Integer(0),
            lambda before: before + 2 * sigma2 * new * (1 - new),
            "sum of a_k (1 - a_k)",
            conclusion=True,
        ),
        limit(
            bursts.gilbert_pair(p, L, t, sigma2),
            bursts.gilbert_pair(p, L, None, sigma2),
            "r^t -> 0",
            r,
            conclusion=True,
        ),
    )


def _four_parameters() -> tuple[Step, ...]:
    enter, leave, good, bad = sp.symbols("e l g b", positive=True)
    M = sp.Matrix([[(1 - enter) * good, enter * bad], [leave * good, (1 - leave) * bad]])
    start = sp.Matrix([[leave * good, enter * bad]]) / (enter + leave)
    one = sp.Matrix([1, 1])
    first, second, trace, det = bursts.chain_recurrence(enter, leave, good, bad)
    later = TRACE * TAIL_2 - DET * TAIL_1
    squares, products = sp.symbols(r"\textstyle\sum{a_k^2} \textstyle\sum{a_k{a_{k+1}}}")
    closed = bursts.recurrent_square_sum(TAIL_1, TAIL_2, TRACE, DET)
    return (
        algebra(TAIL_1, first, "stationary shares of the states, then a loss", {TAIL_1: (start * one)[0]}),
        algebra(TAIL_2, second, "one tick and one loss more: the matrix M", {TAIL_2: (start * M * one)[0]}),
        *(
            algebra(
                sp.Symbol(f"(M^2-\\tau{{M}}+\\delta)_{{{i + 1}{j + 1}}}"),
                sp.Integer(0),
                "Cayley-Hamilton: a_(k+2) = tau a_(k+1) - delta a_k",
                {
                    sp.Symbol(f"(M^2-\\tau{{M}}+\\delta)_{{{i + 1}{j + 1}}}"): (M * M - trace * M + det * sp.eye(2))[
                        i, j
                    ]
                },
            )
            for i in range(2)
            for j in range(2)
        ),
        algebra(
            bursts.recurrent_sum(TAIL_1, TAIL_2, TRACE, DET),
            TAIL_1 + bursts.recurrent_sum(TAIL_2, later, TRACE, DET),
            "the sum is its first term and the sum from the next term on; a_k -> 0 leaves no remainder",
            conclusion=True,
        ),
        given(products, (TAIL_1 * TAIL_2 + TRACE * (squares - TAIL_1**2)) / (1 + DET), "times a_(k+1), summed over k"),
        algebra(
            squares,
            TAIL_1**2 + TAIL_2**2 + TRACE**2 * (squares - TAIL_1**2) - 2 * TRACE * DET * products + DET**2 * squares,
            "the recurrence squared, summed over k; solved for the sum of squares",
            {products: (TAIL_1 * TAIL_2 + TRACE * (squares - TAIL_1**2)) / (1 + DET), squares: closed},
            conclusion=True,
        ),
        algebra(
            bursts.chain_pair(enter, leave, good, bad),
            2 * bursts.recurrent_sum(first, second, trace, det)
            - 2 * bursts.recurrent_square_sum(first, second, trace, det),
            "independent links",
            conclusion=True,
        ),
    )


def _renewal() -> tuple[Step, ...]:
    mean, variance, moment = sp.symbols(r"L \mathrm{Var}T E[T(T+1)/2]")
    tail, j = sp.Symbol(r"P(T\ge{j})"), sp.Symbol("j", integer=True, positive=True)
    gap = sp.Symbol(r"E|x-\theta_i|^2")
    return (
        given(
            sp.Symbol("a_k"),
            p / mean * sp.Sum(tail, (j, k, sp.oo)),
            "a lost packet's place in its burst is j with probability P(T >= j)/L: long bursts are met more often",
        ),
        recursion(
            sp.Symbol(r"\textstyle\sum_{j\le{T}}{j}"),
            lambda s: s * (s + 1) / 2,
            sp.Integer(0),
            lambda before: before + t + 1,
            "the sum over k counts j as often as j says: E[1 + ... + T]",
        ),
        algebra(
            gap,
            bursts.renewal_owner(p, mean, variance, sigma2),
            "E T^2 = Var T + L^2",
            {gap: sigma2 * p / mean * moment, moment: (variance + mean**2 + mean) / 2},
            conclusion=True,
        ),
        algebra(
            bursts.heavy_length_tail(n),
            2 / n - 2 / (n + 1),
            "bursts with P(T >= j) = 2/(j(j+1)): the sum from k on telescopes to 2/k, L = 2/1",
        ),
        algebra(
            sp.Symbol("a_k"),
            bursts.heavy_tail(k, p),
            "(p/2)(2/k): the drift to the owner is p sigma^2 times the harmonic sum, which has no bound",
            {sp.Symbol("a_k"): p / 2 * (2 / k)},
            conclusion=True,
        ),
    )


def _clock() -> tuple[Step, ...]:
    memory, leave = sp.symbols(r"m 1/L'")
    ticks = sp.Symbol("M", integer=True, positive=True)
    return (
        given(memory, 1 - 1 / (sp.Symbol("L") * (1 - p)), "the second eigenvalue of one tick, 1 - P(enter) - P(leave)"),
        algebra(
            leave,
            1 / bursts.effective_burst(p, L, ticks),
            "M ticks have the eigenvalue m^M and the same shares of states: P(leave) = (1-p)(1 - m^M)",
            {leave: (1 - p) * (1 - memory**ticks), memory: 1 - 1 / (L * (1 - p))},
            conclusion=True,
        ),
    )


def any_losses() -> Derivation:
    """B8: the formula for all losses; Gilbert-Elliott with two and four parameters and either clock; renewal bursts."""
    return Derivation((*_any_losses(), *_two_parameters(), *_four_parameters(), *_clock(), *_renewal()))
