"""Every loss pattern at once, through the code that trains: one packet per pattern, weights as polynomials in p.

Packets of a round do not interact, so a round over 2^n packets that all carry the same gradients, packet j with the
j-th pattern of arrivals, is the enumeration of all patterns by the implementation itself. Integers keep it exact.

Legend: N ranks, P packets = patterns, E elements, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch

from lossproof.impl.round import Round
from lossproof.proofs_checks.claim import require


def all_patterns(bits: int) -> torch.Tensor:
    """bool (bits, 2^bits): column j is the j-th pattern; True is an arrival."""
    return (torch.arange(2**bits) >> torch.arange(bits)[:, None]) & 1 == 1


class Scripted:
    """A channel whose masks are given: gradients_TNP by sender and parameters_TNP by receiver, None for all arrived."""

    def __init__(
        self, ranks: int, gradients_TNP: torch.Tensor | None = None, parameters_TNP: torch.Tensor | None = None
    ) -> None:
        self.ranks, self._gradients, self._parameters = ranks, gradients_TNP, parameters_TNP

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return payload_HPE, self._mask(self._gradients, step, payload_HPE.shape[1])

    def parameters(self, step: int, fresh_QE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return fresh_QE, self._mask(self._parameters, step, fresh_QE.shape[0])

    def _mask(self, masks: torch.Tensor | None, step: int, packets: int) -> torch.Tensor:
        return torch.ones(self.ranks, packets, dtype=torch.bool) if masks is None else masks[step]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def play(round_: Round, steps: Sequence[torch.Tensor]) -> Round:
    """Runs a round for every entry of `steps`; the owners move by it: gradients -u on all ranks, SGD with rate 1.

    Each entry is broadcast to (P, E).
    """

    def sgd(estimate_PE: torch.Tensor) -> None:
        round_.fresh_QE.sub_(estimate_PE)

    for u in steps:
        payload_NPE = (-u).expand(round_.fresh_QE.shape).expand(round_.channel.ranks, *round_.fresh_QE.shape)
        round_.step(payload_NPE.contiguous(), sgd)
    return round_


def expectation(values_P: torch.Tensor, arrived_BP: torch.Tensor) -> Callable[[Fraction], Fraction]:
    """E[value] as a function of p, exactly: the sum over patterns of value p^lost (1-p)^arrived."""
    links = arrived_BP.shape[0]
    lost_P = (~arrived_BP).sum(0)
    by_lost = [exact_sum(values_P[lost_P == lost]) for lost in range(links + 1)]
    return lambda p: sum((c * p**k * (1 - p) ** (links - k) for k, c in enumerate(by_lost)), Fraction(0))


def exact_sum(values: torch.Tensor) -> Fraction:
    """The sum of float64 values as rationals."""
    return sum((Fraction(value) for value in values.flatten().tolist()), Fraction(0))


def require_identical(
    what: str, enumerated: Callable[[Fraction], Any], closed: Callable[[Fraction], Any], degree: int
) -> None:
    """Refutes unless both agree for all p: rational functions of numerator and denominator degree <= `degree` in p.

    Two such functions that agree at 2 degree + 1 points are one; the points are exact rationals in (0, 1).
    """
    for point in range(1, 2 * degree + 2):
        p = Fraction(point, 2 * degree + 2)
        left, right = enumerated(p), closed(p)
        require(left == right, f"{what}: at p = {p} the implementation gives {left}, the closed form {right}")
