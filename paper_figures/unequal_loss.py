"""Senders that lose more, and differ in what they send: bias and spread of the rules of aggregation (A4 to A6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lossproof.impl.aggregate import Rule, aggregate
from lossproof.impl.loss import Arrivals
from lossproof.paper_figures import style
from lossproof.paper_figures.figure import Effort, Figure, Inputs, Progress, Table
from lossproof.paper_figures.intervals import mean_interval
from lossproof.paper_figures.table import rows_to_table, select
from lossproof.theory import survivors, variance
from lossproof.theory.laws import PerSender

RULES: tuple[Rule, ...] = ("survivor_mean", "inverse_probability", "zero_fill")
NAMES = {"survivor_mean": "survivor mean (A6)", "inverse_probability": "inverse probability (A4)",
         "zero_fill": "zero fill"}  # fmt: skip


def inputs(effort: Effort) -> Inputs:
    return {
        "good_loss": 0.02,
        "bad_losses": [0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
        "gradients_of_good": [-0.5, 0.5, 0.0, 0.0],
        "gradients_of_bad": [1.5, 2.5, 2.0, 2.0],  # gbar = 1
        "packets": 20_000 if effort == "quick" else 1_000_000,
        "seed": 0,
    }


def compute(inputs: Inputs, progress: Progress, work: Path) -> Table:
    good, bad = inputs["gradients_of_good"], inputs["gradients_of_bad"]
    gradients, rows = [*good, *bad], []
    for place, loss in enumerate(inputs["bad_losses"]):
        losses = [inputs["good_loss"]] * len(good) + [loss] * len(bad)
        arrived_NP = drawn(losses, inputs["packets"], inputs["seed"] + place)
        for rule in RULES:
            estimate_P, count_P = estimates(rule, gradients, losses, arrived_NP)
            found = estimate_P[count_P > 0] if rule == "survivor_mean" else estimate_P
            mean, square = mean_interval(found), mean_interval((found - found.mean()) ** 2)
            exact_mean, exact_variance = moments(rule, gradients, losses)
            gbar = float(np.mean(gradients))
            rows.append({
                "rule": rule, "bad_loss": loss, "bias": mean["mean"] - gbar, "bias_low": mean["low"] - gbar,
                "bias_high": mean["high"] - gbar, "bias_exact": exact_mean - gbar, "deviation": square["mean"] ** 0.5,
                "deviation_low": max(square["low"], 0) ** 0.5, "deviation_high": square["high"] ** 0.5,
                "deviation_exact": exact_variance**0.5,
                "error_exact": ((exact_mean - gbar) ** 2 + exact_variance) ** 0.5,
            })  # fmt: skip
        progress(place + 1, len(inputs["bad_losses"]))
    return rows_to_table(sorted(rows, key=lambda row: RULES.index(row["rule"])))


def drawn(losses: list[float], packets: int, seed: int) -> torch.Tensor:
    law = PerSender(tuple(losses))
    return Arrivals(law, np.zeros(packets, dtype=np.int64), len(losses), seed, "lossy").gradients(0)


def estimates(rule: Rule, gradients: list[float], losses: list[float], arrived_NP: torch.Tensor) -> tuple[Any, Any]:
    """The implementation's estimate of each packet, and how many senders it is of."""
    N, P = arrived_NP.shape
    payload_NPE = torch.tensor(gradients, dtype=torch.float64)[:, None, None].expand(N, P, 1).contiguous()
    chance_N = 1 - torch.tensor(losses, dtype=torch.float64)
    estimate_PE, count_P = aggregate(payload_NPE, arrived_NP, rule, arrival_probability_N=chance_N)
    return estimate_PE[:, 0].numpy(), count_P.numpy()


def moments(rule: Rule, gradients: list[float], losses: list[float]) -> tuple[float, float]:
    """Exact mean and variance, for the survivor mean given a survivor.

    In closed form but for the variance of the survivor mean: that is a sum over all patterns of arrivals.
    """
    N, g, p = len(gradients), np.array(gradients), np.array(losses)
    if rule == "inverse_probability":
        return float(g.mean()), float(variance.inverse_probability([x**2 for x in gradients], losses))
    if rule == "zero_fill":
        return float((g * (1 - p)).mean()), float((g**2 * p * (1 - p)).sum() / N**2)
    arrived_NP = np.indices((2,) * N).reshape(N, -1)
    chance_P, count_P = np.where(arrived_NP, 1 - p[:, None], p[:, None]).prod(0), arrived_NP.sum(0)
    estimate_P = g @ arrived_NP / np.maximum(count_P, 1)
    mean = float(g.mean() + survivors.unequal_bias(gradients, losses))
    squares = (chance_P * (estimate_P - mean) ** 2)[count_P > 0].sum()
    return mean, float(squares / chance_P[count_P > 0].sum())


def draw(table: Table) -> Any:
    picture = style.new(7.4, 3.7)
    style.heading(picture, FIGURE.title)
    left, right = picture.subplots(1, 2)
    for rule, series in zip(RULES, style.SERIES, strict=False):
        of = select(table, rule=rule)
        x = [100 * p for p in of["bad_loss"]]
        for axes, what in ((left, "bias"), (right, "deviation")):
            exact, found, low, high = (of[f"{what}{part}"] for part in ("_exact", "", "_low", "_high"))
            style.compared(axes, x, exact, found, low, high, NAMES[rule], series)
            axes.set_xlabel("loss of the four bad senders (%)")
    left.set_ylabel(r"bias of the estimate ($|\bar g|$)")
    right.set_ylabel(r"standard deviation ($|\bar g|$)")
    style.panel(left, "bias")
    style.panel(right, "spread")
    style.legend_below(picture, 3)
    return picture


def numbers(table: Table) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for name, rule in (("mean", "survivor_mean"), ("inverse", "inverse_probability"), ("zero", "zero_fill")):
        at = select(table, rule=rule, bad_loss=0.5)
        found[f"{name}_bias"], found[f"{name}_measured"] = at["bias_exact"][0], at["bias"][0]
        found[f"{name}_deviation"], found[f"{name}_error"] = at["deviation_exact"][0], at["error_exact"][0]
    return found


FIGURE = Figure(
    name="unequal_loss",
    title="Where senders lose unequally, only inverse probability is unbiased, and it pays in spread",
    claims=("A4", "A5", "A6"),
    kind="sampled",
    caption="""Eight senders with fixed gradients, mean 1; four of them lose 2 % of their packets, the other four,
        whose gradients are larger, the share on the axis. Exact (lines; the spread of the survivor mean is a sum
        over all 256 patterns of arrivals) and measured through the implementation (points, 95 % intervals, smaller
        than the markers). The survivor mean is given a survivor. At a loss of 50 % its bias is {mean_bias:.3f} and
        its spread {mean_deviation:.3f}; that of inverse probability 0 and {inverse_deviation:.3f}; that of zero
        fill {zero_bias:.3f} and {zero_deviation:.3f}. Which error is the smaller depends on the gradients: A5 says
        where the rules cross for equal losses.""",
    inputs=inputs,
    compute=compute,
    draw=draw,
    numbers=numbers,
)
