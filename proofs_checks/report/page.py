"""The report as a page: what was run, how to read it, the table of claims and rungs, then every claim, folded.

It is HTML that is also well-formed XML. It loads nothing: style, script, mathematics and figures are inside. Nothing in
it depends on the clock, so that equal runs give equal bytes.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from lossproof.proofs_checks import evidence
from lossproof.proofs_checks.claim import KINDS
from lossproof.proofs_checks.report import figures
from lossproof.proofs_checks.report.claims import article, verdict
from lossproof.proofs_checks.report.text import plain, prose, tag

if TYPE_CHECKING:
    from lossproof.proofs_checks.judge import ClaimResult, Report

_RUNGS = {
    "derived": "symbolic steps from the law of the losses, each proved or marked as an assumption",
    "certified": "exact rational certificates, for all values of the parameters",
    "enumerated": "the code that trains, run over every pattern of losses, equal without any tolerance",
    "sampled": "the same code at sizes that cannot be enumerated, by tests of a stated level",
    "kernel": "a proof that a proof assistant has checked",
}


def report_html(report: Report) -> str:
    """The table of claims and rungs, for a notebook."""
    return _table(report, links=False) + tag("p", _false_alarm(report) + f" Seed {report.seed}, {report.effort}.")


def report_page(report: Report) -> str:
    """The whole page."""
    here = files(__package__)
    style, script = (here.joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    head = "<meta charset='utf-8'/><meta name='viewport' content='width=device-width, initial-scale=1'/>"
    head += "<title>lossproof: the claims and their evidence</title>" + tag("style", _cdata(style, "/*", "*/"))
    table = tag("div", _table(report, links=True), class_="scroll", tabindex="0", role="region", aria_label="Claims")
    body = (
        tag("a", "Skip to the claims", class_="skip", href="#claims")
        + _head(report)
        + tag(
            "main",
            tag("h2", "Claims and rungs", id="claims")
            + _controls()
            + table
            + tag("h2", "The claims, one by one")
            + _articles(report),
        )
        + tag("script", _cdata(script, "//", ""))
    )
    return f"<!doctype html>\n<html lang='en'><head>{head}</head><body>{body}</body></html>\n"


def _cdata(text: str, opened: str, closed: str) -> str:
    """Style and script are read by HTML as they are, and by XML too."""
    return f"{opened}<![CDATA[{closed}\n{text}{opened}]]>{closed}"


def _false_alarm(report: Report) -> str:
    return (
        "If everything claimed is true, this run still refutes something with probability at most "
        f"{report.alpha_total:.1g}."
    )


def _head(report: Report) -> str:
    found = report.to_json()
    caught, planted = (sum(claim["mutants"][key] for claim in found["claims"]) for key in ("caught", "planted"))
    holding = sum(claim["verdict"] == "holds" for claim in found["claims"])
    failing = [claim["id"] for claim in found["claims"] if claim["verdict"] == "fails"]
    facts = {
        "Claims that hold": f"{holding} of {len(found['claims'])}",
        "Planted mistakes caught": f"{caught} of {planted}",
        "False alarm": f"≤ {report.alpha_total:.1g}",
        "Effort": report.effort,
        "Seed": str(report.seed),
    }
    listed = "".join(tag("div", tag("dt", plain(name)) + tag("dd", plain(fact))) for name, fact in facts.items())
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    failed = tag("p", f"✗ Fails: {plain(', '.join(failing))}", class_="verdict fails") if failing else ""
    toggle = tag("button", "Dark", id="theme", type="button", hidden="hidden", aria_pressed="false")
    title = tag("h1", "lossproof") + tag("p", "Training under packet loss: the claims and their evidence", class_="sub")
    return tag(
        "header",
        tag("div", tag("div", title) + toggle, class_="masthead")
        + failed
        + tag("dl", listed, class_="facts")
        + tag("p", f"Run with {plain(versions)}.", class_="small")
        + tag("p", _recorded(), class_="small")
        + _reading(report),
    )


def _reading(report: Report) -> str:
    rungs = "".join(tag("dt", plain(kind)) + tag("dd", plain(_RUNGS[kind])) for kind in KINDS)
    return tag(
        "section",
        tag("h2", "How to read this")
        + tag(
            "p",
            "A rung is a kind of evidence. A claim <em>holds</em> if at least one rung ran, every rung that ran holds, "
            "and every mistake planted to test the checks themselves was caught. A claim with a failed rung or a "
            "surviving mistake <em>fails</em>. What was <em>not run</em> is no evidence either way; a rung that "
            "makes no sense for a claim is <em>n/a</em>. No claim says more than its statement, under its assumptions.",
        )
        + tag("dl", rungs, class_="rungs")
        + tag(
            "p",
            f"{_false_alarm(report)} Only sampled rungs contribute. <em>Tight</em> is measured over bound, for a claim "
            "that is a bound. <em>Caught</em> counts planted mistakes: at quick effort at most four of a rung.",
        ),
        class_="reading",
    )


def _recorded() -> str:
    """What is kept of the last full run, and which claims' code has changed since."""
    try:
        record = evidence.read()
    except ValueError as none:
        return plain(none)
    stale = ", ".join(evidence.stale(record)) or "none"
    quoted = evidence.quotation(record).strip().replace("\n", "; ")
    return plain(f"Recorded evidence: {quoted}; stale: {stale}.")


