"""Drift between replicas over the steps: what B2 says of every step, its bound, and the design without one (B10)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lossproof.impl.retain import drift_sums, retain
from lossproof.paper_figures import style
from lossproof.paper_figures.broadcasts import round_at_rest, towards
from lossproof.paper_figures.figure import Effort, Figure, Inputs, Progress, Table
from lossproof.paper_figures.intervals import mean_interval
from lossproof.paper_figures.table import rows_to_table, select
from lossproof.theory import contrast, drift
from lossproof.theory.laws import Bernoulli


def inputs(effort: Effort) -> Inputs:
    return {
        "losses": [0.1, 0.5],
        "ranks": 8,
        "packets": 4000 if effort == "quick" else 50_000,
        "elements": 8,
        "steps": [*range(1, 10), 11, 14, 17, 21, 26, 33, 41, 52, 65, 82, 100],
        "seed": 0,
    }


def compute(inputs: Inputs, progress: Progress, work: Path) -> Table:
    rows: list[dict[str, Any]] = []
    shown, total = set(inputs["steps"]), max(inputs["steps"])
    for place, p in enumerate(inputs["losses"]):
        N, P, E = inputs["ranks"], inputs["packets"], inputs["elements"]
        random = np.random.default_rng([inputs["seed"], place])
        round_ = round_at_rest(Bernoulli(p), N, P, E, inputs["seed"] + place)
        updates_NPE = torch.zeros(N, P, E, dtype=torch.float64)  # replicas to whom updates are sent, not parameters

        def unit_step(estimate_PE: torch.Tensor, round_: Any = round_) -> None:
            round_.fresh_QE.sub_(towards(estimate_PE))

        for t in range(1, total + 1):
            before_PE = round_.fresh_QE.clone()
            round_.step(torch.from_numpy(random.standard_normal((N, P, E))), unit_step)
            arrived_NP = round_.arrived["parameters"]
            updates_NPE += retain(torch.zeros_like(updates_NPE), round_.fresh_QE - before_PE, arrived_NP)
            if t in shown:
                measured = mean_interval(drift_sums(round_.replicas_HPE, round_.fresh_QE).between_pairs(N))
                contrasted = mean_interval(drift_sums(updates_NPE, round_.fresh_QE).between_pairs(N))
                rows.append({
                    "loss": p, "step": t, "measured": measured["mean"], "low": measured["low"],
                    "high": measured["high"], "exact": drift.pair(p, t), "bound": drift.pair(p),
                    "reported_constant": drift.reported_constant(p), "updates_measured": contrasted["mean"],
                    "updates_low": contrasted["low"], "updates_high": contrasted["high"],
                    "updates_exact": contrast.updates_pair(p, t),
                })  # fmt: skip
            progress(place * total + t, len(inputs["losses"]) * total)
    return rows_to_table(rows)


def draw(table: Table) -> Any:
    picture = style.new(7.4, 3.9)
    style.heading(picture, FIGURE.title)
    losses = sorted(set(table["loss"]))
    for axes, p in zip(picture.subplots(1, len(losses)), losses, strict=True):
        of = select(table, loss=p)
        t = of["step"]
        replicas, updates = style.SERIES[1], style.SERIES[2]
        axes.axhline(of["bound"][0], label="bound $2p/(1-p^2)$ (B2)", **style.SERIES[0].line(linewidth=1.1))
        axes.axhline(of["reported_constant"][0], color=style.GREY, linestyle=(0, (1, 2.5)),
                     label="$2p/(1+p)$, reported (second-hand)")  # fmt: skip
        style.compared(axes, t, of["exact"], of["measured"], of["low"], of["high"], "parameters sent (B2)", replicas)
        style.compared(axes, t, of["updates_exact"], of["updates_measured"], of["updates_low"], of["updates_high"],
                       "updates sent (B10)", updates)  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="step $t$")
        style.panel(axes, f"loss $p = {p:g}$")
        for axis in (axes.xaxis, axes.yaxis):
            style.plain(axis)
    picture.axes[0].set_ylabel(r"drift $E\,|\theta_i-\theta_j|^2$ ($\sigma^2$ of a step)")
    style.legend_below(picture, 2)
    return picture


def numbers(table: Table) -> dict[str, float | str]:
    tenth, last = select(table, loss=0.1), -1
    half = select(table, loss=0.5)
    return {
        "bound_10": tenth["bound"][last],
        "measured_10": tenth["measured"][last],
        "low_10": tenth["low"][last],
        "high_10": tenth["high"][last],
        "reported_10": tenth["reported_constant"][last],
        "updates_10": tenth["updates_measured"][last],
        "updates_low_10": tenth["updates_low"][last],
        "updates_high_10": tenth["updates_high"][last],
        "updates_exact_10": tenth["updates_exact"][last],
        "bound_50": half["bound"][last],
        "measured_50": half["measured"][last],
        "reported_50": half["reported_constant"][last],
        "steps": float(tenth["step"][last]),
    }


FIGURE = Figure(
    name="drift_over_steps",
    title="Replicas that are sent parameters drift apart to a bound; sent updates, they drift for ever",
    claims=("B2", "B4", "B10"),
    kind="sampled",
    caption="""Mean squared distance of two replicas of a packet, in units of the mean squared step, from a common
        start: closed forms (lines) and the protocol's own code (points; 8 ranks, 95 % intervals over packets, most of
        them smaller than the markers). With p = 0.1 the bound is {bound_10:.3f}, and after {steps:.0f} steps
        {measured_10:.3f} is measured, interval {low_10:.3f} to {high_10:.3f}; replicas that are sent updates are at
        {updates_10:.1f} ({updates_low_10:.1f} to {updates_high_10:.1f}; exact {updates_exact_10:.1f}), and have no
        bound. The constant 2p/(1+p) is known to us second-hand only; it is exact for another reading of sigma squared
        (B4), and for this one it is too small by the factor 1/(1-p). Steps here have zero mean, whatever happened
        before; those of training have not quite, see claims B6 and C1.""",
    inputs=inputs,
    compute=compute,
    draw=draw,
    numbers=numbers,
)
