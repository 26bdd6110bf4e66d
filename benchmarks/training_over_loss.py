"""A small LLaMA over UDP against the same one over gloo's TCP, on the same lossy link in one run.

    sudo python -m benchmarks.training_over_loss [--steps 200] [--seeds 8] [--losses 0 0.01 0.1] [--nodes 2]

Network namespaces of this kernel, joined by a router that drops packets by chance (tests/system/netns.py). TCP is
plain DDP; UDP is the same DDP model with `attach(..., channel=UdpChannel())`, whose norms go the same way, said again
until heard. Buffers, which are constant here, are broadcast by neither. Transports take turns, seed by seed. A run
trains while the link loses; it starts, and is evaluated, without loss.

The paired difference is that of the log-perplexity on validation text of UDP at the highest loss and UDP without
loss, by seed (model and batches are those of the seed), with Student's 95 % interval: it holds as far as the
differences are normal. The time to a perplexity is until the mean training loss of the last 10 steps, over ranks,
first is below the target: the highest value at which all runs end, so that every run reaches it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy.stats import t as student
from torch.nn.parallel import DistributedDataParallel

from benchmarks import paired

WINDOW = 10
PACKET_BYTES = 1400
SIZES = {"hidden": 64, "layers": 2, "heads": 4, "intermediate": 172}


def worker() -> None:
    """One rank: for every line on its standard input a run, what it found on a line of standard output."""
    from datetime import timedelta

    from lossproof.impl.corpus import Corpus

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=10))
    corpus = Corpus.standard_library()
    for line in sys.stdin:
        print(json.dumps(trained(json.loads(line), corpus)), flush=True)
    dist.destroy_process_group()


def trained(case: dict[str, Any], corpus: Any) -> dict[str, Any]:
    """A run: after "prepared" and after "trained" it waits for a line, for the link changes then."""
    from lossproof.impl.distributed import attach
    from lossproof.impl.language_model import build_model, objective
    from lossproof.impl.settings import Settings
    from lossproof.impl.transport import UdpChannel
    from lossproof.theory.laws import Bernoulli

    ranks, rank = dist.get_world_size(), dist.get_rank()
    settings = Settings(law=Bernoulli(0), ranks=ranks, steps=case["steps"], seed=case["seed"], context=case["context"],
                        **SIZES)  # fmt: skip
    net = build_model(settings)
    model = DistributedDataParallel(net)
    model.broadcast_buffers = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=case["lr"])
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / case["steps"])
    attachment = None
    if case["transport"] == "udp":
        channel = UdpChannel(os.environ["LOSSPROOF_ADDRESS"])
        attachment = attach(model, optimizer, channel=channel, packet_bytes=PACKET_BYTES, drift_every=0, log_every=0)
    batches = [corpus.batch(step, ranks, 1, settings.context, settings.seed)[rank] for step in range(case["steps"])]
    dist.barrier()
    print("prepared", flush=True)
    sys.stdin.readline()
    seconds, losses, reliable = [], [], _time_of_reliable(attachment)
    for batch in batches:
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = objective(model, batch)
        loss.backward()
        optimizer.step()
        decay.step()
        seconds.append(time.perf_counter() - started)
        losses.append(float(loss.detach()))
    print("trained", flush=True)
    sys.stdin.readline()
    dist.barrier()
    if attachment is not None:
        attachment.resync()  # the owners' model on all ranks
    with torch.no_grad():
        validation = corpus.validation_batches(case["validation"], 8, settings.context)
        log_perplexity = float(np.mean([float(objective(net, batch)) for batch in validation]))
    statistics = attachment.channel.statistics() if attachment is not None else {}
    if attachment is not None:
        attachment.channel.close()
    return {"seconds": seconds, "losses": losses, "log_perplexity": log_perplexity, "statistics": statistics,
            "reliable_seconds": sum(reliable)}  # fmt: skip


def _time_of_reliable(attachment: Any) -> list[float]:
    """Fills with the seconds that each sum of norms over the ranks takes."""
    seconds: list[float] = []
    if attachment is not None:
        total = attachment.exchange.total

        def timed(values: torch.Tensor) -> torch.Tensor:
            started = time.perf_counter()
            found: torch.Tensor = total(values)
            seconds.append(time.perf_counter() - started)
            return found

        attachment.exchange.total = timed
    return seconds


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One run from what its ranks found: a step lasts as long as on the slowest."""
    return {
        "seconds": np.max([part["seconds"] for part in parts], axis=0).tolist(),
        "losses": np.mean([part["losses"] for part in parts], axis=0).tolist(),
        "log_perplexity": parts[0]["log_perplexity"],
        "cut_off": sum(part["statistics"].get("cut_off", 0) for part in parts),
        "reliable_ms": 1000 * max(part["reliable_seconds"] for part in parts) / len(parts[0]["seconds"]),
    }


def seconds_to(run: dict[str, Any], target: float) -> float | None:
    """When the mean loss of the last steps first is at most the target; None if it never is."""
    smooth = np.convolve(run["losses"], np.ones(WINDOW) / WINDOW, "valid")
    there = np.flatnonzero(smooth <= target)
    return float(np.cumsum(run["seconds"])[there[0] + WINDOW - 1]) if len(there) else None


