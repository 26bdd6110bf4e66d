"""Exact certificates: a judge in rational arithmetic for identities and inequalities over all parameter values.

Expressions are rational in a few symbols; powers such as p^t are replaced by a symbol X of their own in [0, 1], so what
is shown for all X is shown for all t. SymPy brings them to lowest terms; the judgement is made on
exact coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import product
from math import comb
from typing import Any

import sympy as sp

Coefficients = dict[tuple[int, ...], Fraction]


def rational(expression: Any, powers: Mapping[Any, sp.Symbol]) -> tuple[sp.Expr, sp.Expr]:
    """Numerator and denominator after naming the powers; raises if something that is not rational remains.

    >>> p, t, X = sp.Symbol("p", positive=True), sp.Symbol("t", integer=True), sp.Symbol("X")
    >>> rational(p**(2 * t + 1) / (1 + p), {p**t: X})
    (X**2*p, p + 1)
    """
    named = sp.powdenest(sp.expand(sp.sympify(expression)))
    for power, symbol in powers.items():
        named = named.subs(power, symbol)
    numerator, denominator = sp.fraction(sp.cancel(sp.together(named)))
    finite = not named.has(sp.zoo, sp.oo, sp.nan)
    if not (finite and numerator.is_polynomial() and denominator.is_polynomial()):
        raise ValueError(f"expression must be rational in its symbols and the powers {list(powers)}, got {expression}")
    return numerator, denominator


def coefficients(polynomial: Any, symbols: tuple[sp.Symbol, ...]) -> Coefficients:
    """The exact coefficients by exponent; raises if another symbol or an inexact number occurs."""
    if sp.sympify(polynomial).has(sp.Float):
        raise ValueError(f"coefficients must be exact, got {polynomial}")
    terms = sp.Poly(polynomial, *symbols, domain=sp.QQ).terms()
    return {powers: Fraction(int(c.numerator), int(c.denominator)) for powers, c in terms if c != 0}


def is_zero(expression: Any, powers: Mapping[Any, sp.Symbol] | None = None) -> bool:
    """Whether an expression vanishes for all values of its symbols: every coefficient of its numerator is zero."""
    numerator, _ = rational(expression, powers or {})
    symbols = tuple(sorted(numerator.free_symbols, key=str)) or (sp.Symbol("unused"),)
    return not coefficients(numerator, symbols)


def is_nonnegative(
    expression: Any, symbols: tuple[sp.Symbol, ...], powers: Mapping[Any, sp.Symbol] | None = None
) -> bool:
    """Certifies expression >= 0 on the open unit box of `symbols`; False means no certificate, not a refutation.

    Numerator and denominator are written in the Bernstein basis of the box, where every basis polynomial is positive:
    coefficients >= 0 are a proof; a denominator is not 0 everywhere.
    """
    numerator, denominator = rational(expression, powers or {})
    above = bernstein(coefficients(numerator, symbols), len(symbols)).values()
    below = bernstein(coefficients(denominator, symbols), len(symbols)).values()
    return any(all(sign * b >= 0 for b in below) and all(sign * a >= 0 for a in above) for sign in (1, -1))


def bernstein(polynomial: Coefficients, dimension: int) -> Coefficients:
    """The coefficients of a polynomial in the tensor Bernstein basis of the unit box, of its own degree in each symbol.

    >>> {k[0]: str(v) for k, v in bernstein({(0,): Fraction(1), (1,): Fraction(-2), (2,): Fraction(2)}, 1).items()}
    {0: '1', 1: '0', 2: '1'}
    """
    if not polynomial:
        return {(0,) * dimension: Fraction(0)}
    degree = [max(powers[d] for powers in polynomial) for d in range(dimension)]
    result: Coefficients = {}
    for index in product(*(range(n + 1) for n in degree)):
        result[index] = Fraction(0)
        for powers, coefficient in polynomial.items():
            if all(k <= i for k, i in zip(powers, index, strict=True)):
                for k, i, n in zip(powers, index, degree, strict=True):
                    coefficient *= Fraction(comb(i, k), comb(n, k))
                result[index] += coefficient
    return result
