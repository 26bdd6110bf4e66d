"""Closed forms of what an attachment measures and puts in the place of gradients (P4).

Arguments as in `lossproof.theory.aggregation`; the derivations are in `lossproof.theory.derive.attached`.
"""

from __future__ import annotations

from typing import Any

from lossproof.theory.aggregation import divide


def pair_drift(N: Any, squares: Any, square_of_sum: Any) -> Any:
    """The mean of |a_i - a_j|^2 over pairs of the N - 1 non-owners, from sum |a_i|^2 and |sum a_i|^2; a: their gaps.

    >>> pair_drift(3, 2, 0)
    Fraction(4, 1)
    """
    return divide((N - 1) * squares - square_of_sum, pairs(N))


def pairs(N: Any) -> Any:
    """Pairs of non-owners.

    >>> pairs(4)
    Fraction(3, 1)
    """
    return divide((N - 1) * (N - 2), 2)


def owner_drift(N: Any, squares: Any) -> Any:
    """The mean of |a_i|^2 over the non-owners; the owner's own gap is 0.

    >>> owner_drift(3, 2)
    Fraction(1, 1)
    """
    return divide(squares, N - 1)


def clipped(gradient: Any, squares: Any, most: Any) -> Any:
    """A gradient after clipping, were the norm above `most`: `squares` sums those of owned parts and stand-ins."""
    return most * gradient / squares ** divide(1, 2)
