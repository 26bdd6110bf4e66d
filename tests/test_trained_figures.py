"""Trained figures: the other designs against closed forms and plain averaging, the control, shared and resumed runs."""

from __future__ import annotations

import hashlib
import json
import signal
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lossproof.impl.cluster import Cluster
from lossproof.impl.loss import Arrivals, PhiloxDraw
from lossproof.impl.settings import Settings
from lossproof.paper_figures import (
    momentum_llama,
    other_designs,
    paired,
    perplexity,
    runs,
    style,
    trained,
    validation_curves,
)
from lossproof.paper_figures.baselines import ModelAveraging, OwnGradient, UpdateSharing
from lossproof.paper_figures.figure import Figure, Progress, Table
from lossproof.paper_figures.table import from_csv, select, to_csv
from lossproof.theory import aggregation, contrast, rps
from lossproof.theory.laws import Bernoulli

SIZES: dict[str, Any] = {"context": 16, "hidden": 8, "layers": 1, "heads": 1, "intermediate": 8, "validation": 64}
TINY = Settings(ranks=3, steps=4, packet_bytes=64, **SIZES)
FIGURES = (perplexity.FIGURE, validation_curves.FIGURE, other_designs.FIGURE, momentum_llama.FIGURE)
ADAMW, SGD = partial(torch.optim.AdamW, lr=0.01), partial(torch.optim.SGD, lr=0.1)


def unheard(done: int, total: int) -> None: ...


@pytest.fixture(autouse=True)
def nothing_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_done", {})


def cluster(kind: type[Cluster], optimizer: Any, loss: float, ranks: int = 4, size: int = 8, **options: Any) -> Cluster:
    """Linear regression in packets of one element, so that there are many of them."""
    torch.manual_seed(0)
    model = torch.nn.Linear(size, size)
    return kind(model, lambda model, x: (model(x) - x.flip(-1)).square().mean(), optimizer, Bernoulli(loss), ranks,
                packet_bytes=4, **options)  # fmt: skip


def trained_for(steps: int, *clusters: Cluster) -> None:
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        batch = torch.randn(clusters[0].ranks, 5, clusters[0].layout.shapes[-1][0], generator=draw)
        for one in clusters:
            one.step(batch)


@pytest.mark.parametrize("kind", [UpdateSharing, OwnGradient])
@pytest.mark.parametrize("optimizer", [SGD, ADAMW])
def test_without_loss_other_designs_are_plain_averaging_bit_for_bit(kind: type[Cluster], optimizer: Any) -> None:
    plain, other = cluster(Cluster, optimizer, 0), cluster(kind, optimizer, 0)
    trained_for(5, plain, other)
    assert torch.equal(plain.fresh_PE, other.fresh_PE)
    assert torch.equal(plain.replicas_NPE, other.replicas_NPE)


def test_without_loss_averaging_models_after_sgd_is_averaging_gradients() -> None:
    plain, other = cluster(Cluster, SGD, 0), cluster(ModelAveraging, SGD, 0)
    trained_for(5, plain, other)
    assert torch.equal(other.replicas_NPE, other.fresh_PE.expand_as(other.replicas_NPE))
    torch.testing.assert_close(other.fresh_PE, plain.fresh_PE)


def test_averaged_models_contract_as_b11_says() -> None:
    """Steps of rate 0: only the averaging moves the models. A fixed owner contracts by a1 - a2 in all directions
    together, so models in random directions do on average."""
    ranks, loss = 4, 0.4
    one = cluster(ModelAveraging, partial(torch.optim.SGD, lr=0.0), loss, ranks, size=100)
    start = torch.randn(ranks, *one.fresh_PE.shape, generator=torch.Generator().manual_seed(2))
    one.round.replicas_HPE = start.clone()
    trained_for(1, one)

    def distance(models_NPE: torch.Tensor) -> float:
        return float((models_NPE - models_NPE.mean(0)).double().square().sum())

    left = distance(one.replicas_NPE) / distance(start)
    assert left == pytest.approx(rps.contraction(ranks, loss, loss), rel=0.02)
    assert left != pytest.approx(rps.spread(ranks, loss, loss), rel=0.02)


