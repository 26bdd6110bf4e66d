"""The worst of N replicas: its age grows with log N, up to a million replicas (B7)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from lossproof.paper_figures import style
from lossproof.paper_figures.broadcasts import round_at_rest
from lossproof.paper_figures.figure import Effort, Figure, Inputs, Progress, Table
from lossproof.paper_figures.intervals import bars, mean_interval
from lossproof.paper_figures.table import rows_to_table, select
from lossproof.theory import worst
from lossproof.theory.laws import Bernoulli


def inputs(effort: Effort) -> Inputs:
    return {
        "losses": [0.1, 0.3, 0.5],
        "replicas": [round(10 ** (k / 4)) for k in range(25)],
        "measured": [[1, 2000], [9, 1000], [99, 400], [999, 100], [9999, 20], [65535, 8]],  # replicas, packets
        "steps": 12 if effort == "quick" else 400,  # of which a mean is taken
        "seed": 0,
    }


def compute(inputs: Inputs, progress: Progress, work: Path) -> Table:
    losses, measured = inputs["losses"], inputs["measured"]
    rows: list[dict[str, Any]] = []
    for place, p in enumerate(losses):
        for replicas in inputs["replicas"]:
            low, high = worst.age_max_bounds(worst.harmonic(replicas, 1.0), -math.log(p))
            exact = worst.age_max_mean(replicas, p)
            rows.append({"loss": p, "part": "theory", "replicas": replicas, "age": exact, "low": low, "high": high})
        for i, (replicas, packets) in enumerate(measured):
            found = oldest(p, replicas, packets, inputs["steps"], inputs["seed"] + place)
            age = mean_interval(found)
            rows.append({"loss": p, "part": "measured", "replicas": replicas, "age": age["mean"], "low": age["low"],
                         "high": age["high"], "exact": worst.age_max_mean(replicas, p)})  # fmt: skip
            progress(place * len(measured) + i + 1, len(losses) * len(measured))
    return rows_to_table(rows)


def oldest(p: float, replicas: int, packets: int, steps: int, seed: int) -> Any:
    """The age of the oldest replica of each packet, a mean over the steps after the start is forgotten.

    Owners count their steps, so that a replica's distance to the owner is its age.
    """
    round_ = round_at_rest(Bernoulli(p), replicas + 1, packets, 1, seed)
    settled = math.ceil((math.log(replicas) + 5) / -math.log(p))  # P(any age is cut off by the start) < e^-5
    total = torch.zeros(packets, dtype=torch.float64)
    for t in range(settled + steps):
        round_.fresh_QE.add_(1.0)
        round_.replicas_HPE = round_.broadcast(round_.replicas_HPE, round_.fresh_QE)
        if t >= settled:
            total += (round_.fresh_QE - round_.replicas_HPE).amax(0)[:, 0]
    return total / steps


def draw(table: Table) -> Any:
    picture = style.new(6.4, 4.2)
    style.heading(picture, FIGURE.title)
    axes = picture.subplots()
    for p, series in zip(sorted(set(table["loss"]), reverse=True), style.SERIES[1:], strict=False):
        exact, points = (select(table, loss=p, part=part) for part in ("theory", "measured"))
        axes.fill_between(exact["replicas"], exact["low"], exact["high"], color=series.colour, alpha=0.13, linewidth=0)
        axes.plot(exact["replicas"], exact["age"], **series.line())
        axes.errorbar(points["replicas"], points["age"], bars(points["age"], points["low"], points["high"]),
                      **series.points(markerfacecolor="white"))  # fmt: skip
        axes.plot([], [], label=f"loss $p = {p:g}$", **series.both(markerfacecolor="white"))
    axes.set(xscale="log", xlabel="replicas of a packet", ylabel="mean age of the oldest replica (steps)")
    axes.set_ylim(bottom=0)
    style.plain(axes.xaxis, [10**k for k in range(7)])
    title = "lines: exact; points: measured\nbands: $H_N/\\log(1/p)$ and 1 less"
    axes.legend(loc="upper left", title=title, alignment="left")
    return picture


def numbers(table: Table) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for name, p in (("10", 0.1), ("50", 0.5)):
        for part, size, label in (("theory", 1_000_000, "million"), ("measured", 65535, "measured")):
            at = select(table, loss=p, part=part, replicas=size)
            found[f"{label}_{name}"] = at["age"][0]
        found[f"exact_{name}"], found[f"low_{name}"], found[f"high_{name}"] = (
            at["exact"][0],
            at["low"][0],
            at["high"][0],
        )
    return found


FIGURE = Figure(
    name="worst_replica",
    title="The worst of N replicas grows older with log N only: a million are no disaster",
    claims=("B7",),
    kind="sampled",
    caption="""Mean age of the oldest of N replicas of a packet in steady state: exact (lines, up to a million
        replicas), between the bounds of B7 (bands), and measured through the implementation (points, up to 65,535
        replicas, 95 % intervals over packets, most of them smaller than the markers). At 10 % loss the oldest of a
        million replicas is {million_10:.2f} steps old on average, at 50 % loss {million_50:.1f}; of 65,535 replicas
        {exact_10:.2f} and {exact_50:.2f}, where {measured_10:.2f} and {measured_50:.2f} are measured. For steps of
        zero mean the drift of the worst replica is 1 to 2 times sigma squared times this age. Links are
        independent; common outages are another matter.""",
    inputs=inputs,
    compute=compute,
    draw=draw,
    numbers=numbers,
)
