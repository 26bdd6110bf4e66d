"""What is to be sent in one turn: datagrams by receiver, in trains, no more at a time than the receiver has room for.

Legend: N ranks; P packets; R rows of the image, one datagram each.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossproof.impl.transport import wire
from lossproof.impl.transport.peers import Peers
from lossproof.impl.transport.socket import TrainSocket

# At 10 % loss all of them are lost once in ten thousand turns; then a reminder, or the next turn, says it.
END_COPIES = 4
BOOKED_BYTES = 1024  # what a kernel takes from a receive buffer for a datagram beside its bytes, at most


class Pace:
    """At most so many bytes a second, a train at a time; None for no limit."""

    def __init__(self, bytes_per_second: float | None) -> None:
        self._rate, self._free_at = bytes_per_second, 0.0

    def wait(self) -> float:
        """Seconds until the next train may leave."""
        return max(0.0, self._free_at - time.perf_counter()) if self._rate else 0.0

    def spend(self, size: int) -> None:
        if self._rate:
            self._free_at = max(self._free_at, time.perf_counter()) + size / self._rate


class Sender:
    """This rank's voice: what every datagram of the job needs, and the words without a packet."""

    def __init__(
        self, seal: wire.Seal, socket: TrainSocket, addresses: Sequence[tuple[str, int]], rank: int, pace: Pace
    ) -> None:
        self.seal, self.socket, self.addresses, self.rank, self.pace = seal, socket, addresses, rank, pace
        self.withheld = 0  # packets that were not sent: their receiver is down, or further, or the deadline came first

    def say(self, kind: int, dst: int, turn: int, number: int, copies: int = 1, payload: bytes = b"") -> None:
        """A datagram that is no data, in several copies."""
        word = wire.marker(self.seal, kind, self.rank, dst, turn, number, payload)
        at_once = min(copies, self.socket.train(len(word)))
        for _ in range(0, copies, at_once):
            self.socket.send(memoryview(word * at_once), len(word), self.addresses[dst])


def span(indices: NDArray[np.int64]) -> NDArray[np.int64] | slice:
    """Indices that count up by one as a slice: what a slice chooses is not copied."""
    if len(indices) and bool((np.diff(indices) == 1).all()):
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return indices


