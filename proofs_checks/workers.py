"""Claims checked in several processes; what they find does not depend on how many there are."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

from lossproof.proofs_checks.claim import Run

if TYPE_CHECKING:
    from lossproof.proofs_checks.judge import RungResult

_ticks: Any = None  # in a worker, where it says what comes next


def spread(ids: Sequence[str], run: Run, jobs: int, tick: Callable[[str], None]) -> list[tuple[RungResult, ...]]:
    """The rungs of the claims of these ids, checked by `jobs` processes; `tick` hears of every check, out of order."""
    context = get_context("spawn")  # a fork would copy the threads of torch in whatever state they are
    ticks = context.SimpleQueue()
    teller = threading.Thread(target=_tell, args=(ticks, tick), daemon=True)
    teller.start()
    before = set(active_children())
    pool = ProcessPoolExecutor(jobs, context, _begin, (ticks,))
    try:
        found = list(pool.map(_check, ids, [run] * len(ids)))
        pool.shutdown()
    except BaseException:  # Ctrl-C above all: nobody waits for checks that are under way
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(active_children()) - before:
            worker.terminate()
        raise
    finally:
        ticks.put(None)
        teller.join()
    return found


def _tell(ticks: Any, tick: Callable[[str], None]) -> None:
    while (what := ticks.get()) is not None:
        tick(what)


def _begin(ticks: Any) -> None:
    """A worker leaves Ctrl-C to its parent, which ends it; on its way out it ends what its checks have started."""
    global _ticks
    _ticks = ticks
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    from lossproof.proofs_checks import judge

    Finalize(None, judge.end_processes, exitpriority=100)


def _end(*signal: object) -> None:
    """At once: the pool would take an exception, SystemExit too, for the outcome of a claim, and go on to the next."""
    from lossproof.proofs_checks import judge

    judge.end_processes()
    os._exit(1)


def _check(id: str, run: Run) -> tuple[RungResult, ...]:
    from lossproof.proofs_checks import judge

    (claim,) = judge.select_claims([id])
    return judge.check_claim(claim, run, _ticks.put)
