"""Trying to refute an aggregation rule: exact enumeration first, then a search for the smallest counterexample.

A rule maps (payload_NPE, arrived_NP) to estimate_PE. It is refuted if it breaks what every rule must keep
(`faults.FAULTS`), or if its expectation is not the mean of the gradients under a law that treats all senders alike. Two
conventions are told apart: `given_survivor`, E[rule | K >= 1], which the survivor mean satisfies (claim A1), and
`always`, E[rule], which inverse probability satisfies (claim A4) and the survivor mean with zero for nobody does not
(claim A2).

Legend: N ranks, P packets, E elements of a packet; K how many arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from lossproof.impl.aggregate import aggregate
from lossproof.proofs_checks import enumeration
from lossproof.proofs_checks.counterexample import Counterexample, Source, fraction, of_bias
from lossproof.proofs_checks.enumeration import Convention, LinkLaw, Moments, Rule
from lossproof.proofs_checks.faults import FAULTS, Case, Fault, counterexample
from lossproof.proofs_checks.strategies import arrivals, payloads
from lossproof.theory.laws import Number, probability

Unbiased = Literal["either", "given_survivor", "always"]
SCHEMA = 1
RANKS, LOSSES = (2, 3, 4), (Fraction(1, 10), Fraction(1, 2))
MOST_RANKS = 10
LAWS = (enumeration.independent, enumeration.common_outage, enumeration.unequal, enumeration.own_link_reliable)
WORDS: dict[Convention, str] = {"given_survivor": "given a survivor", "always": "over all rounds, none included"}


@dataclass(frozen=True)
class Row:
    """One line of the enumeration: gradients, a loss, a law; the rule's moments and the survivor mean's."""

    law: LinkLaw
    loss: Fraction
    gradients: list[int]
    rule: Moments
    survivor_mean: Moments

    def to_json(self) -> dict[str, Any]:
        exact = {
            "mean": self.rule.mean,
            "expectation_given_survivor": self.rule.given,
            "expectation_always": self.rule.always,
            "bias_given_survivor": self.rule.bias("given_survivor"),
            "bias_always": self.rule.bias("always"),
            "variance_given_survivor": self.rule.variance_given,
            "variance_always": self.rule.variance_always,
            "p_no_survivor": self.rule.none,
            "survivor_mean_bias_given_survivor": self.survivor_mean.bias("given_survivor"),
            "survivor_mean_variance_given_survivor": self.survivor_mean.variance_given,
        }
        return {
            "ranks": len(self.gradients),
            "loss": str(self.loss),
            "law": self.law.name,
            "counts": self.law.exchangeable,
            "gradients": self.gradients,
        } | {name: str(value) for name, value in exact.items()}


@dataclass(frozen=True)
class Options:
    """What is asked of a rule; see `refute`."""

    losses: tuple[Fraction, ...]
    ranks: tuple[int, ...]
    owner: int | None
    unbiased: Unbiased

    @classmethod
    def of(
        cls, losses: Iterable[Number] | None, ranks: Iterable[int], owner: int | None, unbiased: Unbiased
    ) -> Options:
        """Raises TypeError or ValueError naming the argument that cannot be used."""
        chosen = tuple(probability("losses", loss) for loss in (LOSSES if losses is None else losses))
        sizes = tuple(dict.fromkeys(ranks))
        if not sizes or not all(isinstance(N, int) and 1 <= N <= MOST_RANKS for N in sizes):
            raise ValueError(f"ranks must be whole numbers from 1 to {MOST_RANKS}, got {list(sizes)}")
        if unbiased not in get_args(Unbiased):
            raise ValueError(f"unbiased must be one of {', '.join(get_args(Unbiased))}, got {unbiased!r}")
        if not chosen:
            raise ValueError("losses must hold at least one probability, got none")
        if owner is not None and not 0 <= owner < min(sizes):
            raise ValueError(f"owner must be a rank below {min(sizes)}, got {owner}")
        return cls(chosen, sizes, owner, unbiased)


@dataclass(frozen=True)
class Refutation:
    """What became of the attempt. `standing`: the conventions under which every enumerated case is unbiased."""

    rule: Source
    ranks: tuple[int, ...]
    losses: tuple[Fraction, ...]
    unbiased: Unbiased
    rows: tuple[Row, ...]
    standing: tuple[Convention, ...]
    counterexamples: tuple[Counterexample, ...]
    tried: int

    @property
    def refuted(self) -> bool:
        return bool(self.counterexamples)

    def verdict(self) -> str:
        if self.refuted:
            return "REFUTED: " + "; ".join(example.summary for example in self.counterexamples)
        ranks, losses = ", ".join(map(str, self.ranks)), ", ".join(map(str, self.losses))
        held = " and ".join(WORDS[convention] for convention in self.standing)
        return (
            f"not refuted: unbiased {held}, for every arrival pattern of N = {ranks} at loss {losses}, with "
            f"independent losses and with common outages, for {', '.join(str(n + 3) for n in self.ranks)} sets of "
            f"gradients (those of one rank alone decide for every rule that is linear in the gradients); and none of "
            f"{self.tried} inputs searched breaks what a rule must keep. This is no proof for other N, losses, laws or "
            f"gradients; differences below 2^-46 of the largest gradient count as rounding."
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "rule": self.rule.name,
            "file": self.rule.path,
            "verdict": "refuted" if self.refuted else "not refuted",
            "ranks": list(self.ranks),
            "losses": [str(loss) for loss in self.losses],
            "unbiased": {
                "asked": self.unbiased,
                "enumerated": {c: c in self.standing for c in get_args(Convention)} if self.rows else None,
            },
            "enumeration": [row.to_json() for row in self.rows],
            "counterexamples": [example.to_json() for example in self.counterexamples],
            "inputs_searched": self.tried,
        }


def refute(
    rule: Rule,
    *,
    losses: Iterable[Number] | None = None,
    ranks: Iterable[int] = RANKS,
    owner: int | None = None,
    unbiased: Unbiased = "either",
    source: Source | None = None,
) -> Refutation:
    """Tries to refute a rule; equal arguments give equal results.

    Args:
        rule: maps (payload_NPE, arrived_NP) to estimate_PE, of the payload's dtype.
        losses: where the rule must be unbiased; 1/10 and 1/2 if left out. Name the one loss that a rule knows.
        ranks: numbers of ranks, 1 to 10.
        owner: a rank whose own gradient needs no network, so that the rule may read it though it is lost.
        unbiased: the convention that the rule must satisfy; `either` is content with one of them throughout.
        source: where snippets find the rule; by default asked of the rule.

    Raises:
        TypeError, ValueError: unusable arguments.

    >>> refute(lambda payload, arrived: aggregate(payload, arrived)[0]).refuted
    False
    """
    if not callable(rule):
        raise TypeError(f"rule must be callable as rule(payload_NPE, arrived_NP), got {rule!r}")
    return attempt(rule, Options.of(losses, ranks, owner, unbiased), source or Source.of(rule))


def attempt(rule: Rule, options: Options, source: Source) -> Refutation:
    """`refute`, with options that were looked at before: the command does that before it runs the user's file."""
    sizes, chosen, unbiased = options.ranks, options.losses, options.unbiased
    with torch.no_grad():
        search = _Search(rule, sizes, options.owner, source)
        faults = search.faults()
        fatal = any(fault.fatal and fault.kind == example.kind for fault in FAULTS for example in faults)
        rows, broken = ((), {}) if fatal else _enumerate(rule, sizes, chosen)
        asked: list[Convention] = [c for c in get_args(Convention) if unbiased in ("either", c)]
        standing = tuple(c for c in asked if c not in broken) if rows else ()
        bias = search.bias(standing or asked, chosen) if rows else None
        if bias is None and rows and not standing:  # each convention fails somewhere, no searched case fails both
            gradients, law, found = broken[asked[0]]
            bias = of_bias(source, _bias_summary(found, gradients, law), gradients, law, asked[0])
    return Refutation(
        source, sizes, chosen, unbiased, rows, standing, (*faults, *([bias] if bias else [])), search.tried
    )


