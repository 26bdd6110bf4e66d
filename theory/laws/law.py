"""What a loss law is: the protocol that users implement, the draw that a law sees, and exact probabilities.

A law describes one packet on one link: its marginal loss probability, the tail of the age that losses in a row give a
replica, and a sampling rule. Probabilities are read exactly: a float means the decimal it prints as (0.1 is 1/10).
A packet is lost iff its uniform 32-bit word is below floor(p 2^32), so what is sampled differs from p by less than
2^-32.

Legend: L rows of links (the senders of a gradient, or the receivers of a parameter), P packets.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Phase = Literal["gradients", "parameters"]
Clock = Literal["step", "packet"]
Number = int | float | Decimal | Fraction
Mask = NDArray[np.bool_]
Words = NDArray[np.int64]
Memory = Mapping[str, NDArray[np.int64]]
"""What a law carries from one draw to the next: plain arrays by name, part of the protocol's `state_dict`."""


class Draw(Protocol):
    """One phase of one step, as seen by a law: L links of P packets each.

    `src`, `dst` and `packet` are integer arrays that broadcast to (L, P); `ranks` is N. `words(k)` gives uniform
    integers in [0, 2^32), shape (L, P), independent for k = 0..3; word 0 is the packet's own, the others serve a law's
    memory. `common(k)` gives such words, one for each packet, shape (1, P), that all links have in common.
    """

    phase: Phase
    ranks: int
    src: NDArray[np.int64]
    dst: NDArray[np.int64]
    packet: NDArray[np.int64]

    def words(self, k: int = 0) -> Words: ...

    def common(self, k: int = 0) -> Words: ...


@runtime_checkable
class Law(Protocol):
    """What a loss law must offer; implement these three and it runs wherever a shipped law does.

    A law whose links do not lose independently of each other says so: `independent_links = False`.
    """

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        """The probability that one packet from src to dst is lost."""
        ...

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        """P(A >= k): the last k parameter packets from src to dst, one a step, were all lost (steady state).

        `ticks` is how often the link's clock ticks in one step; only laws with a packet clock depend on it.
        """
        ...

    def sample(self, draw: Draw, memory: Memory) -> tuple[Mask, Memory]:
        """Which packets of `draw` are lost, bool (L, P), and the memory for the next draw (empty at the start)."""
        ...


def exact(value: Number) -> Fraction:
    """The rational that a number stands for; a float is the decimal it prints as.

    >>> exact(0.1)
    Fraction(1, 10)
    """
    return Fraction(repr(float(value))) if isinstance(value, float) else Fraction(value)


def finite(name: str, value: Number) -> Fraction:
    """`value` exactly; raises an error that names the argument if it is no number, NaN or infinite."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, Decimal, Fraction)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        return exact(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} must be finite, got {value!r}") from None


def probability(name: str, value: Number, *, one: bool = False) -> Fraction:
    """`value` as an exact probability in [0, 1), or [0, 1] if `one`; raises an error that names the argument."""
    rational = finite(name, value)
    if not (0 <= rational < 1 or (one and rational == 1)):
        raise ValueError(f"{name} must lie in [0, 1{']' if one else ')'}, got {value!r}")
    return rational


def threshold(p: Fraction) -> int:
    """Words below this are losses: floor(p 2^32)."""
    return p.numerator * 2**32 // p.denominator


def count(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def check_clock(value: str) -> None:
    if value not in ("step", "packet"):
        raise ValueError(f"clock must be 'step' or 'packet', got {value!r}")


class Links:
    """The packets of a draw in the order in which each link sends them: sorted by link, then by packet number."""

    def __init__(self, draw: Draw) -> None:
        self.shape = draw.words().shape
        link = np.broadcast_to(draw.src * draw.ranks + draw.dst, self.shape).ravel()
        packet = np.broadcast_to(draw.packet, self.shape).ravel()
        self.order = np.lexsort((packet, link))
        self.link = link[self.order]
        self.first = np.r_[True, self.link[1:] != self.link[:-1]] if self.link.size else np.zeros(0, dtype=bool)
        self.last = np.r_[self.first[1:], True] if self.link.size else self.first
        self.first_of = np.maximum.accumulate(np.where(self.first, np.arange(self.link.size), 0))
        self.sent_before = np.arange(self.link.size) - self.first_of

    def arrange(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.broadcast_to(values, self.shape).ravel()[self.order]

    def restore(self, values: NDArray[Any]) -> NDArray[Any]:
        result = np.empty_like(values)
        result[self.order] = values
        return result.reshape(self.shape)
