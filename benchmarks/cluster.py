"""What the protocol costs in the simulation: everything in a step but the forward and backward passes.

Measured within each step, so that both parts see the same machine: batches, packing, masks (Philox), the two stages,
the optimizer. The target is `lossproof train`'s default model, 16 ranks, 512 tokens a rank and step: at most 5 %. The
drift meter is not part of the protocol and is reported beside it. Then the same against the number of ranks and of
parameters with 128 tokens each, and the memory of a replica against what `lossproof train` says that it needs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks import paired
from lossproof.impl.corpus import Corpus
from lossproof.impl.train import Job, Settings
from lossproof.proofs_checks.realised_drift import DriftMeter
from lossproof.theory.laws import Bernoulli

TARGET = 0.05
RANKS = (1, 4, 16, 64, 256)
HIDDEN = (32, 64, 128, 256)
MiB = 1 << 20
DEFAULT = replace(Settings(), law=Bernoulli(0.1), ranks=16, batch=4, context=128)


def measure(settings: Settings, warm: int, steps: int) -> dict[str, Any]:
    """Seconds of steps and of what they consist of; the drift meter runs, and its time is not a step's."""
    job = Job(settings, Corpus.standard_library(), DriftMeter.of)
    passes: list[float] = []
    job.cluster._gradients = timed(job.cluster._gradients, passes)
    whole, drift = [], []
    for step in range(warm + steps):
        before = job.seconds, job.measuring_seconds
        job.step()
        if step >= warm:
            whole.append(job.seconds - before[0])
            drift.append(job.measuring_seconds - before[1])
    passes = passes[warm:]
    shares = [1 - inside / all_ for inside, all_ in zip(passes, whole, strict=True)]
    return {
        "ranks": settings.ranks,
        "parameters": sum(p.numel() for p in job.cluster.model.parameters()),
        "step_seconds": paired.spread(whole),
        "protocol_seconds": paired.spread([all_ - inside for inside, all_ in zip(passes, whole, strict=True)]),
        "protocol_share": paired.spread(shares),
        "drift_meter_over_step": paired.ratios(drift, whole),
        "memory": str(job.budget),
    }


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        started = time.perf_counter()
        found = function(*args)
        seconds.append(time.perf_counter() - started)
        return found

    return run


def memory(ranks: int) -> dict[str, float]:
    """The peak of a fresh process that trains this many ranks for three steps, and what the job says that it needs."""
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, "--memory", str(ranks)], capture_output=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def report_memory(ranks: int) -> None:
    job = Job(replace(DEFAULT, ranks=ranks), Corpus.standard_library())
    for _ in range(3):
        job.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    stated = (job.budget.replicas + job.budget.chunk * job.budget.activations) / ranks
    print(json.dumps({"peak": peak, "stated_per_replica": stated}))


def picture(ranks: list[dict[str, Any]], sizes: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, rows, key, label in zip(
        figure.subplots(1, 2), (ranks, sizes), ("ranks", "parameters"), ("ranks N", "parameters D"), strict=True
    ):
        x = [row[key] for row in rows]
        for name, marker, line in (("step", "o", "-"), ("protocol", "s", "--")):
            y = [1e3 * row[f"{name}_seconds"]["median"] for row in rows]
            axes.loglog(x, y, marker=marker, linestyle=line, label={"step": "whole step", "protocol": "protocol"}[name])
        for row in rows:
            axes.annotate(
                f"{row['protocol_share']['median']:.1%}",
                (row[key], 1e3 * row["protocol_seconds"]["median"]),
                textcoords="offset points", xytext=(0, -13), ha="center", fontsize=8,
            )  # fmt: skip
        axes.set(xlabel=label, ylabel="milliseconds a step")
        axes.margins(y=0.2)
        axes.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", type=int, metavar="RANKS", help="only report the memory of this many ranks")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        report_memory(options.memory)
        return

    default = measure(DEFAULT, 3, 41)
    share = default["protocol_share"]
    print(f"protocol, share of a step, 16 ranks, 512 tokens each: {paired.show(share, 100, 1)} %")
    print(f"    {paired.verdict(share['median'], TARGET)}; the drift meter, not counted: "
          f"{paired.show(default['drift_meter_over_step'], 100, 1)} % of a step")  # fmt: skip
    by_ranks = [measure(replace(DEFAULT, ranks=ranks, batch=1), 2, options.steps) for ranks in RANKS]
    by_size = [
        measure(replace(DEFAULT, hidden=hidden, intermediate=hidden * 8 // 3, batch=1), 2, options.steps)
        for hidden in HIDDEN
    ]
    for row in by_ranks + by_size:
        print(f"N = {row['ranks']:4} D = {row['parameters']:9,}: step {1e3 * row['step_seconds']['median']:8.1f} ms, "
              f"protocol {paired.show(row['protocol_share'], 100, 1)} %")  # fmt: skip
    few, many = memory(16), memory(128)
    replica = (many["peak"] - few["peak"]) / (128 - 16)
    print(f"memory of a replica: {replica / MiB:.1f} MiB measured (the peak of 128 ranks less that of 16), "
          f"{many['stated_per_replica'] / MiB:.1f} MiB stated")  # fmt: skip
    result = {
        "target": TARGET,
        "default": default,
        "by_ranks": by_ranks,
        "by_size": by_size,
        "replica_bytes": {"measured": replica, "stated": many["stated_per_replica"]},
    }
    paired.save("cluster", result, picture(by_ranks, by_size))


if __name__ == "__main__":
    main()
