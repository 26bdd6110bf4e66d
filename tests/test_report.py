"""The report as markup: what it holds, that it is well formed, that it loads nothing. In a browser: system/."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections import Counter
from xml.etree import ElementTree

import pytest
from reports import recorded_report

from lossproof.proofs_checks.claim import Claim, plant
from lossproof.proofs_checks.judge import KINDS, ClaimResult, Report, RungResult, find_claims
from lossproof.proofs_checks.report import claim_html, figures, report_html, report_page
from lossproof.proofs_checks.report.mathematics import _pieces, _tidy, equation
from lossproof.proofs_checks.report.text import plain, prose
from lossproof.theory import drift
from lossproof.theory.derive.steps import Derivation, given, p

IDS = ("A1", "B2", "D4")
PNG = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNiAAAABgADNjd8qAAAAABJRU5ErkJggg==")


def parsed(page: str) -> ElementTree.Element:
    assert page.startswith("<!doctype html>\n")
    return ElementTree.fromstring(page.removeprefix("<!doctype html>"))


def text(element: ElementTree.Element) -> str:
    return "".join(element.itertext())


@pytest.fixture(scope="module")
def page() -> str:
    return report_page(recorded_report(*IDS))


@pytest.fixture(scope="module")
def tree(page: str) -> ElementTree.Element:
    return parsed(page)


def result(claim: Claim, survivors: tuple[str, ...] = (), planted: int = 0) -> Report:
    rungs = (RungResult("derived", "holds", "found <it>", 1e-9, planted, survivors),)
    return Report((ClaimResult(claim, rungs),), "quick", 0, 0.0)


def test_equal_runs_give_equal_bytes(page: str) -> None:
    slower = recorded_report(*IDS)
    assert report_page(Report(slower.results, slower.effort, slower.seed, seconds=99.0)) == page


def test_each_claim_tells_all_that_it_has(tree: ElementTree.Element) -> None:
    articles = {article.get("id"): article for article in tree.iter("article")}
    assert list(articles) == list(IDS)
    for claim in (claim for claim in find_claims() if claim.id in IDS):
        article = articles[claim.id]
        shown = text(article)
        for told in (*claim.assumes, *claim.not_claimed, claim.witness, claim.advice, claim.title):
            assert text(ElementTree.fromstring(f"<p>{prose(told)}</p>")) in shown
        (derivation,) = (details for details in article.iter("details") if details.get("class") == "derivation")
        assert len(derivation.findall("ol/li")) == len(claim.derive().steps)
        body = article.find("details/div")
        assert body is not None
        assert len(body.findall("div[@class='eq']")) == len(claim.derive().conclusions)
        for mutant in (mutant for rung in claim.rungs.values() for mutant in rung.mutants):
            assert text(ElementTree.fromstring(f"<p>{prose(mutant.description)}</p>")) in shown
        assert [text(row[0]) for row in article.findall(".//table[@class='evidence']/tbody/tr")] == list(KINDS)


def test_the_table_has_a_row_for_each_claim_and_says_every_verdict_in_words(tree: ElementTree.Element) -> None:
    rows = tree.findall(".//table[@class='claims']/tbody/tr")
    assert [text(row[0]) for row in rows] == list(IDS)
    report = recorded_report(*IDS)
    for row, found in zip(rows, report.results, strict=True):
        words = [text(cell).split(" ", 1)[1] for cell in row[2:7]]
        assert words == [rung.verdict.replace("not applicable", "n/a") for rung in found.rungs]
        assert text(row[7]) == f"{found.caught}/{found.planted}"


def test_the_head_says_what_was_run(tree: ElementTree.Element) -> None:
    header = tree.find("body/header")
    assert header is not None
    shown = text(header)
    report = recorded_report(*IDS)
    for name, version in report.to_json()["versions"].items():
        assert f"{name} {version}" in shown
    assert "3 of 3" in shown
    assert f"≤ {report.alpha_total:.1g}" in shown
    assert "A claim holds if at least one rung ran" in shown


def test_every_link_within_the_page_leads_somewhere_and_none_leads_out(tree: ElementTree.Element) -> None:
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    targets = [link.get("href") or "" for link in tree.iter("a")]
    assert targets
    assert all(target.startswith("#") and target[1:] in ids for target in targets)
    for article in tree.iter("article"):
        assert article.find("a[@class='permalink']").get("href") == f"#{article.get('id')}"


def test_the_page_loads_nothing(page: str, tree: ElementTree.Element) -> None:
    page = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttp|localStorage|cookie", page)
    assert not list(tree.iter("link"))
    assert all((element.get("src") or "data:").startswith("data:") for element in tree.iter())


HOSTILE = "</style><script>alert('\"x\" & y')</script>\x00"


def test_every_string_is_escaped() -> None:
    claim = Claim("Z9", HOSTILE, lambda: Derivation((given(p, p, HOSTILE),)), (HOSTILE,), (HOSTILE,), HOSTILE, HOSTILE)
    claim.derived(plant(HOSTILE, drift, HOSTILE, 1))
    report = Report(
        (ClaimResult(claim, (RungResult("derived", "fails", HOSTILE, None, 1, (HOSTILE,)),)),), "quick", 0, 0.0
    )
    seen = HOSTILE.replace("\x00", "\ufffd")
    tree = parsed(report_page(report))
    assert len(list(tree.iter("script"))) == len(list(tree.iter("style"))) == 1
    assert text(tree).count(seen) >= 9
    for fragment in (report_html(report), claim_html(claim)):
        inside = ElementTree.fromstring(f"<div>{fragment}</div>")
        assert not list(inside.iter("script"))
        assert seen in text(inside)


def test_what_became_of_each_planted_mistake() -> None:
    claim = Claim("Z9", "title", lambda: Derivation((given(p, p, "why"),)), ("a",), ("b",), "w")
    claim.derived(*(plant(f"mistake {k}", drift, "pair", 1) for k in range(5)))  # of five, quick plants 0, 2 and 4
    page = report_page(result(claim, ("mistake 2 (crashed: ZeroDivisionError())",), planted=3))
    rows = parsed(page).findall(".//details[@class='mistakes']/table/tbody/tr")
    assert [text(row[3]).split(" ", 1)[1] for row in rows] == [
        "caught", "not planted", "SURVIVED", "not planted", "caught"
    ]  # fmt: skip
    assert text(rows[0][2]) == "lossproof.theory.drift.pair"


def test_figures_are_embedded_once_and_pointed_to(tmp_path, monkeypatch) -> None:
    for name, claims in (("drift", ["B2", "A1"]), ("other", ["C9"]), ("huge", ["A1"])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"claims": claims, "caption": f"a <{name}>"}))
        (tmp_path / f"{name}.png").write_bytes(PNG + bytes(figures.LARGEST if name == "huge" else 0))
    for name, content in (("broken", "{"), ("list", "[]"), ("silent", "{}"), ("unpictured", '{"claims": ["A1"]}')):
        (tmp_path / f"{name}.json").write_text(content)
    (tmp_path / "silent.png").write_bytes(PNG)
    (tmp_path / "list.png").write_bytes(PNG)
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    tree = parsed(report_page(recorded_report(*IDS)))
    (image,) = tree.iter("img")
    assert b64decode(image.get("src").removeprefix("data:image/png;base64,")) == PNG
    assert image.get("alt") == "a <drift>"
    assert tree.find(".//article[@id='A1']//figure[@id='figure-drift']") is not None
    assert tree.find(".//article[@id='B2']//a[@href='#figure-drift']") is not None
    assert "Figure" not in text(tree.find(".//article[@id='D4']"))


def test_no_figures_no_heading(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(figures, "FOLDER", tmp_path / "none")
    assert "<h4>Figures</h4>" not in report_page(recorded_report("B2"))


# -- mathematics

CORE = {"math", "mrow", "mi", "mo", "mn", "mtext", "mspace", "mstyle", "mfrac", "msqrt", "mroot", "msub", "msup",
        "msubsup", "munder", "mover", "munderover"}  # fmt: skip


def characters(shown: str) -> Counter[str]:
    """Letters and digits, without what a command stands for."""
    return Counter(re.findall(r"[A-Za-z0-9]", re.sub(r"\b(lim|max|min|det|log|ln)\b|(?<=E\[)(max|min)|∞", "", shown)))


def test_every_step_of_every_claim_is_mathematics_and_keeps_every_letter_and_digit() -> None:
    for claim in find_claims():
        for step in claim.derive().steps:
            tex = step.latex()
            shown = ElementTree.fromstring(equation(step))
            assert shown.tag == "div", (claim.id, tex)
            assert {element.tag for element in shown.iter()} <= CORE | {"div"}, (claim.id, tex)
            leaves = [(leaf.text or "") for leaf in shown.iter() if leaf.tag in ("mi", "mn", "mo", "mtext")]
            assert not [
                leaf for leaf in leaves if set(leaf) & set("\\_$") or (len(leaf) > 1 and set(leaf) & set("^{}"))
            ]
            written = re.sub(r"\\(?!log\b)[A-Za-z]+", " ", _tidy(tex).replace(r"\log L", "L"))
            spoken = " ".join(leaves)
            assert characters(written) == characters(spoken), (claim.id, tex)


def test_a_long_sum_breaks_before_its_signs_and_nowhere_else() -> None:
    tex = r"V = \frac{a + b}{c} + \left(x - y\right) d_{t - 1} E[z = 1] - u"
    assert list(_pieces(tex)) == [
        "V",
        r" = \frac{a + b}{c} + \left(x - y\right) d_{t - 1} E[z = 1]",
        " - u",
    ]
    assert "".join(_pieces(tex)) == tex


def test_sums_limits_binomials_and_words_have_their_shape() -> None:
    class Written:
        def latex(self) -> str:
            return r"\lim_{t \to \infty} E[x|past] = \sum_{k=1}^{N} \binom{N}{k} n_00 \hat{g}_{\mathrm{own}}"

    shown = ElementTree.fromstring(equation(Written()))  # type: ignore[arg-type]
    assert [leaf.text for leaf in shown.findall(".//munder/mo")] == ["lim"]
    assert [leaf.text for leaf in shown.findall(".//munderover/mo")] == ["∑"]
    assert shown.find(".//mfrac[@linethickness='0']") is not None
    assert {"past", "own"} <= {leaf.text for leaf in shown.iter("mi")}
    assert "00" in {leaf.text for leaf in shown.iter("mn")}


def test_what_is_no_tex_is_shown_as_written() -> None:
    class Broken:
        def latex(self) -> str:
            return r"a^b^c < \left( d"

    assert equation(Broken()) == '<code class="eq">a^b^c &lt; \\left( d</code>'  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("A_(t-1) and p^(t+1)", "A<sub>t-1</sub> and p<sup>t+1</sup>"),
        ("theta_t, E|u_t|^2 = sigma^2", "theta<sub>t</sub>, E|u<sub>t</sub>|<sup>2</sup> = sigma<sup>2</sup>"),
        ("own_link <= 2^-3", "own_link &lt;= 2<sup>-3</sup>"),
        ("no script & no 'quote'", "no script &amp; no &#x27;quote&#x27;"),
    ],
)
def test_indices_and_powers_in_prose(written: str, shown: str) -> None:
    assert prose(written) == shown


def test_plain_text_survives_a_parser() -> None:
    assert text(ElementTree.fromstring(f"<p title='{plain(HOSTILE)}'>{plain(HOSTILE)}</p>")).endswith("\ufffd")
