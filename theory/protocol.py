"""Closed forms of the protocol itself: words and counters, packets and owners, one round, rounding (P1 to P3, C3).

They say what the code must do, in as few operations as possible; the checks run them beside the code. Arguments as in
`lossproof.theory.aggregation`; the derivations are in `lossproof.theory.derive.protocol`.
"""

from __future__ import annotations

from typing import Any

from lossproof.theory.aggregation import divide

WORD = 2**32
"""Words are uniform on 0, ..., WORD - 1."""
RANKS = 2**16
"""No job has more ranks, so that a link fits into one word of the counter."""


def threshold(p: Any) -> Any:
    """P1: floor(p 2^32): a word below this is a loss."""
    return p * WORD // 1


def sampled_loss(p: Any) -> Any:
    """P1: the probability with which a packet of loss p really is lost.

    >>> sampled_loss(0.5)
    0.5
    """
    return divide(threshold(p), WORD)


def link(src: Any, dst: Any) -> Any:
    """P1: the counter's word for a link."""
    return src * RANKS + dst


def slice_elements(total: Any, N: Any, E: Any) -> Any:
    """P2: what each of N owners holds of a flat layout of `total` elements: a whole number of packets of E.

    >>> slice_elements(10, 2, 4)
    8
    """
    return packets(total, N * E) * E


def packets(elements: Any, E: Any) -> Any:
    """P2: how many packets of E a run of elements that starts a packet takes: ceil(elements / E)."""
    return -(-elements // E)


def heaviest_owner(total: Any, largest: Any, N: Any) -> Any:
    """P2: no owner of whole tensors, given the largest first to the least loaded, holds more than this.

    >>> heaviest_owner(8, 2, 4)
    Fraction(7, 2)
    """
    return divide(total + (N - 1) * largest, N)


def replica(m: Any, fresh: Any, stale: Any) -> Any:
    """P3: the replica after the parameter phase; m = 1 if the packet arrived, else 0."""
    return m * fresh + (1 - m) * stale


def gap(m: Any, before: Any, u: Any) -> Any:
    """P3: fresh minus replica after a round in which the owner moved by u; before is the same a round earlier."""
    return (1 - m) * (before + u)


def mean_rounding(N: Any, u: Any) -> Any:
    """C3: a computed mean of N numbers is off by at most this times the mean of their sizes, in whatever order it sums.

    Every number passes at most N - 1 additions and one division, each of relative error at most u.

    >>> mean_rounding(1, 0.5)
    0.5
    """
    return (1 + u) ** N - 1