def test_shared_updates_drift_apart_as_b10_says() -> None:
    one, squares, loss = cluster(UpdateSharing, ADAMW, 0.3, ranks=8, size=30), 0.0, 0.3
    for step in range(12):
        before_PE = one.fresh_PE.clone()
        one.step(torch.randn(8, 5, 30, generator=torch.Generator().manual_seed(step)))
        squares += float((one.fresh_PE - before_PE).double().square().sum())
    owner_P = torch.tensor(one.owner_P)
    gap_NP = (one.replicas_NPE - one.fresh_PE).double().squeeze(-1)
    assert (gap_NP[owner_P, torch.arange(len(owner_P))] == 0).all()
    pairs = [(i, j) for i in range(8) for j in range(i)]
    apart = sum(float((gap_NP[i] - gap_NP[j])[(owner_P != i) & (owner_P != j)].square().sum()) for i, j in pairs)
    apart /= len(pairs) * (6 / 8)  # each packet has an owner, who is in a quarter of all pairs
    assert apart == pytest.approx(contrast.updates_pair(loss, squares), rel=0.1)


def test_a_rank_that_misses_the_mean_steps_by_its_own_gradient() -> None:
    one = cluster(OwnGradient, SGD, 0.5, rule="zero_fill")
    before_NPE, batch = one.replicas_NPE.clone(), torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(3))
    gradient_NPE = one.gradients(batch)[0].clone()
    arrivals = Arrivals(Bernoulli(0.5), one.owner_P, 4, 0)
    sent_NP, received_NP = arrivals.gradients(0)[..., None], arrivals.parameters(0)[..., None]
    one.step(batch)
    mean_PE = (gradient_NPE * sent_NP).sum(0) / 4
    expected = before_NPE - 0.1 * torch.where(received_NP, mean_PE, gradient_NPE)
    torch.testing.assert_close(one.replicas_NPE, expected)
    owner_P = torch.tensor(one.owner_P)
    assert torch.equal(one.fresh_PE, one.replicas_NPE[owner_P, torch.arange(len(owner_P))])


@pytest.mark.parametrize("protocol", sorted(runs.PROTOCOLS))
def test_a_run_interrupted_and_resumed_has_the_digits_of_one_that_was_not(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = runs.Case(replace(TINY, law=Bernoulli(0.3)), protocol, curve=2)
    whole = runs.run_all([case], unheard, tmp_path / "whole")
    monkeypatch.setattr(runs, "_done", {})
    step = Cluster.step if protocol in ("this protocol", "update sharing") else runs.PROTOCOLS[protocol].step

    def interrupted(self: Cluster, batch: Any) -> torch.Tensor:
        if self.round.step_number == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(runs.PROTOCOLS[protocol], "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.run_all([case], unheard, tmp_path / "cut")
    left = torch.load(tmp_path / "cut" / f"{case.name}-unfinished" / "checkpoint.pt", weights_only=True)
    assert len(left["losses"]) == 2
    assert runs.run_all([case], unheard, tmp_path / "cut") == whole
    assert [step for step, _ in whole[0]["curve"]] == [2, 4]
    assert whole[0]["curve"][-1][1] == pytest.approx(whole[0]["log_perplexity"], rel=1e-5)
    assert not list((tmp_path / "cut").glob("*-unfinished"))


def test_runs_are_shared_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        runs.Case(replace(TINY, seed=seed), momentum=beta) for seed, beta in ((0, None), (1, None), (1, 0.5), (0, None))
    ]
    told: list[tuple[int, int]] = []
    settings = [replace(case, settings=replace(case.settings, optimizer="sgd")) for case in cases]
    found = runs.run_all(settings, lambda *now: told.append(now), tmp_path, workers=2)
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert found[0] == found[3]
    assert len({run["log_perplexity"] for run in found}) == 3, "seed and momentum must matter"

    def never(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(runs, "_train_anew", never)
    assert runs.run_all(settings, unheard, tmp_path / "elsewhere") == found
    monkeypatch.setattr(runs, "_done", {})
    assert runs.run_all(settings, unheard, tmp_path) == found


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.25, 0.4])
@pytest.mark.parametrize("ranks", [2, 8, 16])
def test_the_control_has_the_survivors_variance_and_no_loss(ranks: int, loss: float) -> None:
    law = runs.FewerRanks(ranks, loss)
    few, share = law.counts()
    kappa = aggregation.owner_weight(ranks, Fraction(str(loss)))
    assert 0 < share <= 1
    assert share / few + (1 - share) / (few + 1) == kappa
    packets = 4000
    arrivals = Arrivals(law, [0] * packets, ranks, seed=5, own_link="lossy")
    assert arrivals.parameters(0).all()
    sent_NP = arrivals.gradients(0)
    count_P = sent_NP.sum(0)
    assert torch.equal(sent_NP, torch.arange(ranks)[:, None] < count_P), "the first ranks, whichever they are"
    assert set(count_P.tolist()) <= {few, few + 1}
    tolerance = 6 * (float(share * (1 - share)) / packets) ** 0.5  # six standard deviations
    assert float((count_P == few).double().mean()) == pytest.approx(float(share), abs=tolerance)
    assert [law.marginal(i) for i in range(ranks)] == [0 if i < few else share if i == few else 1 for i in range(ranks)]
    draw = PhiloxDraw("parameters", 0, 2, np.array([0]), np.array([[0], [1]]), np.array([0]), 0)
    assert not law.sample(draw, {})[0].any()


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Table]:
    """Of tiny runs: two seeds, one loss beside none."""
    work, found = tmp_path_factory.mktemp("work"), {}
    some = [0.0, 0.1, 0.4]
    fewer: dict[str, Any] = {
        "perplexity": {"losses_by_rate": [[trained.RATE, some], [trained.HIGH_RATE, some]]},
        "validation_curves": {"losses": some},
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runs, "_done", {})
        patched.setattr(runs, "_processors", lambda: 1)
        for figure in FIGURES:
            inputs = figure.inputs("quick") | {"settings": {**SIZES, "ranks": 3, "steps": 10}, "seeds": 2}
            inputs |= fewer.get(figure.name, {})
            found[figure.name] = figure.compute(inputs, unheard, work / figure.name)
        assert not (work / "validation_curves").exists(), "runs of an earlier figure were run again"
    return found


