"""Maximum likelihood of loss laws from counts of transitions, with intervals; all links at once.

Legend: L links.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, expit, ndtri, xlog1py, xlogy

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A maximum-likelihood estimate and its interval; `high` is infinite where the log sets no bound."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def to_json(self) -> dict[str, float | None]:
        return {k: v if math.isfinite(v) else None for k, v in vars(self).items()}


@dataclass(frozen=True)
class LinkFit:
    """One link: its loss as a Bernoulli link; its loss and mean burst as a Gilbert-Elliott link, None if it never
    changes."""

    src: int
    dst: int
    packets: int
    lost: int
    bernoulli: Estimate
    loss: Estimate | None
    burst: Estimate | None


def maximise(links: list[tuple[int, int]], counts: Ints, confidence: float) -> list[LinkFit]:
    """Both families' estimates for each row of counts (L, 6), see `Recorded.transitions`."""
    n00, n01, n10, n11, s0, s1 = counts.T.astype(float)
    packets, lost = counts.sum(axis=1), counts[:, [1, 3, 5]].sum(axis=1)

    def of_loss(p: Floats) -> Floats:
        """Log-likelihood of each loss at its best burst, in closed form."""
        c, moves = p / (1 - p), n01 + n10
        linear = moves * (1 + c) + n00 * c + n11
        root = np.sqrt(np.maximum(0, linear**2 - 4 * c * (moves + n00 + n11) * moves))
        return value(p, np.clip(2 * moves / np.maximum(1e-300, linear + root), 1e-300, np.minimum(1, 1 / c)))

    def of_leaving(b: Floats) -> Floats:
        """Log-likelihood of each chance to leave a burst at its best loss."""
        into, starts = n01 + s1, s0 + s1
        square, linear, constant = starts - into - n00, into * (1 - b) - n00 * b - starts, into * b
        a = 2 * constant / np.maximum(1e-300, -linear + np.sqrt(np.maximum(0, linear**2 - 4 * square * constant)))
        a = np.clip(a, 1e-300, 1)
        return value(a / (a + b), b)

    def value(p: Floats, b: Floats) -> Floats:
        a = np.minimum(1, b * p / (1 - p))
        chain = xlogy(n01, a) + xlog1py(n00, -a) + xlogy(n10, b) + xlog1py(n11, -b)
        result: Floats = chain + xlogy(s1, p) + xlog1py(s0, -p)
        return result

    drop = ndtri((1 + confidence) / 2) ** 2 / 2
    loss, leave = _profile(of_loss, len(counts), drop), _profile(of_leaving, len(counts), drop)
    changes = counts[:, 1] + counts[:, 2] > 0
    found = []
    for i, (src, dst) in enumerate(links):
        k, n = int(lost[i]), int(packets[i])
        half = (1 - confidence) / 2
        bernoulli = Estimate(k / n, 1 - binomial_high(n - k, n, half), binomial_high(k, n, half))
        low, best, high = (float(bound[i]) for bound in leave)
        burst = Estimate(1 / best, 1 / high, 1 / low if low > 0 else math.inf) if changes[i] else None
        share = Estimate(*(float(loss[j][i]) for j in (1, 0, 2))) if changes[i] else None
        found.append(LinkFit(src, dst, n, k, bernoulli, share, burst))
    return found


_EDGE = 35.0  # of a logit: a probability of 6e-16


def _profile(height: Callable[[Floats], Floats], size: int, drop: float) -> tuple[Floats, Floats, Floats]:
    """Where each of several unimodal functions of a probability falls by `drop`, peaks, and falls by `drop` again."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):

        def at(x: Floats) -> Floats:
            return np.nan_to_num(height(expit(x)), nan=-np.inf)

        low, high = np.full(size, -_EDGE), np.full(size, _EDGE)
        for _ in range(60):  # ternary search
            left, right = low + (high - low) / 3, high - (high - low) / 3
            rising = at(left) < at(right)
            low, high = np.where(rising, left, low), np.where(rising, high, right)
        peak = (low + high) / 2
        level, bounds = at(peak) - drop, []
        for edge in (-_EDGE, _EDGE):
            inside, outside = peak, np.full(size, edge)
            unbounded = at(outside) >= level
            for _ in range(45):
                middle = (inside + outside) / 2
                above = at(middle) >= level
                inside, outside = np.where(above, middle, inside), np.where(above, outside, middle)
            bounds.append(np.where(unbounded, float(edge > 0), expit(inside)))
    best = np.where(peak > _EDGE - 1, 1.0, np.where(peak < 1 - _EDGE, 0.0, expit(peak)))
    return bounds[0], best, bounds[1]


def binomial_high(successes: int, trials: int, chance: float) -> float:
    """The largest probability at which so few successes still have the chance (Clopper-Pearson)."""
    return 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - chance))
