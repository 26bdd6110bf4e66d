"""The recorded evidence: what counts as the code under a claim, that a change of it is seen, and who quotes it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from lossproof.cli import app
from lossproof.commands import verify as command
from lossproof.proofs_checks import evidence, judge
from lossproof.proofs_checks.report import report_page

CLAIM = {"id": "B1", "title": "t", "verdict": "holds", "tightness": None, "mutants": {"planted": 3, "caught": 3},
         "rungs": [{"kind": "derived", "verdict": "holds", "detail": "d", "alpha": None}]}  # fmt: skip
FOUND = {"schema": 1, "alpha_total": 0.0, "effort": "full", "seed": 0, "seconds": 1.0, "claims": [CLAIM],
         "versions": {"python": "3.12.1", "torch": "2.9"}}  # fmt: skip
README = "before\n<!-- evidence -->\n```text\nold\n```\nafter\n```text\nother\n```\n"


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "RECORD", tmp_path / "evidence.json")
    monkeypatch.setattr(evidence, "README", tmp_path / "README.md")
    evidence.write(FOUND, evidence.code_under_claims())
    return evidence.RECORD


def call(*arguments):
    return CliRunner().invoke(app, list(arguments))


# -- what is under a claim


def test_a_claim_rests_on_what_its_checks_import():
    under = evidence.code_under_claims()
    assert under["B1"].keys() >= {
        "lossproof.theory.staleness", "lossproof.theory.derive.steps", "lossproof.impl.retain", "lossproof.impl.philox",
        "lossproof.proofs_checks.judge", "lossproof.proofs_checks.claims.staleness",
    }  # fmt: skip
    assert "lossproof.theory.bursts" not in under["B1"]
    assert "lossproof.theory.bursts" in under["B8"]
    everything = {name for names in under.values() for name in names}
    assert not any(name.startswith(("lossproof.commands", "lossproof.impl.kernels.")) for name in everything)
    assert "lossproof.proofs_checks.report" not in everything


def test_imports_within_functions_count():
    """The job that claim C3 trains is imported by the function that trains it."""
    under = evidence.code_under_claims()["C3"]
    assert {"lossproof.impl.train", "lossproof.impl.distributed.cluster"} <= under.keys()


def test_whatever_a_run_has_loaded_is_under_its_claims():
    """By the list of loaded modules, which knows nothing of syntax; whether the claims hold is not asked here."""
    code = (
        "import sys, json; from contextlib import suppress\n"
        "from lossproof.proofs_checks import judge, evidence, claim\n"
        "for of in judge.select_claims(['B1', 'C3']):\n"
        "    for rung in of.rungs.values():\n"
        "        with suppress(claim.Refuted): rung.check(claim.Run())\n"
        "loaded = {name for name, module in sys.modules.items() if name.startswith('lossproof.')"
        "          and not module.__file__.endswith('__init__.py')}\n"
        "under = {name for names in evidence.code_under_claims().values() for name in names}\n"
        "print(json.dumps([sorted(loaded), sorted(loaded - under)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, missed = json.loads(done.stdout)
    assert {"lossproof.impl.train", "lossproof.impl.retain", "lossproof.theory.staleness"} <= set(loaded)
    aside = {"lossproof.proofs_checks.evidence"}  # keeps the outcome, and has no part in it
    assert {name for name in missed if not name.startswith(evidence._ASIDE)} <= aside


# -- the command


def test_what_was_just_recorded_is_not_stale(recorded):
    assert evidence.stale(evidence.read()) == {}
    done = call("evidence", "--check")
    assert (done.exit_code, done.output.count("\n")) == (0, 1)
    assert "1 of 1 claims hold; 3 of 3" in done.output
    done = call("evidence")
    assert done.exit_code == 0
    assert done.output.endswith(evidence.quotation(FOUND))


@pytest.mark.parametrize(
    ("module", "among", "not_among"),
    [("lossproof.theory.bursts", "B8", "A1"), ("lossproof.impl.retain", "B1", "P2"),
     ("lossproof.impl.train", "C3", "B1")],
)  # fmt: skip
def test_a_changed_file_makes_its_claims_stale_and_no_others(recorded, monkeypatch, module, among, not_among):
    right = evidence._digest
    monkeypatch.setattr(evidence, "_digest", lambda name: "other" if name == module else right(name))
    found = evidence.stale(evidence.read())
    assert found[among] == [module]
    assert not_among not in found
    done = call("evidence", "--check")
    assert (done.exit_code, done.output.count("\n")) == (3, 1)
    assert module.removeprefix("lossproof.") in done.output
    assert among in done.output
    assert evidence.RENEW in done.output


def test_a_new_or_vanished_claim_is_stale(recorded):
    old = json.loads(recorded.read_text(encoding="utf-8"))
    del old["code"]["A1"]
    old["code"]["Z9"] = {"lossproof.theory.drift": "0"}
    assert {"A1", "Z9"} <= evidence.stale(old).keys()


@pytest.mark.parametrize("options", [[], ["--check"]])
@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", "\xff", json.dumps(FOUND), json.dumps({"code": {}})])
def test_no_record_that_can_be_read_is_one_line_with_the_command_that_makes_one(recorded, text, options):
    recorded.unlink() if text is None else recorded.write_text(text, encoding="latin-1")
    done = call("evidence", *options)
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: no recorded evidence: ")
    assert evidence.RENEW in done.stderr


def test_a_record_of_what_does_not_hold_is_no_evidence(recorded):
    evidence.write(FOUND | {"claims": [CLAIM | {"verdict": "fails"}]}, evidence.code_under_claims())
    done = call("evidence", "--check")
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "does not hold: B1" in done.output


# -- recording


def test_only_a_full_run_of_all_claims_is_recorded():
    for arguments in (["--record"], ["B1", "--effort", "full", "--record"]):
        done = call("verify", *arguments)
        assert done.exit_code == 2
        assert done.stderr == "error: record needs all claims and --effort full\n"


class Outcome:
    """A run that takes no time."""

    complete = True

    def __init__(self, ok=True):
        self.ok = ok

    def to_json(self):
        return FOUND


def test_a_record_that_cannot_be_written_is_said_before_the_run(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_run", lambda *_: pytest.fail("it ran"))
    for place in (tmp_path / "none" / "evidence.json", tmp_path):
        monkeypatch.setattr(evidence, "RECORD", place)
        done = call("verify", "--effort", "full", "--record")
        assert (done.exit_code, done.output.count("\n")) == (2, 1)
        assert done.stderr.startswith("error: record must be a file")


def test_recording_keeps_the_hashes_from_before_the_run_and_renews_the_readme(recorded, monkeypatch):
    evidence.README.write_text(README, encoding="utf-8")

    def run(*_):  # a file changes while it runs
        right = evidence._digest
        monkeypatch.setattr(
            evidence, "_digest", lambda name: "new" if name == "lossproof.theory.drift" else right(name)
        )
        return Outcome()

    monkeypatch.setattr(command, "_run", run)
    recorded.unlink()
    done = call("verify", "--effort", "full", "--record")
    assert done.exit_code == 0, done.output
    assert f"recorded in {recorded} and quoted in the README" in done.output
    assert evidence.stale(evidence.read())["B2"] == ["lossproof.theory.drift"]
    text = evidence.README.read_text(encoding="utf-8")
    assert evidence.quoted(text) == evidence.quotation(FOUND)
    assert text.replace(evidence.quotation(FOUND), "old\n") == README


def test_what_fails_is_not_recorded(recorded, monkeypatch):
    monkeypatch.setattr(command, "_run", lambda *_: Outcome(ok=False))
    recorded.unlink()
    done = call("verify", "--effort", "full", "--record")
    assert done.exit_code == 1
    assert "not recorded" in done.output
    assert not recorded.exists()


def test_the_page_quotes_the_record(recorded, monkeypatch):
    empty = judge.Report((), "quick", 0, 0.0)
    assert "1 of 1 claims hold; 3 of 3 planted mistakes caught" in report_page(empty)
    assert "stale: none" in report_page(empty)
    monkeypatch.setattr(evidence, "_digest", lambda name: "other")
    assert "stale: A1" in report_page(empty)
    recorded.unlink()
    assert "no recorded evidence" in report_page(empty)