def interval(values: list[float]) -> dict[str, Any]:
    """The mean and its 95 % interval by Student's t; no interval from one value."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return {"mean": mean, "interval": None, "values": values}
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return {"mean": mean, "interval": [mean - half, mean + half], "values": values}


def summary(runs: list[dict[str, Any]], losses: list[float]) -> dict[str, Any]:
    """Steps and times by loss and transport, against each other; and what the loss costs in log-perplexity."""
    found = {(run["transport"], run["loss"], run["seed"]): run for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    target = max(float(np.mean(run["losses"][-WINDOW:])) for run in runs)
    table = []
    for loss in losses:
        row: dict[str, Any] = {"loss": loss}
        for transport in ("udp", "tcp"):
            these = [found[transport, loss, seed] for seed in seeds]
            steps_ms = 1000 * np.concatenate([run["seconds"] for run in these])
            row[transport] = {
                "mean_ms": float(steps_ms.mean()), "p50_ms": float(np.median(steps_ms)),
                "p99_ms": float(np.percentile(steps_ms, 99)), "max_ms": float(steps_ms.max()), "steps": len(steps_ms),
                "seconds_to_target": [seconds_to(run, target) for run in these],
                "log_perplexity": [run["log_perplexity"] for run in these],
            }  # fmt: skip
        row["udp"]["reliable_ms"] = float(np.mean([found["udp", loss, seed]["reliable_ms"] for seed in seeds]))
        row["mean_step_udp_over_tcp"] = row["udp"]["mean_ms"] / row["tcp"]["mean_ms"]
        table.append(row)
    paired_differences = [
        found["udp", max(losses), seed]["log_perplexity"] - found["udp", min(losses), seed]["log_perplexity"]
        for seed in seeds
    ]
    return {
        "target_log_perplexity": target, "table": table, "difference": interval(paired_differences),
        "curves": [curve([found[transport, loss, seed] for seed in seeds]) | {"transport": transport, "loss": loss}
                   for loss in losses for transport in ("udp", "tcp")],
    }  # fmt: skip


def curve(runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Means over runs: seconds since the start, and the training loss of the last `WINDOW` steps."""
    seconds = np.mean([np.cumsum(run["seconds"])[WINDOW - 1 :] for run in runs], axis=0)
    smooth = np.mean([np.convolve(run["losses"], np.ones(WINDOW) / WINDOW, "valid") for run in runs], axis=0)
    return {"seconds": seconds.round(4).tolist(), "train_loss": smooth.round(4).tolist()}


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "system"))
    from netns import Network

    runs = []
    with Network(options.nodes) as network:
        network.lose(0)
        ranks = network.launch(
            "-m", "benchmarks.training_over_loss", "--worker", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={"LOSSPROOF_KEY": "for this benchmark only"}, cwd=Path(__file__).parents[1],
        )  # fmt: skip

        def ask(line: str) -> list[str]:
            for rank in ranks:
                assert rank.stdin
                rank.stdin.write(line + "\n")
                rank.stdin.flush()
            answers = [rank.stdout.readline() for rank in ranks if rank.stdout]
            if not all(answers):
                raise RuntimeError("a rank ended; its reason is above")
            return answers

        cases = [(seed, loss, transport) for seed in range(options.seeds) for loss in options.losses
                 for transport in (("udp", "tcp") if seed % 2 == 0 else ("tcp", "udp"))]  # fmt: skip
        for seed, loss, transport in cases:
            case = {"seed": seed, "transport": transport, "steps": options.steps, "context": options.context,
                    "lr": options.lr, "validation": options.validation}  # fmt: skip
            ask(json.dumps(case))
            network.lose(loss)
            ask("")
            kernel = network.counters(transport)
            network.lose(0)
            found = joined([json.loads(answer) for answer in ask("")])
            packets, dropped = (sum(counts) for counts in zip(*kernel.values(), strict=True))
            runs.append(
                {"seed": seed, "loss": loss, "transport": transport, "packets": packets, "dropped": dropped} | found
            )
            print(
                f"seed {seed}, {loss:5.1%}, {transport}: {1000 * np.mean(found['seconds']):7.1f} ms a step, max "
                f"{1000 * max(found['seconds']):7.1f}; log-perplexity {found['log_perplexity']:.4f}; router dropped "
                f"{dropped} of {packets}", flush=True,
            )  # fmt: skip
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--losses", type=float, nargs="+", default=[0, 0.01, 0.1])
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--validation", type=int, default=8192, help="tokens")
    parser.add_argument("--dry", action="store_true", help="write no results")
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    runs = run(options)
    found = summary(runs, options.losses)
    for row in found["table"]:
        for name in ("udp", "tcp"):
            kind = row[name]
            there = [seconds for seconds in kind["seconds_to_target"] if seconds is not None]
            print(
                f"{row['loss']:5.1%} {name}: {kind['mean_ms']:.1f} ms a step (p50 {kind['p50_ms']:.1f}, p99 "
                f"{kind['p99_ms']:.1f}, max {kind['max_ms']:.1f}); {np.mean(there):.1f} s to log-perplexity "
                f"{found['target_log_perplexity']:.2f}"
            )
        ratio, waits = row["mean_step_udp_over_tcp"], row["udp"]["reliable_ms"]
        print(f"{row['loss']:5.1%}: mean step {ratio:.2f} of TCP's; {waits:.1f} ms of UDP's wait for norms")
    print(f"log-perplexity at {max(options.losses):.0%} loss minus none, paired: {found['difference']}")
    if not options.dry:
        settings = {name: value for name, value in vars(options).items() if name not in ("worker", "dry")}
        short = [{k: v for k, v in run.items() if k not in ("seconds", "losses")} for run in runs]
        paired.save("training_over_loss", {"settings": settings | SIZES, **found, "runs": short})


if __name__ == "__main__":
    main()
