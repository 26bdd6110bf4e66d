"""UDP against TCP on a lossy link: figures, page and README say what the records say, and their titles are true."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pages import generator

from lossproof.paper_figures import lossy_link, making, records, style, training_over_link
from lossproof.paper_figures.figure import Figure
from lossproof.paper_figures.table import from_csv, rows_to_table, select, to_csv

FIGURES = (lossy_link.FIGURE, training_over_link.FIGURE)


@pytest.fixture(scope="module")
def page() -> ModuleType:
    return generator("lossy_link")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records that may be changed: copies."""
    for name in ("transport", "training_over_loss"):
        (tmp_path / f"{name}.json").write_bytes((records.FOLDER / f"{name}.json").read_bytes())
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    return tmp_path


def changed(folder: Path, name: str, change: Any) -> dict[str, Any]:
    found = records.read(name)
    change(found)
    (folder / f"{name}.json").write_text(json.dumps(found))
    return found


def committed(one: Figure) -> Any:
    return from_csv((making.RESULTS / f"{one.name}.csv").read_text())


# -- figures


@pytest.mark.parametrize("one", FIGURES, ids=lambda one: one.name)
def test_the_committed_figures_are_of_the_records(one: Figure) -> None:
    found = making.check(one, making.RESULTS)
    assert (found.outcome, found.detail.partition(" rows, ")[2]) == ("equal", "as recorded; nothing is measured again")


def test_the_figures_show_every_number_of_the_records() -> None:
    shown, found = committed(FIGURES[0]), records.read("transport")["results"]
    assert len(select(shown, part="latency")["mib"]) == 2 * len(found)
    for row in found:
        for transport in ("udp", "tcp"):
            of = select(shown, part="latency", mib=row["mib"], loss=row["loss"], transport=transport)
            for what in ("p50_ms", "p99_ms", "max_ms", "rounds"):
                assert of[what] == [pytest.approx(row[transport][what], rel=1e-9)]
    shown, training = committed(FIGURES[1]), records.read("training_over_loss")
    assert len(select(shown, part="steps")["loss"]) == 2 * len(training["table"])
    for row in training["table"]:
        for transport in ("udp", "tcp"):
            of = select(shown, part="steps", loss=row["loss"], transport=transport)
            assert of["mean_ms"] == [pytest.approx(row[transport]["mean_ms"])]
            assert of["seconds_to_target"] == [pytest.approx(np.mean(row[transport]["seconds_to_target"]))]
    assert select(shown, part="difference")["nats"] == [pytest.approx(training["difference"]["mean"])]


def test_another_record_is_another_figure(folder: Path, tmp_path: Path) -> None:
    for one in FIGURES:
        making.make(one, "quick", tmp_path / "made")

    def slower(found: dict[str, Any]) -> None:
        found["results"][0]["udp"]["p50_ms"] *= 1.001

    changed(folder, "transport", slower)
    assert making.check(FIGURES[0], tmp_path / "made") == making.Checked("differs", "made of other inputs: sha256")
    assert making.make(FIGURES[0], "quick", tmp_path / "made") == "made"
    assert making.check(FIGURES[0], tmp_path / "made").outcome == "equal"
    (folder / "training_over_loss.json").unlink()
    assert making.make(FIGURES[1], "quick", tmp_path / "made") == "no record here"
    found = making.check(FIGURES[1], tmp_path / "made")
    assert found.outcome == "not comparable"
    assert "training_over_loss.json is part of the source tree" in found.detail


@pytest.mark.parametrize("n", [25, 99, 1480])
def test_the_tail_is_the_share_of_rounds_that_last_as_long(n: int) -> None:
    ms = np.random.default_rng(n).pareto(1.5, n)
    chances = [*(k / 100 for k in range(1, 100)), *(k / 1000 for k in range(991, 1001))]
    kept = [[q, float(np.quantile(ms, q, method="higher"))] for q in chances]
    for at, share in lossy_link.tail({"rounds": n, "quantiles_ms": kept}):
        assert share == pytest.approx((ms >= at).mean())
    p50, p99 = (float(np.quantile(ms, q, method="higher")) for q in (0.5, 0.99))
    few = {"rounds": n, "p50_ms": p50, "p99_ms": p99, "max_ms": float(ms.max())}
    assert [at for at, _ in lossy_link.tail(few)] == [p50, p99, ms.max()]
    assert [share for _, share in lossy_link.tail(few)] == [
        pytest.approx((ms >= q).mean()) for q in (p50, p99, ms.max())
    ]


