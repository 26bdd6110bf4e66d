"""Counterexamples to a rule: an input, what the rule does there, and a Python snippet that shows it.

A snippet loads the rule anew, prints what it does and ends in an assertion: it fails as long as the rule does, and
passes once the rule is mended.

Legend: K how many gradients arrived.
"""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from lossproof.proofs_checks.enumeration import ROUNDING, LinkLaw


@dataclass(frozen=True)
class Source:
    """Where a rule comes from; `path` is None for one that no file holds under its name, such as a lambda."""

    name: str
    path: str | None

    @classmethod
    def of(cls, rule: Any) -> Source:
        name = getattr(rule, "__qualname__", type(rule).__name__)
        try:
            path = inspect.getsourcefile(rule) if name.isidentifier() else None
        except TypeError:
            path = None
        return cls(name, path and str(Path(path).resolve()))

    def loading(self) -> list[str]:
        if self.path is None:
            return [f"rule = ...  # put the rule here: {self.name}"]
        return [
            f"sys.path.insert(0, {str(Path(self.path).parent)!r})",
            f"rule = runpy.run_path({self.path!r})[{self.name!r}]  # runs the file",
        ]


@dataclass(frozen=True)
class Counterexample:
    """`kind` names the fault, `summary` says in a sentence what happens; `snippet` is a program that shows it."""

    kind: str
    summary: str
    snippet: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def of_bias(source: Source, summary: str, gradients: list[int], law: LinkLaw, unbiased: str) -> Counterexample:
    """The counterexample that a sum over all arrival patterns shows."""
    losses = ", ".join(f"Fraction({loss.numerator}, {loss.denominator})" for loss in law.losses)
    asked = {
        "given_survivor": "abs(given - mean) <= rounding",
        "always": "abs(always - mean) <= rounding",
        "either": "abs(given - mean) <= rounding or abs(always - mean) <= rounding",
    }[unbiased]
    return Counterexample(
        "biased",
        summary,
        f"""\
# {summary}
import runpy
import sys
from fractions import Fraction
from itertools import product
from math import prod

import torch

{chr(10).join(source.loading())}
gradients = {gradients}  # one number for each rank
losses = [{losses}]  # of each link by itself
outage = {law.outage!r}  # the chance that all are cut at once
payload_NPE = torch.tensor(gradients, dtype=torch.float64).reshape(-1, 1, 1)

mean = Fraction(sum(gradients), len(gradients))
always = given = survives = Fraction(0)
for pattern in product((True, False), repeat=len(gradients)):
    chance = (1 - outage) * prod(1 - p if arrived else p for p, arrived in zip(losses, pattern, strict=True))
    chance += outage * (not any(pattern))
    estimate = Fraction(rule(payload_NPE.clone(), torch.tensor(pattern).reshape(-1, 1)).item())
    always += chance * estimate
    if any(pattern):
        given += chance * estimate
        survives += chance
given /= survives
for name, value in (("mean of the gradients", mean), ("E[rule | K >= 1]", given), ("E[rule]", always)):
    print(f"{{name:21}} = {{value if value.denominator < 10**9 else float(value)}}")
rounding = Fraction(1, 2**{ROUNDING.denominator.bit_length() - 1}) * max(map(abs, gradients))
assert {asked}
""",
    )


def fraction(value: Fraction, width: int = 19) -> str:
    """A rational in at most `width` characters: itself if it fits, else a decimal marked as rounded."""
    return str(value) if len(str(value)) <= width else f"~{float(value):.10g}"
