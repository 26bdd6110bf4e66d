"""What loss costs a small LLaMA, and how much of it fewer gradients alone would cost."""

from __future__ import annotations

import math
from typing import Any

from lossproof.paper_figures import style, trained
from lossproof.paper_figures.figure import Figure, Table
from lossproof.paper_figures.paired import by_seed, errors, nats, percent
from lossproof.paper_figures.runs import environment
from lossproof.paper_figures.table import select

SERIES = {"lossy": "both stages lose packets", "fewer ranks, no loss": r"no loss, $1/\kappa$ ranks"}


def draw(table: Table) -> Any:
    picture = style.new(7.6, 4.3)
    style.heading(picture, FIGURE.title)
    rates = sorted({rate for rate in table["rate"] if rate is not None})
    for axes, rate in zip(picture.subplots(1, len(rates)), rates, strict=True):
        axes.axhline(0, color=style.GREY, linewidth=0.9)
        lossless = by_seed(select(table, series="lossy", rate=rate, loss=0))
        for (series, label), look, aside in zip(
            SERIES.items(), (style.SERIES[1], style.SERIES[4]), (-1, 1), strict=True
        ):
            losses = sorted({p for p in select(table, series=series, rate=rate)["loss"] if p})
            found = [percent(by_seed(select(table, series=series, rate=rate, loss=p)), lossless) for p in losses]
            axes.errorbar([100 * p + 0.3 * aside for p in losses], **errors(found), **look.both(label=label))
        for (series, changes), marker in zip(trained.REPORTED.items(), ("*", "X"), strict=True):
            axes.plot([100 * p for p in changes], list(changes.values()), linestyle="none", marker=marker, markersize=9,
                      markerfacecolor="white", markeredgecolor=style.GREY, label=f"second-hand: {series}")  # fmt: skip
        style.panel(axes, f"learning rate {rate:g}" + (": seeds differ too much" if rate == trained.HIGH_RATE else ""))
        axes.set(xlabel="packet loss (%)", xlim=(-2, 43))
    picture.axes[0].set_ylabel("perplexity against no loss (%)")
    handles, labels = picture.axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=2)
    return picture


def numbers(table: Table) -> dict[str, float | str]:
    found: dict[str, float | str] = {"seeds": float(len(set(select(table, series="lossy")["seed"])))}
    for rate, mark in ((trained.RATE, ""), (trained.HIGH_RATE, "_fast")):
        lossless = by_seed(select(table, series="lossy", rate=rate, loss=0))
        found[f"lossless{mark}"] = math.exp(sum(lossless.values()) / len(lossless))
        for p in (0.1, 0.4):
            lossy, fewer = (by_seed(select(table, series=series, rate=rate, loss=p)) for series in SERIES)
            twice = {seed: 2 * fewer[seed] - lossless[seed] for seed in fewer}
            for name, one in (("change", percent(lossy, lossless)), ("variance", percent(fewer, lossless)),
                              ("staleness", percent(lossy, fewer)), ("excess", percent(twice, lossy))):  # fmt: skip
                key = f"{name}{mark}_{100 * p:.0f}"
                found |= {key: one["mean"], f"{key}_from": one["low"], f"{key}_to": one["high"]}
        tenth = nats(by_seed(select(table, series="lossy", rate=rate, loss=0.1)), lossless)
        found[f"half_width{mark}"] = 100 * (tenth["high"] - tenth["mean"])
    return found


FIGURE = Figure(
    name="perplexity",
    title="Part of what loss costs here is fewer gradients, part is stale parameters",
    claims=("A5", "A7", "D3"),
    kind="trained",
    caption="""Change of validation perplexity against the same run without loss: a LLaMA of 132,000 parameters, 8
        ranks, 100 steps of AdamW on the text in `corpus/`; means and 95 % t-intervals over {seeds:.0f} paired seeds,
        each interval for its own point. The control has no loss but fewer ranks, with the same batch per rank: for each
        packet the first n gradients count, n one of the two whole numbers around 1/kappa, drawn such that E[1/n] =
        kappa, what the survivors' mean has. So it pays the price of variance alone, and the gap to it is the price of
        staleness. At 10 % loss and rate 0.001, the default, the whole is {change_10:+.2f} % ({change_10_from:+.2f} to
        {change_10_to:+.2f}), variance {variance_10:+.2f} % ({variance_10_from:+.2f} to {variance_10_to:+.2f}),
        staleness {staleness_10:+.2f} % ({staleness_10_from:+.2f} to {staleness_10_to:+.2f}); at 40 % it is
        {change_40:+.1f} % ({change_40_from:+.1f} to {change_40_to:+.1f}), {variance_40:+.1f} % ({variance_40_from:+.1f}
        to {variance_40_to:+.1f}) and {staleness_40:+.1f} % ({staleness_40_from:+.1f} to {staleness_40_to:+.1f}).
        Variance less staleness is {excess_10:+.2f} % ({excess_10_from:+.2f} to {excess_10_to:+.2f}) at 10 % and
        {excess_40:+.1f} % ({excess_40_from:+.1f} to {excess_40_to:+.1f}) at 40 %: which of them is the larger there is
        open. At rate 0.003 runs go further in as few steps, to a perplexity of {lossless_fast:.1f} instead of
        {lossless:.1f} without loss, but seeds differ so much there that 10 % loss is known to {half_width_fast:.0f}
        percent only, and the reader should take nothing from that panel but this; it was meant to be the main one, and
        gave way to the default when its three seeds had been seen. Stars and crosses are reported
        figures for LLaMA-2 7B on 64 GPUs, known to us second-hand only, from two sources that may mean different
        quantities. How near they lie to the points here says nothing: model, steps and batch are smaller by orders of
        magnitude, and another learning rate gives other points. These runs tell the price of variance from that of
        staleness in this setting; they cannot tell whether 10 % loss costs 0.8 % in that one.""",
    inputs=trained.perplexity_inputs,
    compute=trained.perplexity,
    draw=draw,
    numbers=numbers,
    environment=environment,
    requires=(("transformers", "llm"),),
)
