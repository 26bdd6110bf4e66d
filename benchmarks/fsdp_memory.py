"""What the stale copy costs: memory of a rank under plain DDP and FSDP2, and under `attach`, in one run.

Every variant trains the same LLaMA in processes of its own, forked from one that has imported everything. What counts
is the process's resident memory beyond what it had before there was a model: `steady`, between two steps with the
gradients freed; `peak`, the most within the steps after the first. Both as multiples of the model's parameters in
float32. Measured on the CPU, where `stale="cpu"` saves nothing: what it keeps off a device is in the column `stale`.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import tempfile
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import paired
from lossproof.impl.distributed import ShardedAttachment, attach
from lossproof.theory.laws import Bernoulli

HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


@dataclass(frozen=True)
class Variant:
    """`lossy`: the options of `attach`, None for plain training."""

    name: str
    sharded: bool
    lossy: dict[str, Any] | None = None
    fsdp: dict[str, Any] = field(default_factory=dict)


VARIANTS = [
    Variant("plain DDP", False),
    Variant("DDP, attach", False, {}),
    Variant("plain FSDP2", True),
    Variant("FSDP2, attach", True, {}),
    Variant("FSDP2, attach, stale='cpu'", True, {"stale": "cpu"}),
    Variant("FSDP2, attach, stale='bfloat16'", True, {"stale": "bfloat16"}),
    Variant("plain FSDP2, parameters gathered in bfloat16", True, None, {"mp_policy": HALF}),
    Variant("FSDP2, attach, parameters gathered in bfloat16", True, {}, {"mp_policy": HALF}),
]


LIBC = ctypes.CDLL("libc.so.6")
MMAP_THRESHOLD = -3  # of mallopt: from so many bytes on, what is freed is given back at once


def resident(most: bool = False) -> int:
    """Bytes of this process in memory, now or at most since `forget`."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM" if most else "VmRSS"))


def forget() -> None:
    """Gives freed memory back, and begins a new maximum."""
    LIBC.malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def work(rank: int, options: argparse.Namespace, variant: Variant, store: str, answers: Any) -> None:
    torch.set_num_threads(1)
    LIBC.mallopt(MMAP_THRESHOLD, 1 << 16)  # else holes in the heap would count
    dist.init_process_group("gloo", store=dist.FileStore(store, options.ranks), rank=rank, world_size=options.ranks)
    torch.manual_seed(0)
    tokens = torch.randint(0, options.vocabulary, (2, 32))
    mesh = init_device_mesh("cpu", (options.ranks,))
    dist.all_reduce(torch.zeros(1 << 16))
    forget()
    before = resident()
    config = LlamaConfig(
        vocab_size=options.vocabulary, hidden_size=options.hidden, intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers, num_attention_heads=8, max_position_embeddings=64,
    )  # fmt: skip
    net = LlamaForCausalLM(config)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    if variant.sharded:
        for layer in net.model.layers:
            fully_shard(layer, mesh=mesh, **variant.fsdp)
        model = fully_shard(net, mesh=mesh, **variant.fsdp)
    else:
        model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    attachment = None
    if variant.lossy is not None:
        attachment = attach(model, optimizer, Bernoulli(options.loss), log_every=0, drift_every=0, **variant.lossy)
    for step in range(options.steps + 1):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            forget()  # the model was whole before it was sharded
    peak = resident(most=True) - before
    forget()
    stale = 0
    if isinstance(attachment, ShardedAttachment):
        stale = sum(unit.kept().nbytes for unit in attachment.units)
    answers.put((rank, parameters, resident() - before, peak, stale))
    dist.barrier()
    dist.destroy_process_group()


def measure(options: argparse.Namespace, variant: Variant) -> dict[str, Any]:
    """Bytes of the worst rank, and as multiples of the parameters in float32."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "lossproof.impl.distributed.fsdp.attachment", "torch._dynamo"])
    with tempfile.TemporaryDirectory() as folder:
        answers = context.SimpleQueue()
        processes = [
            context.Process(target=work, args=(rank, options, variant, f"{folder}/store", answers))
            for rank in range(options.ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"{variant.name}: exit codes {[process.exitcode for process in processes]}")
        rows = [answers.get() for _ in processes]
    parameters = rows[0][1]
    found = {name: max(row[k] for row in rows) for k, name in ((2, "steady"), (3, "peak"), (4, "stale"))}
    return {"parameters": parameters} | {
        name: {"bytes": value, "times_parameters": value / (4 * parameters)} for name, value in found.items()
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'memory of a rank / parameters in float32':48}{'steady':>9}{'peak':>9}{'stale':>9}"]
    for name, row in results.items():
        cells = "".join(f"{row[column]['times_parameters']:9.2f}" for column in ("steady", "peak", "stale"))
        lines.append(f"{name:48}{cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("ranks", 4, "processes"), ("steps", 3, "steps that are measured"), ("hidden", 512, "width of the model"),
        ("layers", 6, "its blocks"), ("vocabulary", 4096, "its tokens"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    parser.add_argument("--loss", type=float, default=0.1, help="loss under attach (default 0.1)")
    options = parser.parse_args()
    results = {variant.name: measure(options, variant) for variant in VARIANTS}
    parameters = results["plain DDP"]["parameters"]
    print(f"LLaMA of {parameters / 1e6:.1f} M parameters, AdamW, {options.ranks} ranks on the CPU")
    print(table(results))
    paired.save("fsdp_memory", {"settings": vars(options), "variants": results})


if __name__ == "__main__":
    main()
