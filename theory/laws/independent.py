"""Laws without memory: every packet is lost independently of every other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lossproof.theory.laws.law import Draw, Mask, Memory, Number, count, exact, probability, threshold


@dataclass(frozen=True)
class Bernoulli:
    """Every packet is lost independently with probability `loss`: P(A >= k) = loss^k.

    >>> Bernoulli(0.1).age_tail(2)
    Fraction(1, 100)
    """

    loss: Number

    def __post_init__(self) -> None:
        probability("loss", self.loss)

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        return exact(self.loss)

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return exact(self.loss) ** count("k", k, 0)

    def sample(self, draw: Draw, memory: Memory) -> tuple[Mask, Memory]:
        return draw.words() < threshold(exact(self.loss)), memory


@dataclass(frozen=True)
class PerSender:
    """Independent losses whose probability depends on the sender: `losses[src]`. One entry for each rank.

    >>> PerSender((0.0, 0.5)).marginal(src=1)
    Fraction(1, 2)
    """

    losses: tuple[Number, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.losses, Iterable) or isinstance(self.losses, str):
            raise TypeError(f"losses must hold one probability for each rank, got {self.losses!r}")
        object.__setattr__(self, "losses", tuple(self.losses))
        if not self.losses:
            raise ValueError("losses must hold one probability for each rank, got none")
        for rank, loss in enumerate(self.losses):
            probability(f"losses[{rank}]", loss)

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        if not 0 <= src < len(self.losses):
            raise ValueError(f"src must be one of the {len(self.losses)} ranks that losses names, got {src}")
        return exact(self.losses[src])

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return self.marginal(src) ** count("k", k, 0)

    def sample(self, draw: Draw, memory: Memory) -> tuple[Mask, Memory]:
        if draw.ranks != len(self.losses):
            raise ValueError(f"losses must hold one probability for each of {draw.ranks} ranks, got {len(self.losses)}")
        thresholds = np.array([threshold(exact(loss)) for loss in self.losses], dtype=np.int64)
        return draw.words() < thresholds[draw.src], memory
