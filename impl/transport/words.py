"""Small values that must reach every rank, over the same links: a *word* is sent again until its receiver has it.

All ranks count their words alike. A rank is through with a word when it has all others' and they have its own, as far
as it knows: the last acknowledgement may be lost while its sender has gone on to something else, so who has all words
and has sent its own `ENOUGH` times more is through as well.

Legend: N ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lossproof.impl.transport import wire
from lossproof.impl.transport.outbox import Sender
from lossproof.impl.transport.peers import Peers, Reminder

WORD_COPIES, HEARD_COPIES = 2, 4
ENOUGH = 32  # at a loss of one half all of these are lost once in 10^9


class Words:
    """What was said, and who has heard it, of the word under way and the one after it.

    Attributes:
        number: of the word under way, or the next one if none is.
    """

    def __init__(self, sender: Sender, peers: Peers) -> None:
        self._sender, self._peers = sender, peers
        self.number, self._content = 0, b""
        self._said: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
        self._heard_N = np.zeros(peers.ranks, np.bool_)
        self._latest_N = np.full(peers.ranks, -1, np.int64)
        self._behind_N = np.zeros(peers.ranks, np.bool_)  # given up, and not yet back at the word under way
        self._owed: set[tuple[int, int]] = set()
        self._turn = self._repeated = 0

    def wanted(self, number_D: NDArray[np.int64]) -> NDArray[np.bool_]:
        """A peer may still lack the acknowledgement of the word before this, or be one word ahead, or further if it
        has given this rank up."""
        return number_D >= self.number - 1

    def take(self, kind: int, src: int, number: int, content: bytes) -> None:
        if kind == wire.HEARD:
            self._heard_N[src] |= number == self.number
            return
        self._latest_N[src] = max(self._latest_N[src], number)
        if number <= self.number + 1:
            self._owed.add((src, number))
        if number in (self.number, self.number + 1):
            self._behind_N[src] = False
            self._said[number % 2].setdefault(src, content)

    def acknowledge(self, turn: int) -> None:
        """Says to all whose words came that they did; again for every time that they come."""
        for src, number in sorted(self._owed):
            self._sender.say(wire.HEARD, src, turn, number, HEARD_COPIES)
        self._owed.clear()

    def exchange(
        self, content: bytes, turn: int, receive: Callable[[], int], patience: float, survive: bool
    ) -> dict[int, bytes]:
        """This word to all, and all others' words, by rank; without those of ranks that are down.

        `receive` takes one batch from the socket, if there is one. Who does not answer for `patience` seconds counts
        as down if the others can `survive` that; else TimeoutError.
        """
        self._content, self._turn, self._repeated = content, turn, 0
        self._heard_N[:] = False
        self._send(WORD_COPIES)
        reminder, limit = Reminder(), time.perf_counter() + patience
        while not self._through:
            got, now = receive(), time.perf_counter()
            if reminder.due(now):
                self._repeated += not self._lacking()
                self._send(1)
            elif now >= limit and self._lacking():
                self._give_up(f"did not answer for {patience:g} s", survive)
            elif not got:
                self._sender.socket.wait(reminder.at - now)
        said = self._said[self.number % 2] | {self._peers.rank: content}
        self._behind_N = ~np.isin(np.arange(self._peers.ranks), list(said)) & ~self._further_N | self._peers.down_N
        self._said[self.number % 2].clear()
        self.number += 1
        return said

    def _give_up(self, patience: str, survive: bool) -> None:
        for src in self._lacking():
            if not survive:
                raise TimeoutError(f"rank {src} {patience}: it died, or is stuck")
            self._peers.gone(src, patience)

    def _send(self, copies: int) -> None:
        for dst in self._unheard():
            self._sender.say(wire.WORD, dst, self._turn, self.number, copies, self._content)

    def _lacking(self) -> list[int]:
        """Whose words are waited for."""
        said, gone_N = self._said[self.number % 2], self._further_N | self._behind_N
        return [src for src in self._peers.others if src not in said and not gone_N[src]]

    @property
    def _further_N(self) -> NDArray[np.bool_]:
        """Who went on, with this rank's word or, having given it up, without; or is down."""
        found: NDArray[np.bool_] = (self._latest_N > self.number) | (self._peers.turn_N > self._turn)
        return found | self._peers.down_N

    def _unheard(self) -> list[int]:
        over_N = self._heard_N | self._further_N
        return [dst for dst in self._peers.others if not over_N[dst]]

    @property
    def _through(self) -> bool:
        return not self._lacking() and (not self._unheard() or self._repeated >= ENOUGH)
