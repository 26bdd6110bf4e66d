"""Closed forms of the age of a replica (claim B1).

The age A_t is read after the parameter phase of step t, 0 if the packet has just arrived. All copies are equal at
t = 0; t = None means the steady state. Arguments as in `lossproof.theory.aggregation`; p is the loss of parameters.
"""

from __future__ import annotations

from typing import Any

from lossproof.theory.aggregation import divide


def age_tail(k: Any, p: Any) -> Any:
    """P(A_t >= k) for 0 <= k <= t, and in steady state for all k >= 0."""
    return p**k


def age_pmf(a: Any, p: Any) -> Any:
    """P(A_t = a) for 0 <= a < t, and in steady state for all a >= 0; P(A_t = t) = p^t is `age_tail(t, p)`."""
    return (1 - p) * p**a


def age_mean(p: Any, t: Any = None) -> Any:
    """E A_t = p (1 - p^t) / (1 - p), to p / (1 - p).

    >>> age_mean(0.5)
    1.0
    """
    return divide(p, 1 - p) if t is None else divide(p * (1 - p**t), 1 - p)