def test_figures_are_of_the_same_runs(tables: dict[str, Table]) -> None:
    first = tables["perplexity"]["log_perplexity"][0]
    assert tables["other_designs"]["log_perplexity"][0] == first
    assert tables["validation_curves"]["log_perplexity"][trained.POINTS - 1] == pytest.approx(first, rel=1e-5)
    designs = select(tables["other_designs"], seed=0)
    assert len(set(designs["log_perplexity"])) == len(designs["seed"]), "two designs are one"


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_a_figure_is_drawn_and_quoted_from_what_its_file_says(figure: Figure, tables: dict[str, Table]) -> None:
    table = from_csv(to_csv(tables[figure.name]))
    numbers = figure.numbers(table)
    caption = figure.caption.format_map(numbers)
    assert "{" not in caption
    assert numbers["seeds"] == 2
    with style.paper():
        assert style.save(figure.draw(table)) == style.save(figure.draw(table))
    assert json.loads(json.dumps(figure.inputs("paper"))) == figure.inputs("paper") != figure.inputs("quick")


def test_reported_figures_are_marked_and_never_in_one_series_with_measured_ones(tables: dict[str, Table]) -> None:
    table = tables["perplexity"]
    for series in set(table["series"]):
        rows = select(table, series=series)
        reported = series.startswith("reported")
        assert all((value is None) == reported for value in rows["log_perplexity"])
        assert all((value is None) != reported for value in rows["reported_percent"])
    assert {series: dict(zip(rows["loss"], rows["reported_percent"], strict=True)) for series in set(table["series"])
            if series.startswith("reported") for rows in [select(table, series=series)]} == {
        "reported, source A": {0.1: 0.8, 0.2: 2.6, 0.3: 3.8},
        "reported, source B (validation)": {0.1: 1.17, 0.4: 6.65},
    }  # fmt: skip


