"""Loss logs once more, packet by packet and from the documentation alone: chains, counts, statistics, likelihood.

A chain is a list of outcomes, 1 is lost. Legend: L rows of counts.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import groupby, pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossproof.theory import runs
from lossproof.theory.recorded import Recorded

Chain = list[int]
Floats = NDArray[np.float64]


def chains_of(rows: Sequence[Sequence[int]], clock: str) -> list[tuple[tuple[int, int], Chain]]:
    """(link, outcomes) of every chain; rows are src, dst, lost, step, phase, packet. In the order of links, then
    phase, packet, step."""
    found: list[tuple[tuple[int, int], Chain]] = []
    by_key: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    for number, (src, dst, lost, step, phase, packet) in enumerate(rows):
        key = (src, dst) if clock == "packet" else (src, dst, phase, packet)
        by_key[key].append((number if clock == "packet" else step, lost))
    for key in sorted(by_key):
        before = None
        for when, lost in sorted(by_key[key]):
            if before is None or (clock == "step" and when != before + 1):
                found.append((key[:2], []))
            found[-1][1].append(lost)
            before = when
    return found


def log_of(chains: Sequence[Sequence[int]], links: Sequence[int] | None = None) -> Recorded:
    """The log of chains, each of its own link to rank 99 unless said."""
    number = np.arange(len(chains)) if links is None else np.asarray(links)
    names = tuple((int(src), 99) for src in sorted(set(number.tolist())))
    sizes = [len(chain) for chain in chains]
    outcomes = np.array([x for chain in chains for x in chain], dtype=bool)
    return Recorded(outcomes, np.repeat(np.arange(len(chains)), sizes), number, names)


def counts(chain: Sequence[int]) -> tuple[int, ...]:
    """00, 01, 10, 11, first 0, first 1."""
    moves = Counter(pairwise(chain))
    return (*(moves[i, j] for i in (0, 1) for j in (0, 1)), int(chain[0] == 0), int(chain[0] == 1))


def alike(chain: Sequence[int]) -> list[tuple[int, ...]]:
    """All logs of one chain with these counts."""
    return [other for other in product((0, 1), repeat=len(chain)) if counts(other) == counts(chain)]


def bursts(chain: Sequence[int]) -> int:
    return sum(state for state, _ in groupby(chain))


def arrangements(chain: Sequence[int]) -> list[tuple[int, ...]]:
    """All orders of these outcomes."""
    return [other for other in product((0, 1), repeat=len(chain)) if sum(other) == sum(chain)]


def distance_from_mean(chains: Sequence[Sequence[int]]) -> Fraction:
    """How far the number of bursts is from what it is on average over all orders of each chain."""
    mean = sum((Fraction(sum(map(bursts, others)), len(others)) for others in map(arrangements, chains)), Fraction(0))
    return abs(sum(map(bursts, chains)) - mean)


# -- the statistics of the test for one step of memory


def statistics(chains: Sequence[Sequence[int]]) -> dict[str, float]:
    """As `one_step_of_memory` describes them."""
    found: dict[str, float] = {}
    found_runs = [[(state, len(list(same))) for state, same in groupby(chain)] for chain in chains]
    means = {}
    for state, what in ((1, "bursts"), (0, "gaps")):
        lengths = [length for some in found_runs for s, length in some if s == state]
        means[state] = sum(map(math.log, lengths)) / len(lengths)
        found[f"{what}: number of length 1"] = lengths.count(1)
        found[f"{what}: mean log length"] = math.fsum(map(math.log, lengths))
        found[f"{what}: mean square length"] = math.log(sum(length**2 for length in lengths))
    centred = [[(state, math.log(length) - means[state]) for state, length in some] for some in found_runs]
    found["order: a burst and its gap"] = math.fsum(x * y for some in centred for (_, x), (_, y) in pairwise(some))
    for state, what in ((1, "bursts"), (0, "gaps")):
        found[f"order: {what} in a row"] = math.fsum(
            x * y for some in centred for x, y in pairwise([value for s, value in some if s == state])
        )
    for m in block_numbers([len(chain) for chain in chains]):
        excess = []
        for chain in chains:
            edges = [len(chain) * k // m for k in range(m + 1)]
            share = sum(chain) / len(chain)
            excess.append([sum(chain[x:y]) - share * (y - x) for x, y in pairwise(edges)])
        found[f"rate: spread over {m} blocks of each chain"] = math.sqrt(math.fsum(x * x for e in excess for x in e))
        if len(chains) > 1:
            together = [math.fsum(column) for column in zip(*excess, strict=True)]
            found[f"rate: spread over {m} blocks of all chains together"] = math.sqrt(
                math.fsum(x * x for x in together)
            )
    return found


def block_numbers(sizes: Sequence[int], most: int = 2**15) -> list[int]:
    """2^k blocks of at least 8 packets on average, at most so many of them over all chains; 2 at least."""
    m = 2
    while sum(sizes) >= 8 * 2 * m * len(sizes) and 2 * m * len(sizes) <= most:
        m *= 2
    return [m >> k for k in range(m.bit_length() - 1)]


def worst_deviation(values: Floats) -> tuple[float, int]:
    """(p-value, the statistic in which the first row is farthest and on which side, numbered 2k + above)."""
    scores = np.zeros_like(values)
    for k, column in enumerate(values.T):
        if (spread := math.sqrt(sum((column - column.mean()) ** 2) / len(column))) > 1e-9 * abs(column).max():
            scores[:, k] = (column - column.mean()) / spread
    worst = abs(scores).max(axis=1).round(9)
    which = int(abs(scores[0]).argmax())
    return sum(worst >= worst[0]) / len(worst), 2 * which + int(scores[0, which] > 0)


def with_lengths(chains: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[Chain]:
    """The same states in turn, for other lengths of the runs."""
    rest, found = iter(lengths), []
    for chain in chains:
        found.append([state for state, _ in groupby(chain) for _ in range(next(rest))])
    return found


# -- likelihood


def log_likelihood(p: Any, b: Any, counts_L6: NDArray[np.int64]) -> Floats:
    """-inf where the chain is impossible; p and b of the shape (L, ...)."""
    p, b = np.broadcast_arrays(p, b)
    a = runs.entering(p, b)
    n = [counts_L6[:, k].reshape(-1, *([1] * (p.ndim - 1))) for k in range(6)]
    total = np.where(a <= 1 + 1e-12, 0.0, -np.inf)
    for number, chance in zip(n, (1 - a, a, b, 1 - b, 1 - p, p), strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            total = total + np.where(number > 0, number * np.log(np.clip(chance, 0, None)), 0.0)
    return total


def profile(p: Floats | None, b: Floats | None, counts_L6: NDArray[np.int64]) -> Floats:
    """The largest log-likelihood over what is None, by ever finer grids."""
    low, high = np.full(len(counts_L6), -36.0), np.full(len(counts_L6), 36.0)
    grid, best = np.linspace(0, 1, 25), np.full(len(counts_L6), -np.inf)
    for _ in range(7):
        x = low[:, None] + (high - low)[:, None] * grid
        free = 1 / (1 + np.exp(-x))
        if p is not None:
            room = np.minimum(1, (1 - p) / np.maximum(p, 1e-300))[:, None]
            values = log_likelihood(p[:, None], free * room, counts_L6)
        else:
            assert b is not None
            values = log_likelihood(free / (free + b[:, None]), b[:, None], counts_L6)
        at = values.argmax(axis=1)
        best = np.maximum(best, values.max(axis=1))
        low, high = (x[np.arange(len(x)), np.clip(at + d, 0, 24)] for d in (-1, 1))
    return best


def some_rows(links: Sequence[tuple[int, int]], steps: int, packets: int) -> Iterator[list[int]]:
    """A log with holes, every link's rows in order: src, dst, lost, step, phase, packet."""
    for step, phase, packet, (number, (src, dst)) in product(range(steps), (0, 1), range(packets), enumerate(links)):
        word = (step * 7 + phase * 5 + packet * 11 + number * 3) * 2654435761 % 2**32
        if word % 5:
            yield [src, dst, int(word % 7 < 3), step, phase, packet]
