"""Where theory and implementation meet: claims, their evidence, the planted mistakes, the verdict, the report.

For other people's test suites: `check_rule`, `check_law` and the Hypothesis strategies `laws`, `losses`, `arrivals`,
`payloads`, `rounds`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossproof.proofs_checks.claim import Claim, Evidence, Refuted, plant, require
    from lossproof.proofs_checks.judge import Report, verify
    from lossproof.proofs_checks.law_checks import check_law
    from lossproof.proofs_checks.refutation import check_rule, refute
    from lossproof.proofs_checks.strategies import RoundCase, arrivals, laws, losses, payloads, rounds

__all__ = [
    "Claim",
    "Evidence",
    "Refuted",
    "Report",
    "RoundCase",
    "arrivals",
    "check_law",
    "check_rule",
    "laws",
    "losses",
    "payloads",
    "plant",
    "refute",
    "require",
    "rounds",
    "verify",
]
_HOME = {name: "claim" for name in ("Claim", "Evidence", "Refuted", "plant", "require")}
_HOME |= {name: "judge" for name in ("Report", "verify")} | {"check_law": "law_checks"}
_HOME |= {name: "refutation" for name in ("check_rule", "refute")}
_HOME |= {name: "strategies" for name in ("RoundCase", "arrivals", "laws", "losses", "payloads", "rounds")}


def __getattr__(name: str) -> Any:
    """Loaded when first asked for: they need torch, SymPy or Hypothesis, the package itself none of them."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
