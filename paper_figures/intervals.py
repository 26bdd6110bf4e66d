"""Means of independent samples and their 95 % intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import t

LEVEL = 0.95


def mean_interval(samples: Any) -> dict[str, float]:
    """Mean and its 95 % t-interval, `low` to `high`, of at least two independent samples.

    >>> mean_interval([1.0, 2.0, 3.0])["mean"]
    2.0
    """
    values = np.asarray(samples, dtype=np.float64).ravel()
    if values.size < 2:
        raise ValueError(f"samples must be at least two, got {values.size}")
    mean = float(values.mean())
    half = float(t.ppf((1 + LEVEL) / 2, values.size - 1)) * float(values.std(ddof=1)) / values.size**0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def bars(mean: list[float], low: list[float], high: list[float]) -> list[list[float]]:
    """Intervals as matplotlib's `errorbar` wants them: distances below and above the mean."""
    below, above = zip(*((m - l, h - m) for m, l, h in zip(mean, low, high, strict=True)), strict=True)
    return [list(below), list(above)]
