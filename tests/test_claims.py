"""The claims hold, their checks notice planted mistakes, and the machinery around them cannot pass by accident."""

from __future__ import annotations

import json
import re
import types
from xml.etree import ElementTree

import pytest
from reports import recorded_report
from typer.testing import CliRunner

from lossproof.cli import app
from lossproof.impl import retain as stage_2
from lossproof.impl import round as round_module
from lossproof.proofs_checks import claim as claim_module
from lossproof.proofs_checks import judge
from lossproof.proofs_checks.claim import KINDS, Claim, Evidence, Refuted, Run, plant, require
from lossproof.proofs_checks.judge import MissingExtra, claim_verdict, find_claims, verify
from lossproof.proofs_checks.report import report_page
from lossproof.theory import drift
from lossproof.theory.derive.drift import owner

TARGET = types.SimpleNamespace(answer=lambda: 42)


@pytest.fixture(scope="module")
def report():
    return verify()


def _claim(check, *mutants, kind="enumerated", id="Z1") -> Claim:
    claim = Claim(id, "an example", owner, (), (), "")
    claim.rung(kind, *mutants)(check)
    return claim


def _only(monkeypatch, *claims: Claim) -> None:
    monkeypatch.setattr(judge, "find_claims", lambda: claims)


def _right(run: Run) -> Evidence:
    require(TARGET.answer() == 42, f"the answer is {TARGET.answer()}")
    return Evidence("asked once")


def _refuted(run: Run) -> Evidence:
    raise Refuted("a counterexample")


