"""The largest stable step against loss (D2): the closed form, and where the implementation begins to diverge.

Stable in mean square is a matter of rare histories, which a plain mean over runs misses. So runs are weighed: after
each step a population of runs is drawn anew in proportion to their size, and scaled back; the product of the mean
growths is then that of the second moment. Legend: N ranks, P packets, each a run of a quadratic of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lossproof.impl.channel import SimulatedChannel
from lossproof.impl.loss import Arrivals
from lossproof.impl.round import Round
from lossproof.paper_figures import style
from lossproof.paper_figures.figure import Effort, Figure, Inputs, Progress, Table
from lossproof.paper_figures.intervals import bars, mean_interval
from lossproof.paper_figures.table import rows_to_table, select
from lossproof.theory import stability
from lossproof.theory.laws import Bernoulli

MANY = 10**6


def inputs(effort: Effort) -> Inputs:
    more = 1 if effort == "quick" else 16
    return {
        "own_link": "lossy",
        "ranks": [2, 4, 16, 64, MANY],
        "losses": [k / 50 for k in range(46)],
        "measured_losses": [0.1, 0.3, 0.5, 0.7, 0.85],
        "runs": {"2": 1024 * more, "4": 512 * more, "16": 256 * more, "64": 96 * more},  # of each population
        "populations": 6,
        "steps": 60,
        "bracket": [0.5, 12.0],
        "seed": 0,
    }


def compute(inputs: Inputs, progress: Progress, work: Path) -> Table:
    rows: list[dict[str, Any]] = []
    for N in inputs["ranks"]:
        for p in inputs["losses"]:
            s = stability.stable_step(N, p, inputs["own_link"])
            rows.append({"part": "theory", "ranks": N, "loss": p, "step": s})
    points = [(N, p) for N in map(int, inputs["runs"]) for p in inputs["measured_losses"]]
    for done, (N, p) in enumerate(points, start=1):
        found = mean_interval(limits(N, p, inputs))
        rows.append({"part": "measured", "ranks": N, "loss": p, "step": found["mean"], "low": found["low"],
                     "high": found["high"], "exact": stability.stable_step(N, p, inputs["own_link"])})  # fmt: skip
        progress(done, len(points))
    return rows_to_table(rows)


def limits(N: int, p: float, inputs: Inputs) -> NDArray[np.float64]:
    """The step at which each population neither grows nor shrinks, by bisection, all populations at once.

    Within the last bracket the growth is taken to be straight.
    """
    low, high = (np.full(inputs["populations"], edge) for edge in inputs["bracket"])
    below, above = (growth(N, p, edge, inputs["runs"][str(N)], inputs) for edge in (low, high))
    while float((high / low).max()) > 1.05:
        middle = np.sqrt(low * high)
        found = growth(N, p, middle, inputs["runs"][str(N)], inputs)
        low, below = np.where(found > 0, low, middle), np.where(found > 0, below, found)
        high, above = np.where(found > 0, middle, high), np.where(found > 0, found, above)
    return np.asarray(low - (high - low) * below / (above - below))


def growth(N: int, p: float, steps_G: NDArray[np.float64], runs: int, inputs: Inputs) -> NDArray[np.float64]:
    """log of the growth of the second moment per step, of populations of `runs` packets that take steps of these s.

    The gradient of a rank is its own copy, eta h = s; the first third of the steps forgets the start.
    """
    G, T = len(steps_G), inputs["steps"]
    P = G * runs
    owner_P = torch.zeros(P, dtype=torch.int64)
    channel = SimulatedChannel(Arrivals(Bernoulli(p), owner_P, N, inputs["seed"], inputs["own_link"]))
    round_ = Round.in_process(torch.ones(P, 1, dtype=torch.float64), owner_P, channel)
    s_P1 = torch.from_numpy(np.repeat(steps_G, runs))[:, None]
    random = np.random.default_rng(inputs["seed"])
    total_G = np.zeros(G)

    def sgd(estimate_PE: torch.Tensor) -> None:
        round_.fresh_QE.sub_(s_P1 * estimate_PE)

    for t in range(T):
        round_.step(round_.replicas_HPE.contiguous(), sgd)
        copies_NP = round_.replicas_HPE[:, :, 0]
        size_GR = (copies_NP**2).mean(0).numpy().reshape(G, runs)
        mean_G1 = size_GR.mean(1, keepdims=True)
        if t >= T // 3:
            total_G += np.log(mean_G1[:, 0])
        chosen_P = torch.from_numpy(redraw(size_GR / mean_G1, random))
        scale_P = torch.from_numpy(size_GR.ravel())[chosen_P].sqrt()
        round_.replicas_HPE = (copies_NP[:, chosen_P] / scale_P)[:, :, None]
        round_.fresh_QE.copy_((round_.fresh_QE[chosen_P, 0] / scale_P)[:, None])
    return np.asarray(total_G / (T - T // 3))


def redraw(share_GR: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """Numbers of runs, each about as often as its share of its population's mean: systematic resampling."""
    G, R = share_GR.shape
    ends = np.cumsum(share_GR, axis=1)
    ends *= R / ends[:, -1:]
    combs = np.arange(R) + random.random((G, 1))
    chosen: NDArray[np.int64] = np.concatenate([
        group * R + np.minimum(np.searchsorted(ends[group], combs[group]), R - 1) for group in range(G)
    ])  # fmt: skip
    return chosen


