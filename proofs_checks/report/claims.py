"""One claim: its statement, what it rests on, its evidence, the mistakes planted to test that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lossproof.proofs_checks.claim import Claim, Mutant
from lossproof.proofs_checks.report.mathematics import equation
from lossproof.proofs_checks.report.text import items, plain, prose, tag
from lossproof.theory.derive.steps import Derivation, Step

if TYPE_CHECKING:
    from lossproof.proofs_checks.judge import ClaimResult, RungResult

_SIGNS = {"holds": "✓", "fails": "✗", "not run": "○", "not applicable": "–"}
_WORDS = {"not applicable": "n/a"}


def verdict(word: str) -> str:
    """A verdict as a sign and a word; the colour only repeats them."""
    sign = tag("span", _SIGNS[word], aria_hidden="true")
    return tag("span", f"{sign} {plain(_WORDS.get(word, word))}", class_=f"verdict {word.replace(' ', '-')}")


def claim_html(claim: Claim) -> str:
    """The statement as mathematics, its assumptions, and its derivation; for a notebook, with the title above."""
    steps = claim.derive()
    return tag("h3", f"{plain(claim.id)}. {prose(claim.title)}") + statement(claim, steps) + derivation(steps)


def statement(claim: Claim, steps: Derivation) -> str:
    """What is claimed, what it assumes, what it does not say, when its assumptions hold, and what follows."""
    parts = [
        ("Statement", "".join(map(equation, steps.conclusions))),
        ("Assumes", items(claim.assumes)),
        ("Does not claim", items(claim.not_claimed)),
        ("Witness: a case in which it applies", tag("p", prose(claim.witness))),
        ("In practice", tag("p", prose(claim.advice)) if claim.advice else ""),
    ]
    return "".join(tag("h4", title) + inner for title, inner in parts if inner)


def derivation(found: Derivation) -> str:
    """Every step with its reason, folded."""
    steps = found.steps
    listed = "".join(map(_step, steps))
    return tag("details", tag("summary", f"Derivation, {len(steps)} steps") + tag("ol", listed), class_="derivation")


def _step(step: Step) -> str:
    marks = tag("strong", "statement", class_="mark") + " " if step.conclusion else ""
    return tag("li", equation(step) + tag("p", marks + prose(step.because), class_="because"))


def article(result: ClaimResult, planted: Iterable[Mutant], figures: str) -> str:
    """A claim of a report, folded: `planted` are the mistakes that this run has planted."""
    claim = result.claim
    head = tag("span", plain(claim.id), class_="id") + tag("span", prose(claim.title)) + verdict(result.verdict)
    steps = claim.derive()
    body = statement(claim, steps) + figures + tag("h4", "Evidence") + _evidence(result) + derivation(steps)
    mutants = _mistakes(result, set(map(id, planted)))
    title = f"Planted mistakes, {result.caught} of {result.planted} caught"
    body += tag("details", tag("summary", title) + mutants, class_="mistakes") if mutants else ""
    anchor = tag("a", f"#{plain(claim.id)}", class_="permalink", href=f"#{claim.id}", title=f"Link to claim {claim.id}")
    folded = tag("details", tag("summary", tag("h3", head)) + tag("div", body, class_="body"))
    return tag("article", anchor + folded, id=claim.id, class_="claim")


def _evidence(result: ClaimResult) -> str:
    head = "".join(tag("th", name, scope="col") for name in ("rung", "verdict", "what was found"))
    rows = "".join(
        tag("tr", tag("th", plain(rung.kind), scope="row") + tag("td", verdict(rung.verdict)) + tag("td", _found(rung)))
        for rung in result.rungs
    )
    return tag("table", tag("thead", tag("tr", head)) + tag("tbody", rows), class_="evidence")


def _found(rung: RungResult) -> str:
    notes = [prose(rung.detail)]
    if rung.alpha is not None:
        notes.append(f"refutes a true claim with probability at most {rung.alpha:.1g}")
    if rung.tightness is not None:
        notes.append(f"measured over bound {rung.tightness:.2f}")
    return "; ".join(notes)


def _mistakes(result: ClaimResult, planted: set[int]) -> str:
    """Every mistake written for a rung, what it replaces, and what became of it."""
    rows = []
    for found in result.rungs:
        rung = result.claim.rungs.get(found.kind)
        for mutant in rung.mutants if rung else ():
            if not found.planted or id(mutant) not in planted:
                fate = tag("span", "○ not planted", class_="verdict not-run")
            elif any(name == mutant.description or name.startswith(f"{mutant.description} (crashed: ")
                     for name in found.survivors):  # fmt: skip
                fate = tag("span", "✗ SURVIVED", class_="verdict fails")
            else:
                fate = tag("span", "✓ caught", class_="verdict holds")
            where = f"{getattr(mutant.owner, '__name__', type(mutant.owner).__name__)}.{mutant.name}"
            cells = (plain(found.kind), prose(mutant.description), tag("code", plain(where)), fate)
            rows.append(tag("tr", "".join(tag("td", cell) for cell in cells)))
    head = "".join(tag("th", name, scope="col") for name in ("rung", "mistake", "in place of", "outcome"))
    return tag("table", tag("thead", tag("tr", head)) + tag("tbody", "".join(rows))) if rows else ""