WRONG = plant("another answer", TARGET, "answer", lambda: 41)
HARMLESS = plant("the same answer", TARGET, "answer", lambda: 42)
CRASHING = plant("no answer", TARGET, "answer", lambda: 1 // 0)


def test_all_claims_hold_and_all_planted_mistakes_are_caught(report):
    assert {f"A{i}" for i in range(1, 9)} | {f"B{i}" for i in range(1, 13)} <= {r.claim.id for r in report.results}
    for result in report.results:
        assert result.verdict == "holds", [(rung.kind, rung.detail) for rung in result.rungs]
        assert result.caught == result.planted
        for rung in result.rungs:
            assert rung.verdict == "holds" or rung.kind in result.claim.absent
            assert rung.planted >= 3 or rung.kind in result.claim.absent
    assert 0 < report.alpha_total <= 1e-6


def test_nothing_is_planted_twice_in_a_rung():
    for claim in find_claims():
        for rung in claim.rungs.values():
            descriptions = [mutant.description for mutant in rung.mutants]
            assert len(set(descriptions)) == len(descriptions)


def test_every_claim_says_what_it_assumes_and_what_it_does_not_say():
    for claim in find_claims():
        assert claim.assumes
        assert claim.not_claimed
        assert claim.witness
        assert set(claim.rungs) | set(claim.absent) == set(KINDS)


def test_the_same_seed_gives_the_same_digits(report):
    again = verify()
    assert json.dumps(again.to_json()["claims"]) == json.dumps(report.to_json()["claims"])


def test_claims_hold_at_another_seed():
    assert verify(seed=2**64 - 1).ok


def test_a_mistake_planted_by_hand_in_the_training_code_fails_the_claims(monkeypatch):
    monkeypatch.setattr(round_module, "retain", lambda stale, fresh, arrived: stage_2.retain(stale * 0, fresh, arrived))
    failed = {result.claim.id for result in verify(["A1", "B1", "B2", "B3"]).results if result.verdict == "fails"}
    assert failed == {"B1", "B2", "B3"}


def test_a_mistake_planted_by_hand_in_a_closed_form_fails_its_claim(monkeypatch):
    monkeypatch.setattr(drift, "reported_constant", lambda p: 2 * p)
    assert [result.claim.id for result in verify(["A1", "B4"]).results if result.verdict == "fails"] == ["B4"]


@pytest.mark.parametrize(
    ("rungs", "survivors", "verdict"),
    [
        (["holds", "holds"], False, "holds"),
        (["holds", "not run", "not applicable"], False, "holds"),
        (["holds", "fails"], False, "fails"),
        (["holds", "holds"], True, "fails"),
        (["not run", "not applicable"], False, "not run"),
        (["not applicable"], False, "not run"),
        ([], False, "not run"),
        (["not run"], True, "fails"),
        (["fails", "not run"], False, "fails"),
    ],
)
def test_the_algebra_of_verdicts(rungs, survivors, verdict):
    assert claim_verdict(rungs, survivors) == verdict


@pytest.mark.parametrize(
    ("mutants", "verdict", "caught"),
    [((WRONG,), "holds", 1), ((WRONG, HARMLESS), "fails", 1), ((CRASHING,), "fails", 0), ((), "holds", 0)],
)
def test_a_mistake_counts_as_caught_only_if_the_check_refutes_it(monkeypatch, mutants, verdict, caught):
    _only(monkeypatch, _claim(_right, *mutants))
    (result,) = verify().results
    assert (result.verdict, result.planted, result.caught) == (verdict, len(mutants), caught)


def test_a_survivor_is_named_and_fails_the_command(monkeypatch):
    _only(monkeypatch, _claim(_right, WRONG, HARMLESS))
    outcome = CliRunner().invoke(app, ["verify", "--jobs", "1"])
    assert outcome.exit_code == 1
    assert "SURVIVED: the same answer" in outcome.output


@pytest.mark.parametrize("checks", [(_right, _refuted), (_refuted, _right), (_right, _refuted, _right)])
def test_one_failing_claim_fails_the_command_whatever_else_holds(monkeypatch, checks):
    _only(monkeypatch, *(_claim(check, id=f"Z{number}") for number, check in enumerate(checks)))
    report = verify()
    assert [result.verdict for result in report.results] == ["fails" if c is _refuted else "holds" for c in checks]
    assert not report.ok
    outcome = CliRunner().invoke(app, ["verify", "--jobs", "1"])
    assert outcome.exit_code == 1
    assert "a counterexample" in outcome.output


def test_the_chance_of_a_false_alarm_is_the_sum_over_all_checks(monkeypatch):
    def sampled(alpha: float | None):
        return lambda run: Evidence("sampled", alpha=alpha)

    first = _claim(sampled(0.001), kind="sampled", id="Z1")
    first.rung("enumerated")(sampled(0.002))
    _only(monkeypatch, first, _claim(sampled(None), id="Z2"), _claim(sampled(0.04), kind="sampled", id="Z3"))
    report = verify()
    assert report.alpha_total == pytest.approx(0.043)
    assert report.to_json()["alpha_total"] == report.alpha_total
    assert "false-alarm probability of the run <= 0.04;" in CliRunner().invoke(app, ["verify", "--jobs", "1"]).output


@pytest.mark.parametrize(("effort", "seed"), [("quick", 0), ("full", 0), ("quick", 2**63 + 7), ("full", 11)])
def test_every_check_gets_the_effort_and_the_seed_of_the_run(monkeypatch, effort, seed):
    runs = []

    def check(run: Run) -> Evidence:
        runs.append(run)
        return _right(run)

    _only(monkeypatch, _claim(check, WRONG), _claim(check, id="Z2"))
    report = verify(effort=effort, seed=seed)
    assert (report.effort, report.seed) == (effort, seed)
    outcome = CliRunner().invoke(app, ["verify", "--jobs", "1", "--effort", effort, "--seed", str(seed)])
    assert outcome.exit_code == 0, outcome.output
    assert runs == [Run(effort, seed)] * 6  # two checks and one planted mistake, twice
    assert {run.pick("quick", "full") for run in runs} == {effort}


def test_the_defaults_are_a_quick_run_at_seed_0(monkeypatch):
    runs = []
    _only(monkeypatch, _claim(lambda run: runs.append(run) or _right(run)))
    verify()
    CliRunner().invoke(app, ["verify", "--jobs", "1"])
    assert runs == [Run("quick", 0)] * 2


def test_a_mistake_is_removed_after_the_check():
    with WRONG.planted():
        assert TARGET.answer() == 41
    assert TARGET.answer() == 42


def test_planting_in_an_attribute_that_does_not_exist_is_an_error():
    with pytest.raises(AttributeError), plant("nowhere", TARGET, "question", None).planted():
        pass


def test_a_crashing_check_fails(monkeypatch):
    _only(monkeypatch, _claim(lambda run: 1 // 0))
    (result,) = verify().results
    assert result.verdict == "fails"
    assert "crashed" in result.rungs[2].detail


def test_a_missing_extra_is_not_run(monkeypatch):
    def check(run: Run) -> Evidence:
        raise MissingExtra("install lossproof[llm]")

    _only(monkeypatch, _claim(check, WRONG))
    report = verify()
    assert report.results[0].verdict == "not run"
    assert "lossproof[llm]" in report.results[0].rungs[2].detail
    assert report.ok
    assert not report.complete


def test_strict_fails_on_what_was_not_run():
    assert CliRunner().invoke(app, ["verify", "B3", "--strict"]).exit_code == 0
    assert CliRunner().invoke(app, ["verify", "B2", "--strict"]).exit_code == 1
    assert CliRunner().invoke(app, ["verify", "B2"]).exit_code == 0


def test_the_json_has_the_fields_of_the_contract(tmp_path):
    file, page = tmp_path / "out.json", tmp_path / "out.html"
    outcome = CliRunner().invoke(app, ["verify", "b2", "A1", "--seed", "3", "--json", str(file), "--report", str(page)])
    assert outcome.exit_code == 0, outcome.output
    data = json.loads(file.read_text())
    assert {"schema", "claims", "alpha_total", "seed", "versions", "seconds"} <= set(data)
    assert [claim["id"] for claim in data["claims"]] == ["A1", "B2"]
    assert data["seed"] == 3
    for claim in data["claims"]:
        assert set(claim) == {"id", "title", "verdict", "rungs", "mutants", "tightness"}
        assert [rung["kind"] for rung in claim["rungs"]] == list(KINDS)
        assert all(set(rung) == {"kind", "verdict", "detail", "alpha"} for rung in claim["rungs"])
        assert claim["mutants"]["planted"] == claim["mutants"]["caught"] >= 3
    said = re.sub(
        r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page.read_text()
    )  # which may hold any letters by chance
    assert "<math" in said
    assert "http" not in said.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["C9"], "C9"),
        (["--seed", "-1"], "seed"),
        (["--json", "no/such/folder/x.json"], "folder"),
        (["--report", "."], "report"),
        (["--effort", "huge"], "effort"),
    ],
)
def test_unusable_input_exits_2_in_one_line(arguments, named):
    outcome = CliRunner().invoke(app, ["verify", *arguments])
    assert outcome.exit_code == 2
    assert named in outcome.stderr


