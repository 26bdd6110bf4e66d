"""Does a log look like a chain with one step of memory? An exact test with power where links usually differ from it.

Legend: R runs, K statistics, B random logs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lossproof.theory.recorded import Recorded, Runs, bursts_at_random, rank

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_MOST_BLOCKS, _SHORTEST_BLOCK = 1 << 15, 8


@dataclass(frozen=True)
class Outcome:
    """A test of a family of laws: `p_value` is exact, `remark` says where the log deviates most."""

    name: str
    p_value: float
    simulations: int
    remark: str = ""


def independence(log: Recorded, rng: np.random.Generator, simulations: int) -> Outcome:
    """Tests "losses on a link do not depend on the packet before" by the number of bursts, given the losses of a chain.

    Exact by rank (Wald and Wolfowitz's runs test, two-sided).
    """
    observed, others = bursts_at_random(log, rng, simulations)
    return Outcome("independence", rank(observed, others), simulations)


def one_step_of_memory(log: Recorded, rng: np.random.Generator, simulations: int) -> Outcome:
    """Tests "the losses of each chain are Markov of the first order", of which Bernoulli is a case.

    Every statistic below is put on one scale by its mean and deviation over the log and the random logs together; the
    test statistic is the largest deviation. All logs are treated alike, so its rank is exact at any size.

    - bursts, gaps: lengths against geometric ones: how many are 1 (memory of the second order), mean logarithm,
      mean square (heavy tails, periods)
    - order: lengths of neighbouring runs (more than two states)
    - rate: losses in blocks of the log, from halves to blocks of 8 packets, in each chain, and at once in all chains
      (drift, periods, long memory, common causes)
    """
    runs = Runs(log)
    statistics = _Statistics(log, runs)
    if not (runs.lost_R.any() and (~runs.lost_R).any()):
        return Outcome("one step of memory", 1.0, 0, "the outcomes are all the same")
    rows = [statistics(runs.length_R), *(statistics(runs.random(rng)) for _ in range(simulations))]
    values = np.array(rows)
    spread = values.std(axis=0)
    steady = spread <= 1e-9 * np.abs(values).max(axis=0)  # the statistic is determined by the counts
    scores = np.where(steady, 0.0, (values - values.mean(axis=0)) / np.where(steady, 1.0, spread))
    worst = np.abs(scores).max(axis=1).round(9)  # equal logs must tie, whatever the rounding
    which = int(np.abs(scores[0]).argmax())
    remark = f"{statistics.names[which]} {'above' if scores[0, which] > 0 else 'below'} expectation"
    return Outcome("one step of memory", rank(worst[0], worst[1:]), simulations, remark)


class _Statistics:
    """The statistics of a log as functions of its run lengths; everything else about the log is fixed."""

    def __init__(self, log: Recorded, runs: Runs) -> None:
        self._burst, self._gap = np.flatnonzero(runs.lost_R), np.flatnonzero(~runs.lost_R)
        self._lost_R, self._log = runs.lost_R, np.log(np.arange(1, len(log.lost_n) + 2))
        self._pairs = [np.flatnonzero(runs.chain_R[d:] == runs.chain_R[:-d]) for d in (1, 2)]
        self._pairs_of = [(1, self._pairs[0]), *((2, self._pairs[1][runs.lost_R[self._pairs[1]] == s]) for s in (1, 0))]
        self.names = [f"{what}: {which}" for what in ("bursts", "gaps")
                      for which in ("number of length 1", "mean log length", "mean square length")]  # fmt: skip
        self.names += ["order: a burst and its gap", "order: bursts in a row", "order: gaps in a row"]
        self._edges, self._expected = self._finest_blocks(log)

    def _finest_blocks(self, log: Recorded) -> tuple[Ints, Floats]:
        """Edges (C, m+1) of m = 2^k blocks in each chain, and the losses expected in each; names the statistics."""
        size, m = np.bincount(log.chain_n), 2
        while size.mean() / (2 * m) >= _SHORTEST_BLOCK and 2 * m * log.chains <= _MOST_BLOCKS:
            m *= 2
        edges = (np.cumsum(size) - size)[:, None] + size[:, None] * np.arange(m + 1) // m
        share = log.per_chain(log.lost_n) / size
        expected: Floats = share[:, None] * np.diff(edges)
        while m > 1:
            self.names.append(f"rate: spread over {m} blocks of each chain")
            if log.chains > 1:
                self.names.append(f"rate: spread over {m} blocks of all chains together")
            m //= 2
        return edges, expected

    def __call__(self, length_R: Ints) -> Floats:
        logs = self._log[length_R - 1]
        found: list[float] = []
        for state in (self._burst, self._gap):
            lengths = length_R[state]
            found += [(lengths == 1).sum(), logs[state].sum(), np.log(np.square(lengths, dtype=float).sum())]
        centred = logs - np.where(self._lost_R, logs[self._burst].mean(), logs[self._gap].mean())
        found += [float((centred[at] * centred[at + d]).sum()) for d, at in self._pairs_of]
        ends = np.cumsum(length_R)
        losses = np.cumsum(np.where(self._lost_R, length_R, 0))
        ends, losses = np.r_[0, ends], np.r_[0, losses]
        excess = np.diff(np.interp(self._edges, ends, losses), axis=1) - self._expected
        while excess.shape[1] > 1:
            found.append(np.sqrt(np.square(excess).sum()))
            if len(excess) > 1:
                found.append(np.sqrt(np.square(excess.sum(axis=0)).sum()))
            excess = excess[:, ::2] + excess[:, 1::2]
        return np.array(found, dtype=float)


def homogeneity(groups: list[tuple[Ints, Ints]], rng: np.random.Generator, times: int) -> float:
    """The p-value of "in each group (trials, successes), all entries succeed with one probability".

    Given the totals the successes are hypergeometric; the statistic is the sum of the groups' Pearson chi-squares.
    """

    def distance(rows: list[Ints]) -> float:
        total = 0.0
        for (trials, _), row in zip(groups, rows, strict=True):
            share = row.sum() / max(1, trials.sum())
            if 0 < share < 1:
                used = trials > 0
                total += (np.square(row - share * trials)[used] / trials[used]).sum() / (share * (1 - share))
        return round(total, 9)  # equal tables must tie, whatever the rounding

    def draw() -> list[Ints]:
        return [rng.multivariate_hypergeometric(n, int(k.sum()), method="marginals") for n, k in groups]

    return rank(distance([k for _, k in groups]), [distance(draw()) for _ in range(times)])
