"""Several ranks on this machine, for tests: forks of one process that has imported torch, joined in a gloo group.

Every call has fresh processes, so no test leaves anything behind for another; a fork costs milliseconds. An error
carries the traceback of its rank, and nothing waits for ever.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["lossproof.impl.distributed.trainer", "torch._dynamo", "pytest"])


@dataclass(frozen=True)
class Outcome:
    """How the work of one rank ended: with a value, or with an error (a traceback, or how the process died)."""

    value: Any = None
    error: str = ""


def together(work: Callable[..., Any], ranks: int, *args: Any, **options: Any) -> list[Any]:
    """What `work(*args)` returns on each rank. Raises AssertionError with the traceback of the first that failed."""
    ends = outcomes(work, ranks, *args, **options)
    failed = [f"rank {rank}: {end.error}" for rank, end in enumerate(ends) if end.error]
    assert not failed, "\n".join(failed)
    return [end.value for end in ends]


def outcomes(
    work: Callable[..., Any],
    ranks: int,
    *args: Any,
    backend: str = "gloo",
    group_timeout: float = 120,
    limit: float = 300,
    stopped: int = -1,
) -> list[Outcome]:
    """How `work(*args)` ends on each rank of a new process group; `work` is a function of a module.

    Args:
        group_timeout: seconds that a rank waits for another one in a collective.
        limit: seconds after which all ranks are killed.
        stopped: a rank that stops itself (SIGSTOP); it is woken once all others have ended.
    """
    file, name = inspect.getsourcefile(work), work.__qualname__
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(ranks):
            mine, theirs = _CONTEXT.Pipe(duplex=False)
            job = (theirs, file, name, args, rank, ranks, f"{folder}/store", backend, group_timeout, limit)
            process = _CONTEXT.Process(target=_work, args=job, daemon=True)
            process.start()
            theirs.close()
            pipes.append(mine)
            processes.append(process)
        ends: list[Outcome | None] = [None] * ranks
        deadline = time.monotonic() + limit
        while None in ends:
            missing = {pipes[rank]: rank for rank in range(ranks) if ends[rank] is None}
            if list(missing.values()) == [stopped]:
                os.kill(processes[stopped].pid, signal.SIGCONT)
            ready = wait(list(missing), max(0.0, deadline - time.monotonic()))
            for pipe in ready:
                ends[missing[pipe]] = _received(pipe, processes[missing[pipe]])
            for rank in missing.values() if not ready else ():
                ends[rank] = Outcome(error=f"no answer within {limit} s")
        for process in processes:
            process.kill()
            process.join()
    return [end for end in ends if end]


def _received(pipe: Connection, process: Any) -> Outcome:
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        process.join()
        return Outcome(error=f"died with exit code {process.exitcode}")


def _work(
    pipe: Connection, file: str, name: str, args: tuple[Any, ...], rank: int, ranks: int, store: str,
    backend: str, group_timeout: float, limit: float,
) -> None:  # fmt: skip
    import torch
    import torch.distributed as dist

    faulthandler.dump_traceback_later(limit * 0.9, exit=False)
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        dist.init_process_group(
            backend, store=dist.FileStore(store, ranks), rank=rank, world_size=ranks,
            timeout=timedelta(seconds=group_timeout),
        )  # fmt: skip
        end = Outcome(value=getattr(_module(file), name)(*args))
    except BaseException:
        end = Outcome(error=traceback.format_exc())
    pipe.send_bytes(pickle.dumps(end))
    pipe.close()
    if not end.error:
        dist.destroy_process_group()
    os._exit(0)  # after an error a process group may wait for ever for the ranks that are gone


def _module(file: str) -> Any:
    name = os.path.splitext(os.path.basename(file))[0]
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec
        assert spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
