"""Losses that all links have in common."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from lossproof.theory.laws.law import Draw, Mask, Memory, Number, count, exact, probability, threshold


@dataclass(frozen=True)
class CommonOutage:
    """A packet's owner is cut off with probability `outage`, then every link loses the packet; else each by itself.

    `loss` is the overall loss of a link, which alone cannot be told from `Bernoulli(loss)`; two links lose the same
    packet with probability outage + (loss - outage)^2 / (1 - outage). Outages are independent between packets, phases
    and steps; they hit the owner's link to itself like the others, where that is lossy.

    >>> CommonOutage(0.2, outage=0.1).age_tail(2)
    Fraction(1, 25)
    """

    loss: Number
    outage: Number
    independent_links: ClassVar[bool] = False

    def __post_init__(self) -> None:
        loss, outage = probability("loss", self.loss), probability("outage", self.outage)
        if outage > loss:
            raise ValueError(f"outage must be at most loss = {self.loss}, got {self.outage!r}")

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        return exact(self.loss)

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return exact(self.loss) ** count("k", k, 0)

    def sample(self, draw: Draw, memory: Memory) -> tuple[Mask, Memory]:
        loss, outage = exact(self.loss), exact(self.outage)
        alone = draw.words() < threshold((loss - outage) / (1 - outage))
        return alone | (draw.common() < threshold(outage)), memory
