"""One round over UDP against one all-reduce of gloo over TCP, on the same lossy link in the same run.

    sudo python -m benchmarks.transport [--sizes 1 4 16] [--losses 0 0.001 0.01 0.05 0.1] [--rounds 400] [--seconds 20]

Network namespaces of this kernel, joined by a router that drops packets by chance (tests/system/netns.py). A round is
what training does: gradients to their owners, `aggregate`, parameters to all ranks. Both take turns, a block of rounds
each; a round lasts as long as on the slowest rank. The first round of a block is not timed: the other transport has
left the ranks apart. gloo needs seconds for a round where losses are high, so each pair of size and loss ends after a
time, and the table says how many rounds there were: the p99 of fewer than 100 is their maximum.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks import paired

PACKET_BYTES = 1400
MIB = 1 << 20
QUANTILES = [*(k / 100 for k in range(1, 100)), *(k / 1000 for k in range(991, 1001))]


def worker() -> None:
    """One rank: for every line on its standard input a measurement, its result on a line of standard output."""
    from datetime import timedelta

    from lossproof.impl.transport import UdpChannel

    os.sched_setaffinity(0, {int(os.environ["RANK"]) % (os.cpu_count() or 1)})  # as if each had a machine of its own
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=10))
    channel = UdpChannel(os.environ["LOSSPROOF_ADDRESS"])
    ends: dict[int, Any] = {}
    for line in sys.stdin:
        case = json.loads(line)
        if case["mib"] not in ends:
            ends[case["mib"]] = prepare(channel, case["mib"])
            dist.barrier()
            print("prepared", flush=True)
            continue
        print(json.dumps(measure(ends[case["mib"]], case)), flush=True)
    dist.destroy_process_group()


def prepare(channel: Any, mib: float) -> tuple[Any, Callable[[], None], Callable[[], None]]:
    """The channel of a model of this size, a round over it, and an all-reduce of as many bytes."""
    from lossproof.impl.aggregate import aggregate
    from lossproof.impl.distributed.exchange import Exchange

    N, E = dist.get_world_size(), PACKET_BYTES // 4
    P = round(mib * MIB / PACKET_BYTES)
    group = dist.group.WORLD
    assert group is not None
    exchange = Exchange(torch.arange(P) * N // P, group)
    end = channel(exchange)
    payload_1PE, fresh_QE = torch.randn(1, P, E), torch.randn(len(exchange.own_Q), E)
    flat, steps = torch.randn(P * E), iter(range(1 << 30))

    def over_udp() -> None:
        step = next(steps)
        received_NQE, arrived_NQ = end.gradients(step, payload_1PE)
        estimate_QE, _ = aggregate(received_NQE, arrived_NQ)
        fresh_QE.copy_(estimate_QE)
        end.parameters(step, fresh_QE)

    def over_tcp() -> None:
        dist.all_reduce(flat)
        flat.div_(N)

    for _ in range(5):
        over_udp()
        over_tcp()
    return end, over_udp, over_tcp


def measure(prepared: Any, case: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every round and of the processor, by transport, until there are enough or the time is over."""
    end, *works = prepared
    before, started = end.statistics(), time.perf_counter()
    seconds: dict[str, list[float]] = {"udp": [], "tcp": []}
    processor = {"udp": 0.0, "tcp": 0.0}
    go_on = torch.ones(1)
    while go_on:
        for name, work in zip(seconds, works, strict=True):
            work()  # not timed: it would pay for how far apart the other transport has left the ranks
            # gloo's rounds may take a second each; UDP's are cheap, and their tail is what we are after
            for _ in range(case["block"] * (1 if name == "tcp" else case["udp_rounds_for_one"])):
                at, cpu = time.perf_counter(), time.process_time()
                work()
                seconds[name].append(time.perf_counter() - at)
                processor[name] += time.process_time() - cpu
        over = len(seconds["tcp"]) >= case["rounds"] or time.perf_counter() - started > case["seconds"]
        go_on = torch.tensor([0.0 if over else 1.0])
        dist.broadcast(go_on, src=0)
    after = end.statistics()
    counted = {name: after[name] - before[name] for name in after if isinstance(after[name], int)}
    return {
        "seconds": seconds,
        "processor": {name: processor[name] / len(seconds[name]) for name in seconds},
        "statistics": counted | {"deadlines": after["deadlines"]},
    }


