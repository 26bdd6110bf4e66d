"""The figures of this repository: colours, what they show, what is committed, numbers that documents quote."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lossproof.paper_figures import making, manifest, quoting, style, table
from lossproof.paper_figures.figure import Figure, find

ROOT = Path(__file__).parents[1]
UNTRAINED = [figure for figure in find() if figure.kind in ("exact", "sampled")]
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
    assert any("seed" in key for key in found["inputs"]) or one.kind in ("exact", "measured")


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