def _controls() -> str:
    def select(name: str, title: str, choices: tuple[str, ...]) -> str:
        options = "".join(
            tag("option", plain(choice), value="" if k == 0 else choice) for k, choice in enumerate(choices)
        )
        return tag("label", f"{title} " + tag("select", options, id=name))

    return tag(
        "form",
        tag("label", "Find <input id='text' type='search' autocomplete='off'/>")
        + select("kind", "Rung", ("whole claim", *KINDS))
        + select("verdict", "Verdict", ("any", "holds", "fails", "not run", "not applicable"))
        + tag("button", "Unfold all", id="unfold", type="button")
        + tag("button", "Fold all", id="fold", type="button"),
        id="controls",
        hidden="hidden",
        role="search",
    ) + tag("p", "", id="shown", role="status", class_="small")


def _table(report: Report, links: bool) -> str:
    names = ("claim", "title", *KINDS, "caught", "tight", "verdict")
    head = "".join(tag("th", name, scope="col") for name in names)
    rows = "".join(_row(result, links) for result in report.results)
    return tag("table", tag("thead", tag("tr", head)) + tag("tbody", rows), class_="claims")


def _row(result: ClaimResult, links: bool) -> str:
    id_ = plain(result.claim.id)
    cells = [prose(result.claim.title), *(verdict(rung.verdict) for rung in result.rungs)]
    cells += [f"{result.caught}/{result.planted}", "" if result.tightness is None else f"{result.tightness:.2f}"]
    name = tag("th", tag("a", id_, href=f"#{result.claim.id}") if links else id_, scope="row")
    verdicts = {f"data_{rung.kind}": rung.verdict for rung in result.rungs} if links else {}
    marks = verdicts | {"data_claim": result.claim.id, "data_verdict": result.verdict} if links else {}
    return tag("tr", name + "".join(tag("td", cell) for cell in (*cells, verdict(result.verdict))), **marks)


def _articles(report: Report) -> str:
    """Every claim; a figure that several claims share is embedded once, the others point to it."""
    from lossproof.proofs_checks.judge import planted

    drawn, at, articles = figures.find(), dict[str, str](), []
    for result in report.results:
        mutants = [mutant for rung in result.claim.rungs.values() for mutant in planted(rung, report.effort)]
        shown = ""
        for figure in (figure for figure in drawn if result.claim.id in figure.claims):
            if figure.name in at:
                link = tag("a", plain(at[figure.name]), href=f"#figure-{figure.name}")
                shown += tag("p", f"Figure: {plain(figure.caption)} (under {link})")
            else:
                shown += figure.html()
                at[figure.name] = result.claim.id
        articles.append(article(result, mutants, tag("h4", "Figures") + shown if shown else ""))
    return "".join(articles)
