"""The notebooks run from top to bottom, say what was committed, and stop where a mistake is planted."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib
import nbformat
import pytest
import torch
from scipy.stats import binom

from lossproof.impl import aggregate, retain
from lossproof.impl.transport.peers import Deadline
from lossproof.proofs_checks.claim import Mutant
from lossproof.proofs_checks.instruments import datagram_mistakes, mistakes
from lossproof.proofs_checks.instruments.intervals import half_width
from lossproof.theory import bursts

sys.path.insert(0, str(Path(__file__).parents[1]))

from notebooks.run import executed, notebooks

ROOT = Path(__file__).parents[1]
LEAST_ASSERTS = 6
NAMES = ("1_unbiasedness", "2_drift", "3_bursts", "4_stability_and_convergence", "5_a_real_lossy_link")


def code(notebook: nbformat.NotebookNode) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: Any) -> list[Any]:
    """What a cell put out as text; of a picture only that there is one."""
    found = []
    for output in cell.outputs:
        assert output.output_type in ("stream", "display_data", "execute_result"), output
        if output.output_type == "stream":
            found.append((output.name, output.text))
        else:
            data = {kind: None if kind.startswith("image/") else text for kind, text in output.data.items()}
            found.append((output.output_type, data))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_run_says_what_was_committed(name: str) -> None:
    path = ROOT / "notebooks" / f"{name}.ipynb"
    committed, now = nbformat.read(path, as_version=4), executed(path)
    for before, after in zip(code(committed), code(now), strict=True):
        assert texts(after) == texts(before), f"{before.id}: `python -m notebooks.run {name}` saves what it says now"
    assert now.metadata == committed.metadata


def test_these_are_all() -> None:
    assert tuple(path.stem for path in notebooks()) == NAMES
    table = (ROOT / "notebooks" / "README.md").read_text()
    assert all(f"[{name}]({name}.ipynb)" in table for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_committed_as_it_was_run(name: str) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert all(not cell.metadata for cell in notebook.cells)
    said = "".join(str(text) for cell in code(notebook) for text in texts(cell))
    assert " at 0x" not in said
    assert "/tmp" not in said
    assert str(ROOT) not in said


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is_for_and_checks_it(name: str) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.source.split("\n\n")[1].startswith("**After this notebook you can decide**")
    assert last.source.startswith("## What to do")
    assert "\n    lossproof " in last.source
    trees = [ast.parse(cell.source) for cell in code(notebook)]
    checks = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assert | ast.Raise)]
    assert len(checks) >= LEAST_ASSERTS
    outputs = [
        data for cell in code(notebook) for kind, data in texts(cell) if kind != "stream" and "text/latex" in data
    ]
    assert outputs
    assert all(data["text/plain"] for data in outputs)
    assert sum("image/png" in output.get("data", {}) for cell in code(notebook) for output in cell.outputs) >= 1
    broken = [cell for cell in notebook.cells if "## Now break it" in cell.source]
    caught = "".join(str(texts(cell)) for cell in code(notebook))
    assert broken
    assert "caught: " in caught


def _late(stale_PE: torch.Tensor, fresh_PE: torch.Tensor, arrived_P: torch.Tensor) -> torch.Tensor:
    """What arrived is a step old."""
    return _retain(stale_PE, fresh_PE - 1, arrived_P)


_aggregate, _retain = aggregate.aggregate, retain.retain
_seconds: Any = Deadline.seconds
PLANTED = [
    ("1_unbiasedness", Mutant("divides by N", aggregate, "aggregate", lambda g, m, rule="", **o: _aggregate(
        g, m, "zero_fill", **o))),
    ("2_drift", mistakes.ALWAYS_FRESH),
    ("2_drift", mistakes.ONE_MASK_FOR_ALL),
    ("3_bursts", Mutant("one step late", retain, "retain", _late)),
    ("3_bursts", mistakes.a_fifth_more(bursts, "gilbert_owner")),
    ("4_stability_and_convergence", mistakes.COUNT_PLUS_ONE),
    ("5_a_real_lossy_link", datagram_mistakes.STALE_SLOT),
    ("5_a_real_lossy_link", datagram_mistakes.UNEQUAL_LINKS),
    ("5_a_real_lossy_link", Mutant("half the deadline", Deadline, "seconds", property(lambda self: _seconds.fget(
        self) / 2))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "mistake"), PLANTED, ids=[f"{name}: {m.description}" for name, m in PLANTED])
def test_a_mistake_stops_it(name: str, mistake: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("Agg")
    source = "\n".join(cell.source for cell in code(nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)))
    with mistake.planted(), mock.patch("matplotlib.pyplot.show"), pytest.raises(AssertionError):
        exec(compile(source, name, "exec"), {"__name__": name})


@pytest.mark.parametrize("n", [2, 10, 60, 400])
@pytest.mark.parametrize("p", [0.002, 0.05, 0.5, 0.9])
def test_an_interval_misses_as_seldom_as_it_says(n: int, p: float) -> None:
    """Coins decide: their number of heads has a known law, so the probability of a miss is a sum."""
    for alpha in (0.2, 0.01):
        missed = 0.0
        for heads in range(n + 1):
            coins = torch.cat([torch.ones(heads), torch.zeros(n - heads)]).double()
            missed += float(binom.pmf(heads, n, p)) * (abs(heads / n - p) > half_width(coins, 0, 1, alpha))
        assert missed <= alpha


def test_an_interval_is_of_the_size_of_the_spread() -> None:
    coins = torch.arange(100_000).double() % 2
    assert 0.009 < half_width(coins, 0, 1) < 0.0095
    assert half_width(coins * 8, 0, 8) == pytest.approx(8 * half_width(coins, 0, 1))
    assert half_width(coins, 0, 1, 1e-9) > half_width(coins, 0, 1) > half_width(coins * 0, 0, 1)


@pytest.mark.parametrize("samples", [torch.zeros(1), torch.tensor([0.0, 1.5]), torch.tensor([0.0, float("nan")])])
def test_samples_must_be_within_their_range(samples: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"samples must be at least 2 and lie in \[0, 1\]"):
        half_width(samples, 0, 1)
