"""A recorded loss log as sequences, and random logs that a Markov chain cannot tell from it.

Legend: n packets in the order chain by chain; C chains; G groups, two for each chain: its arrivals and its losses;
R runs of equal outcomes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossproof.theory import logfile
from lossproof.theory.laws.law import Clock, check_clock

Ints = NDArray[np.int64]


class Twice(ValueError):
    """A packet of a step is recorded twice, in two rows."""

    def __init__(self, step: int, rows: list[int]) -> None:
        super().__init__(f"step {step} is recorded twice for the same packet, in rows {rows[0]} and {rows[1]} from 0")
        self.step, self.rows = step, rows


@dataclass(frozen=True)
class Recorded:
    """Losses in order: `lost_n` one chain after another, `chain_n` their chains, `link_C` the link of each chain.

    A chain is what a law with memory runs along. `clock="packet"`: a link, in the order of the rows. `clock="step"`:
    the packets of one number and phase on a link, step by step; where steps are missing a new chain begins.
    """

    lost_n: NDArray[np.bool_]
    chain_n: Ints
    link_C: Ints
    links: tuple[tuple[int, int], ...]
    clock: Clock = "packet"

    @classmethod
    def from_csv(cls, path: str | Path, clock: Clock | None = None) -> Recorded:
        """Reads a loss log in the format of `lossproof.theory.laws.Trace`.

        `clock="step"` needs the columns step, phase (gradients or parameters) and packet, which our own logs have; it
        is the default where the header names them.

        Raises:
            ValueError: no such columns, no rows, or a row that cannot be used, named by its line. OSError: no file.
        """
        clock = logfile.clock_of(path) if clock is None else clock
        check_clock(clock)
        table = logfile.read(path, timed=clock == "step")
        try:
            return cls.from_columns(*table, clock=clock)
        except Twice as error:
            raise ValueError(logfile.twice(path, error.step, *error.rows)) from None

    @classmethod
    def from_columns(
        cls,
        src: Any,
        dst: Any,
        lost: Any,
        step: Any = None,
        phase: Any = None,
        packet: Any = None,
        *,
        clock: Clock = "packet",
    ) -> Recorded:
        """From one value for each packet; rows of a link in the order of sending, `phase` 0 or 1."""
        src, dst = np.asarray(src, dtype=np.int64), np.asarray(dst, dtype=np.int64)
        pair, link = np.unique(src * (dst.max() + 1) + dst, return_inverse=True)
        links = tuple((int(p // (dst.max() + 1)), int(p % (dst.max() + 1))) for p in pair)
        if clock == "packet":
            order = np.argsort(link, kind="stable")
            begins = np.diff(link[order], prepend=-1) != 0
        else:
            order = np.lexsort((step, packet, phase, link))
            step = np.asarray(step)[order]
            begins, again = np.zeros(len(order), dtype=bool), np.diff(step, prepend=step[0] - 1) == 0
            for key in (link, phase, packet):
                begins |= np.diff(np.asarray(key)[order], prepend=-1) != 0
            if (again & ~begins).any():
                at = int(np.flatnonzero(again & ~begins)[0])
                rows = sorted(int(row) for row in order[at - 1 : at + 1])
                raise Twice(int(step[at]), rows)
            begins |= np.diff(step, prepend=step[0] - 1) != 1
        chain = np.cumsum(begins) - 1
        return cls(np.asarray(lost)[order].astype(bool), chain, link[order][begins], links, clock)

    @property
    def chains(self) -> int:
        return len(self.link_C)

    def per_chain(self, chosen_n: NDArray[np.bool_]) -> Ints:
        """How many of the chosen packets each chain has."""
        return np.bincount(self.chain_n[chosen_n], minlength=self.chains)

    def transitions(self) -> Ints:
        """Counts for each chain (C, 6): 00, 01, 10, 11 between packets in a row, and a first 0, a first 1."""
        same, before, after = self.chain_n[1:] == self.chain_n[:-1], self.lost_n[:-1], self.lost_n[1:]
        code, first = self.chain_n[1:] * 4 + 2 * before + after, np.diff(self.chain_n, prepend=-1) != 0
        moves = np.bincount(code[same], minlength=4 * self.chains).reshape(-1, 4)
        return np.column_stack([moves, self.per_chain(first & ~self.lost_n), self.per_chain(first & self.lost_n)])


class Runs:
    """The runs of a log in order of time, and random logs with the same chains, first outcomes and transition counts.

    Given those counts every log has the same probability under every first-order Markov chain, Bernoulli and
    Gilbert-Elliott included: in each chain the lengths of the runs of losses are a uniformly random composition of
    their sum, and those of the runs of arrivals independently so. So a statistic of the log ranks uniformly among those
    of random logs, whatever the parameters.
    """

    def __init__(self, log: Recorded) -> None:
        size = len(log.lost_n)
        ends = np.flatnonzero(np.r_[(np.diff(log.lost_n) != 0) | (np.diff(log.chain_n) != 0), True])
        self.length_R = np.diff(ends, prepend=-1)
        self.lost_R, self.chain_R = log.lost_n[ends], log.chain_n[ends]
        group_R = 2 * self.chain_R + self.lost_R
        by_group = np.argsort(group_R, kind="stable")
        self._time = np.empty_like(by_group)
        self._time[by_group] = np.arange(len(by_group))
        runs = np.bincount(group_R)
        total = np.bincount(group_R, weights=self.length_R).astype(np.int64)
        runs, total = runs[runs > 0], total[runs > 0]
        self._starts = np.cumsum(total) - total
        self._room, cuts = total - 1, runs - 1  # a run may end after every packet of its group; after the last it must
        few = 2 * cuts <= self._room
        self._wanted = np.where(few, cuts, self._room - cuts)
        self._flip_n = np.repeat(~few, total)
        self._last, self._size = self._starts + total - 1, size

    def random(self, rng: np.random.Generator) -> Ints:
        """Lengths of the runs of a random log: in every group a uniformly random set of places where runs end.

        Places are drawn until as many different ones are found as are wanted, which favours no set.
        """
        chosen = np.zeros(self._size, dtype=bool)
        missing = self._wanted
        while missing.any():
            short = np.repeat(np.flatnonzero(missing), missing[missing > 0])
            chosen[self._starts[short] + rng.integers(0, self._room[short])] = True
            missing = self._wanted - np.add.reduceat(chosen, self._starts, dtype=np.int64)
        chosen ^= self._flip_n
        chosen[self._last] = True
        lengths: Ints = np.diff(np.flatnonzero(chosen), prepend=-1)[self._time]
        return lengths


def bursts_at_random(log: Recorded, rng: np.random.Generator, times: int) -> tuple[float, NDArray[np.float64]]:
    """How far the number of bursts is from its mean given the losses of every chain, and `times` such distances.

    Without memory, a chain of a arrivals and l losses has hypergeometrically many bursts: l draws from a + 1 places
    before, between and after the arrivals and l - 1 others.
    """
    runs = Runs(log)
    lost = log.per_chain(log.lost_n)
    arrived = log.per_chain(~log.lost_n)[lost > 0]
    lost = lost[lost > 0]
    mean = (lost * (arrived + 1) / (lost + arrived)).sum()
    found = np.array([rng.hypergeometric(arrived + 1, lost - 1, lost).sum() for _ in range(times)])
    return abs(runs.lost_R.sum() - mean), np.abs(found - mean)


def rank(observed: float, simulated: Iterable[float]) -> float:
    """The exact p-value of an observation that is exchangeable with the simulated ones if the hypothesis holds."""
    others = np.asarray(simulated)
    return float((1 + (others >= observed).sum()) / (1 + len(others)))
