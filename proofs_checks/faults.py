"""What every aggregation rule must keep, whatever it computes: each fault takes one call apart.

A fault says what is wrong with a call, or None; `snippet` is how a program shows it.

Legend: N ranks, P packets, E elements of a packet.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lossproof.proofs_checks.counterexample import Counterexample, Source
from lossproof.proofs_checks.enumeration import Rule

NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """One call of a rule: what it is given, and which rank is the owner, whose own gradient needs no network."""

    payload_NPE: torch.Tensor
    arrived_NP: torch.Tensor
    owner: int | None = None

    def call(self, rule: Rule, lost: float | None = None) -> Any:
        """What the rule returns; `lost` is put into the slots that it may not read."""
        payload = self.payload_NPE if lost is None else self.with_lost(lost)
        return rule(payload.clone(), self.arrived_NP.clone())

    def with_lost(self, value: float) -> torch.Tensor:
        lost_NP = ~self.arrived_NP
        if self.owner is not None:
            lost_NP[self.owner] = False
        return self.payload_NPE.masked_fill(lost_NP.unsqueeze(-1), value)


def _raises(rule: Rule, case: Case) -> str | None:
    try:
        case.call(rule)
    except Exception as error:
        arrived = "nothing arrived" if not case.arrived_NP.any() else "these packets arrived"
        return f"raises {type(error).__name__} ({str(error).splitlines()[0] if str(error) else ''}) where {arrived}"
    return None


def _output(rule: Rule, case: Case) -> str | None:
    estimate, wanted = case.call(rule), tuple(case.payload_NPE.shape[1:])
    if not isinstance(estimate, torch.Tensor):
        return f"returns a {type(estimate).__name__}; a rule returns the tensor estimate_PE"
    if tuple(estimate.shape) != wanted:
        return f"returns shape {tuple(estimate.shape)} where estimate_PE has shape {wanted}"
    if estimate.dtype != case.payload_NPE.dtype:
        return f"returns {estimate.dtype} for a payload of {case.payload_NPE.dtype}"
    return None


def _arguments(rule: Rule, case: Case) -> str | None:
    payload, arrived = case.payload_NPE.clone(), case.arrived_NP.clone()
    rule(payload, arrived)
    for name, now, before in (("payload_NPE", payload, case.payload_NPE), ("arrived_NP", arrived, case.arrived_NP)):
        if not torch.equal(now, before):
            return f"changes {name} in place"
    return None


def _same_twice(rule: Rule, case: Case) -> str | None:
    first, second = (case.call(rule) for _ in range(2))
    return None if _equal(first, second) else "gives two results for the same arguments: it has a memory or draws"


def _finite(rule: Rule, case: Case) -> str | None:
    if case.call(rule).isfinite().all():
        return None
    return "is not finite " + (
        "where nobody's gradient arrived" if not case.arrived_NP.any(0).all() else "for finite gradients"
    )


def _reads_lost(rule: Rule, case: Case) -> str | None:
    clean, nan, other = (case.call(rule, value) for value in (0.0, NAN, 7.0))
    if not _equal(clean, other):
        return "reads what a lost packet's slot holds" + (
            "" if case.owner is not None else "; if that is the owner's own gradient, name the owner"
        )
    if not _equal(clean, nan):
        return (
            "lets NaN through from a lost packet's slot: 0 * NaN is NaN, so select (torch.where) instead of multiplying"
        )
    return None


def _mixes(rule: Rule, case: Case) -> str | None:
    together = case.call(rule)
    alone = [
        rule(case.payload_NPE[:, [packet]], case.arrived_NP[:, [packet]]) for packet in range(case.arrived_NP.shape[1])
    ]
    if not alone or not together.isfinite().all() or torch.allclose(together, torch.cat(alone)):
        return None
    return "treats a packet differently when others are aggregated with it"


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@dataclass(frozen=True)
class Fault:
    """`check` is the fault; `ending` ends the snippet: the rule was loaded, the payload and the mask were built."""

    kind: str
    check: Callable[[Rule, Case], str | None]
    ending: str
    fatal: bool = False
    """Nothing else can be said of a rule with this fault."""


FAULTS = (
    Fault("raises", _raises, "print(rule(payload_NPE, arrived_NP))"),
    Fault(
        "output",
        _output,
        """\
estimate_PE = rule(payload_NPE, arrived_NP)
print(type(estimate_PE), getattr(estimate_PE, "shape", None), getattr(estimate_PE, "dtype", None))
assert isinstance(estimate_PE, torch.Tensor)
assert estimate_PE.shape == payload_NPE.shape[1:] and estimate_PE.dtype == payload_NPE.dtype""",
    ),
    Fault(
        "not a function",
        _same_twice,
        """\
first, second = rule(payload_NPE.clone(), arrived_NP.clone()), rule(payload_NPE.clone(), arrived_NP.clone())
print(first, second)
assert torch.equal(first, second)""",
        fatal=True,
    ),
    Fault(
        "changes arguments",
        _arguments,
        """\
payload_before, arrived_before = payload_NPE.clone(), arrived_NP.clone()
rule(payload_NPE, arrived_NP)
print(payload_NPE, arrived_NP)
assert torch.equal(payload_NPE, payload_before) and torch.equal(arrived_NP, arrived_before)""",
    ),
    Fault(
        "not finite",
        _finite,
        """\
estimate_PE = rule(payload_NPE, arrived_NP)
print(estimate_PE)
assert estimate_PE.isfinite().all()""",
    ),
    Fault(
        "reads what was lost",
        _reads_lost,
        """\
first, second = rule(payload_NPE, arrived_NP), rule(other_NPE, arrived_NP)  # they differ in lost slots only
print(first, second)
assert torch.equal(first, second)""",
    ),
    Fault(
        "mixes packets",
        _mixes,
        """\
together = rule(payload_NPE.clone(), arrived_NP.clone())
alone = torch.cat([rule(payload_NPE[:, [p]], arrived_NP[:, [p]]) for p in range(arrived_NP.shape[1])])
print(together, alone)
assert torch.allclose(together, alone)""",
    ),
)


def counterexample(source: Source, rule: Rule, fault: Fault, case: Case) -> Counterexample:
    """The program that shows a fault of a rule in a case."""
    summary = fault.check(rule, case)
    built = [_tensor("payload_NPE", case.payload_NPE)]
    if fault.check is _reads_lost:
        garbage = 7.0 if _equal(case.call(rule, 0.0), case.call(rule, NAN)) else NAN
        built = [_tensor("payload_NPE", case.with_lost(garbage)), _tensor("other_NPE", case.with_lost(0.0))]
    lines = ["import runpy", "import sys", "from math import nan  # noqa: F401", "", "import torch", ""]
    lines += [*source.loading(), *built, f"arrived_NP = torch.tensor({case.arrived_NP.tolist()})"]
    return Counterexample(fault.kind, str(summary), "\n".join([f"# {summary}", *lines, fault.ending]) + "\n")


def _tensor(name: str, value: torch.Tensor) -> str:
    return f"{name} = torch.tensor({json.dumps(value.tolist()).replace('NaN', 'nan')}, dtype={value.dtype})"