def summary(mib: float, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each transport: rounds, p50, p99 and maximum in ms on the slowest rank, MB/s, and ms of the processor."""
    found: dict[str, Any] = {}
    for name in ("udp", "tcp"):
        slowest = np.max([rank["seconds"][name] for rank in ranks], axis=0)
        p50, p99 = (float(q) for q in np.quantile(slowest, [0.5, 0.99], method="higher"))
        found[name] = {
            "rounds": len(slowest), "p50_ms": 1e3 * p50, "p99_ms": 1e3 * p99, "max_ms": 1e3 * float(slowest.max()),
            "mean_ms": 1e3 * float(slowest.mean()), "mb_per_s": mib * MIB / 1e6 / float(slowest.mean()),
            "processor_ms": 1e3 * max(rank["processor"][name] for rank in ranks),
            "quantiles_ms": [[q, 1e3 * float(np.quantile(slowest, q, method="higher"))] for q in QUANTILES],
        }  # fmt: skip
    found["statistics"] = [rank["statistics"] for rank in ranks]
    return found


def targets(results: list[dict[str, Any]]) -> list[str]:
    """The three targets of this transport, as ratios within this run."""
    lines = []
    for mib in sorted({row["mib"] for row in results}):
        by_loss = {row["loss"]: row for row in results if row["mib"] == mib}
        clean, worst = by_loss.get(0.0), by_loss.get(0.1)
        if clean:
            ratio = clean["udp"]["p50_ms"] / clean["tcp"]["p50_ms"]
            lines.append(f"{mib:g} MiB, no loss: p50 {ratio:.2f} of gloo's; {paired.verdict(ratio, 1.5)}")
        if clean and worst:
            ratio = worst["udp"]["p99_ms"] / clean["udp"]["p50_ms"]
            lines.append(f"{mib:g} MiB, 10 %: p99 {ratio:.2f} of p50 without loss; {paired.verdict(ratio, 2)}")
            ratio = worst["udp"]["p99_ms"] / worst["tcp"]["p99_ms"]
            verdict = paired.verdict(ratio, 1 / 50, "1/50")
            lines.append(f"{mib:g} MiB, 10 %: p99 1/{1 / ratio:.1f} of gloo's; {verdict}")
    return lines


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "system"))
    from netns import Network

    results = []
    with Network(options.ranks, join=not options.no_gro) as network:
        key = os.urandom(32).hex()
        ranks = network.launch("-m", "benchmarks.transport", "--worker", env={"LOSSPROOF_KEY": key},
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip

        def ask(case: dict[str, Any]) -> list[str]:
            for rank in ranks:
                assert rank.stdin
                rank.stdin.write(json.dumps(case) + "\n")
                rank.stdin.flush()
            answers = [rank.stdout.readline() for rank in ranks if rank.stdout]
            if not all(answers):
                raise SystemExit("a rank has ended; see what it printed")
            return answers

        for mib in options.sizes:
            network.lose(0)
            ask({"mib": mib})
            for loss in options.losses:
                network.lose(loss)
                case = {"mib": mib, "block": options.block, "rounds": options.rounds, "seconds": options.seconds,
                        "udp_rounds_for_one": 1 if loss < 0.01 else options.udp_rounds}  # fmt: skip
                row = {"mib": mib, "loss": loss} | summary(mib, [json.loads(answer) for answer in ask(case)])
                row["router"] = {
                    of: [sum(counts) for counts in zip(*network.counters(of).values(), strict=True)]
                    for of in ("udp", "tcp")
                }
                results.append(row)
                cells = "  ".join(
                    f"{name} {kind['rounds']:4d} rounds, p50 {kind['p50_ms']:8.1f}, p99 {kind['p99_ms']:8.1f}, max "
                    f"{kind['max_ms']:8.1f} ms, {kind['mb_per_s']:6.1f} MB/s, processor {kind['processor_ms']:6.1f} ms"
                    for name, kind in ((name, row[name]) for name in ("udp", "tcp"))
                )
                print(f"{mib:4g} MiB {loss:6.1%}  {cells}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 4, 16], help="MiB")
    parser.add_argument("--losses", type=float, nargs="+", default=[0, 0.001, 0.01, 0.05, 0.1])
    parser.add_argument("--rounds", type=int, default=300, help="rounds of gloo, at most")
    parser.add_argument("--seconds", type=float, default=30, help="for each size and loss, about")
    parser.add_argument("--block", type=int, default=5, help="rounds of one before the other takes its turn")
    parser.add_argument("--udp-rounds", type=int, default=8, help="rounds of UDP for one of gloo, where that is slow")
    parser.add_argument("--no-gro", action="store_true", help="nodes without receive offload")
    parser.add_argument("--dry", action="store_true", help="write no results")
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    results = run(options)
    verdicts = targets(results)
    print("\n".join(verdicts))
    if not options.dry:
        paired.save("transport", {"settings": vars(options), "results": results, "targets": verdicts})


if __name__ == "__main__":
    main()
