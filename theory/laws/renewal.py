"""Bursts of any length: on every link, runs of losses of independent lengths T between runs of arrivals.

A run of arrivals is geometric, as in Gilbert-Elliott; what matters is the law of T. A replica's age is long if the
burst is, and long bursts are met more often than they occur: P(A >= k) = (loss / E T) sum over j >= k of P(T >= j).

There is a process for every phase, packet and link; it ticks once a step and starts stationary. Word 1 of a draw begins
a burst, word 2 gives its length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lossproof.theory.laws.law import Draw, Mask, Memory, Number, Words, count, exact, probability, threshold


@dataclass(frozen=True)
class Renewal:
    """Bursts of bounded length: `lengths` holds P(T = 1), P(T = 2), ... and sums to 1; `loss` is the overall loss.

    >>> Renewal(0.2, (0.5, 0, 0.5)).age_tail(2)  # mean burst 2; P(T >= 2) = P(T >= 3) = 1/2
    Fraction(1, 10)
    """

    loss: Number
    lengths: tuple[Number, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.lengths, Iterable) or isinstance(self.lengths, str):
            raise TypeError(f"lengths must hold P(T = 1), P(T = 2), ..., got {self.lengths!r}")
        object.__setattr__(self, "lengths", tuple(self.lengths))
        chances = [probability(f"lengths[{i}]", value, one=True) for i, value in enumerate(self.lengths)]
        if sum(chances) != 1:
            raise ValueError(f"lengths must sum to 1, got {self.lengths!r}")
        _check_loss(self.loss, self._mean)

    @property
    def _tail(self) -> list[Fraction]:
        """P(T >= 1), P(T >= 2), ..."""
        return [sum(map(exact, self.lengths[j:]), Fraction(0)) for j in range(len(self.lengths))]

    @property
    def _mean(self) -> Fraction:
        return sum(self._tail, Fraction(0))

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        return exact(self.loss)

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        if count("k", k, 0) == 0:
            return Fraction(1)
        return exact(self.loss) * sum(self._tail[k - 1 :], Fraction(0)) / self._mean

    def sample(self, draw: Draw, memory: Memory) -> tuple[Mask, Memory]:
        residual = [sum(self._tail[j:], Fraction(0)) / self._mean for j in range(len(self.lengths))]
        return _run(draw, memory, exact(self.loss), self._mean, _inverse(self._tail), _inverse(residual))


@dataclass(frozen=True)
class HeavyTailed:
    """Bursts with P(T >= j) = 2 / (j (j+1)): mean 2, infinite variance, so that ages have an infinite mean.

    P(A >= k) = loss / k. The longest burst is cut off where probabilities fall below 2^-32. `loss` is at most 2/3, for
    runs of arrivals to exist. This is the Yule-Simon law with rho = 2.

    >>> HeavyTailed(0.1).age_tail(5)
    Fraction(1, 50)
    """

    loss: Number

    def __post_init__(self) -> None:
        _check_loss(self.loss, Fraction(2))

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        return exact(self.loss)

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return exact(self.loss) / k if count("k", k, 0) else Fraction(1)

    def sample(self, draw: Draw, memory: Memory) -> tuple[Mask, Memory]:
        return _run(draw, memory, exact(self.loss), Fraction(2), _heavy_length, _heavy_residual)


def _check_loss(loss: Number, mean: Fraction) -> None:
    p = probability("loss", loss)
    if p > mean / (1 + mean):
        raise ValueError(
            f"loss must be at most L/(1+L) = {float(mean / (1 + mean)):g} for bursts of mean L = {float(mean):g}, "
            f"got {loss!r}"
        )


def _run(
    draw: Draw,
    memory: Memory,
    loss: Fraction,
    mean: Fraction,
    length: Callable[[Words], Words],
    residual: Callable[[Words], Words],
) -> tuple[Mask, Memory]:
    """`left` is how many losses are left of the burst, this packet included; 0 in a run of arrivals, of at least one.

    Stationary: P(left >= j) = loss times the residual tail; a burst begins in a share loss / mean of the ticks.
    """
    before, chance = memory.get(draw.phase), draw.words(1)
    if before is None:
        left = np.where(chance < threshold(loss), residual(draw.words(2)), 0)
    else:
        begins = chance < threshold(loss / (mean * (1 - loss)))
        left = np.where(before > 0, before - 1, np.where(begins, length(draw.words(2)), 0))
    return left > 0, {**memory, draw.phase: left}


def _inverse(tail: list[Fraction]) -> Callable[[Words], Words]:
    """Words to lengths of this tail: the number of j with word < floor(tail_j 2^32)."""
    edges = np.array([threshold(t) for t in tail[::-1]], dtype=np.int64)
    return lambda words: len(edges) - np.searchsorted(edges, words, side="right")


def _heavy_length(words: Words) -> Words:
    """The largest j with word < floor(2^33 / (j (j+1))), which is j (j+1) <= 2^33 // (word + 1)."""
    product = (1 << 33) // (words + 1)
    return ((np.sqrt(4 * product + 1) - 1) / 2).astype(np.int64)  # sqrt is exact enough: its argument is below 2^36


def _heavy_residual(words: Words) -> Words:
    """The largest j with word < floor(2^32 / j)."""
    return (1 << 32) // (words + 1)
