"""Figures: what is written, what is noticed, what is left alone; the command."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lossproof.cli import app
from lossproof.paper_figures import figure as framework
from lossproof.paper_figures import making, manifest, style, table
from lossproof.paper_figures.figure import Figure, Inputs, Progress, Table, kept

# -- a figure of which everything is known


def squares(inputs: Inputs, progress: Progress, work: Path) -> Table:
    rows = [kept(work, f"row{x}", partial(_row, x, inputs["power"])) for x in range(4)]
    progress(4, 4)
    return {"x": list(range(4)), "y": rows, "name": [None, "a", "b", "c"]}


def _row(x: int, power: int) -> float:
    CALLS.append(x)
    if x == STOP[0]:
        raise KeyboardInterrupt
    return x**power / 3


CALLS: list[int] = []
STOP: list[int] = [-1]


def draw(shown: Table) -> Any:
    picture = style.new(2, 2)
    picture.subplots().plot(shown["x"], shown["y"], **style.SERIES[0].both())
    return picture


SIMPLE = Figure("simple", "Squares", ("A1",), "exact", "of {last:.1f}", lambda effort: {"power": 2}, squares, draw,
                lambda shown: {"last": shown["y"][-1], "word": "three"})  # fmt: skip


@pytest.fixture(autouse=True)
def forget() -> None:
    CALLS.clear()
    STOP[0] = -1


@pytest.fixture
def known_code(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """`SIMPLE` stands in no module of lossproof: its code is what this says."""
    code = {"source": "s", "drawing": "d"}
    monkeypatch.setattr(manifest, "source", lambda one: code["source"])
    monkeypatch.setattr(manifest, "drawing", lambda one: code["drawing"])
    return code


def made(folder: Path, one: Figure = SIMPLE) -> str:
    return making.make(one, "quick", folder)


@pytest.mark.usefixtures("known_code")
def test_what_is_written(tmp_path: Path) -> None:
    assert made(tmp_path) == "made"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"simple.{s}" for s in ("csv", "json", "pdf", "png")]
    assert (tmp_path / "simple.csv").read_text() == "x,y,name\n0,0,\n1,0.3333333333,a\n2,1.333333333,b\n3,3,c\n"
    found = json.loads((tmp_path / "simple.json").read_text())
    assert found["inputs"] == {"power": 2}
    assert found["numbers"] == {"last": 3.0, "word": "three"}
    assert found["caption"] == "of 3.0"
    assert found["source"] == "s"
    assert {"numpy", "torch", "scipy", "matplotlib", "python", "lossproof"} <= found["versions"].keys()
    assert found["files"] == {
        f"simple.{s}": manifest.digest((tmp_path / f"simple.{s}").read_bytes()) for s in ("csv", "pdf", "png")
    }


@pytest.mark.usefixtures("known_code")
def test_equal_data_give_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    made(tmp_path / "one")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 20, "savefig.dpi": 10, "axes.facecolor": "red"}):
        made(tmp_path / "two")
    for suffix in ("csv", "json", "pdf", "png"):
        assert (tmp_path / "one" / f"simple.{suffix}").read_bytes() == (
            tmp_path / "two" / f"simple.{suffix}"
        ).read_bytes(), suffix
    assert b"CreationDate" not in (tmp_path / "one" / "simple.pdf").read_bytes()


def test_what_is_up_to_date_is_left_alone(tmp_path: Path, known_code: dict[str, str]) -> None:
    made(tmp_path)
    assert made(tmp_path) == "up to date"
    assert len(CALLS) == 4
    known_code["drawing"] = "another"
    assert (made(tmp_path), made(tmp_path)) == ("drawn", "up to date")
    assert len(CALLS) == 4
    (tmp_path / "simple.png").unlink()
    assert made(tmp_path) == "drawn"
    known_code["source"] = "another"
    assert (made(tmp_path), made(tmp_path)) == ("made", "up to date")
    assert len(CALLS) == 8
    other = replace(SIMPLE, inputs=lambda effort: {"power": 3})
    assert made(tmp_path, other) == "made"
    csv = tmp_path / "simple.csv"
    csv.write_text(csv.read_text().replace("9", "8"))
    assert (made(tmp_path, other), made(tmp_path, other)) == ("made", "up to date")
    assert csv.read_text().endswith("3,9,c\n")


def test_an_interrupted_run_goes_on(tmp_path: Path, known_code: dict[str, str]) -> None:
    STOP[0] = 2
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path)
    assert not list(tmp_path.glob("simple.*"))
    STOP[0] = -1
    assert made(tmp_path) == "made"
    assert CALLS == [0, 1, 2, 2, 3]
    assert not (tmp_path / ".work").exists()
    known_code["source"], STOP[0] = "another", 2
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path)
    known_code["source"], STOP[0] = "a third", -1  # what another code kept is not used
    made(tmp_path)
    assert CALLS[5:] == [0, 1, 2, 0, 1, 2, 3]


@pytest.mark.usefixtures("known_code")
def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    framework.write(tmp_path / "file", b"old")

    def half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:1])
        raise OSError("full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="full"):
        framework.write(tmp_path / "file", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


# -- the check


def checked(folder: Path, one: Figure = SIMPLE) -> tuple[str, str]:
    found = making.check(one, folder)
    return found.outcome, found.detail


def tamper(folder: Path, old: str, new: str, *, suffix: str = "csv", hashed: bool = True) -> None:
    """Changes a file, and, as a careful forger would, its hash in the manifest."""
    file, record = folder / f"simple.{suffix}", folder / "simple.json"
    before = file.read_text()
    assert old in before
    file.write_text(before.replace(old, new, 1))
    if hashed and suffix != "json":
        found = json.loads(record.read_text())
        found["files"][file.name] = manifest.digest(file.read_bytes())
        record.write_text(json.dumps(found))


@pytest.mark.usefixtures("known_code")
def test_the_check_notices_a_changed_digit(tmp_path: Path) -> None:
    made(tmp_path)
    assert checked(tmp_path) == ("equal", "4 rows, quick")
    tamper(tmp_path, "1.333333333", "1.333333334")
    assert checked(tmp_path) == ("differs", "simple.csv line 4, y: 1.333333334 there, 1.333333333 here")


@pytest.mark.usefixtures("known_code")
@pytest.mark.parametrize(
    ("suffix", "old", "new", "hashed", "why"),
    [
        ("csv", "1.333333333", "1.333333334", False, "not what the manifest says: simple.csv"),
        ("csv", "3,3,c\n", "", True, "numbers to quote"),
        ("csv", "2,1.333333333,b\n", "", True, "3 rows"),
        ("json", '"last": 3.0', '"last": 3.1', True, "numbers to quote"),
        ("json", '"power": 2', '"power": 3', True, "other inputs: power"),
        ("json", '"schema": 1', '"schema": 0', True, "cannot be read"),
    ],
)
def test_the_check_notices(tmp_path: Path, suffix: str, old: str, new: str, hashed: bool, why: str) -> None:
    made(tmp_path)
    tamper(tmp_path, old, new, suffix=suffix, hashed=hashed)
    outcome, detail = checked(tmp_path)
    assert outcome == "differs"
    assert why in detail


@pytest.mark.usefixtures("known_code")
@pytest.mark.parametrize(
    ("kind", "key", "compared"),
    [
        ("exact", "torch", True), ("sampled", "torch", False), ("sampled", "processor", True),
        ("sampled", "matplotlib", True), ("trained", "transformers", False), ("trained", "processor", False),
        ("trained", "corpus", False), ("trained", "scipy", True), ("measured", "torch", True),
    ],
)  # fmt: skip
def test_what_need_not_be_found_again_is_not_called_equal(
    tmp_path: Path, kind: Any, key: str, compared: bool
) -> None:  # fmt: skip
    one = replace(SIMPLE, kind=kind, environment=lambda: {"corpus": "abc"})
    made(tmp_path, one)
    assert checked(tmp_path, one)[0] == "equal"
    record = tmp_path / "simple.json"
    found = json.loads(record.read_text())
    if key == "processor":
        found[key] = "another"
    else:
        found["environment" if key == "corpus" else "versions"][key] = "another"
    record.write_text(json.dumps(found))
    outcome, detail = checked(tmp_path, one)
    assert outcome == ("equal" if compared else "not comparable")
    assert compared or key in detail
    if not compared:  # and a forged number is noticed all the same
        tamper(tmp_path, '"last": 3.0', '"last": 3.1', suffix="json")
        assert checked(tmp_path, one)[0] == "differs"


# -- tables


def test_tables_are_read_back() -> None:
    shown: Table = {"a": [1, None, 3], "b": [0.1 + 0.2, -1e-300, 1e22], "c": ["x,y", None, 'say "z"']}
    once = table.from_csv(table.to_csv(shown))
    assert once == {"a": [1, None, 3], "b": [0.3, -1e-300, 1e22], "c": ["x,y", None, 'say "z"']}
    assert table.from_csv(table.to_csv(once)) == once


@pytest.mark.parametrize("wrong", [{}, {"a": [1], "b": []}, {"a": [math.nan]}, {"a": [math.inf]}])
def test_tables_refuse(wrong: Table) -> None:
    with pytest.raises(ValueError, match="table must"):
        table.to_csv(wrong)


# -- the command

RUN = CliRunner()


def command(*arguments: str) -> Any:
    return RUN.invoke(app, ["figures", *arguments])


@pytest.fixture
def only_simple(monkeypatch: pytest.MonkeyPatch, known_code: dict[str, str]) -> None:
    monkeypatch.setattr(framework, "find", lambda names: [SIMPLE])


@pytest.mark.usefixtures("only_simple")
def test_the_command_makes_and_checks(tmp_path: Path) -> None:
    out = str(tmp_path / "new" / "folder")
    assert command("--out", out).stdout == "simple: made\n"
    assert command("--out", out).stdout == "simple: up to date\n"
    done = command("--out", out, "--check")
    assert (done.exit_code, done.stdout) == (
        0,
        "simple: equal: 4 rows, quick\n1 equal, 0 differ, 0 not comparable here\n",
    )
    tamper(Path(out), "1.333333333", "1.333333334")
    done = command("--out", out, "--check")
    assert done.exit_code == 1
    assert "simple: differs: simple.csv line 4" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nonsense"], "name must be one of"),
        (["redundancy", "--out", __file__], "out must be a folder"),
        (["redundancy", "--effort", "huge"], "effort"),
    ],
)
def test_the_command_refuses(arguments: list[str], why: str) -> None:
    done = command(*arguments)
    assert done.exit_code == 2
    assert why in done.stderr


def test_the_command_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = command("redundancy", "--out", str(tmp_path))
    assert done.exit_code == 2
    assert done.stderr == "error: figures needs matplotlib; install it with: pip install 'lossproof[figures]'\n"


def test_help_imports_next_to_nothing() -> None:
    code = ("import sys; from lossproof.cli import app; import typer.testing as t; "
            "r = t.CliRunner().invoke(app, ['figures', '--help']); assert r.exit_code == 0, r; "
            "print(sorted({'torch', 'matplotlib', 'numpy', 'scipy', 'sympy'} & set(sys.modules)))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout == "[]\n", done.stderr
