"""How often a law loses: counts over independent repetitions, tested by exact binomial tests.

Legend: N ranks, each the owner of one packet, so that each link carries one; T steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments.statistics import ALPHA, binomial_p_value
from lossproof.theory.laws import Law, Phase

K = 4
Link = tuple[int, int]
Tails = dict[Link, dict[int, list[Fraction]]]
"""P(A >= 0), ..., P(A >= K) of each link, by the ticks of a step."""
PHASES: tuple[Phase, ...] = ("gradients", "parameters")


class _Repetition:
    """Fresh uniform words for one phase; every rank owns one packet, so that each link carries one."""

    def __init__(self, phase: Phase, ranks: int, generator: np.random.Generator) -> None:
        self.phase, self.ranks, self.packet = phase, ranks, np.arange(ranks)
        ends: list[NDArray[np.int64]] = [np.arange(ranks)[:, None], np.arange(ranks)]  # the remote end and the owner
        self.src, self.dst = ends if phase == "gradients" else ends[::-1]
        self._words = generator.integers(0, 1 << 32, (5, ranks, ranks))

    def words(self, k: int = 0) -> NDArray[np.int64]:
        return self._words[k] if 0 <= k < 4 else self._refuse(k)

    def common(self, k: int = 0) -> NDArray[np.int64]:
        return self._words[4, k : k + 1] if 0 <= k < min(4, self.ranks) else self._refuse(k)

    def _refuse(self, k: int) -> NDArray[np.int64]:
        raise ValueError(f"a draw has words 0 to 3, the law asks for words({k})")


def _losses(
    law: Law, ranks: int, generator: np.random.Generator, phases: tuple[Phase, ...]
) -> dict[str, NDArray[np.bool_]]:
    """One repetition: the losses of K + 3 steps by phase, (T, rank, owner), from an empty memory on."""
    memory: Any = {}
    lost: dict[str, list[NDArray[np.bool_]]] = {phase: [] for phase in phases}
    for _ in range(K + 3):
        for phase in phases:
            mask, memory = law.sample(_Repetition(phase, ranks, generator), memory)
            lost[phase].append(mask)
    return {phase: np.stack(masks) for phase, masks in lost.items()}


def check_frequencies(law: Law, ranks: int, seed: int, trials: int, tails: Tails) -> int:
    """Refutes a law whose losses, runs of losses or pairs of losses have another frequency; returns how many tests.

    Events of links that are independent and have one probability are counted together. Of a law whose links are not,
    two links are counted, each by itself, in an eighth of the trials.
    """
    independent = getattr(law, "independent_links", True)
    links = list(tails) if independent else [(0, 1), (ranks - 1, 0)]
    repetitions = -(-trials // (len(links) if independent else 8))
    generator, tests = np.random.default_rng(seed), 0
    for ticks, phases in ((1, PHASES[1:]), (2, PHASES)):
        events = list(_events(phases, links, ranks, independent))
        happened = [np.zeros(len(event.cells), dtype=np.int64) for event in events]
        for _ in range(repetitions):
            lost = _losses(law, ranks, generator, phases)
            for event, count in zip(events, happened, strict=True):
                count += event.happened(lost[event.phase])
        for event, count in zip(events, happened, strict=True):
            pooled: Counter[Any] = Counter()
            cells: Counter[Any] = Counter()
            for number, cell in enumerate(event.cells):
                chance = event.chance([tails[event.link(end)][ticks] for end in cell])
                key = chance if independent else (chance, event.link(cell[0]))
                pooled[key] += int(count[number])
                cells[key] += 1
            for key in pooled:
                chance, size = key if independent else key[0], cells[key] * repetitions
                require(
                    binomial_p_value(pooled[key], size, float(chance)) > ALPHA,
                    f"{event.name}{', two ticks a step' * (ticks - 1)}: happened in {pooled[key]} of {size} = "
                    f"{pooled[key] / size:.4f}, the law states {chance} = {float(chance):.4f} (level {ALPHA:.0e})",
                )
                tests += 1
    return tests


@dataclass(frozen=True)
class _Event:
    """What may happen in each of `cells`, one or two places (rank, owner): all lost in `k` steps from `start` on."""

    name: str
    phase: str
    cells: Sequence[tuple[Link, ...]]
    start: int
    k: int = 1

    def happened(self, lost_TNP: NDArray[np.bool_]) -> NDArray[np.bool_]:
        index = np.array(self.cells)  # (cell, end, 2)
        lost = lost_TNP[self.start : self.start + self.k, index[..., 0], index[..., 1]]
        return np.asarray(lost.all((0, 2)))

    def link(self, end: Link) -> Link:
        return end if self.phase == "gradients" else (end[1], end[0])

    def chance(self, tails: list[list[Fraction]]) -> Fraction:
        return prod((tail[self.k] for tail in tails), start=Fraction(1))


def _events(phases: Iterable[Phase], links: list[Link], ranks: int, independent: bool) -> Iterator[_Event]:
    others = {rank: [other for other in range(ranks) if other != rank] for rank in range(ranks)}
    pairs = {
        "one packet": [((a, o), (b, o)) for o in others for a, b in zip(others[o][::2], others[o][1::2], strict=False)],
        "one rank": [((r, a), (r, b)) for r in others for a, b in zip(others[r][::2], others[r][1::2], strict=False)],
        "both directions": [((a, b), (b, a)) for a, b in combinations(range(ranks), 2)],
    }
    for phase in phases:
        cells = [(link if phase == "gradients" else link[::-1],) for link in links]
        for start in (0, K + 2):
            yield _Event(f"{phase}: a loss in step {start}", phase, cells, start)
            for name, ends in pairs.items() if independent else ():
                if ends:
                    title = f"{phase}: losses on two links at once ({name}; links are independent unless the law says "
                    yield _Event(f"{title}independent_links = False), step {start}", phase, ends, start)
    cells = [(link[::-1],) for link in links]
    for start, k in product((0, 3), range(2, K + 1)):
        yield _Event(f"parameters: {k} losses in a row from step {start} on", "parameters", cells, start, k)
