"""Closed forms of stage 1: what the owner's estimate is on average (claims A1 to A3).

Every function takes ints, Fractions, floats or SymPy expressions and answers in kind; ints and Fractions stay exact.
N ranks, p the probability that a gradient packet is lost, gbar the mean of all gradients, g_owner the owner's own.
The derivations are in `lossproof.theory.derive.aggregation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any


def divide(a: Any, b: Any) -> Any:
    """a / b, kept exact for ints."""
    return Fraction(a, b) if isinstance(a, int) and isinstance(b, int) else a / b


def survivor_weight(N: Any) -> Any:
    """A1: E[m_i / K | K >= 1], the expected weight of each sender under any exchangeable law."""
    return divide(1, N)


def survivor_mean(gradients: Sequence[Any]) -> Any:
    """A1: E[survivor mean | K >= 1], gbar.

    >>> survivor_mean([1, 2])
    Fraction(3, 2)
    """
    return survivor_weight(len(gradients)) * sum(gradients)


def no_survivor(N: Any, p: Any) -> Any:
    """P(K = 0) when all N links lose independently."""
    return p**N


def survivor_mean_or_zero(gbar: Any, N: Any, p: Any) -> Any:
    """A2a: E[estimate] with 0 where nobody survived."""
    return (1 - no_survivor(N, p)) * gbar


def zero_fill(gbar: Any, p: Any) -> Any:
    """A2b: E[estimate] of the rule `zero_fill`: missing gradients count as 0 and the sum is divided by N."""
    return (1 - p) * gbar


def survivor_mean_or_hold(gbar: Any, start: Any, N: Any, p: Any, t: Any) -> Any:
    """A2c: E[estimate_t] for constant gradients, holding the previous estimate; `start` is the estimate at t = 0.

    It solves E_t = (1 - p^N) gbar + p^N E_(t-1), which also holds for gradients that vary with t.
    """
    return gbar + no_survivor(N, p) ** t * (start - gbar)


def survivor_mean_or_own(gbar: Any, g_owner: Any, N: Any, p: Any) -> Any:
    """A2d: E[estimate] with the owner's own gradient where nobody survived."""
    return gbar + no_survivor(N, p) * (g_owner - gbar)


def owner_weight(N: Any, p: Any) -> Any:
    """A3: E[1/K], the owner's expected weight when its own link is reliable; the others share the rest equally.

    >>> owner_weight(2, Fraction(1, 2))
    Fraction(3, 4)
    """
    return divide(1 - no_survivor(N, p), N * (1 - p))


def owner_bias(g_owner: Any, gbar: Any, N: Any, p: Any) -> Any:
    """A3: E[survivor mean] - gbar when the owner's own link is reliable, N >= 2."""
    return (owner_weight(N, p) - survivor_weight(N)) * divide(N, N - 1) * (g_owner - gbar)
