"""Slow, obvious second versions of what the package does, written from the definitions. Imports nothing of lossproof.

Everything is plain Python: integers, fractions, loops over ranks and packets, lists instead of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

PHASES = {"gradients": 0, "parameters": 1}


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, ...]:
    """Philox 4x32-10 as its paper states it: ten rounds of two 32 x 32 -> 64 bit products, the key bumped between."""
    c, k = list(counter), list(key)
    for number in range(10):
        if number:
            k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
        high_0, low_0 = divmod(0xD2511F53 * c[0], 2**32)
        high_1, low_1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high_1 ^ c[1] ^ k[0], low_1, high_0 ^ c[3] ^ k[1], low_0]
    return tuple(c)


def word(seed: int, packet: int, src: int, dst: int, phase: str, step: int, k: int = 0) -> int:
    """Word k of the draw for one packet."""
    return philox((packet, src * 2**16 + dst, PHASES[phase], step), (seed % 2**32, seed // 2**32))[k]


def is_lost(word: int, p: Fraction) -> bool:
    """The definition of a loss: floor(p 2^32) words of all 2^32 are losses."""
    return word < p * 2**32 // 1


@dataclass
class TableDraw:
    """A draw whose words stand in a table, so that a test can choose them."""

    phase: str
    ranks: int
    src: NDArray[np.int64]
    dst: NDArray[np.int64]
    packet: NDArray[np.int64]
    table: list[NDArray[np.int64]]

    def words(self, k: int = 0) -> NDArray[np.int64]:
        return self.table[k]

    def cells(self) -> Iterator[tuple[tuple[int, int], int, int, int]]:
        """((row, column), src, dst, packet) in the order of the packets' numbers, the order of sending."""
        shape = self.table[0].shape
        src, dst, packet = (np.broadcast_to(a, shape) for a in (self.src, self.dst, self.packet))
        for cell in sorted(np.ndindex(*shape), key=lambda cell: int(packet[cell])):
            yield cell, int(src[cell]), int(dst[cell]), int(packet[cell])


@dataclass
class Chain:
    """Gilbert-Elliott, one packet after another: a dictionary of states, and the four parameters."""

    enter: Fraction
    leave: Fraction
    good: Fraction
    bad: Fraction
    clock: str
    state: dict[Any, bool] = field(default_factory=dict)

    def sample(self, draw: TableDraw) -> NDArray[np.bool_]:
        lost = np.zeros(draw.words().shape, dtype=bool)
        for cell, src, dst, packet in draw.cells():
            name = (src, dst) if self.clock == "packet" else (src, dst, packet, draw.phase)
            move = int(draw.words(1)[cell])
            if name not in self.state:
                self.state[name] = is_lost(move, self.enter / (self.enter + self.leave))
            elif self.state[name]:
                self.state[name] = not is_lost(move, self.leave)
            else:
                self.state[name] = is_lost(move, self.enter)
            lost[cell] = is_lost(int(draw.words(0)[cell]), self.bad if self.state[name] else self.good)
        return lost

    def age_tail(self, k: int, ticks: int = 1) -> Fraction:
        """P(packets 0, ticks, 2 ticks, ... are all lost), summed over every path of the chain."""
        if k == 0:
            return Fraction(1)
        share = self.enter / (self.enter + self.leave)
        move = {(0, 1): self.enter, (0, 0): 1 - self.enter, (1, 0): self.leave, (1, 1): 1 - self.leave}
        total = Fraction(0)
        for path in product((0, 1), repeat=(k - 1) * ticks + 1):
            weight = share if path[0] else 1 - share
            for pair in pairwise(path):
                weight *= move[pair]
            for state in path[::ticks]:
                weight *= self.bad if state else self.good
            total += weight
        return total


@dataclass
class Replay:
    """A replayed log, one packet after another: a dictionary of reading positions."""

    bits: Callable[[int, int], str]
    clock: str
    position: dict[Any, int] = field(default_factory=dict)

    def sample(self, draw: TableDraw) -> NDArray[np.bool_]:
        lost = np.zeros(draw.words().shape, dtype=bool)
        for cell, src, dst, packet in draw.cells():
            bits = self.bits(src, dst)
            name = (src, dst) if self.clock == "packet" else (src, dst, packet, draw.phase)
            start = int(draw.words(1)[cell]) * len(bits) // 2**32
            self.position[name] = (self.position[name] + 1) % len(bits) if name in self.position else start
            lost[cell] = bits[self.position[name]] == "1"
        return lost


@dataclass
class Rerun:
    """A log step by step, one packet after another; links that carry other packets than recorded begin anywhere."""

    recorded: dict[tuple[int, int, str], Sequence[str]]
    place: dict[Any, tuple[str, int]] = field(default_factory=dict)

    def sample(self, draw: TableDraw) -> NDArray[np.bool_]:
        lost = np.zeros(draw.words().shape, dtype=bool)
        for cell, src, dst, packet in draw.cells():
            own = self.recorded.get((src, dst, draw.phase), [])
            every = [bits for phase in ("gradients", "parameters") for bits in self.recorded.get((src, dst, phase), [])]
            alike = sorted(other for _, s, d, other in draw.cells() if (s, d) == (src, dst))
            name = src, dst, packet, draw.phase
            if not every:
                assert src == dst
            elif name in self.place:
                bits, step = self.place[name]
                self.place[name] = bits, (step + 1) % len(bits)
            elif len(own) == len(alike):
                self.place[name] = own[alike.index(packet)], 0
            else:
                start = int(draw.words(1)[cell]) * len("".join(every)) // 2**32
                self.place[name] = every[start // len(every[0])], start % len(every[0])
            lost[cell] = name in self.place and self.place[name][0][self.place[name][1]] == "1"
        return lost


def aggregate(
    payload: Sequence[Sequence[Sequence[Any]]],
    arrived: Sequence[Sequence[bool]],
    rule: str = "survivor_mean",
    no_survivor: str = "zero",
    probability: Sequence[Sequence[Fraction]] | None = None,
    previous: Sequence[Sequence[Any]] | None = None,
    owner: Sequence[int] | None = None,
) -> tuple[list[list[Any]], list[int]]:
    """Stage 1 by its formulas, one element after another, in whatever arithmetic the payload's elements bring."""
    senders, estimate, counts = range(len(payload)), [], []
    for packet in range(len(arrived[0])):
        survivors = [i for i in senders if arrived[i][packet]]
        counts.append(len(survivors))
        row = []
        for element in range(len(payload[0][packet])):
            g = [payload[i][packet][element] for i in senders]
            if not survivors and no_survivor != "zero":
                row.append(previous[packet][element] if no_survivor == "hold" else g[owner[packet]])
            elif rule == "survivor_mean":
                row.append(sum(g[i] for i in survivors) / max(len(survivors), 1))
            elif rule == "zero_fill":
                row.append(sum(g[i] for i in survivors) / len(g))
            else:
                row.append(sum(g[i] / probability[i][packet] for i in survivors) / len(g))
        estimate.append(row)
    return estimate, counts
