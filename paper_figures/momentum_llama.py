"""Should an optimizer lose the momentum that loss adds? SGD with momentum on `lossproof train`'s LLaMA, paired seeds.

Claim D1: losing parameter packets delays the mean trajectory by p / (1 - p) steps. Tried at 10 % loss, against no
change: momentum less p; the same at the same gain lr / (1 - momentum); and D1's own correction of momentum and rate;
and, as a control, what less momentum does without loss. Each seed starts from the same weights and sees the same text.
Writes `momentum_llama.json` and `.png` beside this file:

    python -m paper_figures.momentum_llama [--seeds 6] [--steps 150]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from rich.progress import track
from scipy.stats import t

from lossproof.impl.corpus import Corpus
from lossproof.impl.train import Job, Settings, versions
from lossproof.theory import momentum
from lossproof.theory.laws import Bernoulli

LOSS, MOMENTUM, LR = 0.1, 0.9, 0.05
HERE = Path(__file__)


def variants(ranks: int) -> dict[str, tuple[float, float, float]]:
    """Loss, momentum and learning rate by name."""
    lag = momentum.lag(momentum.cluster(ranks, LOSS, LOSS))
    less, same_gain = MOMENTUM - LOSS, LR * (1 - MOMENTUM + LOSS) / (1 - MOMENTUM)
    corrected = float(momentum.corrected(MOMENTUM, lag)), float(LR * momentum.corrected_step(MOMENTUM, lag))
    return {
        "unchanged": (LOSS, MOMENTUM, LR),
        "momentum - p": (LOSS, less, LR),
        "momentum - p, same gain": (LOSS, less, same_gain),
        "corrected by D1": (LOSS, *corrected),
        "no loss, unchanged": (0.0, MOMENTUM, LR),
        "no loss, momentum - p": (0.0, less, LR),
        "no loss, momentum - p, same gain": (0.0, less, same_gain),
    }


def against(name: str) -> str | None:
    """The variant that this one is compared with; what a change of the optimizer does without loss is a control."""
    if name == "unchanged":
        return None
    return "no loss, unchanged" if name.startswith("no loss, m") else "unchanged"


def run(loss: float, beta: float, lr: float, seed: int, ranks: int, steps: int, corpus: Corpus) -> float:
    """Validation log-perplexity of the owners' model, in nats."""
    job = Job(Settings(Bernoulli(loss), ranks, seed, steps, "sgd", lr), corpus)
    for group in job.cluster.optimizer.param_groups:
        group["momentum"] = beta
    for _ in range(steps):
        job.step()
    return job.result().log_perplexity


def paired(differences: list[float]) -> dict[str, Any]:
    """The mean and its 95 % t-interval."""
    n, mean = len(differences), statistics.fmean(differences)
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "differences": differences}


def picture(found: dict[str, dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    axes = figure.subplots()
    for row, one in enumerate(found.values()):
        axes.plot(one["differences"], [row] * len(one["differences"]), "o", color="0.6", markersize=4)
        axes.errorbar(
            one["mean"], row, xerr=[[one["mean"] - one["low"]], [one["high"] - one["mean"]]], fmt="s", capsize=4
        )
        axes.annotate(f"{one['mean']:+.4f}", (one["mean"], row), textcoords="offset points", xytext=(0, 7), ha="center")
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.6)
    axes.set_xlabel("difference in log-perplexity (nats): seeds, mean, 95 % interval")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--ranks", type=int, default=16)
    options = parser.parse_args()
    corpus = Corpus.standard_library()
    settings = variants(options.ranks)
    jobs = [(name, seed) for seed in range(options.seeds) for name in settings]
    logs: dict[str, list[float]] = {name: [] for name in settings}
    for name, seed in track(jobs, "training"):
        logs[name].append(run(*settings[name], seed, options.ranks, options.steps, corpus))
    found = {
        f"{name} : {other}": paired([a - b for a, b in zip(logs[name], logs[other], strict=True)])
        for name in logs
        if (other := against(name))
    }
    for name, one in found.items():
        print(f"{name:60}{one['mean']:+.4f} nats, 95 % interval [{one['low']:+.4f}, {one['high']:+.4f}]")
    result = {
        "schema": 1,
        "settings": vars(options) | {"variants": settings, "text": corpus.digest},
        "log_perplexity": logs,
        "compared": found,
        "versions": versions(),
    }
    HERE.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    picture(found).savefig(HERE.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
