"""`lossproof plan` from outside: the object, the command, the advice, what it imports."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import asdict, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import lossproof
from lossproof.commands.plan import advice
from lossproof.commands.plan import plan as command
from lossproof.theory import contrast, variance
from lossproof.theory.plan import Plan, Sender, plan, sender_rows

APP = typer.Typer()
APP.command()(command)
KEYS = ("kappa", "variance_inflation", "p_no_survivor", "owner_weight", "age_mean", "age_q999", "age_max_mean",
        "drift_pair", "drift_owner", "drift_pair_worst", "stable_step", "stable_step_lossless")  # fmt: skip


def call(*arguments: object) -> Any:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


# -- the object


def test_every_number_has_a_meaning_and_every_missing_one_a_reason() -> None:
    assert all(f.metadata["meaning"] for kind in (Plan, Sender) for f in fields(kind))
    for found in (plan(4, 0.1), plan(4, 0.1, 3.0), plan(losses=(0.1, 0.2)), plan(losses=(0.1, 0.2), own_link="lossy")):
        assert set(found.reasons) == {
            name for name, value in found.to_json().items() if value is None and name not in ("burst", "senders")
        }
        shown = {name: (value, meaning) for name, value, meaning in found.rows()}
        assert set(KEYS) <= set(shown)
        for name, reason in found.reasons.items():
            assert shown[name] == ("-", reason)
    assert plan(4, 0.1, 3.0).stable_step is None
    assert plan(4, 0.0, 3.0).stable_step == 2
    assert hash(plan(4, 0.1)) == hash(plan(4, 0.1))


def test_a_plan_shows_itself_in_a_notebook() -> None:
    assert "E[1/K; K &gt;= 1]" in plan(4, 0.1)._repr_html_()
    assert plan(losses=(0.1, 0.2))._repr_html_().count("<table>") == 2
    assert lossproof.plan is plan
    assert lossproof.Plan is Plan


def test_ranks_of_one_loss_share_a_row(tmp_path: Path) -> None:
    file = tmp_path / "losses"
    file.write_text("\n".join(["0.1"] * 50 + ["0.2"] * 2 + ["0.1"]))
    out = call("--losses", file).output
    assert re.search(r"^0-49, 52 +0.1 ", out, re.MULTILINE)
    assert re.search(r"^50-51 +0.2 ", out, re.MULTILINE)
    assert sender_rows(plan(losses=[0.1, 0.2] * 9).senders or ())[1][0][0] == "0, 2, 4, ... (9 ranks)"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ranks": 0, "loss": 0.1}, "ranks must be at least 2, got 0"),
        ({"ranks": 1, "loss": 0.1}, "ranks must be at least 2, as one rank has no replica and sends nothing, got 1"),
        ({"losses": (0.1,)}, "ranks must be at least 2"),
        ({"ranks": 10**8, "loss": 0.1}, "ranks must be at most 10000000, got 100000000"),
        ({"ranks": 4}, "loss must be given"),
        ({"loss": 0.1}, "ranks must be given"),
        ({"ranks": 4, "loss": 1.0}, r"loss must lie in [0, 1), got 1.0"),
        ({"ranks": 4, "loss": math.nan}, "loss must be finite, got nan"),
        ({"ranks": 4, "loss": 1 - Fraction(1, 10**20)}, "loss must be at most 1 - 1e-16"),
        ({"ranks": 4, "loss": 0.9, "burst": 2.0}, "burst must be at least"),
        ({"ranks": 4, "loss": 0.1, "burst": 1e13}, "burst must be at most 1e+12 steps, got 10000000000000.0"),
        ({"ranks": 4, "loss": 0.1, "own_link": "tape"}, "own_link must be 'reliable' or 'lossy', got 'tape'"),
        ({"ranks": 3, "losses": (0.1, 0.2)}, "losses must hold one probability for each of 3 ranks, got 2"),
        ({"losses": ()}, "losses must hold one probability for each rank, got none"),
        ({"losses": (0.1, -1, -1)}, r"losses[1] must lie in [0, 1), got -1"),
        ({"losses": (0.1, 0.2), "loss": 0.1}, "loss does not go with losses"),
        ({"losses": (0.1, 0.2), "burst": 3}, "burst does not go with losses"),
        ({"losses": [k / 20000 for k in range(10001)]}, "losses must hold at most 10000 different values, got 10001"),
    ],
)
def test_unusable_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        plan(**arguments)


# -- the command


def test_json_is_the_plan_and_nothing_else_is_printed(tmp_path: Path) -> None:
    file = tmp_path / "losses.txt"
    file.write_text("0.1, 0.25\n0\n")
    for arguments, expected in [
        (("--ranks", 16, "--loss", 0.1), plan(16, 0.1)),
        (("--ranks", 8, "--loss", 0.3, "--burst", 4, "--own-link", "lossy"), plan(8, 0.3, 4.0, own_link="lossy")),
        (("--losses", file), plan(losses=(0.1, 0.25, 0.0))),
        (("--ranks", 3, "--losses", file, "--own-link", "lossy"), plan(losses=(0.1, 0.25, 0.0), own_link="lossy")),
    ]:
        done = call(*arguments, "--json")
        assert done.exit_code == 0
        found = json.loads(done.stdout)
        assert found == json.loads(json.dumps(expected.to_json()))
        assert found["schema"] == 1
        assert set(KEYS) <= set(found)
        if expected.senders is not None:
            assert found["senders"] == [asdict(row) for row in expected.senders]


def test_the_table_shows_every_number() -> None:
    out = call("--ranks", 16, "--loss", 0.1).output
    found = plan(16, 0.1)
    for name, value, _ in found.rows():
        assert re.search(rf"^{name} +{re.escape(value)} ", out, re.MULTILINE), name
    assert "(A3)" in out
    assert "no closed form" in call("--ranks", 4, "--loss", 0.1, "--burst", 3).output


@pytest.mark.parametrize(
    "arguments",
    [
        ("--ranks", 0, "--loss", 0.1),
        ("--ranks", 1, "--loss", 0.1),
        ("--ranks", 1, "--loss", 0, "--own-link", "lossy"),
        ("--ranks", 4),
        ("--ranks", 4, "--loss", "nan"),
        ("--ranks", 4, "--loss", 0.9, "--burst", 1),
        ("--ranks", 4, "--loss", 0.1, "--own-link", "tape"),
        ("--ranks", 4, "--losses", "/nowhere/at all"),
    ],
)
def test_unusable_input_is_one_line_and_status_2(arguments: tuple[object, ...]) -> None:
    done = call(*arguments, "--json")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "must" in done.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("--ranks", "1000000", "--loss", "0.1"), ("--ranks", "9", "--loss",
                         "0.2", "--burst", "3", "--json")])  # fmt: skip
def test_no_heavy_import(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lossproof", "plan", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "typer" in loaded
    assert not {"torch", "transformers", "scipy", "sympy", "hypothesis"} & loaded


# -- the advice


def test_advice_names_the_claims_that_apply() -> None:
    def claims(**arguments: Any) -> set[str]:
        return set(re.findall(r"\b[ABD]\d+", " ".join(advice(plan(**arguments)))))

    assert claims(ranks=16, loss=0.1) == {"A1", "A3", "A4", "B7", "B12", "D2"}
    assert claims(ranks=16, loss=0.1, own_link="lossy") == {"A1", "A2", "A4", "A5", "B7", "B12", "D2"}
    assert claims(ranks=16, loss=0.1, burst=4) == {"A1", "A3", "A4", "B7", "B8"}
    assert claims(losses=(0.1, 0.2)) == {"A4", "A6", "B12"}
    assert claims(ranks=16, loss=0.0) == claims(losses=(0.0, 0.0)) == set()


def test_advice_quotes_the_closed_forms() -> None:
    lossy = " ".join(advice(plan(16, 0.1, own_link="lossy")))
    assert f"|mean gradient|^2 < {variance.crossover_given_survivor(16, 0.1):.3g} s^2" in lossy
    assert f"at most {contrast.resync_pair_saved(0.1):.3g}/R" in lossy
    assert "whatever the gradients" in " ".join(advice(plan(2, 0.9, own_link="lossy")))
    assert "bears larger steps" in lossy
    assert "only smaller steps" in " ".join(advice(plan(2, 0.5, own_link="lossy")))
    assert "by a factor of 2.8 (B8)" in " ".join(advice(plan(8, 0.3, 4.0)))
    assert "rank 2 weighs" in " ".join(advice(plan(losses=(0.1, 0.2, 0.0))))


def test_the_oldest_of_the_stale_copies_where_it_differs() -> None:
    """A packet has N - 1 stale copies; sums of 1 - (1 - P(A >= k))^n by hand."""
    text = " ".join(advice(plan(2, 0.3)))
    assert "the oldest of the N - 1 = 1 others is 0.429 steps old" in text  # p/(1-p)
    assert "against 0.758 in age_max_mean" in text  # 2 p/(1-p) - p^2/(1-p^2)
    text = " ".join(advice(plan(3, 0.25, 4.0)))  # P(A >= k) = 0.25 * 0.75^(k-1)
    terms = [0.25 * 0.75**k for k in range(200)]
    two, three = (sum(1 - (1 - a) ** n for a in terms) for n in (2, 3))
    assert f"the oldest of the N - 1 = 2 others is {two:.3g} steps old on average, against {three:.3g} in" in text
    assert "N - 1" not in " ".join(advice(plan(1000, 0.1)))


def test_meanings_say_what_the_numbers_are_of() -> None:
    shown = {name: meaning for name, _, meaning in plan(4, 0.1).rows()}
    assert "N independent replicas; a packet has N - 1" in shown["age_max_mean"]
    assert "quadratic, no survivor no update: stable in mean square" in shown["stable_step"]
