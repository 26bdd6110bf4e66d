"""What arrives: which datagrams are believed, and where their payload goes. Nothing is allocated for what is sent here:
the buffers of two rounds are all that there is, and a datagram for anywhere else is dropped.

Legend: N ranks; P packets, Q of them owned by this rank; E elements of a packet; D datagrams of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lossproof.impl.transport import wire
from lossproof.impl.transport.peers import Peers
from lossproof.impl.transport.words import Words

AHEAD = 2  # turns: one round


@dataclass
class InboxCounts:
    """Datagrams since the start.

    Attributes:
        accepted: payloads taken. markers: authentic ones without payload.
        foreign: of another job, another version, or no packets of ours. malformed: of this job by their header, and
            impossible. forged: the tag is wrong. Of these nothing was used.
        late: of a turn that is over; replays of old packets are among them. duplicate: there already. early: of a turn
            more than a round ahead. Their payload was not used.
    """

    accepted: int = 0
    markers: int = 0
    foreign: int = 0
    malformed: int = 0
    forged: int = 0
    late: int = 0
    duplicate: int = 0
    early: int = 0


class Slot:
    """What has arrived of one turn: a place for every packet that may come.

    Attributes:
        received: (N, Q, E) of gradients, (P, E) of parameters. arrived: bool, its shape without E.
        ended_N: who says that it has sent all. got_N: packets that came, by sender.
        latest_N: the number of the packet that came last, -1 for none.
    """

    def __init__(self, received: torch.Tensor, ranks: int) -> None:
        self.received = received
        self.arrived = np.zeros(tuple(received.shape[:-1]), np.bool_)
        self.items, self.flat = items(received), self.arrived.reshape(-1)
        self.ended_N = np.zeros(ranks, np.bool_)
        self.got_N, self.latest_N = np.zeros(ranks, np.int64), np.full(ranks, -1, np.int64)

    def clear(self) -> None:
        self.flat[:] = False
        self.ended_N[:] = False
        self.got_N[:], self.latest_N[:] = 0, -1


def items(packets: torch.Tensor) -> NDArray[Any]:
    """The packets of a contiguous tensor (..., E) on the CPU as one vector of opaque items that shares its memory."""
    size = packets.shape[-1] * packets.element_size()
    return np.ndarray(packets.numel() // max(1, packets.shape[-1]), f"V{size}", packets.view(torch.uint8).numpy())


class Inbox:
    """The slots of this turn and the next two, and the checks before them.

    Args:
        owner_P, place_P: of each packet, the owner, and the place among this rank's own.
        like: a tensor by phase, whose last dimension and type are the packets'.
        words: takes what is no packet and must arrive; largest: bytes of one.

    Attributes:
        turn: the first turn that packets are taken of.
    """

    def __init__(
        self, seal: wire.Seal, peers: Peers, owner_P: NDArray[np.int64], place_P: NDArray[np.int64],
        like: tuple[torch.Tensor, torch.Tensor], turn: int, counts: InboxCounts, words: Words, largest: int,
    ) -> None:  # fmt: skip
        self._seal, self._peers, self._owner_P, self._place_P = seal, peers, owner_P, place_P
        self._words, self._largest = words, largest
        self.turn, self.counts = turn, counts
        N, own = peers.ranks, int((owner_P == peers.rank).sum())
        shapes = ((N, own, like[0].shape[-1]), (len(owner_P), like[1].shape[-1]))
        self._slots = [Slot(like[turn % 2].new_zeros(shapes[turn % 2]), N) for turn in range(4)]
        self._own = own
        self._bytes = tuple(one.shape[-1] * one.element_size() for one in like)
        self.expected_2N = np.stack([np.full(N, own), np.bincount(owner_P, minlength=N)])
        self.seen_N = np.full(N, -1, np.int64)
        """The packet of this turn that each peer knows to have reached it: see `wire.SEEN`."""

    def slot(self, turn: int) -> Slot:
        return self._slots[turn % 4]

    def advance(self, turn: int) -> None:
        """Turns before this one are over; the slots that they leave are those of the next turns."""
        for opened in range(max(self.turn + AHEAD + 1, turn), turn + AHEAD + 1):
            self.slot(opened).clear()
        self.turn = turn
        self.seen_N[:] = -1

    def take(self, reader: wire.Reader, start_D: NDArray[np.int64], length_D: NDArray[np.int64]) -> None:
        """Enters a batch of datagrams: cheap checks first, the tags of what is left, and last the payload."""
        counts, peers = self.counts, self._peers
        if (short_D := length_D < wire.OVERHEAD).any():
            counts.foreign += int(short_D.sum())
            start_D, length_D = start_D[~short_D], length_D[~short_D]
        fields = reader.fields(start_D)
        if not (ours_D := wire.of_this_job(fields, self._seal)).all():
            counts.foreign += len(ours_D) - int(ours_D.sum())
            start_D, length_D, fields = start_D[ours_D], length_D[ours_D], fields.only(ours_D)
        good_D = wire.plausible(fields, length_D, peers.rank, self._owner_P, peers.ranks, self._bytes, self._largest)
        if not good_D.all():
            counts.malformed += len(good_D) - int(good_D.sum())
            start_D, length_D, fields = start_D[good_D], length_D[good_D], fields.only(good_D)
        if not (wanted_D := self._wanted(fields)).all():
            start_D, length_D, fields = start_D[wanted_D], length_D[wanted_D], fields.only(wanted_D)
        if not (true_D := reader.authentic(self._seal, start_D, length_D, fields.kind == wire.DATA)).all():
            counts.forged += len(true_D) - int(true_D.sum())
            start_D, length_D, fields = start_D[true_D], length_D[true_D], fields.only(true_D)
        self._enter(reader, start_D, fields)

    def _wanted(self, fields: wire.Fields) -> NDArray[np.bool_]:
        """Which datagrams could change anything, so that their tag is worth a look: the rest is counted and dropped."""
        counts, data_D = self.counts, fields.kind == wire.DATA
        ahead_D = fields.turn - self.turn
        late_D, early_D = ahead_D < 0, ahead_D > AHEAD
        there_D = np.zeros(len(data_D), np.bool_)
        for turn in range(self.turn, self.turn + AHEAD + 1):
            of_D = data_D & (fields.turn == turn)
            if of_D.any():
                there_D[of_D] = self.slot(turn).flat[self._place(turn, fields.src[of_D], fields.packet[of_D])]
        unwanted_D = late_D | early_D | there_D
        if (word_D := fields.kind >= wire.WORD).any():
            unwanted_D = np.where(word_D, ~self._words.wanted(fields.packet), unwanted_D)
        if unwanted_D.any():
            counts.late += int((late_D & data_D).sum())
            counts.early += int((early_D & data_D).sum())
            counts.duplicate += int(there_D.sum())
        wanted: NDArray[np.bool_] = ~unwanted_D | (fields.turn > self._peers.turn_N[fields.src])
        return wanted

    def _place(self, turn: int, src_D: NDArray[np.int64], packet_D: NDArray[np.int64]) -> NDArray[np.int64]:
        return packet_D if turn % 2 else src_D * self._own + self._place_P[packet_D]

    def _enter(self, reader: wire.Reader, start_D: NDArray[np.int64], fields: wire.Fields) -> None:
        if (news_D := fields.turn > self._peers.turn_N[fields.src]).any():
            latest_N = np.full(self._peers.ranks, -1, np.int64)
            np.maximum.at(latest_N, fields.src[news_D], fields.turn[news_D])
            for src in np.flatnonzero(latest_N > self._peers.turn_N).tolist():
                self._peers.heard(src, int(latest_N[src]), self.turn)
        data_D = fields.kind == wire.DATA
        for d in np.flatnonzero(~data_D).tolist() if not data_D.all() else ():
            kind, src, number = int(fields.kind[d]), int(fields.src[d]), int(fields.packet[d])
            if kind >= wire.WORD:
                self.counts.markers += 1
                self._words.take(kind, src, number, reader.payload(int(start_D[d]), int(fields.length[d])))
            else:
                self._mark(kind, src, int(fields.turn[d]), number)
        for turn in range(self.turn, self.turn + AHEAD + 1):
            of_D = data_D & (fields.turn == turn)
            if not of_D.any():
                continue
            slot, src_D, packet_D = self.slot(turn), fields.src[of_D], fields.packet[of_D]
            place_D = self._place(turn, src_D, packet_D)
            slot.items[place_D] = reader.payloads(start_D[of_D], self._bytes[turn % 2])
            slot.flat[place_D] = True
            slot.latest_N[src_D] = packet_D
            new = int(np.count_nonzero(slot.flat)) - int(slot.got_N.sum())
            if new < len(place_D):  # a batch held copies, which are equal
                self.counts.duplicate += len(place_D) - new
                src_D = src_D[np.unique(place_D, return_index=True)[1]]
            slot.got_N += np.bincount(src_D, minlength=len(slot.got_N))
            self.counts.accepted += new

    def _mark(self, kind: int, src: int, turn: int, number: int) -> None:
        self.counts.markers += 1
        if kind == wire.END and self.turn <= turn <= self.turn + AHEAD:
            self.slot(turn).ended_N[src] = True
        elif kind == wire.SEEN and turn == self.turn:
            self.seen_N[src] = number - 1

    def pending(self, turn: int) -> list[int]:
        """The peers that may still send packets of this turn, and that are waited for."""
        slot, peers = self.slot(turn), self._peers
        over_N = (slot.got_N >= self.expected_2N[turn % 2]) | slot.ended_N | (peers.turn_N > turn) | peers.down_N
        return [src for src in np.flatnonzero(~over_N).tolist() if src != peers.rank]
