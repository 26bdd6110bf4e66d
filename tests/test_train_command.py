"""`lossproof train` from outside: what it accepts, what it writes, and its exit status."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import lossproof.impl.train as job
from lossproof.commands.train import compare, train

APP = typer.Typer()
APP.command()(train)
SMALL = ["--ranks", "2", "--steps", "3", "--context", "16", "--hidden", "8", "--layers", "1", "--heads", "1",
         "--intermediate", "8"]  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> list[str]:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog; " * 40, encoding="utf-8")
    return ["--text", str(path)]


def call(*arguments: str) -> Any:
    return CliRunner().invoke(APP, list(arguments))


def result(log_perplexity: float) -> job.Result:
    return job.Result(
        settings={"ranks": 2},
        log_perplexity=log_perplexity,
        perplexity=1.0,
        replica_perplexity=[1.0],
        train_losses=[1.0],
        counts=dict.fromkeys(
            ("gradients_offered", "gradients_lost", "parameters_offered", "parameters_lost", "no_survivor"), 1
        ),
        observed=None,
        seconds=1.0,
        measuring_seconds=0.0,
        steps_per_second=1.0,
        tokens_per_second=1.0,
        memory="",
        chunk=1,
        text={"digest": ""},
        versions={},
    )


@pytest.mark.parametrize(
    ("penalties", "status", "words"),
    [
        ([0.2, 0.21, 0.19], 1, "above 0.05 nats"),
        ([0.2, 0.01, 0.19], 0, "on both sides of 0.05 nats"),
        ([0.01, 0.011, 0.009], 0, "below 0.05 nats"),
        ([-0.2, -0.21, -0.19], 0, "below 0.05 nats"),
        ([5.0], 0, "not run: an interval needs at least two seeds"),
    ],
)
def test_the_verdict_is_about_the_whole_interval(
    penalties: list[float], status: int, words: str, text: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(settings: Any, *_: Any, **__: Any) -> job.Result:
        """Seeds differ by more than losses do, as they do in training."""
        loss = float(settings.law.marginal())
        return result(2.0 + settings.seed + (penalties[settings.seed] if loss else 0.0))

    monkeypatch.setattr(job, "train", fake)
    outcome = call(*SMALL, *text, "--loss", "0", "--loss", "0.1", "--seeds", str(len(penalties)))
    assert outcome.exit_code == status, outcome.output
    assert words in outcome.stdout
    assert "equal" not in outcome.stdout


def test_the_interval_is_students() -> None:
    """By hand: differences 1, 2, 3 have mean 2, deviation 1, and t(0.975, 2) = 4.3027."""
    runs = [{"loss": p, "seed": s, "log_perplexity": p * (s + 1) * 10} for s in range(3) for p in (0.0, 0.1)]
    (row,) = compare(runs)
    half = 4.302652729911275 / 3**0.5
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((2, 2 - half, 2 + half))
    assert row["verdict"] == "undecided"
    assert compare(runs[:1]) == []


def test_a_run_reports_in_a_table_and_in_json(text: list[str], tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    outcome = call(*SMALL, *text, "--loss", "0", "--loss", "0.5", "--seeds", "2", "--json", str(file))
    assert outcome.exit_code in (0, 1), outcome.output
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["schema"] == 1
    assert list(report) == ["schema", "settings", "runs", "comparison", "versions"]
    assert [(run["loss"], run["seed"]) for run in report["runs"]] == [(0, 0), (0.5, 0), (0, 1), (0.5, 1)]
    assert report["settings"]["ranks"] == 2
    assert report["comparison"][0]["against"] == 0
    clean, lossy = report["runs"][:2]
    assert clean["train_losses"][0] == lossy["train_losses"][0], "runs of one seed are not paired"
    assert clean["counts"]["gradients_lost"] == 0 < lossy["counts"]["gradients_lost"]
    assert lossy["observed"]["owner"]["ratio"] > 0
    assert all(f"{run['perplexity']:.3f}" in outcome.stdout for run in report["runs"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--loss", "1.5"], "loss must lie in"),
        (["--loss", "nan"], "loss must be finite"),
        (["--loss", "0.1", "--loss", "0.1"], "loss must not name a value twice"),
        (["--seeds", "0"], "seeds must be at least 1"),
        (["--ranks", "0"], "ranks must be at least 1"),
        (["--law", "weibull"], "law must be one of bernoulli"),
        (["--law", "bernoulli", "--burst", "3"], "burst does not go with the law bernoulli"),
        (["--law", "gilbert-elliott"], "burst must be given"),
        (["--burst", "0.5"], "burst must be at least"),
        (["--clock", "step"], "clock does not go with the law bernoulli"),
        (["--trace", "/nowhere.csv"], "trace must be a file"),
        (["--losses", "/nowhere.txt"], "losses must be a file"),
        (["--optimizer", "lion"], "optimizer must be one of"),
        (["--rule", "mean"], "rule must be one of"),
        (["--text", "/nowhere"], "text must be a file or a folder"),
        (["--resume"], "resume needs out"),
    ],
)
def test_unusable_input_exits_2_with_one_line(arguments: list[str], reason: str) -> None:
    outcome = call(*arguments)
    assert outcome.exit_code == 2, outcome.output
    assert outcome.stdout == ""
    assert outcome.stderr.startswith(f"error: {reason}")
    assert outcome.stderr.count("\n") == 1


def test_errors_name_what_was_typed(text: list[str], tmp_path: Path) -> None:
    """Not `recorded` or `arrived_NP`, which is what the law and the rule call them."""
    log = tmp_path / "log.csv"
    for rows in ("0,1,1\n1,0,0\n", "", "0,1,0\n", "0,1,x\n"):
        log.write_text(f"src,dst,lost\n{rows}", encoding="utf-8")
        outcome = call(*SMALL, *text, "--trace", str(log))
        assert outcome.exit_code == 2
        reason = outcome.stderr.splitlines()[-1]
        assert reason.startswith(("error: trace ", f"error: {log}")), reason
    nobody = ["--loss", "0.95", "--own-link", "lossy", "--no-survivor", "raise"]
    outcome = call(*SMALL, *text, *nobody)
    assert outcome.stderr.splitlines()[-1].startswith("error: loss: no survivor for packet")


def test_the_other_laws(text: list[str], tmp_path: Path) -> None:
    (tmp_path / "losses").write_text("0.1, 0.5\n", encoding="utf-8")
    (tmp_path / "log.csv").write_text("src,dst,lost\n0,1,0\n0,1,1\n1,0,0\n1,0,1\n", encoding="utf-8")
    for arguments, law in (
        (["--burst", "4"], "GilbertElliott(loss=0.1, burst=4.0, clock='step'"),
        (["--burst", "4", "--clock", "packet"], "GilbertElliott(loss=0.1, burst=4.0, clock='packet'"),
        (["--losses", str(tmp_path / "losses")], "PerSender(losses=(0.1, 0.5))"),
        (["--trace", str(tmp_path / "log.csv")], "Trace("),
    ):
        file = tmp_path / "out.json"
        outcome = call(*SMALL, *text, *arguments, "--json", str(file))
        assert outcome.exit_code == 0, outcome.output
        assert json.loads(file.read_text(encoding="utf-8"))["runs"][0]["law"].startswith(law)


def test_ctrl_c_then_resume_skips_what_is_finished(
    text: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*SMALL, *text, "--loss", "0", "--loss", "0.5"]
    whole, file = tmp_path / "whole.json", tmp_path / "resumed.json"
    assert call(*arguments, "--json", str(whole)).exit_code == 0
    step = job.Job.step

    def interrupted(self: job.Job) -> float:
        if self.settings.law.marginal() and len(self.losses) == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    out = ["--out", str(tmp_path / "out")]
    monkeypatch.setattr(job.Job, "step", interrupted)
    outcome = call(*arguments, *out)
    assert outcome.exit_code == 130
    assert "--resume" in outcome.stderr
    assert (tmp_path / "out" / "loss-0-seed-0" / "result.json").exists()
    assert not (tmp_path / "out" / "loss-0.5-seed-0" / "result.json").exists()

    taken: list[str] = []

    def noted(self: job.Job) -> float:
        taken.append(repr(self.settings.law))
        return step(self)

    monkeypatch.setattr(job.Job, "step", noted)
    outcome = call(*arguments, *out, "--resume", "--json", str(file))
    assert outcome.exit_code == 0, outcome.output
    assert taken == ["Bernoulli(loss=0.5)"], "one step was left of the second run, and none of the first"
    assert "loss-0, seed 0 (1/2): finished before" in outcome.stderr
    runs = [json.loads(path.read_text(encoding="utf-8"))["runs"] for path in (whole, file)]
    for name in ("log_perplexity", "train_losses", "counts", "observed", "replica_perplexity"):
        assert [run[name] for run in runs[0]] == [run[name] for run in runs[1]]

    outcome = call(*arguments, *out)
    assert outcome.exit_code == 2
    assert "out holds a checkpoint already" in outcome.stderr
    outcome = call(*arguments, *out, "--resume", "--lr", "0.5")
    assert outcome.exit_code == 2
    assert "lr must be 0.001" in outcome.stderr


def test_divergence_is_a_failure_not_a_mistake_of_the_user(text: list[str]) -> None:
    outcome = call(*SMALL, *text, "--optimizer", "sgd", "--lr", "1e30")
    assert outcome.exit_code == 1
    assert "not finite" in outcome.stderr or "diverged" in outcome.stderr


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "lossproof.impl.train")
    outcome = call(*SMALL)
    assert outcome.exit_code == 2
    assert 'install "lossproof[llm]"' in outcome.stderr


def test_the_module_is_imported_without_anything_heavy() -> None:
    code = (
        "import sys, lossproof.commands.train;"
        "print(sorted({'torch', 'transformers', 'scipy', 'numpy', 'sympy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
