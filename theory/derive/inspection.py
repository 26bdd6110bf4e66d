r"""D4 derived: the law of the burst that a lost packet is in, from the process of bursts; the mean age; the clock."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import bursts, inspection, staleness
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
    t,
)

L, variance = sp.symbols(r"L \mathrm{Var}T", positive=True)
T = sp.Symbol("T")  # a random number: its square has a mean of its own
j, i = sp.symbols("j i", integer=True, positive=True)


def met_bursts() -> Derivation:
    """D4: what is left of a burst; its mean age; regular and geometric bursts; bursts without one; the clock."""
    return Derivation((*_stationary(), *_mean_age(), *_extremes(), *_without_mean(), *_clock()))


def _stationary() -> tuple[Step, ...]:
    """The chain of the losses that are left of a burst, this packet's included, for arrivals that end at any tick."""
    longer, longest, begins, good, left = sp.symbols(r"P(T\ge{j}) P(T\ge{j+1}) e 1-p P(l=j)", positive=True)
    exactly, all_left, cycle, none = sp.symbols(
        r"P(T=j) \textstyle\sum_jP(l=j) E[\mathrm{cycle}] P(l=0)", positive=True
    )
    chance = given(exactly, longer - longest, "the law of T")
    at_j, at_more = (inspection.place(j, p, L, tail) for tail in (longer, longest))
    rate = algebra(begins * good, p / L, "a burst begins at an arrival: that often, as the good state has share 1 - p",
                   {begins: inspection.burst_rate(p, L), good: 1 - p})  # fmt: skip
    return (
        chance,
        rate,
        algebra(left, at_j, "stationary: l = j comes from l = j + 1, or from a burst of length j that begins now",
                {left: at_more + rate.right * chance.right}, conclusion=True),
        algebra(none, 1 - p, "and l = 0 from l = 1, or from no burst after an arrival",
                {none: good * (1 - begins) + at_j, longer: 1, begins: rate.right / good, good: 1 - p}),
        algebra(all_left, p, "so the loss is p: the mean of a count is the sum of its tail",
                {all_left: inspection.place(j, p, L, L)}),
        given(sp.Symbol("P(A=j)"), at_j, "the j-th loss of a burst of T has l = T - j + 1: as often j-th from the "
              "start as from the end; and A is the place from the start"),
        algebra(cycle, L / p, "the same for runs of arrivals of any law: a cycle has L losses, a share p of its ticks",
                {cycle: 1 / rate.right}),
    )  # fmt: skip


def _mean_age() -> tuple[Step, ...]:
    """A burst of length T has ages 1, ..., T."""
    E_T2, age, met, inside, weight = sp.symbols(r"E[T^2] E[A] E[T|\mathrm{met}] E[A|\mathrm{met}] P(\mathrm{met}=n)")
    n = sp.Symbol("n", positive=True)
    counted = recursion(
        sp.Symbol(r"\textstyle\sum_{j\le{t}}{j}"), lambda s: s * (s + 1) / 2, sp.Integer(0), lambda x: x + t + 1,
        "a burst of t losses: the sum of its ages",
    )  # fmt: skip
    square = given(E_T2, variance + L**2, "definition of the variance")
    paid = sp.expand(counted.right.subs(t, T))
    of_cycle = algebra(
        age, inspection.mean_age(p, L, variance), "the ages of a burst over the length of a cycle, L/p ticks",
        {age: paid * p / L, T**2: E_T2, T: L, E_T2: square.right}, conclusion=True,
    )  # fmt: skip
    often = given(weight, n * sp.Symbol("P(T=n)") / L, "a lost packet is in a burst of n as often as such bursts hold "
                  "losses: n times as often as they occur")  # fmt: skip
    longer = algebra(
        met, inspection.met_length(L, variance), "its mean: the inspection paradox",
        {met: n * often.right, n**2 * sp.Symbol("P(T=n)"): E_T2, E_T2: square.right}, conclusion=True,
    )  # fmt: skip
    anywhere = algebra(inside, (met + 1) / 2, "and anywhere in it: the mean of 1, ..., n, linear in n",
                       {inside: counted.right.subs(t, n) / n, n: met})  # fmt: skip
    lost = expectation(age, [(1 - p, 0), (p, anywhere.right)], p * anywhere.right, "fresh, or lost and in a burst")
    same = algebra(lost.right, of_cycle.right, "the same mean age, met or counted over cycles", {met: longer.right})
    return counted, square, of_cycle, often, longer, anywhere, lost, same


