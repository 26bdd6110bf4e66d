"""Replaying a recorded loss log.

Legend: R rows, each the string of a link or of one packet on it; T its length, in ticks or steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossproof.theory import logfile
from lossproof.theory.laws.law import Clock, Draw, Links, Mask, Memory, Phase, check_clock, count

ByLink = tuple[tuple[tuple[int, int], str], ...]
ByPacket = tuple[tuple[tuple[int, int, Phase], tuple[str, ...]], ...]
Ints = NDArray[np.int64]
_PHASES: tuple[Phase, Phase] = ("gradients", "parameters")


@dataclass(frozen=True)
class Trace:
    """Replays recorded losses: strings of 0 (arrived) and 1 (lost), cyclic.

    `recorded` takes one of three forms:

    - a string for all links, or ((src, dst), string) pairs. Each reader starts at a random position, which makes the
      replay stationary: the loss is the share of ones. `clock="packet"` reads on with every packet offered to a link;
      `clock="step"` reads on once a step, from its own position for every phase and packet.
    - ((src, dst, phase), (string, ...)) pairs, one string for each packet by number, one character for each step, for
      the step clock. A job whose links carry the packets that were recorded suffers, step by step from the first one
      on, what was recorded, and again from the first step after the last. A link that carries another number of packets
      in a phase is replayed from random positions: each of its packets reads on in the string of a random packet of the
      link, of either phase, from a random step.

    `marginal` and `age_tail` are exact: probabilities where positions are random; where a log is replayed as it was
    recorded, shares over all packets of the link, both phases, and all steps of a cycle.

    File format (`Trace.from_csv`): a CSV file whose header names at least `src`, `dst` and `lost`; each row is one
    packet, `lost` is 0 or 1, rows of a link in the order of sending. If it names `step`, `phase` (gradients or
    parameters) and `packet` too, as our own logs do, these say when a packet was sent, rows may have any order, and
    the log is replayed step by step. Further columns are ignored.

    >>> Trace("0010").marginal()
    Fraction(1, 4)
    >>> Trace((((0, 1, "gradients"), ("01", "11")),), "step").marginal(0, 1)
    Fraction(3, 4)
    """

    recorded: str | ByLink | ByPacket
    clock: Clock = "packet"

    def __post_init__(self) -> None:
        check_clock(self.clock)
        if not isinstance(self.recorded, str):
            try:
                pairs = tuple((_link(link), _bits(link, bits)) for link, bits in self.recorded)
            except (TypeError, ValueError) as error:
                raise type(error)(
                    "recorded must be a string, ((src, dst), string) pairs or ((src, dst, phase), strings) pairs: "
                    f"{error}, got {self.recorded!r:.60}"
                ) from None
            if len({link for link, _ in pairs}) != len(pairs):
                raise ValueError("recorded must name every link once")
            if len({len(link) for link, _ in pairs}) > 1:
                raise ValueError("recorded must name the phase of every link or of none")
            object.__setattr__(self, "recorded", pairs)
        strings = [bits for _, bits in self._rows]
        for bits in strings:
            if not isinstance(bits, str) or not bits or set(bits) - {"0", "1"}:
                raise ValueError(f"recorded must be a non-empty string of 0 and 1 for each link, got {bits!r:.60}")
        if not strings:
            raise ValueError("recorded must hold at least one link, got none")
        if self._by_packet and self.clock != "step":
            raise ValueError(f"clock must be 'step' where recorded names phases, got {self.clock!r}")
        if self._by_packet and len(set(map(len, strings))) > 1:
            raise ValueError("recorded must hold equally many steps for every packet")
        for _, rows in groupby(self._rows, key=lambda row: row[0][:2]):
            if not any("0" in bits for _, bits in rows):
                raise ValueError("recorded must hold at least one arrival (0) for each link, got only losses")

    @classmethod
    def from_csv(cls, path: str | Path, clock: Clock | None = None) -> Trace:
        """Reads a loss log in the format above.

        `clock`: by default `step` where the header names step, phase and packet, else `packet`. With `packet` these
        columns are ignored; without them `step` takes the rows of a link for its steps.

        In a step-by-step log every step must hold the same packets. A phase without any row in a step - a reliable
        resync, a skipped step - is replayed as what it was: nothing lost. The last step is left out if it is not
        whole, as where a job was interrupted.

        Raises:
            ValueError: a row that cannot be used, named by its line; a packet that a step lacks. OSError: no file.
        """
        if clock is not None:
            check_clock(clock)
        timed = clock != "packet" and logfile.clock_of(path) == "step"
        table = logfile.read(path, timed)
        src, dst, lost = table[:3]
        order = np.lexsort((dst, src))  # stable: rows of a link stay in order
        parts = np.split(order, np.flatnonzero(np.diff(src[order]) | np.diff(dst[order])) + 1)
        links = [(int(src[part[0]]), int(dst[part[0]])) for part in parts]
        for (s, d), part in zip(links, parts, strict=True):
            if lost[part].all():
                raise ValueError(
                    f"{path}: a replay needs at least one packet that arrived on each link, but {len(part)} of "
                    f"{len(part)} from {s} to {d} were lost"
                )
        if timed:
            packets = logfile.step_by_step(path, table)
            return cls(tuple((link, tuple(map(_text, rows))) for link, rows in sorted(packets.items())), "step")
        return cls(tuple((link, _text(lost[part])) for link, part in zip(links, parts, strict=True)), clock or "packet")

    # The record -------------------------------------------------------------------------------------------------------

    @property
    def _by_packet(self) -> bool:
        return not isinstance(self.recorded, str) and len(self.recorded[0][0]) == 3

    @cached_property
    def _rows(self) -> list[tuple[tuple[Any, ...], str]]:
        """Every string with the link, and phase, that it was recorded on; a link's rows one after another."""
        if isinstance(self.recorded, str):
            return [((), self.recorded)]
        found: list[tuple[tuple[Any, ...], Any]] = []
        for link, bits in self.recorded:
            found += [(link, one) for one in (bits if len(link) == 3 else (bits,))]
        return sorted(found, key=lambda row: row[0])

    @cached_property
    def _table_RT(self) -> NDArray[np.bool_]:
        """All strings and, last, that of a rank's link to itself, which is reliable unless recorded."""
        strings = [*(bits for _, bits in self._rows), "0"]
        width = max(map(len, strings))
        text = "".join(bits.ljust(width, "0") for bits in strings).encode()
        table: NDArray[np.bool_] = np.frombuffer(text, dtype=np.uint8).reshape(-1, width) == ord("1")
        return table

    @cached_property
    def _of_link(self) -> dict[tuple[Any, ...], tuple[int, int]]:
        """The first row and the number of rows of each (src, dst), and of each (src, dst, phase)."""
        sizes = Counter(link[:n] for link, _ in self._rows for n in {2, len(link)})
        first: dict[tuple[Any, ...], int] = {}
        for row, (link, _) in enumerate(self._rows):
            first.setdefault(link, row)
            first.setdefault(link[:2], row)
        return {link: (row, sizes[link]) for link, row in first.items()}

    def _strings(self, src: int, dst: int) -> list[str]:
        if isinstance(self.recorded, str):
            return [self.recorded]
        if (src, dst) in self._of_link:
            first, size = self._of_link[src, dst]
            return [bits for _, bits in self._rows[first : first + size]]
        if src == dst:
            return ["0"]
        raise ValueError(f"recorded has no link from {src} to {dst}")

    # The law ----------------------------------------------------------------------------------------------------------

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        strings = self._strings(src, dst)
        return Fraction(sum(bits.count("1") for bits in strings), sum(map(len, strings)))

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        strings, losses = self._strings(src, dst), count("k", k, 0)
        stride = count("ticks", ticks, 1) if self.clock == "packet" else 1
        seen = 0
        for bits in strings:
            lost = np.frombuffer(bits.encode(), dtype=np.uint8) == ord("1")
            every = np.ones(len(bits), dtype=bool)
            for j in range(min(losses, len(bits))):  # after so many the positions repeat
                every &= np.roll(lost, j * stride)
            seen += int(every.sum())
        return Fraction(seen, sum(map(len, strings)))

    def sample(self, draw: Draw, memory: Memory) -> tuple[Mask, Memory]:
        links, table = Links(draw), self._table_RT
        if self._by_packet:
            return self._replay(draw, memory, links)
        row = self._row_of(links, draw.ranks)
        length = np.array([*(len(bits) for _, bits in self._rows), 1])[row]
        start = links.arrange(draw.words(1)) * length >> 32
        if self.clock == "step":
            before = memory.get(draw.phase)
            now = start if before is None else (before + 1) % length
            memory = {**memory, draw.phase: now}
        else:
            state = memory.get("links", np.full(draw.ranks**2, -1, dtype=np.int64)).copy()
            begun = state[links.link]
            begin = np.where(begun < 0, start[links.first_of], begun + 1)
            now = (begin + links.sent_before) % length
            state[links.link[links.last]] = now[links.last]
            memory = {**memory, "links": state}
        return links.restore(table[row, now]), memory

    def _row_of(self, links: Links, ranks: int) -> Ints:
        """Which string each packet reads where a link has but one."""
        if isinstance(self.recorded, str):
            return np.zeros_like(links.link)
        row_of = np.full(ranks**2, -1, dtype=np.int64)
        row_of[:: ranks + 1] = len(self._rows)
        for number, ((src, dst), _) in enumerate(self._rows):
            if src < ranks and dst < ranks:
                row_of[src * ranks + dst] = number
        row: Ints = row_of[links.link]
        if (row < 0).any():
            raise self._lacks(int(links.link[row < 0][0]), ranks)
        return row

    def _replay(self, draw: Draw, memory: Memory, links: Links) -> tuple[Mask, Memory]:
        """Step by step; what is remembered is each packet's place in the table, row T + step."""
        table = self._table_RT
        T, before = table.shape[1], memory.get(draw.phase)
        now = before - before % T + (before + 1) % T if before is not None else self._first_place(draw, links)
        return links.restore(table.ravel()[now]), {**memory, draw.phase: now}

    def _first_place(self, draw: Draw, links: Links) -> Ints:
        T, words = self._table_RT.shape[1], links.arrange(draw.words(1))
        place = np.empty_like(links.link)
        for begin, end in zip(np.flatnonzero(links.first), np.flatnonzero(links.last) + 1, strict=True):
            src, dst = divmod(int(links.link[begin]), draw.ranks)
            own, every = self._of_link.get((src, dst, draw.phase), (0, 0)), self._of_link.get((src, dst))
            if every is None:
                if src != dst:
                    raise self._lacks(int(links.link[begin]), draw.ranks)
                place[begin:end] = len(self._rows) * T
            elif own[1] == end - begin:
                place[begin:end] = np.arange(own[0], own[0] + own[1]) * T
            else:
                place[begin:end] = every[0] * T + (words[begin:end] * (every[1] * T) >> 32)
        return place

    def _lacks(self, link: int, ranks: int) -> ValueError:
        src, dst = divmod(link, ranks)
        return ValueError(f"recorded must hold every link between the {ranks} ranks, but has none from {src} to {dst}")


def _link(link: Sequence[Any]) -> tuple[Any, ...]:
    src, dst, *phase = link
    if len(phase) > 1 or (phase and phase[0] not in _PHASES):
        raise ValueError(f"phase must be 'gradients' or 'parameters', got {', '.join(map(repr, phase))}")
    return count("src", src, 0), count("dst", dst, 0), *phase


def _bits(link: Sequence[Any], bits: Any) -> Any:
    if len(link) < 3:
        return bits
    if isinstance(bits, str):
        raise TypeError("a link and phase need one string for each packet")
    return tuple(bits)


def _text(lost: Ints) -> str:
    return (lost.astype(np.uint8) + ord("0")).tobytes().decode()