def test_curves_of_a_record_are_drawn(folder: Path) -> None:
    def with_curves(found: dict[str, Any]) -> None:
        found["curves"] = [
            {"transport": transport, "loss": row["loss"], "seconds": [1.0, 2.0], "train_loss": [place + 4.0, 3.5]}
            for place, row in enumerate(found["table"])
            for transport in ("udp", "tcp")
        ]

    found = changed(folder, "training_over_loss", with_curves)
    table = from_csv(to_csv(training_over_link.compute({"record": "training_over_loss"}, making.unheard, folder)))
    with style.paper():
        picture = training_over_link.draw(table)
    panels = {axes.get_title(loc="left"): axes for axes in picture.axes}
    assert len(panels) == 2 + len(found["table"])
    for place, row in enumerate(found["table"]):
        axes = panels[f"{100 * row['loss']:g} % loss"]
        assert [list(line.get_ydata()) for line in axes.lines[:2]] == [[place + 4.0, 3.5]] * 2


def test_lines_are_named_by_their_transport() -> None:
    rows = [{"part": part, "mib": 1, "loss": loss, "transport": transport, "p50_ms": high, "p99_ms": 2 * high,
             "max_ms": 3 * high, "deadline_ms": 9.0, "rounds": 9, "ms": high, "share": 0.5}
            for part in ("latency", "tail") for loss in (0.0, 0.1)
            for transport, high in (("udp", 1.0), ("tcp", 5.0))]  # fmt: skip
    with style.paper():
        above, below = lossy_link.draw(rows_to_table(rows)).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in above.lines}
    assert drawn == {"UDP, median": [1, 1], "UDP, p99": [2, 2], "TCP, median": [5, 5], "TCP, p99": [10, 10]}
    assert {line.get_label(): line.get_xdata()[0] for line in below.lines if line.get_label()[0] != "_"} == {
        "UDP": 1.0, "TCP": 5.0, "UDP's deadlines": 9.0}  # fmt: skip


def test_what_the_titles_say_is_so() -> None:
    rounds = records.read("transport")["results"]
    worst = max(row["loss"] for row in rounds)
    assert worst >= 0.1
    for mib in {row["mib"] for row in rounds}:
        by_loss = {row["loss"]: row for row in rounds if row["mib"] == mib}
        p99 = {name: [by_loss[loss][name]["p99_ms"] for loss in (0, worst)] for name in ("udp", "tcp")}
        assert p99["udp"][1] < p99["tcp"][1]
        assert p99["udp"][1] / p99["udp"][0] < p99["tcp"][1] / p99["tcp"][0]
    training = records.read("training_over_loss")
    first, *_, last = sorted(training["table"], key=lambda row: row["loss"])
    grown = {name: last[name]["mean_ms"] / first[name]["mean_ms"] for name in ("udp", "tcp")}
    assert grown["udp"] < 1.2 < 2 < grown["tcp"]
    assert training["difference"]["interval"][1] < 0.05  # nats


@pytest.mark.parametrize(
    ("udp", "tcp", "between", "words"),
    [
        ([6, 8, 10], [4, 5, 12], (0.01, 0.1), "above a loss of 1 to 10 %"),
        ([1, 8, 10], [4, 5, 12], (0.01, 0.1), "above a loss of 1 to 10 %"),
        ([6, 8, 10], [6, 9, 12], (0, 0.01), "above a loss of 0 to 1 %"),
        ([1, 8, 12], [4, 9, 12], (0.1, None), "at no loss up to 10 %"),
        ([1, 8, 10], [4, 9, 12], (None, 0), "at every loss"),
    ],
)
def test_where_udp_gets_ahead_for_good(udp: Any, tcp: Any, between: Any, words: str) -> None:
    assert records.crossing([0, 0.01, 0.1], udp, tcp) == between
    assert records.faster([0, 0.01, 0.1], udp, tcp) == words


