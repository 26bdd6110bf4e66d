"""Being one of several processes that torchrun started, or alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among `size`; `local` of them share its machine. Alone it is rank 0 of 1."""

    rank: int = 0
    size: int = 1
    local: int = 1

    def agreed(self, value: T) -> T:
        """Rank 0's value, on all ranks."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


def processes() -> int | None:
    """How many processes torchrun started; None without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


def hosted_ranks(ranks: int, processes: int, process: int) -> range:
    """The ranks of one process: every W-th, so that the owners, the first ranks in a small model, are shared out.

    Raises ValueError unless each process gets as many.

    >>> list(hosted_ranks(6, processes=3, process=1))
    [1, 4]
    """
    if ranks < processes or ranks % processes:
        raise ValueError(f"ranks must be a multiple of the number of processes, {processes}, got {ranks}")
    return range(process, ranks, processes)


@contextmanager
def world(device: str, timeout: float = 600.0) -> Iterator[tuple[World, str]]:
    """The process group of all that torchrun started, and this process's device; alone, neither is touched.

    A rank that does not answer for `timeout` seconds ends the job.
    """
    if (processes() or 1) == 1:
        yield World(), device
        return
    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        yield World(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"])), device
    finally:
        dist.destroy_process_group()
