"""Claims and reports as HTML, for a notebook or as a page of its own: MathML, no script, no network."""

from __future__ import annotations

import re
import unicodedata
from html import escape
from typing import TYPE_CHECKING, Any

import sympy as sp
from sympy.printing.mathml import MathMLPresentationPrinter

from lossproof.proofs_checks import evidence
from lossproof.proofs_checks.claim import KINDS, Claim
from lossproof.theory.derive.steps import Step

if TYPE_CHECKING:
    from lossproof.proofs_checks.judge import ClaimResult, Report

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
td, th { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid #8886; }
.fails { font-weight: bold; color: #c00; } .not { opacity: .7; } details { margin: 1rem 0; } math { font-size: 1.1em; }
"""


class _MathML(MathMLPresentationPrinter):  # type: ignore[misc]
    """Symbols by their names as plain text; the printer's own way with them leaves TeX in the page."""

    def _print_Symbol(self, symbol: sp.Symbol, style: str = "plain") -> Any:
        item = self.dom.createElement("mi")
        item.appendChild(self.dom.createTextNode(escape(_plain(symbol.name))))  # SymPy writes text as it is
        return item

    _print_IndexedBase = _print_Symbol

    def _print_Indexed(self, indexed: sp.Indexed) -> Any:
        item = self.dom.createElement("msub")
        item.appendChild(self._print_Symbol(sp.Symbol(str(indexed.base.label))))
        item.appendChild(self._print(indexed.indices[0]))
        return item


def _math(step: Step) -> str:
    left, right = (str(_MathML()._print(side).toxml()) for side in (step.left, step.right))
    return f"<math display='block'><mrow>{left}<mo>=</mo>{right}</mrow></math>"


_TEX = {
    r"\hat{g}": "ĝ", r"\bar{g}": "ḡ", r"\infty": "∞", r"\,|\,": " | ", r"\ge": "≥", r"\le": "≤", r"\mathrm": "",
    r"\textstyle\sum": "Σ", r"\ ": " ", r"\,": " ", r"\cdot": "·", r"\sum": "Σ", r"\prod": "Π", r"\frac": "",
    r"\ne": "≠", r"\ldots": "…", r"\textstyle": "", r"\langle": "⟨", r"\rangle": "⟩",
}  # fmt: skip


def _plain(name: str) -> str:
    """A symbol's TeX name as plain text."""
    for tex, text in _TEX.items():
        name = name.replace(tex, text)
    name = re.sub(r"\\([A-Za-z][a-z]+)", _greek, name)
    return re.sub(r"[{}\\]", "", name)


def _greek(tex: re.Match[str]) -> str:
    size = "CAPITAL" if tex[1][0].isupper() else "SMALL"
    try:
        return unicodedata.lookup(f"GREEK {size} LETTER {tex[1].upper()}")
    except KeyError:
        return tex[1]


def claim_html(claim: Claim) -> str:
    """The statement as mathematics, its assumptions, and its derivation."""
    derivation = claim.derive()
    steps = "".join(f"<li>{_math(s)}<p>{escape(s.because)}</p></li>" for s in derivation.steps)
    return (
        f"<h3 id='{claim.id}'>{claim.id}. {escape(claim.title)}</h3>"
        + "".join(_math(s) for s in derivation.conclusions)
        + _list("Assumes", claim.assumes)
        + _list("Does not claim", claim.not_claimed)
        + f"<p>Witness: {escape(claim.witness)}</p>"
        + (f"<p>In practice: {escape(claim.advice)}</p>" if claim.advice else "")
        + f"<details><summary>Derivation, {len(derivation.steps)} steps</summary><ol>{steps}</ol></details>"
    )


def _list(title: str, items: tuple[str, ...]) -> str:
    return f"<p>{title}:</p><ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _row(result: ClaimResult) -> str:
    cells = "".join(
        f"<td class='{rung.verdict}' title='{escape(rung.detail, quote=True)}'>{rung.verdict}</td>"
        for rung in result.rungs
    )
    tightness = "" if result.tightness is None else f"{result.tightness:.2f}"
    return (
        f"<tr><td>{result.claim.id}</td><td>{escape(result.claim.title)}</td>{cells}"
        f"<td>{result.caught}/{result.planted}</td><td>{tightness}</td>"
        f"<td class='{result.verdict}'>{result.verdict}</td></tr>"
    )


def report_html(report: Report) -> str:
    """The table of claims and rungs."""
    head = "".join(
        f"<th>{name}</th>" for name in ("claim", "statement", *KINDS, "caught/planted", "tightness", "verdict")
    )
    rows = "".join(_row(result) for result in report.results)
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<p>False-alarm probability at most {report.alpha_total:.1g}; seed {report.seed}, {report.effort}.</p>"
    )


def _recorded() -> str:
    """What is kept of the last full run, and which claims' code has changed since."""
    try:
        record = evidence.read()
    except ValueError as none:
        return f"<p>{escape(str(none))}</p>"
    stale = ", ".join(evidence.stale(record)) or "none"
    return f"<p>Recorded evidence: {escape(evidence.quotation(record))}; stale: {stale}.</p>"


def report_page(report: Report) -> str:
    """The table, and every claim with its evidence, as one self-contained page."""

    def section(result: ClaimResult) -> str:
        items = tuple(f"{rung.kind}: {rung.verdict}. {rung.detail}" for rung in result.rungs)
        planted = tuple(
            f"{kind}: {mutant.description}" for kind, rung in result.claim.rungs.items() for mutant in rung.mutants
        )
        return claim_html(result.claim) + _list("Evidence", items) + _list("Planted mistakes", planted)

    body = report_html(report) + _recorded() + "".join(section(result) for result in report.results)
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>lossproof: the claims</title>"
        f"<style>{_STYLE}</style></head><body><h1>lossproof: the claims</h1>{body}</body></html>\n"
    )
