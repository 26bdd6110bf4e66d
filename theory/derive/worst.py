"""B7 derived: the worst of N independent replicas, in age and in drift."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import staleness, worst
from lossproof.theory.derive.steps import Derivation, N, Step, algebra, given, limit, p, recursion, sigma2, t

k, j = (sp.Symbol(name, integer=True, positive=True) for name in "kj")
x, z, X = sp.symbols("x z X", positive=True)
H, E_max = sp.symbols(r"H_N E[\max_i{A_i}]")
RATE = -sp.log(p)
SMALL = 3
"""The sum over j is written out for this N; the certificate does it for others, the steps themselves for all."""


def _age_steps() -> tuple[Step, ...]:
    tail = sp.Symbol(r"P(\max_i{A_i}\ge{k})")
    smallest = sp.Symbol(r"E[\min(A_1,\ldots,A_j)]")
    return (
        algebra(
            tail,
            worst.age_max_tail(k, N, p),
            "B1: each age is below k with probability 1 - p^k; independent links (k <= t)",
            {tail: 1 - (1 - p**k) ** N},
            conclusion=True,
        ),
        given(E_max, sp.Sum(worst.age_max_tail(k, N, p), (k, 1, t)), "the mean of a count is the sum of its tail"),
        recursion(
            smallest,
            lambda s: staleness.age_mean(p**j, s),
            sp.Integer(0),
            lambda before: before + p ** (j * (t + 1)),
            "the smallest of j ages has the tail p^(jk); its sum over k <= t",
        ),
        algebra(
            sp.Symbol("E_3"),
            worst.age_max_mean(SMALL, p, t),
            "1 - (1 - X)^N = sum of +-binom(N, j) X^j with X = p^k, summed over k; here N = 3",
            {sp.Symbol("E_3"): _expanded(SMALL)},
            conclusion=True,
        ),
        limit(worst.age_max_mean(SMALL, p, t), worst.age_max_mean(SMALL, p), "p^t -> 0", conclusion=True),
    )


def _expanded(n: int) -> sp.Expr:
    polynomial = sp.Poly(sp.expand(1 - (1 - X) ** n), X)
    return sum(c * staleness.age_mean(p**power, t) for (power,), c in polynomial.terms() if power)


def age() -> tuple[Step, ...]:
    """The sandwich: f(x) = 1 - (1 - p^x)^N falls, so its sum over k >= 1 lies between its integral less f(0) and it."""
    f = worst.age_max_tail(x, N, p)
    slope, integral, more = sp.symbols(r"f'(x) I_N I_{N+1}-I_N")
    lower, upper = sp.symbols("below above")
    antiderivative = -((1 - z) ** (N + 1)) / (N + 1)
    return (
        *_age_steps(),
        algebra(
            slope,
            -N * (1 - p**x) ** N / (1 - p**x) * RATE * p**x,
            "f falls: every factor but the sign is positive",
            {slope: sp.diff(f, x)},
        ),
        given(integral, sp.Integral((1 - (1 - z) ** N) / z, (z, 0, 1)), "integral of f is I_N / log(1/p): z = p^x"),
        algebra(sp.Symbol(r"dz/dx"), -RATE * z, "the substitution", {sp.Symbol(r"dz/dx"): sp.diff(p**x, x), z: p**x}),
        algebra(
            ((1 - (1 - z) ** (N + 1)) - (1 - (1 - z) ** N)) / z,
            sp.diff(antiderivative, z),
            "the integrand of I_(N+1) - I_N is (1-z)^N, with this antiderivative",
        ),
        algebra(
            more,
            1 / (N + 1),
            "so I_N grows as H_N does, from I_0 = H_0 = 0",
            {more: antiderivative.subs(z, 1) - antiderivative.subs(z, 0)},
        ),
        algebra(
            upper,
            worst.age_max_bounds(H, RATE)[1],
            "E max A < integral of f",
            {upper: H / RATE},
            conclusion=True,
        ),
        algebra(
            lower,
            worst.age_max_bounds(H, RATE)[0],
            "E max A + f(0) > integral of f",
            {lower: H / RATE - worst.age_max_tail(0, N, p)},
            conclusion=True,
        ),
    )


def worst_replica() -> Derivation:
    r"""B7. The gap of a replica of age A to the owner is S_A, the sum of the last A steps.

    Below: the maximum over replicas is at least the gap of the oldest. Above: let a and b be how far x lies below its
    running maximum and above its running minimum over the last max A steps, by coordinate. The largest gap is at most
    max(a, b)^2 <= a^2 + b^2, and a step d changes a, b to max(a - d, 0), max(b + d, 0). This replaces Doob's inequality
    (factor 4), which bounds forward sums, where backward ones are needed.
    """
    a, b, d, grown = sp.symbols(r"a b d (a^2+b^2)'", real=True)
    below, above = sp.symbols(r"E|S_{\max{A}}|^2 E[a^2+b^2]")
    return Derivation(
        (
            *age(),
            algebra(
                below,
                worst.drift_bounds(E_max, sigma2)[0],
                "the oldest lacks max A steps; cross terms vanish: u_s has mean 0 given the age and earlier steps",
                {below: sigma2 * E_max},
                conclusion=True,
            ),
            algebra(
                grown,
                a**2 + b**2 + 2 * d * (b - a) + 2 * d**2,
                "a step d adds at most this; E[d (b - a)] = 0, as a, b are known before the step",
                {grown: (a - d) ** 2 + (b + d) ** 2},
            ),
            algebra(
                above,
                worst.drift_bounds(E_max, sigma2)[1],
                "each of the max A steps adds 2 sigma^2 in mean, summed over coordinates; losses do not depend on u",
                {above: 2 * sigma2 * E_max},
                conclusion=True,
            ),
        )
    )
