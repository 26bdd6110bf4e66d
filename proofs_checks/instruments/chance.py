"""A random generator that tries every outcome in turn, with its exact probability: what draws can be enumerated.

It stands in for `numpy.random.Generator` where a function asks for whole numbers or hypergeometric counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from contextlib import suppress
from fractions import Fraction
from itertools import product
from math import comb
from typing import Any

import numpy as np


class _TooLong(Exception):
    pass


class Chance:
    """Follows a script of choices, and takes the first choice where the script ends."""

    def __init__(self, script: list[int], calls: int) -> None:
        self.script, self.sizes, self.weight, self._calls = script, list[int](), Fraction(1), calls

    def _choose(self, options: list[tuple[Any, Fraction]]) -> Any:
        place = len(self.sizes)
        if place == len(self.script):
            self.script.append(0)
        self.sizes.append(len(options))
        value, weight = options[self.script[place]]
        self.weight *= weight
        return value

    def integers(self, low: int, high: Any) -> Any:
        if not self._calls:
            raise _TooLong
        self._calls -= 1
        return np.array([self._choose([(k, Fraction(1, int(h) - low)) for k in range(low, int(h))]) for h in high])

    def hypergeometric(self, good: Any, bad: Any, drawn: Any) -> Any:
        """The good ones among so many drawn without replacement, for every entry."""
        found = []
        for g, b, n in zip(np.ravel(good).tolist(), np.ravel(bad).tolist(), np.ravel(drawn).tolist(), strict=True):
            found.append(self._choose([
                (k, Fraction(comb(g, k) * comb(b, n - k), comb(g + b, n))) for k in range(max(0, n - b), min(g, n) + 1)
            ]))  # fmt: skip
        return np.array(found, dtype=np.int64)

    def multivariate_hypergeometric(self, colors: Any, drawn: int, method: str = "") -> Any:
        """How many of each color are among so many drawn without replacement."""
        sizes = [int(n) for n in colors]
        tables = [k for k in product(*(range(n + 1) for n in sizes)) if sum(k) == drawn]
        ways = [int(np.prod([comb(n, j) for n, j in zip(sizes, k, strict=True)])) for k in tables]
        return np.array(
            self._choose([(k, Fraction(w, comb(sum(sizes), drawn))) for k, w in zip(tables, ways, strict=True)])
        )


def distribution(job: Callable[[Any], Hashable], calls: int = 2) -> dict[Hashable, Fraction]:
    """The probability of every result of a job that draws; paths with more `calls` to `integers` are left out."""
    found: dict[Hashable, Fraction] = defaultdict(Fraction)
    script: list[int] = []
    while True:
        chance = Chance(script, calls)
        with suppress(_TooLong):
            found[job(chance)] += chance.weight
        del script[len(chance.sizes) :]
        while script and script[-1] == chance.sizes[len(script) - 1] - 1:
            script.pop()
        if not script:
            return dict(found)
        script[-1] += 1
