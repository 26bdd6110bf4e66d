"""What `momentum_llama` computes: SGD with momentum on the small LLaMA, with and without loss, paired seeds."""

from __future__ import annotations

from pathlib import Path

from lossproof.impl.settings import Settings
from lossproof.paper_figures.figure import Effort, Inputs, Progress, Table
from lossproof.paper_figures.runs import Case, run_all
from lossproof.paper_figures.table import rows_to_table
from lossproof.theory import momentum
from lossproof.theory.laws import Bernoulli


def inputs(effort: Effort) -> Inputs:
    small = {"ranks": 8, "context": 64, "steps": 80, "validation": 2048}
    large = {"ranks": 16, "context": 128, "steps": 300, "validation": 8192}
    return {
        "settings": large if effort == "paper" else small,
        "seeds": 12 if effort == "paper" else 6,
        "loss": 0.1,
        "momentum": 0.9,
        "rate": 0.05,
    }


def variants(inputs: Inputs) -> dict[str, tuple[float, float, float]]:
    """Loss, momentum and learning rate by name."""
    loss, beta, rate = inputs["loss"], inputs["momentum"], inputs["rate"]
    lag = momentum.lag(momentum.cluster(inputs["settings"]["ranks"], loss, loss))
    same_gain = rate * (1 - beta + loss) / (1 - beta)
    corrected = float(momentum.corrected(beta, lag)), float(rate * momentum.corrected_step(beta, lag))
    return {
        "unchanged": (loss, beta, rate),
        "momentum - p": (loss, beta - loss, rate),
        "momentum - p, same gain": (loss, beta - loss, same_gain),
        "corrected by D1": (loss, *corrected),
        "no loss, unchanged": (0.0, beta, rate),
        "no loss, momentum - p": (0.0, beta - loss, rate),
        "no loss, momentum - p, same gain": (0.0, beta - loss, same_gain),
    }


def compute(inputs: Inputs, progress: Progress, work: Path) -> Table:
    rows, cases = [], []
    for seed in range(inputs["seeds"]):
        for name, (loss, beta, rate) in variants(inputs).items():
            rows.append({"variant": name, "loss": loss, "momentum": beta, "rate": rate, "seed": seed})
            settings = Settings(Bernoulli(loss), seed=seed, optimizer="sgd", lr=rate, **inputs["settings"])
            cases.append(Case(settings, momentum=beta))
    found = run_all(cases, progress, work)
    return rows_to_table(
        [row | {"log_perplexity": run["log_perplexity"]} for row, run in zip(rows, found, strict=True)]
    )
