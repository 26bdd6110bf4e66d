"""Closed forms of the spread of the owner's estimate, and which rule spreads less (claim A5).

For fixed gradients; N ranks, p the loss of a gradient packet, q = 1 - p, own link lossy like the others.
s2 = sum |g_i - gbar|^2 / (N - 1), m2 = |gbar|^2 and r = m2 / s2. Spread is mean squared distance, summed over elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lossproof.theory.aggregation import divide, no_survivor
from lossproof.theory.survivors import inverse_count


def survivor_mean(s2: Any, N: Any, inverse: Any) -> Any:
    """A5: trace Cov[survivor mean | K >= 1] = s2 (E[1/K | K >= 1] - 1/N), for any exchangeable law.

    `inverse` is E[1/K | K >= 1]; for independent links `lossproof.theory.survivors.inverse_count(N, p)`.
    """
    return s2 * (inverse - divide(1, N))


def survivor_mean_or_zero(s2: Any, m2: Any, N: Any, inverse: Any, none: Any) -> Any:
    """A5: E|estimate - gbar|^2 with 0 where nobody survived, `none` = P(K = 0); not only a variance: 0 is biased."""
    return (1 - none) * survivor_mean(s2, N, inverse) + none * m2


def inverse_probability(squares: Sequence[Any], losses: Sequence[Any]) -> Any:
    """A5: trace Cov of inverse probability, independent links: (1/N^2) sum |g_i|^2 p_i / q_i; `squares` are |g_i|^2."""
    terms = zip(squares, losses, strict=True)
    return divide(sum(divide(square * p, 1 - p) for square, p in terms), len(losses) ** 2)


def inverse_probability_equal(s2: Any, m2: Any, N: Any, p: Any) -> Any:
    """A5: the same for equal losses, p/(Nq) [m2 + (N-1)/N s2]."""
    return divide(p, N * (1 - p)) * (m2 + divide(N - 1, N) * s2)


def crossover_given_survivor(N: Any, p: Any, inverse: Any = None) -> Any:
    """A5: the r at which the survivor mean given a survivor spreads as much as inverse probability, 0 < p < 1, N >= 2.

    r* = (Nq/p) (E[1/K | K >= 1] - 1/N) - (N-1)/N; above it the survivor mean is the better one, below it the worse.
    Negative: the survivor mean is better for every r. Exactly one loss in (0, 1) separates the two cases.

    >>> crossover_given_survivor(2, Fraction(1, 2))
    Fraction(1, 6)
    """
    inverse = inverse_count(N, p) if inverse is None else inverse
    return divide(N * (1 - p), p) * (inverse - divide(1, N)) - divide(N - 1, N)


def crossover(N: Any, p: Any, inverse: Any = None, none: Any = None) -> Any:
    """A5: the same for `survivor_mean_or_zero`, the error on all rounds, with or without a survivor.

    Also the r at which both rules have equal error given a survivor: where nobody survived both estimate 0.

    >>> crossover(2, Fraction(1, 2))
    Fraction(0, 1)
    """
    inverse = inverse_count(N, p) if inverse is None else inverse
    none = no_survivor(N, p) if none is None else none
    per_r = divide(p, N * (1 - p))  # what inverse probability pays for each unit of r, and (N-1)/N times for s2
    return divide((1 - none) * (inverse - divide(1, N)) - per_r * divide(N - 1, N), per_r - none)
