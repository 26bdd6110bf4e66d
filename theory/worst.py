"""Closed forms of the worst of N replicas (claim B7).

N replicas of one packet with independent links of loss p; the owner is not counted. Arguments as in
`lossproof.theory.aggregation`: exact for ints and Fractions (which costs N terms of growing size), stable for floats at
any N. Common start; t = None means the steady state.
"""

from __future__ import annotations

import math
from typing import Any

from lossproof.theory.aggregation import divide
from lossproof.theory.staleness import age_mean, age_tail

_FLAT = 1e-3
_NEGLIGIBLE = 45.0


def age_max_tail(k: Any, N: Any, p: Any) -> Any:
    """P(max A >= k) = 1 - (1 - p^k)^N, for k <= t."""
    return 1 - (1 - age_tail(k, p)) ** N


def age_max_mean(N: int, p: Any, t: Any = None) -> Any:
    """E max A = sum over k = 1..t (or for ever) of 1 - (1 - p^k)^N = sum over j = 1..N of `age_max_part(j, N, p, t)`.

    >>> age_max_mean(2, divide(1, 2))
    Fraction(5, 3)
    """
    if isinstance(p, float):
        return _age_max_mean(N, p, t)
    return sum(age_max_part(j, N, p, t) for j in range(1, N + 1))


def age_max_part(j: Any, N: int, p: Any, t: Any = None) -> Any:
    """Inclusion and exclusion: +-binom(N, j) times the mean of the smallest of j ages, which is an age at loss p^j."""
    return (-1) ** (j + 1) * math.comb(N, j) * age_mean(p**j, t)


def _age_max_mean(N: int, p: float, t: int | None) -> float:
    """The sum over k without cancellation; near p = 1, where it is long, its Euler-Maclaurin expansion.

    The summand is 1 at k = 0 and flat there (its first derivative in k vanishes for N > 1), which leaves the integral,
    half of the first term and an error below log(1/p)^3.
    """
    if p == 0:
        return 0.0
    rate = -math.log(p)
    if t is None and rate < _FLAT:
        return float(harmonic(N, 1.0)) / rate - 0.5 + (rate / 12 if N == 1 else 0.0)
    last = math.ceil((math.log(N) + _NEGLIGIBLE) / rate)  # from here on less than N p^k < 1e-19 each
    return math.fsum(-math.expm1(N * math.log1p(-(p**k))) for k in range(1, (last if t is None else min(last, t)) + 1))


def harmonic(N: int, one: Any = 1) -> Any:
    """H_N = 1 + 1/2 + ... + 1/N, exactly; in floats if `one` is 1.0.

    >>> harmonic(3)
    Fraction(11, 6)
    """
    terms = (divide(one, k) for k in range(1, N + 1))
    return math.fsum(terms) if isinstance(one, float) else sum(terms)


def age_max_bounds(harmonic_N: Any, rate: Any) -> tuple[Any, Any]:
    """H_N / log(1/p) - 1 < E max A < H_N / log(1/p): logarithmic in N. `rate` is log(1/p)."""
    upper = harmonic_N / rate
    return upper - 1, upper


def drift_bounds(age_max: Any, sigma2: Any = 1) -> tuple[Any, Any]:
    """sigma2 E max A <= E max |x - theta_i|^2 <= 2 sigma2 E max A, the maximum over the N replicas.

    Attained by orthogonal steps on the left; on the right 2 is the least factor for all martingale differences if their
    sizes may vary (read sigma2 E max A as the sum of E|u_s|^2 P(max A > t - s)).
    """
    return sigma2 * age_max, 2 * sigma2 * age_max
