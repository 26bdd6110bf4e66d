"""What is known beforehand, to judge the judges by: true and false steps, polynomials, binomial tails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from math import comb, prod
from typing import Any

import sympy as sp

from lossproof.proofs_checks.claim import Refuted
from lossproof.theory.derive import steps

p, t, N = steps.p, steps.t, steps.N
j, k = sp.symbols("j k", integer=True, nonnegative=True)
x, y, X, Y = sp.symbols("x y X Y")
rho = sp.Symbol("rho", real=True)

ZERO = (
    0,
    (p + 1) ** 2 - p**2 - 2 * p - 1,
    1 / (1 - p) - p / (1 - p) - 1,
    p ** (t + 1) - p * p**t,
    (p**2) ** t - p ** (2 * t),
    (2 * p) ** t - 2**t * p**t,
    sp.binomial(N, k) - N / k * sp.binomial(N - 1, k - 1),
)
NOT_ZERO = (
    1,
    p,
    sp.Rational(1, 10**30) * p,
    p**t - p ** (t + 1),
    (p**2) ** t - p**t,
    1 / (1 - p) - 1 / (1 + p),
    sp.binomial(N, k) - sp.binomial(N - 1, k),
)


def examples() -> Iterator[tuple[str, steps.Step, bool]]:
    """Steps of every kind, true and false; a false one is wrong in one place only."""
    yield "given", steps.given(x, y, ""), True
    for what, right, where, true in (
        ("one after another", 1, {x: y, y: 1}, True),
        ("in the other order", 1, {y: 1, x: y}, False),
        ("another value", 2, {x: y, y: 1}, False),
    ):
        yield f"algebra, {what}", steps.algebra(x, right, "", where), true
    for what, outcomes, right, true in (
        ("lost or arrived", [(p, 0), (1 - p, 2)], 2 - 2 * p, True),
        ("another mean", [(p, 0), (1 - p, 2)], 2 - p, False),
        ("masks that weigh 1 + p", [(p, 0), (1 - p, 2), (p, 0)], 2 - 2 * p, False),
        ("half of the masks", [(1 - p, 2)], 2 - 2 * p, False),
    ):
        yield f"expectation, {what}", steps.expectation(x, outcomes, right, ""), true
    harmonic = sp.Sum(1 / (k + 1), (k, 0, N - 1))
    for what, term, low, high, shift, true in (
        ("moved by one", 1 / j, 1, N, 1, True),
        ("not moved", 1 / j, 1, N, 0, False),
        ("moved too far", 1 / (j - 1), 2, N + 1, 1, False),
        ("from another start", 1 / j, 2, N, 1, False),
        ("to another end", 1 / j, 1, N + 1, 1, False),
        ("other terms", 1 / j**2, 1, N, 1, False),
    ):
        yield f"same terms, {what}", steps.same_terms(harmonic, sp.Sum(term, (j, low, high)), shift, ""), true
    yield "binomial theorem", steps.binomial_theorem(x, y, N, k, ""), True
    law = steps.algebra(x, p * (y + 1), "", {x: p * y + p})
    for what, value, true in (("fixed", p / (1 - p), True), ("not fixed", 1 / (1 - p), False)):
        yield f"fixed point, {what}", steps.fixed_point(x, value, law, y, ""), true
    for what, closed, start, then, true in (
        ("2^t - 1", lambda s: 2**s - 1, 0, lambda f: 2 * f + 1, True),
        ("another start", lambda s: 2**s, 0, lambda f: 2 * f, False),
        ("another step", lambda s: 2**s - 1, 0, lambda f: 2 * f + 2, False),
        ("right twice", lambda s: s, 0, lambda f: 2 * f + 1, False),
    ):
        yield f"recursion, {what}", steps.recursion(x, closed, sp.Integer(start), then, ""), true
    for what, of, right, options, true in (
        ("t p^t", (1 + t * p**t) / (1 - p), 1 / (1 - p), {}, True),
        ("a quotient", (1 + p**t) / (1 - p**t / 2), 1, {}, True),
        ("bounded", (p * rho) ** t + p, p, {"bounded": {rho**t: Y}}, True),
        ("a power as base", p + p ** (N * t), p, {"base": p**N}, True),
        ("another value", 1 + p**t, 0, {}, False),
        ("depends on t", t + p**t, t, {}, False),
        ("depends on what is bounded", rho**t + p**t, rho**t, {"bounded": {rho**t: Y}}, False),
        ("unnamed power", rho**t + p**t, rho**t, {}, False),
        ("a denominator that grows", (1 + p**t) / (t + 1), 1 / (t + 1), {}, False),
        ("beaten by 2^t", (2 * p) ** t + p, p, {}, False),
        ("1/p^t", p ** (-t), 0, {}, False),
        ("t in the exponent", p**t**2, 0, {}, False),
        ("a base above 1", 1 + 2**t, 1, {"base": sp.Integer(2)}, False),
        ("a base 1/p", 1 + p ** (-t), 1, {"base": 1 / p}, False),
        ("a base of either sign", 1 + rho**t, 1, {"base": rho}, False),
    ):
        yield f"limit, {what}", steps.limit(of, sp.sympify(right), "", **options), true


def in_bernstein_basis(coefficients: dict[tuple[int, ...], Fraction]) -> tuple[Any, tuple[sp.Symbol, ...]]:
    """A polynomial from its coefficients in the Bernstein basis, by the definition of the basis."""
    symbols = (x, y)[: len(next(iter(coefficients)))]
    degree = [max(index[d] for index in coefficients) for d in range(len(symbols))]
    total = sp.Integer(0)
    for index, c in coefficients.items():
        basis = [comb(n, i) * s**i * (1 - s) ** (n - i) for s, i, n in zip(symbols, index, degree, strict=True)]
        total += sp.Rational(c) * prod(basis)
    return total, symbols


def binomial_chance(rejected: Callable[[int], bool], trials: int, probability: Fraction) -> Fraction:
    """The exact probability that a binomial count is rejected."""
    q = 1 - probability
    return sum(
        (comb(trials, n) * probability**n * q ** (trials - n) for n in range(trials + 1) if rejected(n)), Fraction(0)
    )


def refuses(check: Callable[[], Any]) -> bool:
    """Whether a check refutes."""
    try:
        check()
    except Refuted:
        return True
    return False


def raises(error: type[Exception], check: Callable[[], Any]) -> bool:
    try:
        check()
    except error:
        return True
    return False
