"""Equal loss, longer bursts: drift grows with the mean burst (B8), and under heavy tails without bound (D4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lossproof.paper_figures import style
from lossproof.paper_figures.broadcasts import drifts
from lossproof.paper_figures.figure import Effort, Figure, Inputs, Progress, Table
from lossproof.paper_figures.intervals import mean_interval
from lossproof.paper_figures.table import rows_to_table, select
from lossproof.theory import bursts
from lossproof.theory.laws import GilbertElliott, HeavyTailed, Law


def inputs(effort: Effort) -> Inputs:
    return {
        "loss": 0.1,
        "bursts": [1.25, 2, 4, 8, 16, 32],
        "heavy_loss": 0.3,
        "heavy_steps": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *([] if effort == "quick" else [1024, 2048, 4096])],
        "ranks": 4,
        "packets": 2000 if effort == "quick" else 40_000,
        "heavy_packets": 8000 if effort == "quick" else 40_000,
        "seed": 0,
    }


def compute(inputs: Inputs, progress: Progress, work: Path) -> Table:
    p, heavy, N, P, Q = (inputs[key] for key in ("loss", "heavy_loss", "ranks", "packets", "heavy_packets"))
    total, done, rows = len(inputs["bursts"]) + 2, 0, []
    for place, burst in enumerate(inputs["bursts"]):
        steady, seed = int(8 * burst) + 8, inputs["seed"] + place  # by then exp(-8) is left of the start
        path = drifts(GilbertElliott(p, burst), N, P, steady + 2 * int(burst) + 8, seed)
        seen = [
            (sums.to_owner(N).numpy(), sums.between_pairs(N).numpy())
            for t, sums in enumerate(path)
            if t >= steady
        ]  # fmt: skip
        for i, (kind, exact) in enumerate((("owner", bursts.gilbert_owner), ("pair", bursts.gilbert_pair))):
            measured = mean_interval(np.mean([each[i] for each in seen], axis=0))  # packets are independent, steps not
            rows.append({"part": "bursts", "series": kind, "x": burst, "exact": float(exact(p, burst))} | measured)
        done += 1
        progress(done, total)
    last = inputs["heavy_steps"][-1]
    laws: dict[str, Law] = {"heavy-tailed": HeavyTailed(heavy), "geometric": GilbertElliott(heavy, 2)}
    for place, (name, law) in enumerate(laws.items()):
        tail = np.cumsum([float(law.age_tail(k)) for k in range(1, last + 1)])
        for t, sums in enumerate(drifts(law, N, Q, last, inputs["seed"] + 100 + place, elements=4), start=1):
            if t in inputs["heavy_steps"]:
                row = {"part": "tails", "series": name, "x": t, "exact": float(tail[t - 1])}
                rows.append(row | mean_interval(sums.to_owner(N)))
        done += 1
        progress(done, total)
    return rows_to_table(rows)


def draw(table: Table) -> Any:
    picture = style.new(7.4, 3.8)
    style.heading(picture, FIGURE.title)
    left, right = picture.subplots(1, 2)
    shown = {
        left: ("bursts", {"owner": "replica to owner, $pL$", "pair": "between replicas"}),
        right: ("tails", {"heavy-tailed": "heavy-tailed bursts, no limit", "geometric": "geometric bursts"}),
    }
    for axes, (part, series) in shown.items():
        for (name, label), look in zip(series.items(), style.SERIES[1:], strict=False):
            of = select(table, part=part, series=name)
            style.compared(axes, of["x"], of["exact"], of["mean"], of["low"], of["high"], label, look)
        axes.set_xscale("log", base=2)
        axes.legend(loc="upper left", title="lines: exact; points: measured", alignment="left")
    left.set_yscale("log", base=2)
    left.set(xlabel="mean burst $L$ (steps)", ylabel=r"drift in steady state ($\sigma^2$ of a step)")
    right.set(xlabel="step $t$", ylabel=r"drift to the owner ($\sigma^2$ of a step)")
    style.panel(left, "10 % loss, bursts of growing length")
    style.panel(right, "30 % loss, both with a mean burst of 2 steps")
    style.plain(left.yaxis)
    for axes in (left, right):
        style.plain(axes.xaxis)
    return picture


def numbers(table: Table) -> dict[str, float | str]:
    owner = select(table, part="bursts", series="owner")
    heavy, geometric = (select(table, part="tails", series=name) for name in ("heavy-tailed", "geometric"))
    return {
        "short": owner["exact"][0],
        "long": owner["exact"][-1],
        "long_measured": owner["mean"][-1],
        "long_low": owner["low"][-1],
        "long_high": owner["high"][-1],
        "longest": float(owner["x"][-1]),
        "steps": float(heavy["x"][-1]),
        "heavy": heavy["exact"][-1],
        "heavy_measured": heavy["mean"][-1],
        "heavy_low": heavy["low"][-1],
        "heavy_high": heavy["high"][-1],
        "geometric": geometric["exact"][-1],
    }


FIGURE = Figure(
    name="burst_length",
    title="Equal loss, longer bursts, more drift; and a finite mean burst does not bound it",
    claims=("B8", "D4"),
    kind="sampled",
    caption="""Left: 10 % of the parameter packets are lost, in Gilbert-Elliott bursts of mean length L; drift to the
        owner in steady state grows from {short:.3f} to {long:.2f} at L = {longest:.0f}, where {long_measured:.2f} is
        measured, interval {long_low:.2f} to {long_high:.2f}. Right: 30 % loss and a mean burst of 2 steps either way.
        Geometric bursts settle at {geometric:.2f}. Bursts with P(T >= j) = 2/(j(j+1)) have the same mean and infinite
        variance: drift is {heavy:.2f} after {steps:.0f} steps (measured {heavy_measured:.2f}, interval {heavy_low:.2f}
        to {heavy_high:.2f}) and grows as log t, for ever. Lines are closed forms, points the implementation with 95 %
        intervals over packets, too narrow where tails are heavy: a rare long burst may be missing. Steps have zero
        mean.""",
    inputs=inputs,
    compute=compute,
    draw=draw,
    numbers=numbers,
)