class Outbox:
    """The packets of one phase on their way out, round after round.

    Args:
        parameters: whether every packet goes to all; a packet of gradients goes to its owner.
        owner_P: who owns each packet.
        window_bytes: how much may be under way to one receiver without its word that it has seen some of it.
    """

    def __init__(
        self, sender: Sender, peers: Peers, parameters: bool, owner_P: NDArray[np.int64], payload_bytes: int,
        window_bytes: int,
    ) -> None:  # fmt: skip
        self._sender, self._peers, self.parameters = sender, peers, parameters
        rank, N = peers.rank, peers.ranks
        mine_P = (owner_P == rank) if parameters else (owner_P != rank)
        packets = np.flatnonzero(mine_P)
        self.packet_R = packets if parameters else packets[owner_P[packets].argsort(kind="stable")]
        self.dst_R = np.full(len(packets), wire.ALL) if parameters else owner_P[self.packet_R]
        self.row_P = np.full(len(owner_P), -1, np.int64)
        self.row_P[self.packet_R] = np.arange(len(packets))
        self.image = wire.Image(sender.seal, rank, self.dst_R, self.packet_R, payload_bytes)
        self.window = max(1, window_bytes // (self.image.row_bytes + BOOKED_BYTES))
        self.train = min(sender.socket.train(self.image.row_bytes), max(1, self.window // 2))
        self.expected_N = np.full(N, len(packets)) if parameters else np.bincount(self.dst_R, minlength=N)
        self._order: list[NDArray[np.int64]] = []
        self.open(-1)

    def open(self, turn: int) -> None:
        N = self._peers.ranks
        self.turn, self.full = turn, False  # whether the socket had no room
        self.image.open(max(0, turn))
        self._order = [np.zeros(0, np.int64) for _ in range(N)]
        self._place_R = np.zeros(len(self.packet_R), np.int64)  # of a row, its place in the order to its receiver
        self._put_R = np.zeros(len(self.packet_R), np.bool_)
        self._sent_N, self._credit_N = np.zeros(N, np.int64), np.full(N, self.window)
        self._ended_N = np.zeros(N, np.bool_)

    def put(self, payload_items: NDArray[Any], packet: NDArray[np.int64]) -> None:
        """Adds packets: of the payload (one item a packet, by number) these, in this order; own gradients stay here.

        Raises RuntimeError for a packet that was added in this turn before.
        """
        rows = self.row_P[packet]
        rows = np.sort(rows[rows >= 0])
        if self._put_R[rows].any():
            raise RuntimeError(
                "a packet was to be sent twice in one round: after a backward pass that was given up, detach and "
                "attach anew"
            )
        self._put_R[rows] = True
        self.image.rows["payload"][span(rows)] = payload_items[span(self.packet_R[rows])]
        for dst in self._peers.others:
            chosen = rows if self.parameters else rows[self.dst_R[rows] == dst]
            self._place_R[chosen] = len(self._order[dst]) + np.arange(len(chosen))
            self._order[dst] = np.concatenate([self._order[dst], chosen]) if len(self._order[dst]) else chosen

    @property
    def begun(self) -> bool:
        return bool(self._put_R.any())

    def require_whole(self) -> None:
        """Raises RuntimeError unless every packet of this turn was added."""
        if not self._put_R.all():
            raise RuntimeError(
                f"{int(self._put_R.sum())} of {len(self._put_R)} packets were sent before they were collected"
            )

    def credit(self, seen_N: NDArray[np.int64], reminder: bool = False) -> None:
        """What receivers have seen gives room for more; a reminder gives room for a train, for words can be lost."""
        for dst in self._peers.others:
            if seen_N[dst] >= 0 and (row := int(self.row_P[seen_N[dst]])) >= 0:
                self._credit_N[dst] = max(self._credit_N[dst], self._place_R[row] + 1 + self.window)
            if reminder and self._sent_N[dst] >= self._credit_N[dst]:
                self._credit_N[dst] += self.train

    def pump(self) -> bool:
        """Sends at most one train to every receiver, and says the end to who has got all; whether anything left."""
        moved, self.full = False, False
        for dst in self._peers.others:
            if self._ended_N[dst]:
                continue
            order, sent = self._order[dst], int(self._sent_N[dst])
            if self._peers.turn_N[dst] > self.turn or self._peers.down_N[dst]:
                self._sender.withheld += int(self.expected_N[dst]) - sent
                sent = self._sent_N[dst] = self.expected_N[dst]  # it no longer wants them
            number = min(self.train, len(order) - sent, int(self._credit_N[dst]) - sent)
            if number > 0 and not self._sender.pace.wait():
                rows = order[sent : sent + number]
                breaks = np.flatnonzero(rows[1:] != rows[:-1] + 1)
                number = int(breaks[0]) + 1 if len(breaks) else number
                first = int(rows[0])
                if not self.image.sealed[first : first + number].all():
                    ahead = order[sent : sent + max(number, wire.AT_ONCE)]
                    self.image.seal(ahead[~self.image.sealed[ahead]])
                size = self.image.row_bytes
                train = self.image.bytes[first * size : (first + number) * size]
                if not self._sender.socket.send(train, size, self._sender.addresses[dst]):
                    self.full = True
                    continue
                self._sender.pace.spend(len(train))
                self._sent_N[dst], moved = sent + number, True
            if self._sent_N[dst] >= self.expected_N[dst]:
                self._ended_N[dst] = moved = True
                self.say(wire.END, dst, int(self.expected_N[dst]), END_COPIES)
        return moved

    def say(self, kind: int, dst: int, number: int, copies: int = 1) -> None:
        """A marker of this turn."""
        self._sender.say(kind, dst, self.turn, number, copies)

    def remind(self) -> None:
        """Says the end again to those who are still in this turn."""
        for dst in self._peers.others:
            if self._ended_N[dst] and self._peers.turn_N[dst] <= self.turn:
                self.say(wire.END, dst, int(self.expected_N[dst]))

    def give_up(self) -> None:
        """The deadline has come: what is left stays here."""
        self._sender.withheld += int((self.expected_N - self._sent_N)[self._peers.others].sum())

    @property
    def done(self) -> bool:
        return bool(self._ended_N[self._peers.others].all())

    def wait(self) -> float:
        """Seconds until `pump` may have something to do, as far as the pace decides."""
        return self._sender.pace.wait()
