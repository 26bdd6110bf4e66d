"""The channel over UDP: payloads in, what arrived and the mask out, as the simulated ones; but the losses are real.

Legend: N ranks; P packets, Q of them owned by this rank; E elements of a packet.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lossproof.impl.distributed.exchange import Exchange, RankLost
from lossproof.impl.transport import wire
from lossproof.impl.transport.inbox import Inbox, InboxCounts, items
from lossproof.impl.transport.opening import agree
from lossproof.impl.transport.outbox import Outbox, Pace, Sender, span
from lossproof.impl.transport.peers import Deadline, Limits, Peers, Reminder
from lossproof.impl.transport.socket import TrainSocket, own_address
from lossproof.impl.transport.words import Words

log = logging.getLogger("lossproof")
_WORDS = 64  # datagrams of small values, one after the other: the sample of a drift
# To each receiver before the next look at what has come: long batches cost hardly more than short ones.
_TRAINS = 16


@dataclass(frozen=True)
class UdpChannel:
    """How to open the UDP channel of a process group; `attach` does it: `attach(..., channel=UdpChannel())`.

    Args:
        address: this rank's IPv4 address that its peers reach; None for LOSSPROOF_ADDRESS, or else the one that the way
            to torchrun's MASTER_ADDR starts from.
        key: the secret that all ranks share, at least 16 bytes; None: see `read_key`.
        limits: how long a phase may last; see `Limits`.
        silent_rounds: after so many rounds without a sign a peer counts as down, and is not waited for.
        patience: seconds that the small values which must arrive (norms) are waited for; then RankLost.
        survive: instead go on without the peers that were waited for; they count as down.
        pace: bytes a second that this rank sends at most; None for no limit.
        buffer_bytes: wanted of the kernel's receive buffer; no more is under way than the smallest of all has room for.
        offload: use segmentation offload where the kernel has it.
        algorithm: of the tags: None for the fastest that all ranks have, or `blake2b`, which needs no package.

    Raises:
        ValueError: for unusable values; when opened, also for ranks whose keys differ.
    """

    address: str | None = None
    key: bytes | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    silent_rounds: int = 3
    patience: float = 300.0
    survive: bool = False
    pace: float | None = None
    buffer_bytes: int = 32 << 20
    offload: bool = True
    algorithm: wire.Algorithm | None = None

    def __post_init__(self) -> None:
        for name, least in (("silent_rounds", 1), ("buffer_bytes", 1 << 16)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
        if self.algorithm not in (None, "gmac", "blake2b"):
            raise ValueError(f"algorithm must be 'gmac', 'blake2b' or None, got {self.algorithm!r}")
        if not isinstance(self.limits, Limits):
            raise TypeError(f"limits must be Limits, got {type(self.limits).__name__}")
        if not isinstance(self.survive, bool):
            raise TypeError(f"survive must be a bool, got {self.survive!r}")
        if not isinstance(self.patience, int | float) or not 0 < self.patience < float("inf"):
            raise ValueError(f"patience must be seconds, positive and finite, got {self.patience!r}")
        if self.pace is not None and not 0 < self.pace < float("inf"):
            raise ValueError(f"pace must be positive and finite, or None, got {self.pace!r}")

    def __call__(self, exchange: Exchange) -> UdpEnd:
        return UdpEnd(self, exchange)


class UdpEnd:
    """This rank's end of the network; all ranks of the exchange open theirs together.

    Attributes:
        largest_packet: bytes of payload that fit into one datagram on every link.
        peers: see `Peers`. socket: see `TrainSocket`. counts: see `InboxCounts`.
    """

    def __init__(self, options: UdpChannel, exchange: Exchange) -> None:
        self.options, self.exchange, self.ranks = options, exchange, exchange.ranks
        self.socket, self._seal, self.addresses, self.largest_packet, room = agree(
            exchange, lambda: TrainSocket(options.address or own_address(), options.buffer_bytes, options.offload),
            options.key, options.algorithm,
        )  # fmt: skip
        self._sender = Sender(self._seal, self.socket, self.addresses, exchange.rank, Pace(options.pace))
        # of the buffer half for this turn and half for the next, which a peer may begin before this rank has read all
        self._window = room // 4 // max(1, self.ranks - 1)
        self.peers = Peers(exchange.rank, self.ranks, 2 * options.silent_rounds)
        self.counts, self.cut_off = InboxCounts(), 0
        self._deadlines = (Deadline(options.limits), Deadline(options.limits))
        self._reader = wire.Reader(self.socket.buffer)
        self.words = Words(self._sender, self.peers)
        self._owner_P = exchange.owner_P.cpu().numpy()
        self._place_P = exchange.place_P.cpu().numpy()
        self._own_Q = exchange.own_Q.cpu().numpy()
        self._inbox: Inbox | None = None
        self._outboxes: tuple[Outbox, Outbox] | None = None
        self._like: tuple[torch.Tensor, torch.Tensor] | None = None
        self._turn = 0
        self._missed: list[tuple[int, int, Deadline]] = []
        self._told_N = np.zeros(self.ranks, np.int64)
        exchange.small = self.every

    # The channel -----------------------------------------------------------------------------------------------------

    def send(self, payload_1PE: torch.Tensor, packets: Sequence[range]) -> None:
        """Starts sending a portion of the gradients early, as far as their owners have room."""
        outbox = self._open(0, payload_1PE)
        chosen = np.concatenate([np.arange(part.start, part.stop) for part in packets])
        outbox.put(items(self._host(payload_1PE)), chosen)
        while outbox.pump():
            self._receive()

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outbox = self._open(0, payload_HPE)
        host_PE = self._host(payload_HPE)[0]
        if not outbox.begun:
            outbox.put(items(host_PE), np.arange(len(self._owner_P)))
        outbox.require_whole()
        turn = self._run(outbox)
        slot = self._box.slot(turn)
        slot.received[self.exchange.rank] = host_PE[span(self._own_Q)]
        slot.arrived[self.exchange.rank] = True
        return self._back(slot.received, slot.arrived, payload_HPE)

    def parameters(self, step: int, fresh_QE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outbox = self._open(1, fresh_QE)
        slot = self._box.slot(outbox.turn)
        slot.received[span(self._own_Q)] = self._host(fresh_QE)
        outbox.put(items(slot.received), self._own_Q)
        self._run(outbox)
        slot.arrived[self._own_Q] = True
        received_PE, arrived_P = self._back(slot.received, slot.arrived, fresh_QE)
        return received_PE, arrived_P[None]

    def skip(self, step: int) -> None:
        """The parameter phase of a step that sends nothing; the next gradients are of the next round all the same."""

    def state_dict(self) -> dict[str, Any]:
        return {}  # turns never repeat within a job, and a job that resumes is another one to the network

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def statistics(self) -> dict[str, Any]:
        """Counts since the start, and the deadlines of the two phases in seconds; lost packets: see `Telemetry`.

        Datagrams: `sent`; `received`; `unsendable`, refused by this machine; `overflowed`, dropped by its kernel for
        want of room; of the received ones `accepted`, `markers`, `foreign`, `malformed`, `forged`, `late`, `duplicate`,
        `early` (see `InboxCounts`). `withheld`: packets not sent, for their receiver was further, or down, or the
        phase was over. `cut_off`: phases that the deadline ended. `downs`, `returns` of peers. `tags`: who makes them.
        """
        return (
            asdict(self.socket.counts) | asdict(self.counts)
            | {"withheld": self._sender.withheld, "cut_off": self.cut_off}
            | {"downs": self.peers.downs, "returns": self.peers.returns}
            | {"algorithm": self._seal.algorithm, "tags": self._seal.maker}
            | {"deadlines": [deadline.seconds for deadline in self._deadlines]}
        )  # fmt: skip

    def close(self) -> None:
        self.exchange.small = None
        self.socket.close()

    def every(self, values: torch.Tensor) -> tuple[torch.Tensor, NDArray[np.bool_]] | None:
        """All ranks' values of one shape, stacked, and whose they are: zeros for who is down; None for too large ones.

        All ranks call it. Raises RankLost if one of them does not answer.
        """
        content = values.detach().cpu().contiguous()
        size, most = content.numel() * content.element_size(), self.largest_packet
        if self._inbox is None or not 0 < size <= _WORDS * most:
            return None
        rows, there_N = np.zeros((self.ranks, size), np.uint8), np.ones(self.ranks, np.bool_)
        word = content.view(-1).view(torch.uint8).numpy().tobytes()
        for at in range(0, size, most):
            said = self._word(word[at : at + most])
            there_N &= np.isin(np.arange(self.ranks), list(said))
            for rank, part in said.items():
                rows[rank, at : at + most] = np.frombuffer(part, np.uint8)
        rows[~there_N] = 0
        every = torch.from_numpy(rows).view(content.dtype).view(self.ranks, *values.shape)
        return every.to(values.device), there_N

    def _word(self, word: bytes) -> dict[int, bytes]:
        try:
            said = self.words.exchange(word, self._turn, self._receive, self.options.patience, self.options.survive)
        except TimeoutError as error:
            raise RankLost(f"rank {self.exchange.rank} of {self.ranks}: {error}") from None
        if len({len(part) for part in said.values()}) > 1:
            raise RuntimeError(f"ranks ask for different values: of {[len(said[k]) for k in sorted(said)]} bytes")
        return said

    # One turn --------------------------------------------------------------------------------------------------------

    @property
    def _box(self) -> Inbox:
        assert self._inbox is not None
        return self._inbox

    def _host(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().cpu().contiguous()

    def _back(self, received: torch.Tensor, arrived: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return received.to(like.device), torch.from_numpy(arrived.copy()).to(like.device)

    def _open(self, phase: int, like: torch.Tensor) -> Outbox:
        """The outbox of the phase that comes next, made anew where packets are of another size or type than before."""
        E, dtype = like.shape[-1], like.dtype
        known = self._like[phase] if self._like else None
        if known is None or known.shape[-1] != E or known.dtype != dtype:
            self._make(phase, torch.empty(0, E, dtype=dtype))
        assert self._outboxes
        outbox, turn = self._outboxes[phase], self._turn + (self._turn + phase) % 2
        if outbox.turn != turn:
            self._close(turn - 1)
            outbox.open(turn)
        return outbox

    def _make(self, phase: int, like: torch.Tensor) -> None:
        size = like.shape[-1] * like.element_size()
        if size > self.largest_packet:
            raise ValueError(
                f"packet_bytes must be at most {self.largest_packet}, to fit into one datagram, got {size}"
            )
        if self._outboxes and self._outboxes[phase].turn == self._turn and self._outboxes[phase].begun:
            raise ValueError(
                f"the packets of a round must be of one size and type, got {like.dtype} and another before"
            )
        both = (like, like) if self._like is None else (like, self._like[1]) if phase == 0 else (self._like[0], like)
        self._like = both
        self._inbox = Inbox(self._seal, self.peers, self._owner_P, self._place_P, both, self._turn, self.counts,
                            self.words, self.largest_packet)  # fmt: skip
        self._outboxes = tuple(  # type: ignore[assignment]
            Outbox(self._sender, self.peers, bool(k), self._owner_P, one.shape[-1] * one.element_size(), self._window)
            for k, one in enumerate(both)
        )

    def _close(self, turn: int) -> None:
        self._turn = turn + 1
        if self._inbox is not None:
            self._inbox.advance(self._turn)
        self._told_N[:] = 0

    def _receive(self) -> int:
        """Takes one batch from the socket, if there is one; how many datagrams there were."""
        start_D, length_D = self.socket.receive()
        if len(start_D):
            self._box.take(self._reader, start_D, length_D)
            self.words.acknowledge(self._turn)
        return len(start_D)

    def _learn(self) -> None:
        """Whether one that was silent when a turn was cut off was only late."""
        if any(self.peers.turn_N[src] >= turn for src, turn, _ in self._missed):
            self._missed[0][2].cut_off()
            self._missed = []

    def _run(self, outbox: Outbox) -> int:
        """Sends and receives until all peers have finished this turn, or the deadline."""
        inbox, turn = self._box, outbox.turn
        phase, slot = turn % 2, inbox.slot(turn)
        opened = now = time.perf_counter()
        deadline = self._deadlines[phase]
        limit, reminder = opened + deadline.seconds, Reminder()
        while True:
            moved = 0
            while moved < _TRAINS and outbox.pump():
                moved += 1
            got = self._receive()
            if got:
                reminder.hurry()
                outbox.credit(inbox.seen_N)
                self._tell(outbox, slot)
            if outbox.done and not inbox.pending(turn):
                deadline.ended(time.perf_counter() - opened)
                break
            now = time.perf_counter()
            if now >= limit:
                self._cut_off(inbox.pending(turn), turn, deadline)
                outbox.give_up()
                break
            if reminder.due(now):
                outbox.remind()
                outbox.credit(inbox.seen_N, reminder=True)
                self._tell(outbox, slot, always=True)
            elif not moved and not got:
                self.socket.wait(min(min(limit, reminder.at) - now, outbox.wait() or 1.0), writing=outbox.full)
        if (slot.got_N < inbox.expected_2N[phase])[self.peers.others].any():
            self._receive()  # what was overtaken on the way
        self._learn()
        self._close(turn)
        return turn

    def _tell(self, outbox: Outbox, slot: Any, always: bool = False) -> None:
        """Says how far each sender's packets have come, where it may wait for the word."""
        expected_N = self._box.expected_2N[outbox.turn % 2]
        for src in self.peers.others:
            if expected_N[src] <= outbox.window or slot.ended_N[src]:
                continue
            news = slot.got_N[src] - self._told_N[src]
            if (news >= -(-outbox.window // 4) or (always and slot.got_N[src])) and slot.latest_N[src] >= 0:
                self._told_N[src] = slot.got_N[src]
                outbox.say(wire.SEEN, src, int(slot.latest_N[src]) + 1)

    def _cut_off(self, pending: list[int], turn: int, deadline: Deadline) -> None:
        self.cut_off += 1
        if self.cut_off == 1:
            log.warning("rank %d cut off turn %d after %.2f s, waiting for rank %d; more are counted in `statistics()`",
                        self.exchange.rank, turn, deadline.seconds, pending[0] if pending else -1)  # fmt: skip
        silent = [src for src in pending if self.peers.turn_N[src] < turn]
        for src in silent:
            self.peers.silent(src, turn)
        if len(silent) < len(pending):
            deadline.cut_off()
        else:
            self._missed = [(src, turn, deadline) for src in silent]
