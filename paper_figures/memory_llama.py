"""Does inverse probability around the last message train better? `lossproof train`'s LLaMA, paired seeds.

Claim D6: it spreads less than plain inverse probability only where a rank's gradient changes less between messages than
it is large, and less than the survivor mean only where the ranks' data differ more than their batches. So: three rules;
the same loss on all links and unequal loss; all ranks read the whole text, or each its own slice of it. Each seed
starts from the same weights, sees the same text and loses the same packets, whatever the rule. The job is short.
Writes `memory_llama.json` and `.png` beside this file:

    python -m lossproof.paper_figures.memory_llama [--seeds 6] [--steps 100]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.progress import track

from lossproof.impl.aggregate import Rule
from lossproof.impl.cluster import Cluster
from lossproof.impl.corpus import Corpus
from lossproof.impl.round import Round
from lossproof.impl.settings import Settings
from lossproof.impl.train import Job, versions
from lossproof.paper_figures.momentum_llama import paired, picture
from lossproof.proofs_checks.instruments.memory_rounds import Remembering
from lossproof.theory.laws import Bernoulli, Law, PerSender

HERE = Path(__file__)
LOSS, WORST, MOMENTUM, LR = 0.3, 0.6, 0.9, 0.05
RULES: dict[str, tuple[Rule, type[Round]]] = {
    "survivor mean": ("survivor_mean", Round),
    "inverse probability": ("inverse_probability", Round),
    "around the last message": ("inverse_probability", Remembering),
}
PAIRS = (("inverse probability", "survivor mean"), ("around the last message", "survivor mean"),
         ("around the last message", "inverse probability"))  # fmt: skip


class Sliced(Corpus):
    """Rank i reads only the i-th of N equal parts of the training text."""

    def batch(self, step: int, ranks: int, sequences: int, context: int, seed: int) -> torch.Tensor:
        size = len(self.train) // ranks
        own = [Corpus(self.name, self.train[i * size : (i + 1) * size], self.validation) for i in range(ranks)]
        parts = [corpus.batch(step, ranks, sequences, context, seed)[i] for i, corpus in enumerate(own)]
        return torch.stack(parts)


class Watched(Remembering):
    """Also notes sum |g_i - h_i|^2 p_i/q_i and sum |g_i|^2 p_i/q_i of every step: N^2 times what inverse probability
    adds to the spread of an estimate of these gradients with and without the memory."""

    def reduce(self, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.memory_NPE is not None and self._arrival_probability_NQ is not None:
            price_NP = 1 / self._arrival_probability_NQ - 1
            both = (payload_HPE - self.memory_NPE, payload_HPE)
            self.seen = [*getattr(self, "seen", []), [float((x.square().sum(-1) * price_NP).sum()) for x in both]]
        return super().reduce(payload_HPE)


def run(rule: str, law: Law, corpus: Corpus, seed: int, ranks: int, steps: int) -> tuple[float, list[list[float]]]:
    """Validation log-perplexity of the owners' model, in nats, and what `Watched` saw."""
    name, kind = RULES[rule]
    kind = Watched if kind is Remembering else kind
    with mock.patch.object(Cluster, "_round_kind", kind):
        job = Job(Settings(law, ranks, seed, steps, "sgd", LR, rule=name), corpus)
    for group in job.cluster.optimizer.param_groups:
        group["momentum"] = MOMENTUM
    for _ in range(steps):
        job.step()
    return job.result().log_perplexity, getattr(job.cluster.round, "seen", [])


def ratio(squares: list[list[float]]) -> float:
    """The spread with the memory over that without it, both summed over the steps."""
    around, plain = zip(*squares, strict=True)
    return float(sum(around) / sum(plain))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=8)
    options = parser.parse_args()
    text = Corpus.standard_library()
    texts = {"same data": text, "own slices": Sliced(text.name, text.train, text.validation)}
    laws: dict[str, Law] = {
        "equal loss": Bernoulli(LOSS),
        "unequal loss": PerSender(tuple(i % 2 * WORST for i in range(options.ranks))),
    }
    settings = [(data, loss) for data in texts for loss in laws]
    logs: dict[str, dict[str, list[float]]] = {", ".join(s): {rule: [] for rule in RULES} for s in settings}
    seen: dict[str, list[float]] = {name: [] for name in logs}
    jobs = [(data, loss, rule, seed) for seed in range(options.seeds) for data, loss in settings for rule in RULES]
    for data, loss, rule, seed in track(jobs, "training", disable=not sys.stdout.isatty()):
        found, squares = run(rule, laws[loss], texts[data], seed, options.ranks, options.steps)
        logs[f"{data}, {loss}"][rule].append(found)
        if squares:
            seen[f"{data}, {loss}"].append(ratio(squares))
    compared = {
        f"{name}: {one} - {other}": paired([a - b for a, b in zip(of[one], of[other], strict=True)])
        for name, of in logs.items()
        for one, other in PAIRS
    }
    for name, one in compared.items():
        print(f"{name:76}{one['mean']:+.4f} nats, 95 % interval [{one['low']:+.4f}, {one['high']:+.4f}]")
    for name, ratios in seen.items():
        print(f"{name}: spread with the memory over that without it {statistics.fmean(ratios):.2f}")
    result: dict[str, Any] = {
        "schema": 1,
        "settings": vars(options) | {"laws": {k: repr(v) for k, v in laws.items()}, "text": text.digest,
                                     "momentum": MOMENTUM, "lr": LR},
        "log_perplexity": logs,
        "compared": compared,
        "spread_over_plain": seen,
        "versions": versions(),
    }  # fmt: skip
    HERE.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    figure = picture(compared)
    figure.set_size_inches(10, 6)
    figure.savefig(HERE.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
