"""Figures: what is written, what is noticed, what is left alone; colours; numbers that documents quote."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lossproof.cli import app
from lossproof.paper_figures import figure as framework
from lossproof.paper_figures import making, manifest, quoting, style, table
from lossproof.paper_figures.figure import Figure, Inputs, Progress, Table, find, kept

ROOT = Path(__file__).parents[1]
UNTRAINED = [figure for figure in find() if figure.kind != "trained"]
TINY: dict[str, dict[str, Any]] = {
    "drift_over_steps": {"packets": 5, "steps": [1, 2, 3]},
    "unequal_loss": {"packets": 50},
    "burst_length": {"packets": 5, "heavy_packets": 5, "bursts": [1.25, 2], "heavy_steps": [1, 2]},
    "worst_replica": {"measured": [[1, 3], [65535, 2]], "steps": 1, "losses": [0.1, 0.5], "replicas": [1, 10**6]},
    "stability_region": {"runs": {"2": 4, "64": 4}, "measured_losses": [0.5], "steps": 9},
    "momentum_of_loss": {"runs": 3, "steps": 3, "ranks": 4},
    "redundancy": {"runs": 4, "times": 1, "measured_eta_h": [0.1, 1.0], "split_eta_h": [0.1], "split_copies": 3},
}


def tiny(one: Figure) -> Figure:
    return replace(one, inputs=lambda effort: one.inputs(effort) | TINY[one.name])


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
        ("trained", "corpus", False), ("trained", "scipy", True),
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


# -- colours


def linear(colour: str) -> Any:
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lightness(rgb: Any) -> float:
    """CIE L*, 0 to 100: what is left of a colour in grey."""
    y = float(np.array([0.2126, 0.7152, 0.0722]) @ rgb)
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


# Machado, Oliveira and Fernandes 2009: what eyes without the middle cones see, severity 1, in linear RGB.
NO_GREEN = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])


@pytest.mark.parametrize("seen", [np.eye(3), NO_GREEN], ids=["grey", "deuteranopia"])
def test_series_are_told_apart_by_lightness_alone(seen: Any) -> None:
    light = [lightness(np.clip(seen @ linear(series.colour), 0, 1)) for series in style.SERIES]
    assert min(abs(a - b) for a, b in combinations(light, 2)) > 10
    assert max(light) < 85  # and from the paper


def test_series_are_told_apart_without_their_colours() -> None:
    for one, other in combinations(style.SERIES, 2):
        assert one.marker != other.marker
        assert one.dash != other.dash


# -- the figures of this repository


@pytest.mark.parametrize("one", UNTRAINED, ids=lambda one: one.name)
def test_a_figure_at_tiny_inputs(one: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TINY[one.name].items() <= tiny(one).inputs("quick").items()
    steps: list[tuple[int, int]] = []
    if one.name == "momentum_of_loss":  # its numbers are of the largest loss, which all inputs have
        monkeypatch.setattr(manifest, "drawing", lambda _: "d")
    assert making.make(tiny(one), "quick", tmp_path, lambda done, total: steps.append((done, total))) == "made"
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]
    assert making.check(tiny(one), tmp_path).outcome == "equal"


@pytest.mark.parametrize("one", find(), ids=lambda one: one.name)
def test_what_is_committed_is_whole(one: Figure) -> None:
    found = manifest.read(making.RESULTS, one.name)
    assert found is not None
    assert manifest.damaged(making.RESULTS, found) == []
    assert found["inputs"] == manifest.inputs(one, found["effort"])
    assert found["kind"] == one.kind
    shown = table.from_csv((making.RESULTS / f"{one.name}.csv").read_text())
    assert found["numbers"] == manifest.numbers(one, shown)
    assert found["title"] == one.title
    assert any("seed" in key for key in found["inputs"]) or one.kind == "exact"


def test_measured_points_have_intervals_that_hold_them() -> None:
    for one in UNTRAINED:
        shown = table.from_csv((making.RESULTS / f"{one.name}.csv").read_text())
        pairs = [(name.removesuffix("low"), name) for name in shown if name.endswith("low")]
        assert pairs
        for stem, low in pairs:
            for below, above in zip(shown[low], shown[f"{stem}high"], strict=True):
                assert below is None or below <= above


MEASURED = {
    "drift_over_steps": [
        ("measured", "low", "high", "exact"),
        ("updates_measured", "updates_low", "updates_high", "updates_exact"),
    ],
    "unequal_loss": [(what, f"{what}_low", f"{what}_high", f"{what}_exact") for what in ("bias", "deviation")],
    "burst_length": [("mean", "low", "high", "exact")],
    "worst_replica": [("age", "low", "high", "exact")],
    "stability_region": [("step", "low", "high", "exact")],
    "momentum_of_loss": [("mean", "low", "high", "exact")],
    "redundancy": [("value", "low", "high", "exact")],
}
"""Columns of the measured, its interval, and the closed form."""


@pytest.mark.parametrize("name", MEASURED)
def test_what_is_measured_agrees_with_the_closed_form(name: str) -> None:
    """Within two and a half times the 95 % interval, some five standard errors: another formula is further off."""
    assert MEASURED.keys() == TINY.keys()
    shown = table.from_csv((making.RESULTS / f"{name}.csv").read_text())
    for columns in MEASURED[name]:
        rows = [row for row in zip(*(shown[column] for column in columns), strict=True) if None not in row]
        assert len(rows) >= 12
        for value, low, high, exact in rows:
            assert low - 1e-9 <= value <= high + 1e-9
            unseen = 1e-6  # what no run met, as no survivor of 64 at 80 % loss, is in no interval
            assert abs(value - exact) <= 2.5 * (high - low) / 2 + unseen, (columns[0], value, exact)


@pytest.mark.parametrize("one", find(), ids=lambda one: one.name)
def test_no_two_series_of_a_panel_look_alike(one: Figure) -> None:
    shown = table.from_csv((making.RESULTS / f"{one.name}.csv").read_text())
    with style.paper():
        picture = one.draw(shown)
    for axes in picture.axes:
        handles, labels = axes.get_legend_handles_labels()
        assert len(set(labels)) == len(labels)
        looks = [getattr(handle, "lines", [handle])[0] for handle in handles]
        for line, other in combinations(looks, 2):
            apart = [
                line.get_marker() != other.get_marker(),
                line._unscaled_dash_pattern != other._unscaled_dash_pattern,
            ]
            assert any(apart), f"{line.get_label()} and {other.get_label()} differ in colour alone"
        seen = {line.get_markeredgecolor() if line.get_linestyle() == "None" else line.get_color() for line in looks}
        assert seen <= {style.GREY, *(series.colour for series in style.SERIES)}, "colours that nobody compared"


@pytest.mark.parametrize(
    ("name", "panel", "label", "columns", "rows"),
    [
        ("drift_over_steps", 1, "parameters sent (B2)", ("exact", "measured"), {"loss": 0.5}),
        ("drift_over_steps", 1, "updates sent (B10)", ("updates_exact", "updates_measured"), {"loss": 0.5}),
        ("unequal_loss", 0, "zero fill", ("bias_exact", "bias"), {"rule": "zero_fill"}),
        (
            "unequal_loss",
            1,
            "inverse probability (A4)",
            ("deviation_exact", "deviation"),
            {"rule": "inverse_probability"},
        ),
        (
            "burst_length",
            1,
            "heavy-tailed bursts, no limit",
            ("exact", "mean"),
            {"part": "tails", "series": "heavy-tailed"},
        ),
    ],
)
def test_a_series_carries_the_name_of_what_it_shows(
    name: str, panel: int, label: str, columns: tuple[str, str], rows: dict[str, Any]
) -> None:
    shown = table.from_csv((making.RESULTS / f"{name}.csv").read_text())
    with style.paper():
        axes = find([name])[0].draw(shown).axes[panel]
    colour = next(line.get_color() for line in axes.lines if line.get_label() == label)
    drawn = [list(line.get_ydata()) for line in axes.lines if line.get_color() == colour]
    of = table.select(shown, **rows)
    assert all(of[column] in drawn for column in columns)
    low, high = next(found[1:3] for found in MEASURED[name] if found[0] == columns[1])
    bars = next(bars for bars in axes.containers if bars.lines[0].get_color() == colour)
    ends = [segment[:, 1] for segment in bars.lines[2][0].get_segments()]
    assert np.allclose(ends, list(zip(of[low], of[high], strict=True)), rtol=1e-9)


# -- what documents quote


def test_documents_quote_what_the_manifests_have() -> None:
    assert list(quoting.stale(ROOT)) == []


@pytest.mark.parametrize(
    ("value", "like", "text"),
    [
        (0.20202, "9.999", "0.202"), (0.20202, "9", "0"), (0.0096, "+0.0 %", "+1.0 %"), (-0.02, "+0.00", "-0.02"),
        (12345.6, "1,000", "12,346"), (12345.6, "1000", "12346"), ("bits", "any thing", "bits"),
    ],
)  # fmt: skip
def test_numbers_are_shown_alike(value: float | str, like: str, text: str) -> None:
    assert quoting.shown(value, like) == text


def test_wrong_numbers_are_noticed_and_renewed() -> None:
    numbers: dict[str, dict[str, float | str]] = {"a": {"b": 0.256}}
    text = "x <!-- number a.b -->0.25<!-- / --> y <!-- number a.b -->26 %<!-- / -->"
    assert quoting.wrong(text, numbers) == ["a.b: '0.25', but the manifest has '0.26'"]
    assert quoting.wrong(quoting.renewed(text, numbers), numbers) == []
    for bad in ("<!-- number a.c -->1<!-- / -->", "<!-- number c.b -->1<!-- / -->", "<!-- number a.b -->x<!-- / -->",
                "<!-- number a.b -->1", "<!-- number a-b -->1<!-- / -->"):  # fmt: skip
        with pytest.raises(ValueError, match="number"):
            quoting.wrong(bad, numbers)


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
