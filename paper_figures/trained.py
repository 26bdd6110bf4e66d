"""What the trained figures compute: which runs they need, and what they keep of each.

Every seed starts from the same weights and sees the same text, whatever the loss and the design; rank i reads the same
text whatever the number of ranks. Figures share runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lossproof.impl.settings import Settings
from lossproof.paper_figures.figure import Effort, Inputs, Progress, Table
from lossproof.paper_figures.runs import Case, FewerRanks, run_all
from lossproof.paper_figures.table import rows_to_table
from lossproof.theory.laws import Bernoulli

POINTS = 10
"""Points of a validation curve."""
_QUICK: dict[str, Any] = {"ranks": 8, "context": 64, "steps": 100, "validation": 2048}
_PAPER: dict[str, Any] = {
    "ranks": 64, "context": 128, "steps": 1000, "validation": 32768,
    "hidden": 128, "layers": 4, "heads": 4, "intermediate": 344,
}  # fmt: skip
RATE, HIGH_RATE = 0.001, 0.003
DESIGNS: dict[str, tuple[str, dict[str, Any]]] = {
    "survivor mean": ("this protocol", {}),
    "inverse probability": ("this protocol", {"rule": "inverse_probability"}),
    "zero fill": ("this protocol", {"rule": "zero_fill"}),
    "own gradient if none arrives": ("this protocol", {"own_link": "lossy", "no_survivor": "own"}),
    "own gradient for a lost mean": ("own gradient", {"rule": "zero_fill"}),
    "updates, not parameters": ("update sharing", {}),
    "models averaged (RPS)": ("model averaging", {}),
}
"""The protocol of `runs.PROTOCOLS` and the settings that differ."""
REPORTED = {
    "reported, source A": {0.1: 0.8, 0.2: 2.6, 0.3: 3.8},
    "reported, source B (validation)": {0.1: 1.17, 0.4: 6.65},
}
"""Perplexity change in percent at a loss, for LLaMA-2 7B on 64 GPUs, second-hand. Two sources, perhaps of two different
quantities: they are never one series."""


def perplexity_inputs(effort: Effort) -> Inputs:
    losses = [0.0, 0.1, 0.2, 0.3, 0.4]
    high = losses if effort == "paper" else [0.0, 0.1, 0.4]
    return _common(effort) | {"losses_by_rate": [[RATE, losses], [HIGH_RATE, high]]}


def curves_inputs(effort: Effort) -> Inputs:
    return _common(effort) | {"rate": RATE, "losses": [0.0, 0.1, 0.2, 0.3, 0.4]}


def designs_inputs(effort: Effort) -> Inputs:
    losses = [0.1, 0.2, 0.3, 0.4] if effort == "paper" else [0.4]
    return _common(effort) | {"rate": RATE, "losses": losses, "designs": list(DESIGNS)}


def _common(effort: Effort) -> Inputs:
    if effort == "paper":
        return {"settings": _PAPER, "seeds": 10}
    return {"settings": _QUICK, "seeds": 3}


def perplexity(inputs: Inputs, progress: Progress, work: Path) -> Table:
    """Runs of this protocol and of fewer ranks without loss, at each rate and loss; and what was reported."""
    common, ranks = inputs["settings"], inputs["settings"]["ranks"]
    rows, cases = [], []
    for seed in range(inputs["seeds"]):
        for rate, losses in inputs["losses_by_rate"]:
            for loss in losses:
                rows.append({"series": "lossy", "rate": rate, "loss": loss, "seed": seed})
                cases.append(_lossy(common, seed, rate, loss))
                if loss:
                    rows.append({"series": "fewer ranks, no loss", "rate": rate, "loss": loss, "seed": seed})
                    fewer = Settings(FewerRanks(ranks, loss), seed=seed, lr=rate, own_link="lossy", **common)
                    cases.append(Case(fewer))
    found = run_all(cases, progress, work)
    rows = [row | {"log_perplexity": run["log_perplexity"]} for row, run in zip(rows, found, strict=True)]
    for series, changes in REPORTED.items():
        rows += [{"series": series, "loss": loss, "reported_percent": percent} for loss, percent in changes.items()]
    return rows_to_table(rows)


def curves(inputs: Inputs, progress: Progress, work: Path) -> Table:
    """Validation loss along the runs of this protocol."""
    keys = [(loss, seed) for seed in range(inputs["seeds"]) for loss in inputs["losses"]]
    found = run_all([_lossy(inputs["settings"], seed, inputs["rate"], loss) for loss, seed in keys], progress, work)
    return rows_to_table([
        {"loss": loss, "seed": seed, "step": step, "log_perplexity": value}
        for (loss, seed), run in zip(keys, found, strict=True)
        for step, value in run["curve"]
    ])  # fmt: skip


def designs(inputs: Inputs, progress: Progress, work: Path) -> Table:
    """Runs of every design at every loss, and of those without loss that they are compared with."""
    common, rate, rows, cases = inputs["settings"], inputs["rate"], [], []
    for seed in range(inputs["seeds"]):
        for design in inputs["designs"]:
            protocol, options = DESIGNS[design]
            # without loss all designs but RPS are one: the tests hold them to it, bit for bit
            alone = design == "survivor mean" or protocol == "model averaging"
            for loss in [0.0, *inputs["losses"]] if alone else inputs["losses"]:
                case = _lossy(common, seed, rate, loss)
                if design != "survivor mean":
                    case = Case(Settings(Bernoulli(loss), seed=seed, lr=rate, **(common | options)), protocol)
                rows.append({"design": design, "loss": loss, "seed": seed})
                cases.append(case)
    found = run_all(cases, progress, work)
    kept = ("log_perplexity", "replicas", "no_survivor")
    return rows_to_table([row | {k: run[k] for k in kept} for row, run in zip(rows, found, strict=True)])


def _lossy(common: dict[str, Any], seed: int, rate: float, loss: float) -> Case:
    return Case(Settings(Bernoulli(loss), seed=seed, lr=rate, **common), curve=POINTS)
