"""What a rank knows of the others: how far they are, who is silent, and how long to wait for them.

A *turn* is a phase of a round: gradients of round r are turn 2r, parameters 2r + 1. Turns only ever grow.

Legend: N ranks.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

_REMEMBERED, _FIRST = 64, 16
log = logging.getLogger("lossproof")


@dataclass(frozen=True)
class Limits:
    """How long a phase may last, in seconds.

    Args:
        floor, ceiling: the adaptive deadline stays between them; the first 16 phases are given the ceiling.
        margin: the deadline in slowest phases of the last 64 of its kind that ended by themselves.

    Raises:
        ValueError: unless 0 < floor <= ceiling and margin >= 1, all finite.
    """

    floor: float = 0.1
    ceiling: float = 2.0
    margin: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.floor <= self.ceiling < float("inf"):
            raise ValueError(
                "floor and ceiling must be seconds, positive, finite and in this order, "
                f"got {self.floor!r} and {self.ceiling!r}"
            )
        if not 1 <= self.margin < float("inf"):
            raise ValueError(f"margin must be at least 1 and finite, got {self.margin!r}")


class Deadline:
    """The time that a phase is given, learned from phases that ended by themselves.

    The first 16 have the ceiling. A phase cut off while a peer was still sending, or was late, shows that link or peer
    became slower: the next one is given twice the time. One cut off because a peer is gone teaches nothing.

    >>> deadline = Deadline(Limits(floor=0.1, ceiling=2.0, margin=4.0))
    >>> deadline.seconds
    2.0
    >>> for _ in range(16):
    ...     deadline.ended(0.125)
    >>> deadline.seconds
    0.5
    >>> deadline.cut_off()
    >>> deadline.seconds
    1.0
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self._seconds = limits, deque[float](maxlen=_REMEMBERED)

    @property
    def seconds(self) -> float:
        if len(self._seconds) < _FIRST:
            return self.limits.ceiling
        return min(self.limits.ceiling, max(self.limits.floor, self.limits.margin * max(self._seconds)))

    def ended(self, seconds: float) -> None:
        """A phase that nobody cut off."""
        self._seconds.append(seconds)

    def cut_off(self) -> None:
        """A phase that the deadline ended although all would have come."""
        if len(self._seconds) >= _FIRST:
            self._seconds.append(2 * self.seconds / self.limits.margin)


class Peers:
    """How far each rank is, and which are down.

    Args:
        rank, ranks: this one, and how many.
        silent_turns: after so many turns in a row without a sign a peer counts as down.

    Attributes:
        others: all ranks but this one.
        turn_N: the latest turn that an authentic packet of each rank was of; -1 for none. Old packets sent again do
            not move it, so nobody can keep a dead peer alive by replaying it.
        down_N: who is no longer waited for. A peer is back when it speaks in a turn that it never spoke in before, at
            most a round behind this rank: who has more to make up for would only be waited for in vain.
    """

    def __init__(self, rank: int, ranks: int, silent_turns: int = 6) -> None:
        self.rank, self.ranks, self.silent_turns = rank, ranks, silent_turns
        self.turn_N = np.full(ranks, -1, np.int64)
        self.down_N = np.zeros(ranks, np.bool_)
        self.downs = self.returns = 0
        self._silent_N = np.zeros(ranks, np.int64)
        # in another order on each rank, so that not all send to one first
        self.others = [(rank + k) % ranks for k in range(1, ranks)]

    def heard(self, src: int, turn: int, now: int) -> None:
        """An authentic packet of a turn; this rank is in turn `now`."""
        if turn <= self.turn_N[src]:
            return
        self.turn_N[src], self._silent_N[src] = turn, 0
        if self.down_N[src] and turn >= now - 2:
            self.down_N[src] = False
            self.returns += 1
            log.warning("rank %d hears rank %d again, in turn %d", self.rank, src, turn)

    def silent(self, src: int, turn: int) -> None:
        """The deadline of a turn passed, and the peer has not said a word of this turn or a later one."""
        self._silent_N[src] += 1
        if self._silent_N[src] >= self.silent_turns and not self.down_N[src]:
            self.gone(src, f"silent for {self._silent_N[src]} turns up to turn {turn}")

    def gone(self, src: int, why: str) -> None:
        """From now on it is not waited for."""
        self.down_N[src] = True
        self.downs += 1
        log.warning("rank %d no longer waits for rank %d, %s", self.rank, src, why)


class Reminder:
    """When to say again what may have been lost: after a millisecond, then ever later, while nothing comes."""

    first, last = 0.001, 0.05  # seconds

    def __init__(self) -> None:
        self._pause = self.first
        self.at = time.perf_counter() + self._pause

    def hurry(self) -> None:
        self._pause = self.first

    def due(self, now: float) -> bool:
        if now < self.at:
            return False
        self._pause = min(2 * self._pause, self.last)
        self.at = now + self._pause
        return True