# -- the page and the README


def test_page_and_readme_are_of_the_records(page: ModuleType) -> None:
    for file, text in page.wanted().items():
        assert file.read_text(encoding="utf-8") == text, "run: python -m docs.lossy_link"
    assert any("<!-- lossy link -->" in text for text in page.wanted().values())


def test_a_readme_that_quotes_something_else_is_noticed(page: ModuleType) -> None:
    readme = "before\n<!-- lossy link -->\n| old |\n<!-- /lossy link -->\nafter\n"
    tables = page.block(records.read("transport"), records.read("training_over_loss"))
    renewed = page.quoted(readme, tables)
    assert renewed == f"before\n<!-- lossy link -->\n{tables}<!-- /lossy link -->\nafter\n"
    assert page.quoted(renewed, tables) == renewed


def cells(text: str, *start: str) -> list[str]:
    """The one row of the tables of a page that begins so."""
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {' | '.join(start)} |"))
    return row.strip("| ").split(" | ")[len(start) :]


def test_every_cell_is_what_was_measured(page: ModuleType) -> None:
    transport, training = copy.deepcopy(records.read("transport")), copy.deepcopy(records.read("training_over_loss"))
    row = next(row for row in transport["results"] if (row["mib"], row["loss"]) == (1, 0.1))
    row["udp"] = {"rounds": 1480, "p50_ms": 10.4, "p99_ms": 19.96, "max_ms": 1203.4, "mb_per_s": 95.1,
                  "processor_ms": 10.02}  # fmt: skip
    row["router"]["udp"] = [2000, 200]
    row["statistics"] = [
        {"overflowed": 1, "late": 2, "withheld": 3, "cut_off": 4, "deadlines": [0.1, 0.2]},
        {"overflowed": 10, "late": 20, "withheld": 30, "cut_off": 40, "deadlines": [0.2, 0.25]},
    ]
    trained = next(row for row in training["table"] if row["loss"] == 0.1)
    trained["udp"] |= {"mean_ms": 50.0, "p50_ms": 45.0, "p99_ms": 90.0, "max_ms": 95.0, "reliable_ms": 7.0,
                       "seconds_to_target": [1.0, 1.5, 2.0], "log_perplexity": [np.log(20.0)] * 3}  # fmt: skip
    clean = min(training["table"], key=lambda row: row["loss"])
    for row in training["table"]:
        row["udp"]["log_perplexity"] = [np.log(20.0) + k * (row is not clean) for k in (0.1, 0.2, 0.3)]
    trained["udp"]["log_perplexity"] = [np.log(20.0)] * 3
    text, short = page.page(transport, training), page.block(transport, training)
    # Student's 0.975 quantile of 2 degrees is 4.3027, the standard error 0.1 / sqrt(3)
    assert page.changes(training) == "+0.2000 (-0.0484 to +0.4484) at 1 %, +0.0000 (+0.0000 to +0.0000) at 10 %"
    assert page.changes(training) in short
    assert page.changes(training) in text
    assert cells(text, "1 MiB", "10 %", "UDP") == ["1,480", "10.4", "20.0", "1,203", "95", "10.0"]
    assert cells(text, "1 MiB", "10 %", "200 of 2,000 (10.00%)") == ["11", "55", "44", "450 ms", "1,203 ms"]
    assert cells(text, "10 %", "UDP") == ["50", "45", "90", "95", "7.0", "1.50", "20.00"]
    of_training = [line for line in short.splitlines() if line.startswith("| 10 % | 50 / ")]
    assert len(of_training) == 1
    _, _, seconds, perplexity = of_training[0].strip("| ").split(" | ")
    assert seconds.startswith("1.50 / ")
    assert perplexity.startswith("20.00 / ")
    rounds = next(line for line in short.splitlines() if line.startswith("| 10 % | 10.4 / "))
    assert rounds.split(" | ")[2].startswith("20.0 / ")
    assert "took 1,203 ms over UDP, whose two phases are cut off by their deadlines (450 ms together" in short
