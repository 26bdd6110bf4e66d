"""Wrong variants of the UDP transport, and a loss that A1 does not allow; for `datagrams`.

Legend: D datagrams of a batch; X packets of a slot; E elements of a packet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lossproof.impl.transport import wire
from lossproof.impl.transport.inbox import AHEAD, Inbox
from lossproof.proofs_checks.claim import Mutant
from lossproof.proofs_checks.instruments import datagrams

_take, _wanted, _enter, _lost = Inbox.take, Inbox._wanted, Inbox._enter, datagrams.lost


class _Lenient:
    """Reads packets of rounds that are over as packets of this one."""

    def __init__(self, reader: wire.Reader, turn: int) -> None:
        self._reader, self._turn = reader, turn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def fields(self, start_D: NDArray[np.int64]) -> wire.Fields:
        fields = self._reader.fields(start_D)
        now_D = self._turn + (fields.turn - self._turn) % 2
        return replace(
            fields, turn=np.where((fields.kind == wire.DATA) & (fields.turn < self._turn), now_D, fields.turn)
        )


def _leniently(self: Inbox, reader: Any, *batch: Any) -> None:
    lenient: Any = _Lenient(reader, self.turn)
    _take(self, lenient, *batch)


def _counting_copies(self: Inbox, reader: Any, *batch: Any) -> None:
    def wanted(fields: wire.Fields) -> NDArray[np.bool_]:
        ahead_D = fields.turn - self.turn
        here_D: NDArray[np.bool_] = (fields.kind == wire.DATA) & (ahead_D >= 0) & (ahead_D <= AHEAD)
        return _wanted(self, fields) | here_D

    def enter(reader: wire.Reader, start_D: NDArray[np.int64], fields: wire.Fields) -> None:
        before = [(slot.received.clone(), slot.flat.copy()) for slot in self._slots]
        _enter(self, reader, start_D, fields)
        for turn in range(self.turn, self.turn + AHEAD + 1):
            of_D = (fields.kind == wire.DATA) & (fields.turn == turn)
            place_D = np.unique(self._place(turn, fields.src[of_D], fields.packet[of_D]))
            received, flat = before[turn % 4]
            again = torch.from_numpy(place_D[flat[place_D]])
            flat_XE = self.slot(turn).received.view(-1, received.shape[-1])
            flat_XE[again] += received.view(-1, received.shape[-1])[again]

    self.__dict__.update(_wanted=wanted, _enter=enter)
    _take(self, reader, *batch)


def _stale(self: Inbox, *batch: Any) -> None:
    before = [slot.received.clone() for slot in self._slots]
    _enter(self, *batch)
    for slot, kept in zip(self._slots, before, strict=True):
        slot.received.copy_(kept)


def _shifted(self: wire.Reader, start_D: NDArray[np.int64], payload_bytes: int) -> NDArray[Any]:
    return _payloads(self, np.roll(start_D, 1), payload_bytes)


_payloads = wire.Reader.payloads
STALE_SLOT = Mutant("arrived by the mask, and the slot holds what it held", Inbox, "_enter", _stale)
COUNTED_TWICE = Mutant("copies are added to what they copy", Inbox, "take", _counting_copies)
LATE_TAKEN = Mutant("packets of rounds that are over are taken", Inbox, "take", _leniently)
NEIGHBOURS_PAYLOAD = Mutant("the payload of the datagram before", wire.Reader, "payloads", _shifted)
UNEQUAL_LINKS = Mutant(
    "loss depends on the sender", datagrams, "lost",
    lambda loss, seed, src, *link: _lost(loss * (0.5 + 0.5 * src), seed, src, *link),
)  # fmt: skip
