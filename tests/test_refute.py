"""`lossproof refute` and `check_rule`: rules right and wrong against sums in fractions, and the printed snippets.

Legend: N ranks, P packets, E elements of a packet; K how many arrived.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from typer.testing import CliRunner

from lossproof.cli import app
from lossproof.impl.aggregate import aggregate
from lossproof.proofs_checks import check_rule, refute
from lossproof.proofs_checks.counterexample import Source, of_bias
from lossproof.proofs_checks.enumeration import common_outage

RULES = Path(__file__).parents[1] / "examples" / "rules.py"
MEAN = "def rule(p, a):\n    return p.masked_fill(~a.unsqueeze(-1), 0).sum(0) / a.sum(0).clamp(min=1).unsqueeze(-1)\n"


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["refute", *arguments])


def run(snippet: str) -> tuple[str, Exception | None]:
    """Runs a snippet as a program of its own: what it prints and what it ends with."""
    out, ended = io.StringIO(), None
    with contextlib.redirect_stdout(out), mock.patch.object(sys, "path", [*sys.path]):
        try:
            exec(compile(snippet, "snippet", "exec"), {"__name__": "__main__"})
        except Exception as error:
            ended = error
    return out.getvalue(), ended


# -- the tried rules, by their definitions: what survived and all gradients to the estimate, in fractions


def _mean(values: Sequence[Any]) -> Fraction:
    return Fraction(sum(values), len(values)) if values else Fraction(0)


def _sign(x: int) -> int:
    return (x > 0) - (x < 0)


def _middle(values: list[int]) -> Fraction:
    values = sorted(values)
    return _mean([values[(len(values) - 1) // 2], values[len(values) // 2]]) if values else Fraction(0)


BY_DEFINITION: dict[str, Callable[[list[int], list[int]], Any]] = {
    "survivor_mean": lambda survivors, g: _mean(survivors),
    "divide_by_n": lambda survivors, g: Fraction(sum(survivors), len(g)),
    "divide_by_qn": lambda survivors, g: sum(survivors) / (Fraction(9, 10) * len(g)),
    "own_gradient": lambda survivors, g: _mean(survivors) if survivors else g[0],
    "median": lambda survivors, g: _middle(survivors),
    "sign": lambda survivors, g: _sign(sum(map(_sign, survivors))),
    "trimmed_mean": lambda survivors, g: _mean(sorted(survivors)[1:-1] if len(survivors) > 2 else survivors),
}
OUTCOMES = {  # refuted, and the conventions that stand
    "survivor_mean": (False, {"given_survivor"}),
    "divide_by_n": (True, set()),
    "divide_by_qn": (False, {"always"}),
    "own_gradient": (False, {"given_survivor"}),
    "median": (True, set()),
    "sign": (True, set()),
    "trimmed_mean": (True, set()),
}


def chances(law: str, N: int, p: Fraction) -> dict[tuple[bool, ...], Fraction]:
    """P(pattern) of each law, written down anew; an outage is half of the loss: p = outage + (1 - outage) alone."""
    outage = p / 2 if law == "common outage" else Fraction(0)
    alone = {
        "independent": [p] * N,
        "common outage": [(p / 2) / (1 - p / 2)] * N,
        "unequal, p(i+1)/N": [p * (i + 1) / N for i in range(N)],
        "rank 0 never lost": [Fraction(0)] + [p] * (N - 1),
    }[law]
    found = {}
    for pattern in product((True, False), repeat=N):
        chance = 1 - outage
        for arrived, loss in zip(pattern, alone, strict=True):
            chance *= 1 - loss if arrived else loss
        found[pattern] = chance + (outage if not any(pattern) else 0)
    return found


@pytest.mark.parametrize("name", BY_DEFINITION)
def test_the_table_is_a_sum_in_fractions(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = command(f"{RULES}:{name}", "--loss", "0.1", "--owner", "0", "--json", str(out))
    found = json.loads(out.read_text())
    refuted, standing = OUTCOMES[name]
    assert done.exit_code == int(refuted), done.output
    assert found["verdict"] == ("refuted" if refuted else "not refuted")
    assert {c for c, stands in found["unbiased"]["enumerated"].items() if stands} == standing
    assert [(row["ranks"], row["law"]) for row in found["enumeration"][::4]] == [(N, "independent") for N in (2, 3, 4)]
    for row in found["enumeration"]:
        g, weight = row["gradients"], chances(row["law"], row["ranks"], Fraction(1, 10))
        assert sum(weight.values()) == 1
        for prefix, rule in (("", BY_DEFINITION[name]), ("survivor_mean_", BY_DEFINITION["survivor_mean"])):
            value = {s: Fraction(rule([x for x, here in zip(g, s, strict=True) if here], g)) for s in weight}
            some = {s: w / (1 - weight[(False,) * len(g)]) for s, w in weight.items() if any(s)}
            given = sum(w * value[s] for s, w in some.items())
            variance = sum(w * (value[s] - given) ** 2 for s, w in some.items())
            assert Fraction(row[f"{prefix}bias_given_survivor"]) == given - _mean(g)
            assert Fraction(row[f"{prefix}variance_given_survivor"]) == variance
            if not prefix:
                always = sum(w * value[s] for s, w in weight.items())
                assert Fraction(row["bias_always"]) == always - _mean(g)
                assert Fraction(row["variance_always"]) == sum(w * (value[s] - always) ** 2 for s, w in weight.items())


@pytest.mark.parametrize("name", ["divide_by_n", "median", "sign", "trimmed_mean"])
def test_the_printed_snippet_shows_the_bias_and_passes_once_the_rule_is_mended(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(RULES.read_text())
    done = command(f"{file}:{name}", "--loss", "1/3")
    assert done.exit_code == 1
    snippet = done.stdout[done.stdout.index("# ---- counterexample 1 of 1") :]
    summary = re.search(r"mean (\S+); .*E\[rule \| K >= 1\] = (\S+), E\[rule\] = (\S+)", done.stdout)
    assert summary
    shown, ended = run(snippet)
    assert isinstance(ended, AssertionError)
    assert [line.split(" = ")[1] for line in shown.splitlines()] == list(summary.groups())
    assert summary[1] not in summary.groups()[1:]
    file.write_text(MEAN.replace("def rule", f"def {name}"))
    assert run(snippet)[1] is None


def test_the_printed_text_is_a_program_of_its_own() -> None:
    printed = command(f"{RULES}:divide_by_n").stdout
    snippet = printed[printed.index("# ---- counterexample") :]
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "mean of the gradients = 1", "E[rule | K >= 1]      = 10/11", "E[rule]               = 9/10"
    ]  # fmt: skip
    assert done.stderr.strip().endswith("AssertionError")


# -- one wrong rule for each fault

GOOD = MEAN.replace("rule", "good")
WRONG = {
    "raises": GOOD + "def rule(p, a):\n    assert a.any(), 'nobody'\n    return good(p, a)\n",
    "output": GOOD + "def rule(p, a):\n    return good(p, a).double()\n",
    "not a function": "import torch\n" + GOOD + "def rule(p, a):\n    return good(p, a) + torch.rand(())\n",
    "changes arguments": GOOD + "def rule(p, a):\n    p.masked_fill_(~a.unsqueeze(-1), 1)\n    return good(p, a)\n",
    "not finite": MEAN.replace(".clamp(min=1)", ""),
    "reads what was lost": MEAN.replace("p.masked_fill(~a.unsqueeze(-1), 0)", "(p * a.unsqueeze(-1))"),
    "mixes packets": MEAN.replace("a.sum(0).clamp(min=1).unsqueeze(-1)", "a.any(1).sum().clamp(min=1)"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_every_fault_is_found_and_its_snippet_shows_it(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(WRONG[kind])
    out = tmp_path / "out.json"
    assert command(f"{file}:rule", "--json", str(out)).exit_code == 1
    found = {example["kind"]: example["snippet"] for example in json.loads(out.read_text())["counterexamples"]}
    assert kind in found
    assert isinstance(run(found[kind])[1], AssertionError)
    file.write_text(MEAN)
    assert run(found[kind])[1] is None


def test_a_lost_slot_that_is_read_though_it_is_finite() -> None:
    def rule(payload_NPE: torch.Tensor, arrived_NP: torch.Tensor) -> torch.Tensor:
        return payload_NPE.nan_to_num().mean(0)

    (example,) = (e for e in refute(rule).counterexamples if e.kind == "reads what was lost")
    assert "7.0" in example.snippet
    assert "name the owner" in example.summary


def test_the_owners_own_gradient_may_be_read_if_the_owner_is_named() -> None:
    without = command(f"{RULES}:own_gradient")
    assert without.exit_code == 1
    assert "name the owner" in without.stdout
    assert command(f"{RULES}:own_gradient", "--owner", "0").exit_code == 0
    assert command(f"{RULES}:own_gradient", "--owner", "1").exit_code == 1


# -- conventions, laws and sizes


def test_the_convention_can_be_demanded() -> None:
    target = f"{RULES}:survivor_mean"
    assert command(target, "--unbiased", "given_survivor").exit_code == 0
    assert command(target, "--unbiased", "always").exit_code == 1
    assert command(f"{RULES}:divide_by_qn", "--loss", "0.1", "--unbiased", "given_survivor").exit_code == 1


def test_a_loss_is_read_exactly_and_counts() -> None:
    assert command(f"{RULES}:divide_by_qn", "--loss", "0.1", "--loss", "1/10").exit_code == 0
    assert command(f"{RULES}:divide_by_qn", "--loss", "0.1000001").exit_code == 1  # 1e-7 is not within rounding
    assert command(f"{RULES}:divide_by_qn").exit_code == 1  # it is wrong at 1/2


def test_a_bias_of_larger_groups_only() -> None:
    def rule(payload_NPE: torch.Tensor, arrived_NP: torch.Tensor) -> torch.Tensor:
        estimate, count_P = aggregate(payload_NPE, arrived_NP)
        return estimate * (1 + (count_P == 5).unsqueeze(-1))

    assert not refute(rule).refuted
    assert refute(rule, ranks=[5], losses=[Fraction(1, 2)]).refuted


def test_a_rule_that_counts_on_independent_losses_is_refuted_by_outages(tmp_path: Path) -> None:
    """Divided by P(K >= 1) of independent losses: right over all rounds, until outages hit all links at once."""
    file = tmp_path / "mine.py"
    file.write_text(
        MEAN.replace("def rule", "def mean") + "def rule(p, a):\n    return mean(p, a) / (1 - 0.5 ** len(p))\n"
    )
    done = command(f"{file}:rule", "--loss", "0.5")
    summary = re.search(
        r"mean 1; common outage losses of 1/2: E\[rule \| K >= 1\] = (\S+), E\[rule\] = (\S+)\n", done.stdout
    )
    assert summary, done.stdout
    none = Fraction(1, 4) + Fraction(3, 4) * Fraction(1, 9)  # an outage, or else both links lose: 1/2 = 1/4 + 3/4 * 1/3
    assert summary.groups() == ("4/3", str((1 - none) * Fraction(4, 3)))
    shown, ended = run(done.stdout[done.stdout.index("# ---- counterexample") :])
    assert isinstance(ended, AssertionError)
    numbers = [
        float(line.split(" = ")[1]) for line in shown.splitlines()
    ]  # 8/3 is not exact: decimals, within rounding
    assert numbers == pytest.approx([1, 4 / 3, float((1 - none) * Fraction(4, 3))], rel=1e-15)


def test_a_snippet_counts_the_outages_where_nothing_arrives() -> None:
    """Own gradient: E[rule] = mean + P(K = 0) (g_0 - mean) = 1 + 1/3 (2 - 1)."""
    law = common_outage(2, Fraction(1, 2))
    example = of_bias(Source("own_gradient", str(RULES)), "own gradient", [2, 0], law, "always")
    shown, ended = run(example.snippet)
    assert isinstance(ended, AssertionError)
    assert [line.split(" = ")[1] for line in shown.splitlines()] == ["1", "1", "4/3"]


def test_a_bias_that_no_enumerated_gradient_has_is_searched_for() -> None:
    """Unbiased wherever a gradient is zero, all are equal or they double: the enumeration cannot see it."""

    def rule(payload_NPE: torch.Tensor, arrived_NP: torch.Tensor) -> torch.Tensor:
        estimate, _ = aggregate(payload_NPE, arrived_NP)
        odd = (payload_NPE > 0).all(0) & (payload_NPE[0] > payload_NPE[1])
        return torch.where(odd, estimate + 1, estimate)

    found = refute(rule, losses=[0])  # without loss nothing is missing, so that every slot may be read
    assert found.standing == ("given_survivor", "always")
    assert [example.kind for example in found.counterexamples][-1] == "biased"


def test_a_convention_for_every_size_but_none_for_all() -> None:
    """Unbiased given a survivor for two ranks and over all rounds for three: neither is what it is."""

    def rule(payload_NPE: torch.Tensor, arrived_NP: torch.Tensor) -> torch.Tensor:
        if len(payload_NPE) == 2:
            return aggregate(payload_NPE, arrived_NP)[0]
        q_N = torch.full((len(payload_NPE),), 0.5)
        return aggregate(payload_NPE, arrived_NP, "inverse_probability", arrival_probability_N=q_N)[0]

    assert not refute(rule, ranks=[2], losses=[0.5]).refuted
    assert not refute(rule, ranks=[3], losses=[0.5]).refuted
    assert refute(rule, ranks=[2, 3], losses=[0.5]).refuted


def test_equal_arguments_give_equal_results() -> None:
    first, second = (command(f"{RULES}:median").stdout for _ in range(2))
    assert first == second
    assert "gradients [0, 0, 6]" in first


def test_what_is_not_refuted_is_not_called_proved() -> None:
    text = command(f"{RULES}:survivor_mean").stdout
    assert "not refuted: unbiased given a survivor, for every arrival pattern of N = 2, 3, 4 at loss 1/10, 1/2" in text
    assert "no proof" in text


# -- unusable input, and what the user is told


@pytest.mark.parametrize(
    ("target", "options", "reason"),
    [
        ("rules.py", [], "FILE.py:RULE"),
        ("none.py:rule", [], "must exist"),
        (f"{RULES}:nothing", [], "must define a function 'nothing'; it has survivor_mean, divide_by_n"),
        (f"{RULES}:ARRIVAL", [], "must define a function"),
        (f"{RULES}:median", ["--loss", "1"], "loss must"),
        (f"{RULES}:median", ["--loss", "1/0"], "loss must"),
        (f"{RULES}:median", ["--loss", "nan"], "loss must"),
        (f"{RULES}:median", ["--ranks", "11"], "ranks must"),
        (f"{RULES}:median", ["--owner", "2"], "owner must"),
        (f"{RULES}:median", ["--json", "/nowhere/x.json"], "json must"),
    ],
)
def test_unusable_input_exits_2_with_a_reason(target: str, options: list[str], reason: str) -> None:
    done = command(target, *options)
    assert done.exit_code == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [["--ranks", "11"], ["--owner", "2"], ["--loss", "1"], ["--unbiased", "sometimes"], ["--json", "/nowhere/x.json"]],
)
def test_a_file_is_not_executed_for_options_that_cannot_be_used(options: list[str], tmp_path: Path) -> None:
    file, mark = tmp_path / "mine.py", tmp_path / "was executed"
    file.write_text(f"open({str(mark)!r}, 'w').close()\n" + MEAN)
    done = command(f"{file}:rule", *options)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert not mark.exists()
    assert command(f"{file}:rule", "--ranks", "2").exit_code == 0
    assert mark.exists()


@pytest.mark.parametrize("text", ["1 / 0", "import nowhere", "raise SystemExit(0)", "def f(:"])
def test_a_file_that_cannot_be_executed_exits_2(text: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    done = command(f"{file}:rule")
    assert done.exit_code == 2
    assert "could not be executed" in done.stderr


def test_that_the_file_is_executed_is_said(tmp_path: Path) -> None:
    assert "EXECUTED" in command("--help").stdout
    file = tmp_path / "loud.py"
    file.write_text("from beside import rule\n")
    (tmp_path / "beside.py").write_text(MEAN)  # what lies beside it can be imported, as in `python loud.py`
    done = command(f"{file}:rule")
    assert done.stdout.startswith(f"executing {file} (it runs with your rights)")
    assert done.exit_code == 0, done.output


# -- for a test suite


@pytest.mark.parametrize("rule", ["survivor_mean", "zero_fill", "inverse_probability"])
def test_our_own_rules(rule: Any) -> None:
    def mine(payload_NPE: torch.Tensor, arrived_NP: torch.Tensor) -> torch.Tensor:
        q_N = torch.full((len(payload_NPE),), 0.75, dtype=torch.float64)
        return aggregate(payload_NPE, arrived_NP, rule, arrival_probability_N=q_N)[0]

    if rule == "zero_fill":
        with pytest.raises(AssertionError, match="biased: gradients"):
            check_rule(mine, losses=[0.25])
    else:
        check_rule(mine, losses=[0.25])


def wrong_rule(payload_NPE: torch.Tensor, arrived_NP: torch.Tensor) -> torch.Tensor:
    return aggregate(payload_NPE, arrived_NP, "zero_fill")[0]


def test_check_rule_raises_with_the_snippet() -> None:
    with pytest.raises(AssertionError) as caught:
        check_rule(wrong_rule)
    assert f"runpy.run_path({str(Path(__file__).resolve())!r})['wrong_rule']" in str(caught.value)
    assert Source.of(lambda payload, arrived: payload).path is None
    with pytest.raises(AssertionError, match="put the rule here"):
        check_rule(lambda payload, arrived: aggregate(payload, arrived, "zero_fill")[0])


@pytest.mark.parametrize(
    ("name", "error", "arguments"),
    [
        ("rule", TypeError, {"rule": 1}),
        ("losses", ValueError, {"losses": [1.5]}),
        ("losses", ValueError, {"losses": []}),
        ("losses", TypeError, {"losses": ["0.1"]}),
        ("ranks", ValueError, {"ranks": []}),
        ("ranks", ValueError, {"ranks": [0]}),
        ("unbiased", ValueError, {"unbiased": "sometimes"}),
        ("owner", ValueError, {"owner": 2}),
    ],
)
def test_unusable_arguments_are_refused(name: str, error: type[Exception], arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=f"^{name} must"):
        check_rule(**({"rule": wrong_rule} | arguments))