def check_rule(rule: Rule, **options: Any) -> Refutation:
    """`refute` for a test suite: raises AssertionError with the verdict and the snippets if the rule is refuted.

    >>> check_rule(lambda payload, arrived: aggregate(payload, arrived)[0]).standing
    ('given_survivor',)
    """
    found = refute(rule, **options)
    if found.refuted:
        raise AssertionError("\n\n".join([found.verdict(), *(example.snippet for example in found.counterexamples)]))
    return found


def _enumerate(
    rule: Rule, ranks: Iterable[int], losses: Iterable[Fraction]
) -> tuple[tuple[Row, ...], dict[Convention, tuple[list[int], LinkLaw, Moments]]]:
    """The table, for the first set of gradients; and where, in any set, each convention fails first."""
    rows: list[Row] = []
    broken: dict[Convention, tuple[list[int], LinkLaw, Moments]] = {}
    for N in ranks:
        for number, gradients in enumerate(enumeration.gradient_sets(N)):
            values = enumeration.estimates(rule, gradients)
            theirs = enumeration.estimates(lambda payload, arrived: aggregate(payload, arrived)[0], gradients)
            if values is None or theirs is None:
                return (), {}
            for loss in losses:
                for law in (build(N, loss) for build in LAWS):
                    found = enumeration.moments(values, gradients, law)
                    if number == 0:
                        rows.append(Row(law, loss, gradients, found, enumeration.moments(theirs, gradients, law)))
                    for convention in get_args(Convention):
                        if law.exchangeable and enumeration.biased(found, convention, gradients):
                            broken.setdefault(convention, (gradients, law, found))
    return tuple(rows), broken