def test_verify_raises_on_unusable_arguments():
    with pytest.raises(ValueError, match="effort"):
        verify(effort="huge")
    with pytest.raises(ValueError, match="Z9"):
        verify("Z9")
    with pytest.raises(TypeError, match="seed"):
        verify(seed=0.5)


def test_a_report_shows_itself_and_a_claim_as_mathematics():
    report = recorded_report()
    html = report._repr_html_()
    assert html.count("<tr>") == 1 + len(report.results)
    for claim in find_claims():
        assert "<math" in claim._repr_html_()
        assert "aligned" in claim.derive()._repr_latex_()
    assert report_page(report).startswith("<!doctype html>")


def test_a_rung_is_defined_once():
    claim = _claim(_right)
    with pytest.raises(ValueError, match="enumerated"):
        claim.rung("enumerated")
    with pytest.raises(ValueError, match="guessed"):
        claim.rung("guessed")


def test_require_raises_only_when_false():
    claim_module.require(True, "")
    with pytest.raises(Refuted, match="why"):
        claim_module.require(False, "why")


def test_the_page_is_well_formed_and_shows_no_tex():
    page = report_page(recorded_report()).replace("<!doctype html>", "").replace("<meta charset='utf-8'>", "")
    page = re.sub(r"&[A-Za-z]+;", lambda e: e[0] if e[0] in ("&lt;", "&gt;", "&amp;", "&quot;") else "", page)
    leaves = [text for element in ElementTree.fromstring(page).iter("mi") for text in element.itertext()]
    assert leaves
    assert not [leaf for leaf in leaves if set(leaf) & set("\\{}")]


@pytest.mark.parametrize(("written", "quick"), [(0, 0), (1, 1), (4, 4), (5, 3), (12, 4), (13, 4)])
def test_quick_plants_at_most_four_mistakes_of_a_rung_and_full_all(monkeypatch, written, quick):
    mistakes = [plant(f"mistake {k}", TARGET, "answer", lambda: 41) for k in range(written)]
    _only(monkeypatch, _claim(_right, *mistakes))
    (at_quick,), (at_full,) = verify().results, verify(effort="full").results
    assert (at_quick.planted, at_quick.caught) == (quick, quick)
    assert (at_full.planted, at_full.caught) == (written, written)
