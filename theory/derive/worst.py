"""B7 derived: the worst of N independent replicas, in age and in drift."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import staleness, worst
from lossproof.theory.derive.steps import (
    Derivation,
    N,
    Step,
    algebra,
    binomial_theorem,
    following,
    given,
    limit,
    p,
    recursion,
    sigma2,
    t,
)

k, j, i = (sp.Symbol(name, integer=True, positive=True) for name in "kji")
x, z, X = sp.symbols("x z X", positive=True)
H, E_max = sp.symbols(r"H_N E[\max_i{A_i}]")
RATE = -sp.log(p)
SMALL = 3
"""The sum over j is written out for this N; the certificate does it for others, the steps themselves for all."""


def worst_replica() -> Derivation:
    """B7: its age, exactly and between bounds; then its drift."""
    age = _age()
    return Derivation((*age, *_bounds(age[1]), *_drift()))


def _age() -> tuple[Step, ...]:
    """The mean of a count is the sum of its tail; inclusion and exclusion turns the maximum into minima."""
    all_below, tail, least_tail, least_mean, spelled = sp.symbols(
        r"P(\max{A_i}<k) P(\max{A_i}\ge{k}) P(\min_{i\le{j}}{A_i}\ge{k}) E[\min_{i\le{j}}{A_i}] E[\max_{i\le3}{A_i}]"
    )
    below = given(all_below, sp.Product(1 - staleness.age_tail(k, p), (i, 1, N)), "B1, k <= t; independent links")
    oldest = algebra(
        tail, worst.age_max_tail(k, N, p), "N equal factors", {tail: 1 - below.right.doit()}, conclusion=True
    )
    mean = given(E_max, sp.Sum(oldest.right, (k, 1, t)), "the mean of a count is the sum of its tail")
    whole = binomial_theorem(-X, 1, N, j, "inclusion and exclusion: P(max A < k) for X = p^k")
    weight = -whole.left.function.subs(X, 1)  # of X^j in P(max A >= k), j = 1..N
    youngest = given(least_tail, staleness.age_tail(k, p) ** j, "j independent links")
    minimum = recursion(
        least_mean,
        lambda s: staleness.age_mean(p**j, s),
        mean.right.subs(t, 0).doit(),
        lambda before: before + youngest.right.subs(k, t + 1),
        "the sum of this tail over k = 1..t",
    )
    maximum = algebra(
        spelled,
        worst.age_max_mean(SMALL, p, t),
        f"so the sum of the other is that of +-binom(N, j) times these; N = {SMALL}",
        {spelled: sum((weight * minimum.right).subs({N: SMALL, j: n + 1}) for n in range(SMALL))},
        conclusion=True,
    )
    return (
        below,
        oldest,
        mean,
        whole,
        algebra(oldest.right, 1 - whole.right, "the same tail", {X: staleness.age_tail(k, p)}),
        youngest,
        minimum,
        maximum,
        limit(maximum.right, worst.age_max_mean(SMALL, p), "p^t -> 0", conclusion=True),
    )


def _bounds(oldest: Step) -> tuple[Step, ...]:
    """The sandwich: f(x) = 1 - (1 - p^x)^N falls, so its sum over k >= 1 lies between its integral less f(0) and it."""
    f = oldest.right.subs(k, x)
    slope, moved, swapped, integral, grows, more = sp.symbols(r"f'(x) dz/dx f(x)dx/dz I_N (I_{N+1}-I_N)' I_{N+1}-I_N")
    lower, upper, spelled = sp.symbols("below above H_3")
    antiderivative = -((1 - z) ** (N + 1)) / (N + 1)
    dz = algebra(moved, -RATE * z, "the substitution z = p^x", {moved: sp.diff(p**x, x), z: p**x})
    by_z = algebra(
        swapped, -(1 - (1 - z) ** N) / (z * RATE), "f dx, z from 1 to 0", {swapped: f.subs(p**x, z) / dz.right}
    )
    area = given(integral, sp.Integral(-RATE * by_z.right, (z, 0, 1)), "log(1/p) times the integral of f")
    integrand, (_, low, high) = area.right.function, area.right.limits[0]
    step = algebra(
        more,
        1 / (N + 1),
        "so I_N grows as H_N does, from I_0 = H_0 = 0",
        {more: antiderivative.subs(z, high) - antiderivative.subs(z, low)},
    )
    total = algebra(
        upper, worst.age_max_bounds(H, RATE)[1], "E max A < I_N / log(1/p)", {upper: integral / RATE, integral: H},
        conclusion=True,
    )  # fmt: skip
    return (
        algebra(
            slope,
            -N * (1 - p**x) ** N / (1 - p**x) * RATE * p**x,
            "f falls: every factor but the sign is positive",
            {slope: sp.diff(f, x)},
        ),
        dz,
        by_z,
        area,
        algebra(
            grows,
            sp.diff(antiderivative, z),
            "the integrand of I_(N+1) - I_N is (1-z)^N, with this antiderivative",
            {grows: integrand.subs(N, N + 1) - integrand},
        ),
        step,
        algebra(
            spelled,
            sp.sympify(worst.harmonic(SMALL)),
            f"H_N, spelled out for N = {SMALL}",
            {spelled: sum(step.right.subs(N, n) for n in range(SMALL))},
        ),
        total,
        algebra(
            lower,
            worst.age_max_bounds(H, RATE)[0],
            "E max A + f(0) > I_N / log(1/p)",
            {lower: total.right - f.subs(x, 0)},
            conclusion=True,
        ),
    )


def _drift() -> tuple[Step, ...]:
    r"""The gap of a replica of age A to the owner is S_A, the sum of the last A steps.

    Below: the maximum over replicas is at least the gap of the oldest. Above: let a and b be how far x lies below its
    running maximum and above its running minimum over the last max A steps, by coordinate. The largest gap is at most
    max(a, b)^2 <= a^2 + b^2, and a step u changes a, b to max(a - u, 0), max(b + u, 0). This replaces Doob's inequality
    (factor 4), which bounds forward sums, where backward ones are needed.
    """
    S, u, a, b = sp.symbols("S_t u a b", real=True)
    now, before, range_now, range_before = sp.symbols(r"E|S_{t+1}|^2 E|S_t|^2 E(a^2+b^2)_{t+1} E(a^2+b^2)_t")
    cross, size, start, below, above = sp.symbols(
        r"E[w\cdot{u}] E|u|^2 E|S_0|^2 E|S_{\max{A}}|^2 \max{E|x-\theta_i|^2}"
    )
    apart = given(cross, sp.Integer(0), "w is made of the age and of earlier steps, given which u has mean 0")
    sized = given(size, sigma2, "and mean square sigma^2; summed over coordinates")
    first = given(start, sp.Integer(0), "no step: no gap, no range")
    means = {u**2: sized.right, S * u: apart.right, b * u: a * u + apart.right}  # w is S, and b - a
    longer = algebra(
        now, before + sigma2, "one step more, squared", {now: sp.expand((S + u) ** 2), **means, S**2: before}
    )
    wider = algebra(
        range_now,
        range_before + 2 * sigma2,
        "one step more adds at most this; losses do not depend on u",
        {range_now: sp.expand((a - u) ** 2 + (b + u) ** 2), **means, a**2: range_before - b**2},
    )
    gap = recursion(before, lambda s: s * sigma2, first.right, following(longer, before), "induction; linear in t")
    reach = recursion(
        range_before, lambda s: 2 * s * sigma2, first.right, following(wider, range_before), "induction; linear in t"
    )
    return (
        apart,
        sized,
        first,
        longer,
        gap,
        algebra(
            below,
            worst.drift_bounds(E_max, sigma2)[0],
            "the oldest lacks max A steps",
            {below: gap.right.subs(t, E_max)},
            conclusion=True,
        ),
        wider,
        reach,
        algebra(
            above,
            worst.drift_bounds(E_max, sigma2)[1],
            "max A steps in all; the maximum is at most this",
            {above: reach.right.subs(t, E_max)},
            conclusion=True,
        ),
    )