def _bias_summary(found: Moments, gradients: list[int], law: LinkLaw) -> str:
    given, always = fraction(found.given), fraction(found.always)
    return (
        f"biased: gradients {gradients}, mean {found.mean}; {law.name} losses of "
        f"{fraction(1 - (1 - law.outage) * (1 - law.losses[0]))}: E[rule | K >= 1] = {given}, E[rule] = {always}"
    )


class _Search:
    """Hypothesis, derandomized and without a database: the same rule gives the same smallest counterexample."""

    def __init__(self, rule: Rule, ranks: tuple[int, ...], owner: int | None, source: Source) -> None:
        self.rule, self.ranks, self.owner, self.source, self.tried = rule, sorted(ranks), owner, source, 0

    def _smallest(
        self, of: st.SearchStrategy[Any], wrong: Callable[[Any], Any], examples: int, shrink: bool = True
    ) -> Any:
        def counted(example: Any) -> bool:
            self.tried += 1
            return bool(wrong(example))

        effort = settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        try:
            return find(of, counted, settings=effort)
        except NoSuchExample:
            return None

    def faults(self) -> list[Counterexample]:
        """The smallest call that shows each fault of the rule."""
        dtype = st.sampled_from([torch.float64, torch.float32])

        @st.composite
        def cases(draw: st.DrawFn) -> Case:
            N, P = draw(st.sampled_from(self.ranks)), draw(st.integers(1, 3))
            return Case(draw(payloads(N, P, st.integers(1, 2), dtype, 8)), draw(arrivals(N, P)), self.owner)

        def shows(fault: Fault, case: Case) -> bool:
            try:
                return fault.check(self.rule, case) is not None
            except Exception:  # a rule that raises, or returns no tensor, is the matter of other faults
                return False

        anything = self._smallest(cases(), lambda case: any(shows(fault, case) for fault in FAULTS), 150, shrink=False)
        found: list[Counterexample] = []
        for fault in FAULTS if anything is not None else ():
            case = self._smallest(cases(), lambda case: shows(fault, case), 150)
            if case is not None:
                found.append(counterexample(self.source, self.rule, fault, case))
                if fault.fatal:
                    break
        return found

    def bias(self, conventions: Sequence[Convention], losses: tuple[Fraction, ...]) -> Counterexample | None:
        """The smallest case that is biased under every one of the conventions at once."""

        def moments(example: Any) -> Moments | None:
            gradients, law = example
            values = enumeration.estimates(self.rule, gradients)
            return None if values is None else enumeration.moments(values, gradients, law)

        def wrong(example: Any) -> bool:
            found = moments(example)
            return found is not None and all(enumeration.biased(found, c, example[0]) for c in conventions)

        @st.composite
        def cases(draw: st.DrawFn) -> tuple[list[int], LinkLaw]:
            N = draw(st.sampled_from(self.ranks))
            law = draw(st.sampled_from(LAWS[:2]))(N, draw(st.sampled_from(losses)))
            return [int(g) for g in draw(payloads(N, 1, 1, torch.float64, 8)).flatten().tolist()], law

        example = self._smallest(cases(), wrong, 100)
        found = None if example is None else moments(example)
        if found is None:
            return None
        gradients, law = example
        asked: Unbiased = conventions[0] if len(conventions) == 1 else "either"
        return of_bias(self.source, _bias_summary(found, gradients, law), gradients, law, asked)
