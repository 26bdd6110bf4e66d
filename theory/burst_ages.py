"""The age of replicas under Gilbert-Elliott bursts: second moment, quantiles, the worst of N (claims B5, B7, B8).

P(A >= k) = p r^(k-1) for k >= 1 with r = 1 - 1/L, for loss p in bursts of mean L steps (`lossproof.theory.bursts`).
L = 1/(1-p) is independent loss, so each closed form here serves both.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np

_FLAT = 1e-3
_NEGLIGIBLE = 45.0
_DIGITS = 80


def second_moment(p: Any, L: Any) -> Any:
    """E A^2 = sum of (2k-1) P(A >= k) = p L (2L - 1); p (1+p)/(1-p)^2 for independent loss."""
    return p * L * (2 * L - 1)


def pair_worst(p: Any, L: Any, G2: Any = 1) -> Any:
    """The largest E|theta_i - theta_j|^2 of two independent links if |u|^2 <= G2 on every path: 2 Var(A) G2.

    It is at most G2 E(A_i - A_j)^2, since the two differ by |A_i - A_j| steps; constant steps attain it.

    >>> pair_worst(Fraction(1, 2), 2)
    Fraction(4, 1)
    """
    return 2 * G2 * (second_moment(p, L) - (p * L) ** 2)


def quantile(p: Fraction, L: Fraction, above: Fraction) -> int:
    """The smallest a with P(A > a) <= above, decided exactly: the smallest a >= 0 with p r^a <= above.

    >>> quantile(Fraction(1, 10), Fraction(10, 9), Fraction(1, 1000))
    2
    """
    if p <= above:
        return 0
    r, target = 1 - 1 / L, above / p
    # r^a = target exactly needs a denominator of r, at least 2, to the power a: only few a come into question
    for a in range(1, target.denominator.bit_length() + 1):
        if r**a <= target:
            return a
    with localcontext() as context:
        context.prec = _DIGITS
        return math.ceil(_log(target) / _log(r))


def _log(x: Fraction) -> Decimal:
    return (Decimal(x.numerator) / Decimal(x.denominator)).ln()


def worst_mean(N: int, p: Fraction, L: Fraction) -> float:
    """E max A of N replicas with independent links, sum over k of 1 - (1 - P(A >= k))^N; stable at any N.

    Long bursts make the sum long; there Euler-Maclaurin replaces it, with the integral in closed form:
    sum over k >= 0 of f(k), f(k) = 1 - (1 - p r^k)^N, is H/log(1/r) + f(0)/2 + log(1/r) N p (1-p)^(N-1) / 12 and less
    than log(1/r)^3, where H = sum over j = 1..N of (1 - (1-p)^j)/j.

    >>> worst_mean(2, Fraction(1, 2), Fraction(2))
    1.6666666666666667
    """
    if p == 0:
        return 0.0
    loss, log_q = float(p), _log1p(-p)
    if L == 1:
        return -math.expm1(N * log_q)
    rate = -_log1p(-1 / L)
    if rate < _FLAT:
        j = np.arange(1, N + 1)
        integral = float(np.sum(-np.expm1(j * log_q) / j))
        return integral / rate - math.expm1(N * log_q) / 2 + rate * N * loss * math.exp((N - 1) * log_q) / 12
    last = max(1, math.ceil((math.log(N * loss) + _NEGLIGIBLE) / rate))  # from here on less than 1e-19 each
    tail = loss * np.exp(-rate * np.arange(last))
    return float(np.sum(-np.expm1(N * np.log1p(-tail))))


def _log1p(x: Fraction) -> float:
    """log(1 + x), accurate at both ends of (-1, 0]."""
    return math.log1p(float(x)) if x > -0.5 else math.log(float(1 + x))
