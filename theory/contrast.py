"""Closed forms of two other designs: sharing updates (B10), and a reliable broadcast now and then (B12).

Parameter packets are lost independently with probability p < 1; all copies are equal at t = 0. A *pair* is two distinct
non-owners. Arguments as in `lossproof.theory.aggregation`.
"""

from __future__ import annotations

from typing import Any

from lossproof.theory import drift
from lossproof.theory.aggregation import divide


def updates_pair(p: Any, sum_squares: Any) -> Any:
    """B10: E|theta_i - theta_j|^2 if owners send u_s and receivers add what arrives: 2p(1-p) sum_squares.

    sum_squares = sum over s of E|u_s|^2. Whatever the correlation of the steps, it grows without bound.
    """
    return 2 * p * (1 - p) * sum_squares


def updates_owner(p: Any, sum_squares: Any, square_of_sum: Any) -> Any:
    """B10: E|x_t - theta_t|^2 if updates are sent, steps independent of the masks; square_of_sum = E|sum of u_s|^2."""
    return p * (1 - p) * sum_squares + p**2 * square_of_sum


def updates_overtake(p: Any) -> Any:
    """B10: from this many steps of equal E|u|^2 on, sharing updates drifts more than sharing parameters ever does (B2).

    >>> updates_overtake(0.5)
    2.6666666666666665
    """
    return divide(1, (1 - p) ** 2 * (1 + p))


def updates_overtake_worst(p: Any) -> Any:
    """B10: from this many steps with |u| = G on, more than sharing parameters ever does in its worst case (B5)."""
    return divide(1, (1 - p) ** 3)


def resync_pair_saved(p: Any, R: Any = None) -> Any:
    """B12: sum over r < R of 1 - D_r / D, with D_r and D from B2; R = None is its limit (1 + p + p^2) / (1 - p^2).

    A period of R steps saves this many steps' worth of drift, so the share saved is at most the limit over R.
    """
    if R is None:
        return divide(1 + p + p**2, 1 - p**2)
    return divide((1 + p) * (1 - p**R), 1 - p) - divide(p * (1 - p ** (2 * R)), 1 - p**2)


def resync_pair_average(p: Any, R: Any, sigma2: Any = 1) -> Any:
    """B12: E|theta_i - theta_j|^2 averaged over a period, if the parameter phases at t = 0 mod R lose nothing.

    >>> resync_pair_average(0.5, 2)
    0.25
    """
    return drift.pair(p, None, sigma2) * (1 - divide(resync_pair_saved(p, R), R))


def resync_pair_peak(p: Any, R: Any, sigma2: Any = 1) -> Any:
    """B12: the largest E|theta_i - theta_j|^2 of a period, R - 1 steps after the reliable phase."""
    return drift.pair(p, R - 1, sigma2)


def resync_owner_saved(p: Any, R: Any = None) -> Any:
    """B12: sum over r < R of 1 - V_r / V, with V_r and V from B3; R = None is its limit 1 / (1 - p)."""
    return divide(1 if R is None else 1 - p**R, 1 - p)


def resync_owner_average(p: Any, R: Any, sigma2: Any = 1) -> Any:
    """B12: E|x - theta|^2 averaged over a period of R steps."""
    return drift.owner(p, None, sigma2) * (1 - divide(resync_owner_saved(p, R), R))
