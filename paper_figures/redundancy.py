"""Where to spend redundant packets (D3): on gradients first, and on parameters only where steps are large."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lossproof.impl.channel import SimulatedChannel
from lossproof.impl.loss import Arrivals
from lossproof.impl.round import Round
from lossproof.paper_figures import style
from lossproof.paper_figures.figure import Effort, Figure, Inputs, Progress, Table
from lossproof.paper_figures.intervals import LEVEL, bars
from lossproof.paper_figures.table import rows_to_table, select
from lossproof.proofs_checks.instruments.quadratic_runs import Redundant
from lossproof.theory import redundancy
from lossproof.theory.laws import Bernoulli


def inputs(effort: Effort) -> Inputs:
    return {
        "loss": 0.3,
        "ranks": 8,
        "splits": [[1, 3], [2, 2], [3, 1]],
        "eta_h": [round(10 ** (k / 10 - 2.5), 6) for k in range(26)],
        "measured_eta_h": [0.03, 0.1, 0.3, 1.0],
        "runs": 600 if effort == "quick" else 20_000,
        "times": 20,  # steps that are averaged over, in units of 1/(eta h)
        "split_losses": [0.1, 0.3],
        "split_copies": 14,
        "split_ranks": 1000,
        "split_eta_h": [round(10 ** (k / 12 - 4), 8) for k in range(49)],
        "seed": 0,
    }


def compute(inputs: Inputs, progress: Progress, work: Path) -> Table:
    p, N, rows = inputs["loss"], inputs["ranks"], []
    points = [(split, s) for split in inputs["splits"] for s in inputs["measured_eta_h"]]
    for r_g, r_p in inputs["splits"]:
        name = f"{r_g} + {r_p}"
        for s in inputs["eta_h"]:
            rows.append({"part": "exact", "series": name, "eta_h": s, "value": excess(r_g, r_p, p, N, s)})
    for done, ((r_g, r_p), s) in enumerate(points, start=1):
        value, half = measured(r_g, r_p, s, inputs)
        rows.append({"part": "measured", "series": f"{r_g} + {r_p}", "eta_h": s, "value": value, "low": value - half,
                     "high": value + half, "exact": excess(r_g, r_p, p, N, s)})  # fmt: skip
        progress(done, len(points))
    for p in inputs["split_losses"]:
        for s in inputs["split_eta_h"]:
            best = redundancy.split(inputs["split_copies"], p, inputs["split_ranks"], s)
            rows.append({"part": "best", "series": f"{p:g}", "eta_h": s, "value": best.gradients - best.parameters,
                         "exact": math.log(1 / s) / math.log(1 / p)})  # fmt: skip
    return rows_to_table(rows)


def excess(r_gradients: int, r_parameters: int, p: float, N: int, s: float) -> float:
    """What loss adds to the excess risk, in relation to that without loss."""
    lossless = redundancy.risk(1, 1, 0.0, N, s)
    return float(redundancy.risk(r_gradients, r_parameters, p, N, s) / lossless - 1)


def measured(r_gradients: int, r_parameters: int, s: float, inputs: Inputs) -> tuple[float, float]:
    """The same from runs of the implementation, with half of its 95 % interval.

    Each run is compared with one that sees the same noise and loses nothing: most of the chance is common to both.
    """
    N, P, seed = inputs["ranks"], inputs["runs"], inputs["seed"]
    owner_P = torch.zeros(P, dtype=torch.int64)
    copies = r_gradients, r_parameters
    channels = [SimulatedChannel(Arrivals(Bernoulli(inputs["loss"]), owner_P, N, seed + k)) for k in range(max(copies))]
    start_PE = torch.zeros(P, 1, dtype=torch.float64)
    lossy = Round.in_process(start_PE, owner_P, Redundant(channels, copies))
    lossless = Round.in_process(start_PE, owner_P, SimulatedChannel(Arrivals(Bernoulli(0), owner_P, N)))
    random = np.random.default_rng(seed)
    settled, steps = math.ceil(5 / s), math.ceil((5 + inputs["times"]) / s)
    square_P = {round_: np.zeros(P) for round_ in (lossy, lossless)}
    for t in range(steps):
        noise_NPE = torch.from_numpy(random.standard_normal((N, P, 1)))
        for round_ in (lossy, lossless):

            def sgd(estimate_PE: torch.Tensor, round_: Round = round_) -> None:
                round_.fresh_QE.sub_(s * estimate_PE)

            round_.step(round_.replicas_HPE + noise_NPE, sgd)
            if t >= settled:
                square_P[round_] += round_.fresh_QE[:, 0].numpy() ** 2
    ratio = square_P[lossy].mean() / square_P[lossless].mean()
    return ratio - 1, ratio_half_width(square_P[lossy], square_P[lossless])


def ratio_half_width(above_P: Any, below_P: Any) -> float:
    """Half of the 95 % interval of the ratio of two means of pairs, by the delta method."""
    from scipy.stats import norm

    left_P = above_P - above_P.mean() / below_P.mean() * below_P
    return float(norm.ppf((1 + LEVEL) / 2) * left_P.std(ddof=1) / len(left_P) ** 0.5 / below_P.mean())


def draw(table: Table) -> Any:
    picture = style.new(7.6, 3.9)
    style.heading(picture, FIGURE.title)
    left, right = picture.subplots(1, 2)
    exact, points, best = (select(table, part=part) for part in ("exact", "measured", "best"))
    for name, series in zip(dict.fromkeys(exact["series"]), style.SERIES[1:], strict=False):
        line, at = select(exact, series=name), select(points, series=name)
        left.plot(line["eta_h"], [100 * v for v in line["value"]], **series.line())
        value, low, high = ([100 * v for v in at[key]] for key in ("value", "low", "high"))
        left.errorbar(at["eta_h"], value, bars(value, low, high), **series.points(markerfacecolor="white", zorder=3))
        left.plot([], [], label=f"{name} copies", **series.both(markerfacecolor="white"))
    left.set(xscale="log", yscale="log", xlabel=r"step times curvature $\eta h$", ylabel="added excess risk (%)")
    left.set_ylim(0.8, 300)
    style.panel(left, "4 copies, gradient + parameter; 30 % loss, 8 ranks")
    left.legend(loc="upper left", title="lines: exact; points: measured", alignment="left")
    dashes = ("-", (0, (1, 1.5))), ((0, (6, 2)), (0, (6, 1.5, 1.5, 1.5)))
    for p, series, (ours, rule) in zip(
        dict.fromkeys(best["series"]), (style.SERIES[0], style.SERIES[4]), dashes, strict=True
    ):
        of = select(best, series=p)
        label = f"loss {float(p):.0%}"
        right.step(of["eta_h"], of["value"], where="mid", label=f"{label}: best, exact", **series.line(linestyle=ours))
        right.plot(of["eta_h"], of["exact"], label=rf"{label}: $\ln(1/\eta h)\,/\,\ln(1/p)$",
                   **series.line(linestyle=rule))  # fmt: skip
    right.set(xscale="log", xlabel=r"step times curvature $\eta h$", ylabel="copies, gradients less parameters")
    style.panel(right, "the best split of 14 copies, 1000 ranks")
    right.legend(loc="upper right")
    for axes in (left, right):
        style.plain(axes.xaxis)
    style.plain(left.yaxis)
    return picture


def numbers(table: Table) -> dict[str, float | str]:
    points = select(table, part="measured", eta_h=0.1)
    found: dict[str, float | str] = {}
    for i, name in enumerate(points["series"]):
        key = name.replace(" + ", "_")
        found[f"added_{key}"], found[f"measured_{key}"] = points["exact"][i], points["value"][i]
    return found


FIGURE = Figure(
    name="redundancy",
    title="Spend redundancy on gradients first: lost parameters cost little where steps are small",
    claims=("D3",),
    kind="sampled",
    caption="""Left: what loss adds to the steady excess risk of SGD along a direction, in relation to that without
        loss, for three ways to spend four copies of packets: exact (lines) and measured through the implementation
        (points, 95 % intervals, each run against one that sees the same noise and loses nothing). At eta h = 0.1 one
        copy of gradients and three of parameters add {added_1_3:.1%}, two of each {added_2_2:.1%}, three of gradients
        and one of parameters {added_3_1:.1%}; measured {measured_1_3:.1%}, {measured_2_2:.1%} and {measured_3_1:.1%}.
        At large steps two of each are the best. Right: the exact best split, in whole copies, so that the difference is
        even, and the rule of thumb of D3, which is for small steps: near eta h = 1 it says nothing.""",
    inputs=inputs,
    compute=compute,
    draw=draw,
    numbers=numbers,
)