def draw(table: Table) -> Any:
    picture = style.new(6.4, 4.4)
    style.heading(picture, FIGURE.title)
    axes = picture.subplots()
    for N, series in zip(sorted(set(table["ranks"]), reverse=True), style.SERIES, strict=False):
        exact, points = (select(table, ranks=N, part=part) for part in ("theory", "measured"))
        axes.plot([100 * p for p in exact["loss"]], exact["step"], **series.line())
        label = "$N = 10^6$" if N == MANY else f"$N = {N}$"
        if points["step"]:
            axes.errorbar([100 * p for p in points["loss"]], points["step"],
                          bars(points["step"], points["low"], points["high"]),
                          **series.points(markerfacecolor="white", zorder=3))  # fmt: skip
            axes.plot([], [], label=label, **series.both(markerfacecolor="white"))
        else:
            axes.plot([], [], label=label, **series.line())
    axes.axhline(stability.LOSSLESS, color=style.GREY, linewidth=0.9)
    axes.annotate("no loss: 2", (0, 2), xytext=(2, -9), textcoords="offset points", fontsize=8, color=style.GREY)
    axes.set(yscale="log", xlabel="loss of both phases (%)", ylabel=r"largest stable step $\eta h$")
    axes.set_ylim(0.55, 40)
    style.plain(axes.yaxis, [1, 2, 4, 8, 16, 32])
    axes.legend(loc="upper left", title="lines: exact; points: measured", alignment="left")
    return picture


def numbers(table: Table) -> dict[str, float | str]:
    exact = select(table, part="theory")
    at = select(table, part="measured", ranks=64, loss=0.5)
    few = select(exact, ranks=2)
    return {
        "many_50": select(exact, ranks=MANY, loss=0.5)["step"][0],
        "many_10": select(exact, ranks=MANY, loss=0.1)["step"][0],
        "two_best": max(few["step"]),
        "two_last": few["step"][-1],
        "last_loss": few["loss"][-1],
        "exact": at["exact"][0],
        "measured": at["step"][0],
        "low": at["low"][0],
        "high": at["high"][0],
    }


FIGURE = Figure(
    name="stability_region",
    title="Loss lets many ranks take larger steps, and makes few ranks take smaller ones",
    claims=("D2",),
    kind="sampled",
    caption="""The largest step, times curvature, at which SGD on a quadratic is stable in mean square; own link lossy.
        Without loss it is 2. With many ranks it grows with loss, to 2(1+p)/(1-p): {many_10:.2f} at 10 % and
        {many_50:.1f} at 50 %. The reason is momentum (D1): a stale replica answers for where the owner was, the mean of
        many replicas is a gradient averaged over the past, and such an average damps the overshoot from step to step by
        which large steps diverge. With few ranks the mean is of few, so that chance, which survivors there are and how
        stale, adds to the second moment what the average takes away: for two ranks the limit is never above
        {two_best:.2f}, and {two_last:.2f} at {last_loss:.0%}. At much loss few survive of many ranks too, and their
        limit falls again. A step that is stable need not be good. Points: where the second moment of runs of the
        implementation begins to grow, by bisection, with 95 % intervals over six populations that are weighed by size;
        for 64 ranks at 50 % it is {measured:.2f}, interval {low:.2f} to {high:.2f}, exact {exact:.2f}. Finite
        populations miss the rarest histories, so that points lie a little high where few ranks survive.""",
    inputs=inputs,
    compute=compute,
    draw=draw,
    numbers=numbers,
)
