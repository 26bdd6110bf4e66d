"""Small values that must reach every rank, over the same links: a *word* is sent again until its receiver has it.

All ranks count their words alike. A rank is through with a word when it has all others' and they have its own, as far
as it knows: the last acknowledgement may be lost while its sender has gone on to something else, so who has all words
and has sent its own `ENOUGH` times more is through as well. It keeps that word: who lacks it asks by saying its own.

Legend: N ranks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lossproof.impl.transport import wire
from lossproof.impl.transport.outbox import Sender
from lossproof.impl.transport.peers import Peers, Reminder

WORD_COPIES, HEARD_COPIES = 2, 4
ENOUGH = 32  # at a loss of one half all of these are lost once in 10^9
FIRST_NOTICE = 5.0  # seconds until the log says who is waited for
log = logging.getLogger("lossproof")


class Words:
    """What was said, and who has heard it, of the word under way and the one after it.

    Attributes:
        number: of the word under way, or the next one if none is.
    """

    def __init__(self, sender: Sender, peers: Peers) -> None:
        self._sender, self._peers = sender, peers
        self.number, self._content, self._before = 0, b"", b""
        self._said: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
        self._heard_N = np.zeros(peers.ranks, np.bool_)
        self._left_N = np.zeros(peers.ranks, np.bool_)  # may lack the word before, all of which may have been lost
        self._latest_N = np.full(peers.ranks, -1, np.int64)
        self._behind_N = np.zeros(peers.ranks, np.bool_)  # given up, and not yet back at the word under way
        self._owed: set[tuple[int, int]] = set()
        self._turn = self._repeated = 0

    def wanted(self, number_D: NDArray[np.int64]) -> NDArray[np.bool_]:
        """A peer may still lack the word before this or its acknowledgement, or be further."""
        return number_D >= self.number - 1

    def take(self, kind: int, src: int, number: int, content: bytes) -> None:
        if kind == wire.HEARD:
            self._heard_N[src] |= number == self.number
            self._left_N[src] &= number != self.number - 1
            return
        self._latest_N[src] = max(self._latest_N[src], number)
        if number <= self.number + 1:
            self._owed.add((src, number))
        if number in (self.number, self.number + 1):
            self._behind_N[src] = False
            self._said[number % 2].setdefault(src, content)

    def acknowledge(self, turn: int) -> None:
        """Says to all whose words came that they did, and the word before to who may lack it; for every time."""
        for src, number in sorted(self._owed):
            self._sender.say(wire.HEARD, src, turn, number, HEARD_COPIES)
            if number == self.number - 1 and self._left_N[src]:
                self._sender.say(wire.WORD, src, turn, number, WORD_COPIES, self._before)
        self._owed.clear()

    def exchange(
        self, content: bytes, turn: int, receive: Callable[[], int], patience: float, survive: bool
    ) -> dict[int, bytes]:
        """This word to all, and all others' words, by rank; without those of ranks that are down.

        `receive` takes one batch from the socket, if there is one. Who does not answer for `patience` seconds counts
        as down if the others can `survive` that; else TimeoutError. TimeoutError as well where a peer went on without
        this rank: it alone would train another model.
        """
        self._content, self._turn, self._repeated = content, turn, 0
        self._heard_N[:] = False
        self._send(WORD_COPIES)
        reminder, began, notice = Reminder(), time.perf_counter(), FIRST_NOTICE
        while not self._through:
            got, waited = receive(), time.perf_counter() - began
            lacking = self._lacking()
            self._require_company(lacking)
            if lacking and waited >= patience:
                self._give_up(lacking, f"did not answer for {patience:g} s", survive)
            elif lacking and waited >= notice:
                log.warning("rank %d waits for rank %d since %.0f s", self._peers.rank, lacking[0], waited)
                notice *= 2
            elif reminder.due(began + waited):
                self._repeated += not lacking
                self._send(1)
            elif not got:
                self._sender.socket.wait(reminder.at - began - waited)
        said = self._said[self.number % 2] | {self._peers.rank: content}
        self._behind_N = ~np.isin(np.arange(self._peers.ranks), list(said)) | self._peers.down_N
        self._said[self.number % 2].clear()
        self._left_N, self._before = ~self._heard_N, content
        self.number += 1
        return said

    def _give_up(self, lacking: list[int], patience: str, survive: bool) -> None:
        for src in lacking:
            if not survive:
                raise TimeoutError(f"rank {src} {patience}: it died, or is stuck")
            self._peers.gone(src, patience)

    def _require_company(self, lacking: list[int]) -> None:
        """Who waits for this rank is at most at the next word, and a round ahead."""
        for src in lacking:
            if self._latest_N[src] > self.number + 1 or self._peers.turn_N[src] > self._turn + 2:
                raise TimeoutError(f"rank {src} took this rank for lost and went on: start again from a checkpoint")

    def _send(self, copies: int) -> None:
        for dst in {*self._unheard(), *self._lacking()}:
            self._sender.say(wire.WORD, dst, self._turn, self.number, copies, self._content)

    def _lacking(self) -> list[int]:
        """Whose words are waited for."""
        said, gone_N = self._said[self.number % 2], self._behind_N | self._peers.down_N
        return [src for src in self._peers.others if src not in said and not gone_N[src]]

    def _unheard(self) -> list[int]:
        """Who may lack this word: who is further has it, or has given this rank up."""
        further_N = (self._latest_N > self.number) | (self._peers.turn_N > self._turn)
        over_N = self._heard_N | further_N | self._peers.down_N
        return [dst for dst in self._peers.others if not over_N[dst]]

    @property
    def _through(self) -> bool:
        return not self._lacking() and (not self._unheard() or self._repeated >= ENOUGH)
