"""What `attach` costs: the step time of plain DDP, of `attach` without loss, and of `attach` at 10 % loss.

The three train side by side in the same processes and take turns, in changing order, step by step; a ratio compares
steps of one turn, so that what else the machine does hits all three alike. On a busy machine the processor's time says
more than the clock's. The simulated losses do not slow the network down: all packets travel reliably, and this measures
the protocol and its Python, not a lossy network.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import socket
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from benchmarks import paired
from lossproof.impl.distributed import attach
from lossproof.theory.laws import Bernoulli

Step = Callable[[], None]


def mlp() -> tuple[torch.nn.Module, Callable[[torch.nn.Module], torch.Tensor]]:
    """4 M parameters, 64 examples a rank."""
    width = 1024
    sizes = [256, width, width, width, width, 256]
    layers = [layer for a, b in pairwise(sizes) for layer in (torch.nn.Linear(a, b), torch.nn.GELU())]
    examples = torch.randn(64, sizes[0])
    return torch.nn.Sequential(
        *layers
    ), lambda model: model(examples.to(next(model.parameters()).device)).square().mean()


def llama() -> tuple[torch.nn.Module, Callable[[torch.nn.Module], torch.Tensor]]:
    """5 M parameters, 256 tokens a rank."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
    tokens = torch.randint(0, sizes["vocab_size"], (4, 64))

    def loss(model: torch.nn.Module) -> torch.Tensor:
        on_device = tokens.to(next(model.parameters()).device)
        found: torch.Tensor = model(input_ids=on_device, labels=on_device).loss
        return found

    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, max_position_embeddings=64, **sizes)), loss


MODELS = {"mlp": mlp, "llama": llama}


def prepare(build: Callable[[], Any], device: torch.device, loss: float | None, packet_bytes: int) -> tuple[Step, int]:
    """One training step of a new model, attached at this loss (None: plain DDP), and its number of parameters."""
    torch.manual_seed(0)
    module, objective = build()
    ids = [device.index] if device.type == "cuda" else None
    model = DistributedDataParallel(module.to(device), device_ids=ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    if loss is not None:
        attach(model, optimizer, Bernoulli(loss), packet_bytes=packet_bytes)

    def step() -> None:
        objective(model).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step, sum(parameter.numel() for parameter in module.parameters())


def measure(steps: list[Step], warm: int, turns: int, device: torch.device) -> torch.Tensor:
    """Seconds of every step by the clock and of the processor, (2, variants, turns), on the slowest rank."""
    seconds = torch.tensor(paired.take_turns(steps, warm, turns, dist.barrier), dtype=torch.float64, device=device)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return seconds.cpu()


def summarize(names: list[str], seconds: torch.Tensor) -> dict[str, Any]:
    """Seconds, and the ratios to the first variant."""
    return {
        name: {
            kind: {
                "seconds": paired.spread(mine[row].tolist()),
                "ratio": paired.ratios(mine[row].tolist(), mine[0].tolist()),
            }
            for kind, mine in zip(("clock", "processor"), seconds, strict=True)
        }
        for row, name in enumerate(names)
    }


def table(rows: dict[str, Any]) -> str:
    lines = [f"{'':22}{'ms a step':>10}{'ratio (quartiles)':>20}{'CPU ms':>10}{'ratio (quartiles)':>20}"]
    for name, row in rows.items():
        cells = "".join(
            f"{1e3 * kind['seconds']['median']:10.1f}{paired.show(kind['ratio']):>20}" for kind in row.values()
        )
        lines.append(f"{name:22}{cells}")
    return "\n".join(lines)


def work(rank: int, options: argparse.Namespace, port: int) -> None:
    torch.set_num_threads(1)
    backend = "nccl" if options.device == "cuda" else "gloo"
    device = torch.device("cuda", rank) if options.device == "cuda" else torch.device("cpu")
    if options.device == "cuda":
        torch.cuda.set_device(device)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=options.ranks)
    variants = {"plain DDP": None, "attach, no loss": 0.0, f"attach, {options.loss:.0%} loss": options.loss}
    results: dict[str, Any] = {}
    for model in options.models:
        prepared = [prepare(MODELS[model], device, loss, options.packet_bytes) for loss in variants.values()]
        seconds = measure([step for step, _ in prepared], options.warm, options.turns, device)
        results[model] = {"parameters": prepared[0][1], "steps": summarize(list(variants), seconds)}
        if rank == 0:
            print(f"\n{model}: {prepared[0][1] / 1e6:.1f} M parameters, {options.ranks} ranks, {options.device}")
            print(table(results[model]["steps"]))
        if options.profile:
            profile(prepared[-1][0], options.turns, rank)
    if rank == 0:
        paired.save("ddp_overhead", {"settings": vars(options), "models": results})
    dist.destroy_process_group()


def profile(step: Step, turns: int, rank: int) -> None:
    """Prints where rank 0 spends its time in the last variant; `wait` is communication."""
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(turns):
        step()
    profiler.disable()
    if rank == 0:
        print(f"\n{turns} steps of the last variant under the profiler, by a function's own time:")
        pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="gloo, or NCCL with a GPU for each rank"
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--loss", type=float, default=0.1)
    parser.add_argument("--packet-bytes", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=30, help="steps of each variant that are timed")
    parser.add_argument("--warm", type=int, default=5, help="steps of each variant before that")
    parser.add_argument("--profile", action="store_true", help="profile the last variant as well")
    options = parser.parse_args()
    if options.ranks < 2:
        parser.error(f"--ranks must be at least 2, got {options.ranks}")
    if options.device == "cuda" and torch.cuda.device_count() < options.ranks:
        parser.error(f"--ranks must be at most the {torch.cuda.device_count()} GPUs here, got {options.ranks}")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, args=(options, port), nprocs=options.ranks)


if __name__ == "__main__":
    main()
