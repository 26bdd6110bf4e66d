"""Should an optimizer lose the momentum that loss adds? SGD with momentum on the small LLaMA, paired seeds.

Claim D1: losing parameter packets delays the mean trajectory by p / (1 - p) steps. Tried at 10 % loss, against no
change: momentum less p; the same at the same gain lr / (1 - momentum); and D1's own correction of momentum and rate;
and, as a control, what less momentum does without loss.
"""

from __future__ import annotations

from typing import Any

from lossproof.paper_figures import momentum_runs, style
from lossproof.paper_figures.figure import Figure, Table
from lossproof.paper_figures.intervals import mean_interval
from lossproof.paper_figures.paired import by_seed
from lossproof.paper_figures.runs import environment
from lossproof.paper_figures.table import select


def against(name: str) -> str | None:
    """The variant that this one is compared with; what a change of the optimizer does without loss is a control."""
    if name == "unchanged":
        return None
    return "no loss, unchanged" if name.startswith("no loss, m") else "unchanged"


def paired(differences: list[float]) -> dict[str, Any]:
    """The mean, its 95 % t-interval and the differences."""
    return mean_interval(differences) | {"differences": differences}


def compared(table: Table) -> dict[str, dict[str, Any]]:
    """Every variant against its like, seed by seed: differences of log-perplexity in nats."""
    runs = {name: by_seed(select(table, variant=name)) for name in dict.fromkeys(table["variant"])}
    return {
        f"{name} : {other}": paired([runs[name][seed] - runs[other][seed] for seed in runs[name]])
        for name in runs
        if (other := against(name))
    }


def picture(found: dict[str, dict[str, Any]]) -> Any:
    """One row for each comparison: the seeds, the mean, its interval."""
    drawn = style.new(7.6, 1.2 + 0.38 * len(found))
    axes = drawn.subplots()
    axes.axvline(0, color=style.GREY, linewidth=0.9)
    for row, one in enumerate(found.values()):
        axes.plot(one["differences"], [row] * len(one["differences"]), **style.SERIES[4].points(markersize=4))
        axes.errorbar(
            one["mean"], row - 0.18, xerr=[[one["mean"] - one["low"]], [one["high"] - one["mean"]]],
            **style.SERIES[1].points(),
        )  # fmt: skip
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.6)
    axes.set_xlabel("log-perplexity, one minus the other (nats)")
    return drawn


def draw(table: Table) -> Any:
    drawn = picture(compared(table))
    style.heading(drawn, FIGURE.title)
    return drawn


def numbers(table: Table) -> dict[str, float | str]:
    found = compared(table)
    values: dict[str, float | str] = {"seeds": float(len(set(table["seed"])))}
    named = {"momentum - p : unchanged": "less", "momentum - p, same gain : unchanged": "same_gain",
             "corrected by D1 : unchanged": "corrected", "no loss, unchanged : unchanged": "lossless",
             "no loss, momentum - p : no loss, unchanged": "less_lossless",
             "no loss, momentum - p, same gain : no loss, unchanged": "same_gain_lossless"}  # fmt: skip
    for name, key in named.items():
        one = found[name]
        values |= {key: one["mean"], f"{key}_from": one["low"], f"{key}_to": one["high"]}
    return values


FIGURE = Figure(
    name="momentum_llama",
    title="Taking p off the momentum, with loss and without",
    claims=("D1",),
    kind="trained",
    caption="""SGD with momentum 0.9 at 10 % loss on the LLaMA of the figure `perplexity`, 8 ranks, 80 steps:
        differences of validation log-perplexity between paired seeds ({seeds:.0f}), above each line mean and 95 %
        t-interval, below it the seeds. Losing parameter packets delays the mean trajectory as a little more
        momentum would (D1), so should an optimizer have less? Momentum less p changes log-perplexity by {less:+.3f}
        nats ({less_from:+.3f} to {less_to:+.3f}) under loss and by {less_lossless:+.3f} ({less_lossless_from:+.3f}
        to {less_lossless_to:+.3f}) without any: loss has no visible part in it. D1's own correction, 0.9 to 0.899,
        makes {corrected:+.4f} nats ({corrected_from:+.4f} to {corrected_to:+.4f}). So few seeds do not resolve less
        than these intervals; an effect of loss may hide in them.""",
    inputs=momentum_runs.inputs,
    compute=momentum_runs.compute,
    draw=draw,
    numbers=numbers,
    environment=environment,
    requires=(("transformers", "llm"),),
)
