"""Runs compared by paired seeds: differences of log-perplexity, as changes of perplexity in percent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lossproof.paper_figures.figure import Table
from lossproof.paper_figures.intervals import mean_interval

Runs = Mapping[int, float]
"""Log-perplexity by seed."""


def by_seed(table: Table, column: str = "log_perplexity") -> dict[int, float]:
    return dict(zip(table["seed"], table[column], strict=True))


def nats(runs: Runs, against: Runs) -> dict[str, float]:
    """Mean and 95 % t-interval of the difference of log-perplexity, seed by seed.

    >>> nats({0: 2.1, 1: 2.1}, {0: 2.0, 1: 2.0})["mean"]
    0.10000000000000009

    Raises:
        ValueError: not the same seeds.
    """
    if set(runs) != set(against):
        raise ValueError(f"runs must have the seeds {sorted(against)}, got {sorted(runs)}")
    return mean_interval([runs[seed] - against[seed] for seed in sorted(runs)])


def percent(runs: Runs, against: Runs) -> dict[str, float]:
    """The same as a change of perplexity in percent.

    >>> round(percent({0: 2.1, 1: 2.1}, {0: 2.0, 1: 2.0})["mean"], 1)
    10.5
    """
    return {name: 100 * math.expm1(value) for name, value in nats(runs, against).items()}


def errors(found: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and distances to the ends of intervals, as `errorbar` wants them: `y` and `yerr`."""
    return {
        "y": [one["mean"] for one in found],
        "yerr": [[one["mean"] - one["low"] for one in found], [one["high"] - one["mean"] for one in found]],
    }