@pytest.mark.parametrize("figure", FIGURES[:3], ids=lambda figure: figure.name)
def test_every_row_is_of_the_run_that_it_names(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which runs are asked for, not what comes of them: each run is answered with its own number."""
    asked: list[runs.Case] = []

    def answers(cases: Any, progress: Progress, work: Path) -> list[dict[str, Any]]:
        asked.extend(cases)
        return [
            {"log_perplexity": number, "replicas": number, "no_survivor": 0, "curve": [(1, number)]}
            for number in range(len(asked))
        ]

    monkeypatch.setattr(trained, "run_all", answers)
    table = figure.compute(figure.inputs("quick"), unheard, Path())
    for i, number in enumerate(table["log_perplexity"]):
        if number is None:
            continue
        row, case = {name: column[i] for name, column in table.items()}, asked[number]
        design = row.get("design", "survivor mean")
        control = row.get("series") == "fewer ranks, no loss"
        assert case.settings.seed == row["seed"]
        assert case.settings.lr == (row.get("rate") or trained.RATE)
        assert case.settings.law == (
            runs.FewerRanks(case.settings.ranks, row["loss"]) if control else Bernoulli(row["loss"])
        )
        assert case.settings.own_link == (
            "lossy" if control or design == "own gradient if none arrives" else "reliable"
        )
        assert case.settings.rule == {
            "inverse probability": "inverse_probability", "zero fill": "zero_fill",
            "own gradient for a lost mean": "zero_fill",
        }.get(design, "survivor_mean")  # fmt: skip
        assert case.settings.no_survivor == ("own" if design == "own gradient if none arrives" else "zero")
        assert case.protocol == {
            "own gradient for a lost mean": "own gradient", "updates, not parameters": "update sharing",
            "models averaged (RPS)": "model averaging",
        }.get(design, "this protocol")  # fmt: skip


def test_curves_and_points_carry_the_name_of_what_they_show(tables: dict[str, Table]) -> None:
    table = from_csv(to_csv(tables["perplexity"]))
    names = {"both stages lose packets": "lossy", r"no loss, $1/\kappa$ ranks": "fewer ranks, no loss"}
    with style.paper():
        panels = perplexity.FIGURE.draw(table).axes
    for axes, rate in zip(panels, (trained.RATE, trained.HIGH_RATE), strict=True):
        lossless = paired.by_seed(select(table, series="lossy", rate=rate, loss=0))
        shown = {bars.get_label(): bars for bars in axes.containers}
        assert shown.keys() == names.keys()
        for label, series in names.items():
            found = [paired.percent(paired.by_seed(select(table, series=series, rate=rate, loss=p)), lossless)
                     for p in (0.1, 0.4)]  # fmt: skip
            points, _, (spans,) = shown[label]
            assert points.get_ydata() == pytest.approx([one["mean"] for one in found])
            ends = [segment[:, 1].tolist() for segment in spans.get_segments()]
            assert np.array(ends) == pytest.approx(np.array([[one["low"], one["high"]] for one in found]))
        reported = {line.get_label(): line for line in axes.lines if line.get_label().startswith("second-hand")}
        assert {
            label: dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) for label, line in reported.items()
        } == {
            f"second-hand: {source}": {100 * p: value for p, value in changes.items()}
            for source, changes in trained.REPORTED.items()
        }


def test_changes_are_paired_by_seed() -> None:
    lossless, lossy = {0: 1.0, 1: 1.05, 2: 3.0}, {2: 3.1, 1: 1.05, 0: 1.2}  # not by place, nor by size
    found = paired.nats(lossy, lossless)
    half = 4.302652729911275 * 0.1 / 3**0.5  # t quantile of two degrees of freedom; the differences are 0.2, 0, 0.1
    assert found == pytest.approx({"mean": 0.1, "low": 0.1 - half, "high": 0.1 + half})
    assert paired.percent(lossy, lossless)["mean"] == pytest.approx(100 * (np.exp(0.1) - 1))
    with pytest.raises(ValueError, match=r"runs must have the seeds \[0, 1, 2\], got \[0\]"):
        paired.nats({0: 1.0}, lossless)


def test_the_shipped_text_is_what_the_readme_says() -> None:
    readme = (runs.TEXT.parent / "README.md").read_text(encoding="utf-8")
    content = runs.TEXT.read_bytes()
    assert hashlib.sha256(content).hexdigest() == runs.environment()["text"]
    assert runs.environment()["text"] in readme
    assert f"{len(content):,} bytes" in readme
