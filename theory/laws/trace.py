"""Replaying a recorded loss log."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lossproof.theory.laws.law import Clock, Draw, Links, Mask, Memory, check_clock, count


@dataclass(frozen=True)
class Trace:
    """Replays recorded losses: a string of 0 (arrived) and 1 (lost) for each link, cyclic, from a random position.

    The random start makes the replay stationary: the loss is the share of ones. `clock="packet"` reads on with every
    packet offered to a link; `clock="step"` reads on once a step, from its own position for every phase and packet.
    `recorded` is one string for all links, or ((src, dst), string) pairs for unequal ones.

    File format (`Trace.from_csv`): a CSV file whose header names at least `src`, `dst` and `lost`; each row is one
    packet, rows of a link in the order of sending, `lost` is 0 or 1; further columns are ignored.

    >>> Trace("0010").marginal()
    Fraction(1, 4)
    """

    recorded: str | tuple[tuple[tuple[int, int], str], ...]
    clock: Clock = "packet"

    def __post_init__(self) -> None:
        check_clock(self.clock)
        if not isinstance(self.recorded, str):
            try:
                pairs = tuple(
                    ((count("src", src, 0), count("dst", dst, 0)), bits) for (src, dst), bits in self.recorded
                )
            except (TypeError, ValueError) as error:
                raise type(error)(
                    f"recorded must be a string or ((src, dst), string) pairs: {error}, got {self.recorded!r:.60}"
                ) from None
            if len({link for link, _ in pairs}) != len(pairs):
                raise ValueError("recorded must name every link once")
            object.__setattr__(self, "recorded", pairs)
        for bits in self._strings():
            if not isinstance(bits, str) or not bits or set(bits) - {"0", "1"}:
                raise ValueError(f"recorded must be a non-empty string of 0 and 1 for each link, got {bits!r:.60}")
            if "0" not in bits:
                raise ValueError("recorded must hold at least one arrival (0) for each link, got only losses")
        if not self._strings():
            raise ValueError("recorded must hold at least one link, got none")

    @classmethod
    def from_csv(cls, path: str, clock: Clock = "packet") -> Trace:
        """Reads a loss log in the format above; raises ValueError naming the line that cannot be used."""
        links: dict[tuple[int, int], list[str]] = {}
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = {"src", "dst", "lost"} - set(rows.fieldnames or ())
            if missing:
                raise ValueError(
                    f"{path}: the header must name src, dst and lost; missing {', '.join(sorted(missing))}"
                )
            for row in rows:
                try:
                    link = count("src", int(row["src"]), 0), count("dst", int(row["dst"]), 0)
                    bit = {"0": "0", "1": "1"}[row["lost"].strip()]
                except (ValueError, KeyError, TypeError, AttributeError):
                    raise ValueError(f"{path}, line {rows.line_num}: src and dst must be ranks, lost 0 or 1") from None
                links.setdefault(link, []).append(bit)
        return cls(tuple((link, "".join(bits)) for link, bits in sorted(links.items())), clock)

    def _strings(self) -> Sequence[str]:
        return (self.recorded,) if isinstance(self.recorded, str) else tuple(bits for _, bits in self.recorded)

    def _bits(self, src: int, dst: int) -> str:
        if isinstance(self.recorded, str):
            return self.recorded
        for link, bits in self.recorded:
            if link == (src, dst):
                return bits
        if src == dst:
            return "0"  # a rank's link to itself is reliable unless recorded
        raise ValueError(f"recorded has no link from {src} to {dst}")

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        bits = self._bits(src, dst)
        return Fraction(bits.count("1"), len(bits))

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        bits = self._bits(src, dst)
        stride = count("ticks", ticks, 1) if self.clock == "packet" else 1
        seen = [
            all(bits[(i - j * stride) % len(bits)] == "1" for j in range(count("k", k, 0))) for i in range(len(bits))
        ]
        return Fraction(sum(seen), len(bits))

    def sample(self, draw: Draw, memory: Memory) -> tuple[Mask, Memory]:
        links = Links(draw)
        strings, row = self._rows(links, draw.ranks)
        length = np.array([len(bits) for bits in strings], dtype=np.int64)[row]
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
        table = np.array([list(bits.ljust(max(map(len, strings)), "0")) for bits in strings]) == "1"
        return links.restore(table[row, now]), memory

    def _rows(self, links: Links, ranks: int) -> tuple[list[str], NDArray[np.int64]]:
        """The strings in use and which one each packet reads; a rank's link to itself is reliable unless recorded."""
        if isinstance(self.recorded, str):
            return [self.recorded], np.zeros_like(links.link)
        row_of = np.full(ranks**2, -1, dtype=np.int64)
        row_of[:: ranks + 1] = len(self.recorded)
        for number, ((src, dst), _) in enumerate(self.recorded):
            if src < ranks and dst < ranks:
                row_of[src * ranks + dst] = number
        row = row_of[links.link]
        if (row < 0).any():
            src, dst = divmod(int(links.link[row < 0][0]), ranks)
            raise ValueError(
                f"recorded must hold every link between the {ranks} ranks, but has none from {src} to {dst}"
            )
        return [bits for _, bits in self.recorded] + ["0"], row
