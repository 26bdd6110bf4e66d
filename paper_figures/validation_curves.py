"""Validation loss along training, for each loss rate."""

from __future__ import annotations

import math
from typing import Any

from lossproof.paper_figures import style, trained
from lossproof.paper_figures.figure import Figure, Table
from lossproof.paper_figures.paired import by_seed, errors, percent
from lossproof.paper_figures.runs import environment
from lossproof.paper_figures.table import select


def draw(table: Table) -> Any:
    picture = style.new(7.6, 4.0)
    style.heading(picture, FIGURE.title)
    curve, change = picture.subplots(1, 2)
    losses, steps = sorted(set(table["loss"])), sorted(set(table["step"]))
    change.axhline(0, color=style.GREY, linewidth=0.9)
    for place, (p, look) in enumerate(zip(losses, style.SERIES, strict=False)):
        at = [by_seed(select(table, loss=p, step=step)) for step in steps]
        curve.plot(
            steps, [sum(one.values()) / len(one) for one in at], **look.both(label=f"{100 * p:g} %", markersize=4)
        )
        if p:
            lossless = [by_seed(select(table, loss=0, step=step)) for step in steps]
            found = [percent(one, other) for one, other in zip(at, lossless, strict=True)]
            aside = (place - len(losses) / 2) * (steps[-1] / 160)  # so that intervals do not hide each other
            change.errorbar(
                [step + aside for step in steps], **errors(found), **look.both(markersize=4, elinewidth=0.9)
            )
    style.panel(curve, "mean over seeds")
    style.panel(change, "against the same seed without loss")
    curve.set(xlabel="step", ylabel="validation loss (nats per byte)")
    change.set(xlabel="step", ylabel="perplexity against no loss (%)")
    handles, labels = curve.get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=len(losses), title="packet loss")
    return picture


def numbers(table: Table) -> dict[str, float | str]:
    steps = sorted(set(table["step"]))
    found: dict[str, float | str] = {
        "seeds": float(len(set(table["seed"]))),
        "middle": float(steps[len(steps) // 2 - 1]),
    }
    for name, step in (("middle", steps[len(steps) // 2 - 1]), ("end", steps[-1])):
        lossless, lossy = (by_seed(select(table, loss=p, step=step)) for p in (0, 0.4))
        one = percent(lossy, lossless)
        found |= {f"change_{name}": one["mean"], f"change_{name}_from": one["low"], f"change_{name}_to": one["high"]}
        found[f"perplexity_{name}"] = math.exp(sum(lossless.values()) / len(lossless))
    return found


FIGURE = Figure(
    name="validation_curves",
    title="More loss costs more from the first steps on, and the gap settles halfway",
    claims=("A5", "D3"),
    kind="trained",
    caption="""Validation loss of the owners' model along the runs of the figure `perplexity` at learning rate 0.001,
        and its change in perplexity against the run of the same seed without loss; means and 95 % t-intervals over
        {seeds:.0f} paired seeds, each for its own point. At 40 % loss it is {change_middle:+.1f} %
        ({change_middle_from:+.1f} to {change_middle_to:+.1f}) after {middle:.0f} steps and {change_end:+.1f} %
        ({change_end_from:+.1f} to {change_end_to:+.1f}) at the end, where the learning rate has come down to zero: that
        the gap settles may be the schedule's doing. The runs are short and end while more steps would still lower the
        perplexity, {perplexity_end:.1f} without loss: what is left of the difference after a long training is not shown
        here.""",
    inputs=trained.curves_inputs,
    compute=trained.curves,
    draw=draw,
    numbers=numbers,
    environment=environment,
    requires=(("transformers", "llm"),),
)
