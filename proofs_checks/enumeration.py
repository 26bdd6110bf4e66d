"""The exact expectation and variance of any aggregation rule: a sum over all patterns of arrivals, in rationals.

The rule is called once for each of the 2^N patterns, with one packet of one element in float64. Gradients are whole
numbers that are multiples of lcm(1..N), so the mean over any set of survivors is exact.

Legend: N ranks; K how many gradients arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import isfinite, lcm, prod
from typing import Literal

import torch

Rule = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Convention = Literal["given_survivor", "always"]
ROUNDING = Fraction(1, 2**46)
"""Differences below this times the largest gradient are float64 rounding of the rule's own arithmetic, not bias."""


@dataclass(frozen=True)
class LinkLaw:
    """Which gradients of one packet arrive: all are cut with probability `outage`, else each link loses by itself.

    `exchangeable` laws treat all senders alike: under them the survivor mean is unbiased given a survivor (claim A1).

    >>> LinkLaw("independent", (Fraction(1, 2),) * 2).chance((True, False))
    Fraction(1, 4)
    """

    name: str
    losses: tuple[Fraction, ...]
    outage: Fraction = Fraction(0)

    @property
    def exchangeable(self) -> bool:
        return len(set(self.losses)) == 1

    def chance(self, pattern: Sequence[bool]) -> Fraction:
        alone = prod(
            (1 - p if arrived else p for p, arrived in zip(self.losses, pattern, strict=True)), start=Fraction(1)
        )
        return (1 - self.outage) * alone + self.outage * (not any(pattern))


def independent(N: int, loss: Fraction) -> LinkLaw:
    return LinkLaw("independent", (loss,) * N)


def common_outage(N: int, loss: Fraction) -> LinkLaw:
    """The same loss of every link, half of it by outages that hit all of them at once."""
    return LinkLaw("common outage", ((loss - loss / 2) / (1 - loss / 2),) * N, loss / 2)


def unequal(N: int, loss: Fraction) -> LinkLaw:
    return LinkLaw("unequal, p(i+1)/N", tuple(loss * (i + 1) / N for i in range(N)))


def own_link_reliable(N: int, loss: Fraction) -> LinkLaw:
    return LinkLaw("rank 0 never lost", (Fraction(0), *(loss,) * (N - 1)))


def patterns(N: int) -> list[tuple[bool, ...]]:
    return list(product((True, False), repeat=N))


def gradient_sets(N: int) -> list[list[int]]:
    """Skewed, one rank alone each, alternating in sign, all equal. Those of one rank decide for every linear rule."""
    unit = lcm(*range(1, N + 1))
    alone = [[unit * (i == j) for j in range(N)] for i in range(N)]
    return [[unit << i for i in range(N)], *alone, [unit * (-1) ** i * (i + 1) for i in range(N)], [unit] * N]


@dataclass(frozen=True)
class Moments:
    """What a rule gives for fixed gradients under one law, exactly; `given` means given that K >= 1."""

    mean: Fraction
    given: Fraction
    always: Fraction
    variance_given: Fraction
    variance_always: Fraction
    none: Fraction

    def bias(self, convention: Convention) -> Fraction:
        return (self.given if convention == "given_survivor" else self.always) - self.mean


def estimates(rule: Rule, gradients: Sequence[int]) -> dict[tuple[bool, ...], Fraction] | None:
    """The rule's estimate for every pattern of arrivals; None if one of them is no finite number."""
    found = {}
    for pattern in patterns(len(gradients)):
        payload_NPE = torch.tensor(gradients, dtype=torch.float64).reshape(-1, 1, 1)
        try:
            value = rule(payload_NPE, torch.tensor(pattern).reshape(-1, 1)).item()
        except Exception:  # the search reports it, with the call that shows it
            return None
        if not isinstance(value, float) or not isfinite(value):
            return None
        found[pattern] = read(value, max(map(abs, gradients)))
    return found


def read(value: float, scale: int) -> Fraction:
    """The rational that a rounded estimate stands for: one of small denominator if it is that near, else itself.

    >>> read(2 / 3, 1), read(2**0.5, 1) == Fraction(2**0.5)
    (Fraction(2, 3), True)
    """
    near = Fraction(value).limit_denominator(10**5)
    return near if abs(near - Fraction(value)) <= ROUNDING * scale else Fraction(value)


def moments(values: dict[tuple[bool, ...], Fraction], gradients: Sequence[int], law: LinkLaw) -> Moments:
    """Expectations over the patterns of a law."""
    chances = {pattern: law.chance(pattern) for pattern in values}
    some = {pattern: chance for pattern, chance in chances.items() if any(pattern)}
    survives = sum(some.values(), Fraction(0))

    def mean(of: Callable[[Fraction], Fraction], over: dict[tuple[bool, ...], Fraction]) -> Fraction:
        return sum((chance * of(values[pattern]) for pattern, chance in over.items()), Fraction(0))

    given, always = mean(lambda x: x, some) / survives, mean(lambda x: x, chances)
    return Moments(
        Fraction(sum(gradients), len(gradients)),
        given,
        always,
        mean(lambda x: (x - given) ** 2, some) / survives,
        mean(lambda x: (x - always) ** 2, chances),
        1 - survives,
    )


def biased(found: Moments, convention: Convention, gradients: Sequence[int]) -> bool:
    return abs(found.bias(convention)) > ROUNDING * max(map(abs, gradients))
