"""Losing parameter packets is momentum (D1): the mean of lossy SGD runs over the path of lossless heavy ball."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from lossproof.impl.cluster import Cluster
from lossproof.paper_figures import style
from lossproof.paper_figures.figure import Effort, Figure, Inputs, Progress, Table
from lossproof.paper_figures.intervals import bars, mean_interval
from lossproof.paper_figures.table import rows_to_table, select
from lossproof.theory import momentum
from lossproof.theory.laws import Bernoulli


def inputs(effort: Effort) -> Inputs:
    return {
        "losses": [0.0, 0.3, 0.6, 0.8],
        "step": 0.3,
        "ranks": 64,
        "own_link": "lossy",
        "runs": 300 if effort == "quick" else 20_000,
        "steps": 30,
        "seed": 0,
    }


class Coordinates(torch.nn.Module):
    """As many quadratics x^2 / 2 as there are runs, all at 1."""

    def __init__(self, runs: int) -> None:
        super().__init__()
        self.x_P = torch.nn.Parameter(torch.ones(runs, dtype=torch.float64))

    def forward(self) -> torch.Tensor:
        return self.x_P.square().sum() / 2


def compute(inputs: Inputs, progress: Progress, work: Path) -> Table:
    s, N, P, T = (inputs[key] for key in ("step", "ranks", "runs", "steps"))
    rows: list[dict[str, Any]] = []
    for place, p in enumerate(inputs["losses"]):
        cluster = Cluster(Coordinates(P), lambda model, _: model(), partial(torch.optim.SGD, lr=s), Bernoulli(p), N,
                          seed=inputs["seed"] + place, own_link=inputs["own_link"], packet_bytes=8)  # fmt: skip
        exact = momentum.trajectory(momentum.cluster(N, p, p, inputs["own_link"]), lambda x: s * x, T, 1.0)
        heavy = heavy_ball(s, p, T)
        for t in range(T + 1):
            x_P = cluster.fresh_PE[:, 0]
            found = mean_interval(x_P)
            rows.append({"loss": p, "step": t, "mean": found["mean"], "low": found["low"], "high": found["high"],
                         "exact": exact[t], "heavy_ball": heavy[t]})  # fmt: skip
            cluster.step(torch.zeros(N, 1))
            progress(place * (T + 1) + t + 1, len(inputs["losses"]) * (T + 1))
    return rows_to_table(rows)


def heavy_ball(s: float, beta: float, steps: int) -> list[float]:
    """The path of `torch.optim.SGD` with momentum and dampening beta on x^2/2 from 1, without any loss.

    torch begins with the whole gradient in its buffer, as D1 does.
    """
    x = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = torch.optim.SGD([x], lr=s, momentum=beta, dampening=beta)
    path = [1.0]
    for _ in range(steps):
        x.grad = x.detach().clone()
        optimizer.step()
        path.append(float(x.detach()))
    return path


def draw(table: Table) -> Any:
    picture = style.new(6.8, 4.0)
    style.heading(picture, FIGURE.title)
    axes = picture.subplots()
    for p, series in zip(sorted(set(table["loss"])), style.SERIES, strict=False):
        of = select(table, loss=p)
        axes.plot(of["step"], of["heavy_ball"], **series.line())
        axes.errorbar(of["step"], of["mean"], bars(of["mean"], of["low"], of["high"]),
                      **series.points(markerfacecolor="white", zorder=3, markersize=4.5))  # fmt: skip
        label = "no loss; plain SGD" if p == 0 else f"loss {p:.0%}; momentum {p:g}"
        axes.plot([], [], label=label, **series.both(markerfacecolor="white"))
    axes.axhline(0, color=style.GREY, linewidth=0.8)
    axes.set(xlabel="step $t$", ylabel="mean of the parameter, in units of its start")
    title = "points: plain SGD over lossy links, measured\nlines: heavy ball without loss (torch)"
    axes.legend(loc="upper right", title=title, alignment="left")
    return picture


def numbers(table: Table) -> dict[str, float | str]:
    most = max(table["loss"])
    of = select(table, loss=most)
    least = min(range(len(of["mean"])), key=of["mean"].__getitem__)
    return {
        "least_measured": of["mean"][least],
        "least_from": of["low"][least],
        "least_to": of["high"][least],
        "least_heavy_ball": min(of["heavy_ball"]),
        "least_exact": min(of["exact"]),
        "most_loss": most,
        "largest_gap": max(abs(a - b) for a, b in zip(table["exact"], table["heavy_ball"], strict=True)),
    }


FIGURE = Figure(
    name="momentum_of_loss",
    title="Losing parameter packets is momentum: the mean of lossy SGD follows heavy ball",
    claims=("D1",),
    kind="sampled",
    caption="""Mean of a parameter under plain SGD (eta h = 0.3) on 64 ranks that lose both gradient and parameter
        packets, own link lossy: runs of the implementation (points, 95 % intervals), over `torch.optim.SGD` without any
        loss and with momentum and dampening equal to the loss (lines). At {most_loss:.0%} loss both overshoot: heavy
        ball to {least_heavy_ball:.3f}, the mean to {least_exact:.3f} by D1, measured {least_measured:.3f}
        ({least_from:.3f} to {least_to:.3f}). The owner's own weight keeps the exact mean of 64 ranks off heavy ball,
        here by {largest_gap:.3f} at most; with a parameter server there is no such gap. It is the mean that behaves so:
        single runs scatter around it. The points of one loss are of the same runs, and err together.""",
    inputs=inputs,
    compute=compute,
    draw=draw,
    numbers=numbers,
)
