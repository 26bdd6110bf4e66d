"""What loss costs under other designs: rules of stage 1, and protocols that share something else than parameters."""

from __future__ import annotations

from typing import Any

from lossproof.paper_figures import style, trained
from lossproof.paper_figures.figure import Figure, Table
from lossproof.paper_figures.paired import by_seed, percent
from lossproof.paper_figures.runs import environment
from lossproof.paper_figures.table import select

RPS, SURVIVORS = "models averaged (RPS)", "survivor mean"
HELD = {"log_perplexity": "the owners' model", "replicas": "mean over what the ranks hold"}


def changes(table: Table, design: str, loss: float, column: str = "log_perplexity") -> dict[str, float]:
    """Against no loss: RPS against itself, all others, which are one and the same there, against that one."""
    lossless = select(table, design=RPS if design == RPS else SURVIVORS, loss=0)
    return percent(by_seed(select(table, design=design, loss=loss), column), by_seed(lossless))


def draw(table: Table) -> Any:
    picture = style.new(7.6, 4.2)
    style.heading(picture, FIGURE.title)
    designs = list(dict.fromkeys(table["design"]))
    losses = sorted({p for p in table["loss"] if p})
    panels = picture.subplots(1, len(losses), sharey=True, squeeze=False)[0]
    for axes, p in zip(panels, losses, strict=True):
        axes.axvline(0, color=style.GREY, linewidth=0.9)
        middle = changes(table, SURVIVORS, p)
        axes.axvspan(middle["low"], middle["high"], color="#E8E8E8", zorder=0)
        for (column, label), look, aside in zip(HELD.items(), (style.SERIES[1], style.SERIES[4]), (-1, 1), strict=True):
            found = [changes(table, design, p, column) for design in designs]
            axes.errorbar(
                [one["mean"] for one in found], [row + 0.15 * aside for row in range(len(designs))],
                xerr=[[one["mean"] - one["low"] for one in found], [one["high"] - one["mean"] for one in found]],
                **look.points(label=label),
            )  # fmt: skip
        apart = percent(*(by_seed(select(table, design=design, loss=0)) for design in (RPS, SURVIVORS)))["mean"]
        axes.annotate(f"against itself: without loss it is at {apart:+.1f} %", (0, designs.index(RPS)), xytext=(14, 0),
                      textcoords="offset points", va="center", fontsize=8, color=style.GREY)  # fmt: skip
        style.panel(axes, f"{100 * p:g} % loss")
        axes.set_xlabel("perplexity against no loss (%)")
    panels[0].set_yticks(range(len(designs)), [f"{design} *" if design == RPS else design for design in designs])
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=2)
    return picture


def numbers(table: Table) -> dict[str, float | str]:
    found: dict[str, float | str] = {"seeds": float(len(set(table["seed"])))}
    for design, key in ((SURVIVORS, "survivors"), ("zero fill", "zero_fill"), (RPS, "rps"),
                        ("updates, not parameters", "updates"), ("own gradient for a lost mean", "own")):  # fmt: skip
        for p in sorted({loss for loss in table["loss"] if loss}):
            for column, mark in (("log_perplexity", ""), ("replicas", "_held")):
                one = changes(table, design, p, column)
                name = f"{key}{mark}_{100 * p:.0f}"
                found |= {name: one["mean"], f"{name}_from": one["low"], f"{name}_to": one["high"]}
    for design, key in (("inverse probability", "inverse"), ("zero fill", "zero_fill"),
                        ("own gradient if none arrives", "own_if_none")):  # fmt: skip
        for p in sorted({loss for loss in table["loss"] if loss}):
            one = percent(*(by_seed(select(table, design=each, loss=p)) for each in (design, SURVIVORS)))
            name = f"{key}_over_{100 * p:.0f}"
            found |= {name: one["mean"], f"{name}_from": one["low"], f"{name}_to": one["high"]}
    lossless = (by_seed(select(table, design=design, loss=0)) for design in (RPS, SURVIVORS))
    rps = percent(*lossless)
    found |= {"rps_lossless": rps["mean"], "rps_lossless_from": rps["low"], "rps_lossless_to": rps["high"]}
    found["empty"] = float(max(select(table, design="own gradient if none arrives", loss=0.4)["no_survivor"]))
    return found


FIGURE = Figure(
    name="other_designs",
    title="Shared updates ruin what the ranks hold; no rule is seen to beat the survivor mean",
    claims=("A2", "A4", "A5", "B10", "B11"),
    kind="trained",
    caption="""Change of validation perplexity by loss under seven designs: the LLaMA of the figure `perplexity` at
        learning rate 0.001, means and 95 % t-intervals over {seeds:.0f} paired seeds; the grey band is the survivor
        mean's interval. The first four designs differ in stage 1 only; with a lossy own link at most {empty:.0f}
        packets of a run found no survivor. *Own gradient for a lost mean*: zero fill, and a rank that misses the mean
        steps by its own gradient, as where the lost results of an all-reduce stay as they were. *Updates, not
        parameters*: B10. There it is what the ranks hold that suffers; the owners' model is at {updates_40:+.1f} %
        ({updates_40_from:+.1f} to {updates_40_to:+.1f}). Of the designs without owners' parameters, that one with own
        gradients and RPS, the owners' model is put together from each packet as its owner holds it. (*) RPS averages
        models after local steps of AdamW, which is another algorithm even without loss: its perplexity is
        {rps_lossless:+.1f} % ({rps_lossless_from:+.1f} to {rps_lossless_to:+.1f}) away from that of averaged gradients
        there, and it is compared with itself. AdamW divides the size of a gradient out, which forgives zero fill its
        factor 1 - p; SGD would not. At 40 % loss the change is {survivors_40:+.1f} % with survivor means,
        {zero_fill_40:+.1f} % with zero fill, {own_held_40:+.1f} % for what ranks hold with own gradients,
        {updates_held_40:+.1f} % ({updates_held_40_from:+.1f} to {updates_held_40_to:+.1f}) with updates, whose drift
        has no bound but has had few steps to grow. Intervals here are against no loss, and two that overlap may still
        be told apart by seed: at 40 % perplexity is {inverse_over_40:+.1f} % ({inverse_over_40_from:+.1f} to
        {inverse_over_40_to:+.1f}) with inverse probability against survivor means, {zero_fill_over_40:+.1f} %
        ({zero_fill_over_40_from:+.1f} to {zero_fill_over_40_to:+.1f}) with zero fill, and {own_if_none_over_40:+.1f} %
        ({own_if_none_over_40_from:+.1f} to {own_if_none_over_40_to:+.1f}) with the own gradient if none arrives, which
        these runs do not tell from survivor means.""",
    inputs=trained.designs_inputs,
    compute=trained.designs,
    draw=draw,
    numbers=numbers,
    environment=environment,
    requires=(("transformers", "llm"),),
)
