"""A claim: a statement, what it assumes, what it does not say, and the evidence for it, rung by rung.

A rung is a function that raises `Refuted` or returns `Evidence`. With it stand the mistakes planted to test the rung
itself: each replaces one attribute of `theory` or `impl` by a wrong one, and the rung must then raise `Refuted`.

    B1 = Claim("B1", "Age of a replica", assumes=(...), not_claimed=(...), witness="...")

    @B1.rung("enumerated", plant("age read one step late", staleness, "age_pmf", lambda a, p: ...), ...)
    def ages(run: Run) -> Evidence:
        require(measured == predicted, "...")
        return Evidence("2^5 loss patterns over 5 steps")

`proofs_checks/claims/` is searched for claims: a new file there, or a new claim in one, needs no registration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from unittest import mock

from lossproof.theory.derive.steps import Derivation

Kind = Literal["derived", "certified", "enumerated", "sampled", "kernel"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Verdict = Literal["holds", "fails", "not run", "not applicable"]
Effort = Literal["quick", "full"]


class Refuted(AssertionError):
    """The evidence contradicts the claim; the message is the counterexample."""


def require(condition: bool, message: str) -> None:
    """Raises `Refuted` unless the condition holds."""
    if not condition:
        raise Refuted(message)


@dataclass(frozen=True)
class Run:
    """What a check may depend on: the effort and the seed, nothing else."""

    effort: Effort = "quick"
    seed: int = 0

    def pick(self, quick: Any, full: Any) -> Any:
        return quick if self.effort == "quick" else full


@dataclass(frozen=True)
class Evidence:
    """What a rung found.

    `alpha` is the probability with which a sampled check would have refuted a true claim; `tightness` is measured over
    bound, for a claim that is a bound.
    """

    detail: str
    alpha: float | None = None
    tightness: float | None = None


@dataclass(frozen=True)
class Mutant:
    """A planted mistake: `owner.name` is replaced by `wrong`."""

    description: str
    owner: Any
    name: str
    wrong: Any

    def planted(self) -> Any:
        """A context in which the mistake is in place."""
        return mock.patch.object(self.owner, self.name, self.wrong)


plant = Mutant


@dataclass(frozen=True)
class Rung:
    kind: Kind
    check: Callable[[Run], Evidence]
    mutants: tuple[Mutant, ...]


@dataclass(frozen=True)
class Claim:
    """A statement and its evidence.

    Args:
        id: upper case, a letter and a number.
        title: the statement in one line.
        derive: its derivation, whose conclusions are the statement as mathematics.
        assumes: what must hold. not_claimed: what the reader might think it says and it does not.
        witness: a concrete case in which all assumptions hold, so that the statement is not empty.
        advice: what a practitioner should do differently now that it is known.
    """

    id: str
    title: str
    derive: Callable[[], Derivation]
    assumes: tuple[str, ...]
    not_claimed: tuple[str, ...]
    witness: str
    advice: str = ""
    rungs: dict[Kind, Rung] = field(default_factory=dict)
    absent: dict[Kind, tuple[Verdict, str]] = field(default_factory=dict)

    def rung(self, kind: Kind, *mutants: Mutant) -> Callable[[Callable[[Run], Evidence]], Callable[[Run], Evidence]]:
        """Decorates the check of one rung and plants its mistakes."""
        if kind not in KINDS or kind in self.rungs:
            raise ValueError(f"kind must be one of {', '.join(KINDS)} and new to {self.id}, got {kind!r}")

        def add(check: Callable[[Run], Evidence]) -> Callable[[Run], Evidence]:
            self.rungs[kind] = Rung(kind, check, mutants)
            return check

        return add

    def derived(self, *mutants: Mutant) -> None:
        """The derived rung: every step of `derive` is checked. The mistakes are planted in the closed forms."""

        @self.rung("derived", *mutants)
        def check(run: Run) -> Evidence:
            derivation = self.derive()
            failure = derivation.first_failure()
            require(failure is None, f"step not proved: {failure and failure.equation} ({failure and failure.reason})")
            assumed = sum(step.assumed for step in derivation.steps)
            return Evidence(f"{len(derivation.steps) - assumed} steps proved, {assumed} definitions and assumptions")

    def leave_out(self, kind: Kind, verdict: Literal["not run", "not applicable"], reason: str) -> None:
        """Says why a rung has no check."""
        self.absent[kind] = (verdict, reason)

    def _repr_html_(self) -> str:
        from lossproof.proofs_checks.report import claim_html

        return claim_html(self)
