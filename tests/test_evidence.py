"""The recorded evidence: what counts as the code under a claim, and that a change of it is seen."""

import json

import pytest
from typer.testing import CliRunner

from lossproof.cli import app
from lossproof.proofs_checks import evidence

FOUND = {
    "schema": 1, "alpha_total": 0.0, "effort": "full", "seed": 0, "seconds": 1.0,
    "claims": [{"id": "B1", "title": "t", "verdict": "holds", "tightness": None, "mutants": {"planted": 3, "caught": 3},
                "rungs": [{"kind": "derived", "verdict": "holds", "detail": "d", "alpha": None}]}],
}  # fmt: skip


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "RECORD", tmp_path / "evidence.json")
    evidence.write(FOUND, evidence.RECORD)
    monkeypatch.setattr(evidence.read, "__defaults__", (evidence.RECORD,))
    return evidence.RECORD


def test_a_claim_rests_on_what_its_checks_import():
    under = evidence.code_under_claims()
    assert under["B1"].keys() >= {
        "lossproof.theory.staleness", "lossproof.theory.derive.steps", "lossproof.impl.retain", "lossproof.impl.philox",
        "lossproof.proofs_checks.judge", "lossproof.proofs_checks.claims.staleness",
    }  # fmt: skip
    assert "lossproof.theory.bursts" not in under["B1"]
    assert "lossproof.theory.bursts" in under["B8"]
    assert not any(name.startswith("lossproof.commands") for names in under.values() for name in names)


def test_what_was_just_recorded_is_not_stale(recorded):
    assert evidence.stale(evidence.read()) == {}
    done = CliRunner().invoke(app, ["evidence", "--check"])
    assert (done.exit_code, done.output.count("\n")) == (0, 1)
    assert "1 of 1 claims hold; 3 of 3" in done.output


@pytest.mark.parametrize(
    ("module", "among", "not_among"),
    [("lossproof.theory.bursts", "B8", "A1"), ("lossproof.impl.retain", "B1", "P2")],
)
def test_a_changed_file_makes_its_claims_stale_and_no_others(recorded, monkeypatch, module, among, not_among):
    right = evidence._digest
    monkeypatch.setattr(evidence, "_digest", lambda name: "other" if name == module else right(name))
    found = evidence.stale(evidence.read())
    assert found[among] == [module]
    assert not_among not in found
    done = CliRunner().invoke(app, ["evidence", "--check"])
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert module.removeprefix("lossproof.") in done.output
    assert evidence.RENEW in done.output


def test_a_new_or_vanished_claim_is_stale(recorded):
    old = json.loads(recorded.read_text(encoding="utf-8"))
    del old["code"]["A1"]
    old["code"]["Z9"] = {"lossproof.theory.drift": "0"}
    assert {"A1", "Z9"} <= evidence.stale(old).keys()


def test_without_a_record_the_command_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence.read, "__defaults__", (tmp_path / "none.json",))
    done = CliRunner().invoke(app, ["evidence"])
    assert done.exit_code == 1
    assert evidence.RENEW in done.output


def test_only_a_full_run_of_all_claims_is_recorded():
    for arguments in (["--record"], ["B1", "--effort", "full", "--record"]):
        done = CliRunner().invoke(app, ["verify", *arguments])
        assert done.exit_code == 2
        assert "record needs all claims" in done.output