def _extremes() -> tuple[Step, ...]:
    """Given p and L: the least mean age, and that of geometric bursts."""
    whole, part, r = sp.symbols("n f r", positive=True)
    E_T, E_T2, again, gap, spread = sp.symbols(r"E[T] E[T^2] E[(T')^2] E[(T-n)(T-n-1)] E[A]-E[A]_0")
    product = algebra(
        gap, variance - inspection.least_variance(whole, part), "whole lengths, L = n + f: never negative, 0 if T is n "
        "or n + 1 only", {gap: sp.expand((T - whole) * (T - whole - 1)), T**2: variance + L**2, T: L, L: whole + part},
        conclusion=True,
    )  # fmt: skip
    least = inspection.mean_age(p, L, inspection.least_variance(whole, part))
    above = algebra(
        spread, p * gap / (2 * L), "so regular bursts are the best, E A = (p/2)(L + 1) for whole L",
        {spread: inspection.mean_age(p, L, variance) - least,
         gap: product.right}, conclusion=True,
    )  # fmt: skip
    stay = expectation(E_T, [(1 - r, 1), (r, 1 + E_T)], 1 + r * E_T, "geometric: the burst goes on with probability r")
    mean = fixed_point(E_T, 1 / (1 - r), stay, E_T, "solved")
    squares = expectation(again, [(1 - r, 1), (r, 1 + 2 * mean.right + E_T2)], 1 + r * (2 * mean.right + E_T2),
                          "squared: 1, or (1 + T)^2")  # fmt: skip
    second = fixed_point(E_T2, (1 + r) / (1 - r) ** 2, squares, E_T2, "solved")
    spread_of = algebra(variance, inspection.geometric_variance(mean.right), "Var T = L (L-1)",
                        {variance: second.right - mean.right**2})  # fmt: skip
    return (
        product, above, stay, mean, squares, second, spread_of,
        algebra(inspection.mean_age(p, L, inspection.geometric_variance(L)), bursts.gilbert_owner(p, L),
                "Gilbert-Elliott: E A = pL, as in B8", conclusion=True),
        algebra(inspection.mean_age(p, 1 / (1 - p), inspection.geometric_variance(1 / (1 - p))), staleness.age_mean(p),
                "independent losses, L = 1/(1-p), as in B1"),
    )  # fmt: skip


def _without_mean() -> tuple[Step, ...]:
    """Bursts of mean whole + rest and no variance."""
    whole, rest, n = sp.symbols("n c m", positive=True)
    sum_from, mean, tail, block = sp.symbols(r"\textstyle\sum_{k\ge{i}}P(T\ge{n+k}) L P(A\ge{n+i}) a_{n+2m}\cdot{m}")
    summed = given(sum_from, rest / i, "the next step, added up from i on; it tends to 0")
    average = given(mean, whole + summed.right.subs(i, 1), "P(T >= 1), ..., P(T >= n) are 1: L = n + c")
    return (
        summed,
        algebra(inspection.heavy_length_tail(i, rest), summed.right - summed.right.subs(i, i + 1),
                "bursts with P(T >= n + i) = c/(i(i+1)): the sum telescopes"),
        average,
        algebra(tail, inspection.heavy_tail(i, p, whole, rest), "places of at least n + i",
                {tail: p / mean * summed.right, mean: average.right}, conclusion=True),
        algebra(block, p * rest / (2 * (whole + rest)), "of m terms up to the 2m-th each is at least the last: their "
                "sum is at least this, for every m: E A has no bound",
                {block: n * inspection.heavy_tail(2 * n, p, whole, rest)}, conclusion=True),
    )  # fmt: skip


def _clock() -> tuple[Step, ...]:
    """A two-state link that ticks t times a step: bad after t ticks, from a lost packet."""
    bad, before, enter, leave, out, age, once = sp.symbols("b_{t+1} b_t e l 1/L' E[A] L'_1", positive=True)
    left, balance = given(leave, 1 / L, "the mean stay is L ticks"), given(enter, p * leave / (1 - p), "stationary")
    keeps = sp.Symbol(r"\lambda", positive=True)
    kept = algebra(keeps, inspection.memory(p, L), "the second eigenvalue of a tick",
                   {keeps: 1 - enter - leave, enter: balance.right, leave: left.right})  # fmt: skip
    tick = expectation(
        bad,
        [(before * (1 - leave), 1), (before * leave, 0), ((1 - before) * enter, 1), ((1 - before) * (1 - enter), 0)],
        enter + (1 - enter - leave) * before, "bad still, or bad again",
    )  # fmt: skip
    named = {enter: p * (1 - keeps), leave: (1 - p) * (1 - keeps)}
    rates = [
        algebra(rate, value, "in terms of lambda", {rate: solved, keeps: kept.right, leave: left.right})
        for rate, value, solved in ((enter, named[enter], balance.right), (leave, named[leave], leave))
    ]
    ticks = recursion(before, lambda s: p + (1 - p) * keeps**s, sp.Integer(1), following(tick, before, named),
                      "from a loss; induction on t")  # fmt: skip
    leaves = algebra(out, (1 - p) * (1 - keeps**t), "good at the next step's packet", {out: 1 - ticks.right})
    return (
        left, balance, kept, tick, *rates, ticks, leaves,
        algebra(1 / inspection.burst_in_steps(p, L, t), leaves.right, "so once a step it is a link of mean burst L'",
                {keeps: kept.right}, conclusion=True),
        algebra(age, p * inspection.burst_in_steps(p, L, t), "and E A = p L'",
                {age: bursts.gilbert_owner(p, 1 / out), out: leaves.right, keeps: kept.right}, conclusion=True),
        algebra(once, L, "one tick a step", {once: inspection.burst_in_steps(p, L, 1)}, conclusion=True),
        limit(1 / leaves.right, 1 / (1 - p), "many ticks, lambda > 0: independent losses", base=keeps, conclusion=True),
    )  # fmt: skip
