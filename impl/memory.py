"""What a job needs in memory against what there is, known before anything is allocated.

Legend: N ranks; D elements of all packets together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_USABLE = 0.9  # of what is free; the rest is for allocators and whatever else grows
_TEMPORARIES = 1.25  # measured: the peak of a backward pass over what it keeps, rounded up
_OWNERS_COPIES = 8  # fresh and estimated packets, optimizer state (two values), the observer's float64 record, slack
MiB = 1 << 20


@dataclass(frozen=True)
class Budget:
    """Bytes that a job needs and how many replicas it computes at a time.

    Args:
        replicas: parameters and gradients of the N replicas in this process.
        owners: the owners' copy, the optimizer's state and what belongs to them.
        activations: what one replica's backward pass keeps.
        available: free bytes, None where the system does not say.
        chunk: replicas at a time.
        ranks: N.
    """

    replicas: int
    owners: int
    activations: int
    available: int | None
    chunk: int
    ranks: int

    @property
    def needed(self) -> int:
        return self.replicas + self.owners + self.chunk * self.activations

    def __str__(self) -> str:
        free = "unknown" if self.available is None else f"{self.available / MiB:,.0f} MiB"
        return (
            f"needs {self.needed / MiB:,.0f} MiB (replicas {self.ranks} x {self.replicas / self.ranks / MiB:,.1f}, "
            f"owners {self.owners / MiB:,.0f}, activations {self.chunk} x {self.activations / MiB:,.1f}), "
            f"available {free}"
        )


def plan_memory(
    ranks: int, payload_bytes: int, copies: int, activations: int, available: int | None, received: int = 0
) -> Budget:
    """The largest chunk that fits, evened out; None free bytes means unknown, and all replicas at a time.

    Args:
        ranks: N in this process.
        payload_bytes: D elements of one replica, in bytes.
        copies: how many such buffers a replica costs at once.
        activations: bytes that one replica's backward pass keeps.
        received: bytes that owners keep of gradients from other processes.

    Raises:
        ValueError: not even one replica at a time fits.

    >>> plan_memory(16, payload_bytes=MiB, copies=3, activations=10 * MiB, available=150 * MiB).chunk
    6
    """
    replicas, owners, chunk = copies * ranks * payload_bytes, _OWNERS_COPIES * payload_bytes + received, ranks
    if available is not None:
        room = int(available * _USABLE) - replicas - owners
        if room < activations:
            least = Budget(replicas, owners, activations, available, 1, ranks)
            raise ValueError(f"ranks={ranks} here and the model are too large for this machine: the job {least}")
        rounds = -(-ranks // min(ranks, room // activations if activations else ranks))
        chunk = -(-ranks // rounds)
    return Budget(replicas, owners, activations, available, chunk, ranks)


def saved_bytes(loss: Callable[[], torch.Tensor], model: torch.nn.Module) -> int:
    """Bytes that one replica's gradient needs beside the parameters. Meant for a model on the meta device.

    What the backward pass would save for a second derivative counts, because `torch.func.grad` saves it.
    """
    parameters = list(model.parameters())
    excepted = {tensor.untyped_storage()._cdata for tensor in parameters}
    kept: dict[int, torch.UntypedStorage] = {}  # holding the storages keeps their addresses from being used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in excepted:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.autograd.grad(loss(), parameters, create_graph=True)
    return int(_TEMPORARIES * sum(storage.nbytes() for storage in kept.values()))


def available_bytes(device: torch.device) -> int | None:
    """Free memory of a device: for the CPU what the kernel calls available, within the limit of the control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    bounds = [_meminfo(Path("/proc/meminfo"))]
    for folder, limit, usage in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        most, used = _number(Path(folder, limit)), _number(Path(folder, usage))
        if most is not None and used is not None:
            bounds.append(max(0, most - used))
    known = [bound for bound in bounds if bound is not None]
    return min(known) if known else None


def _meminfo(path: Path) -> int | None:
    if path.exists():
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such control group, or "max": no limit
        return None
