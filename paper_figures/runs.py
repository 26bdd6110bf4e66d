"""Training runs for the figures: what is run, kept through interruptions, and compared by paired seeds.

Legend: N ranks, P packets; V validation sequences of C tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from lossproof.impl.cluster import Cluster
from lossproof.impl.corpus import Corpus
from lossproof.impl.settings import Settings
from lossproof.impl.train import objective, train
from lossproof.paper_figures.baselines import ModelAveraging, OwnGradient, UpdateSharing
from lossproof.paper_figures.figure import Progress, kept
from lossproof.theory import aggregation
from lossproof.theory.laws import Draw, Mask, Memory, exact, threshold

TEXT = Path(__file__).parent / "corpus" / "adventures.txt"
PROTOCOLS: dict[str, type[Cluster]] = {
    "this protocol": Cluster,
    "model averaging": ModelAveraging,
    "own gradient": OwnGradient,
    "update sharing": UpdateSharing,
}


@dataclass(frozen=True)
class FewerRanks:
    """No loss, but fewer ranks: gradients of the first n ranks only, n such that E[1/n] = E[1/K] at this loss.

    K is the number of survivors, the owner always among them. 1/E[1/K] is hardly ever a whole number, so n is one of
    the two next to it, drawn anew for each packet and step. Parameters always arrive. It goes with a lossy own link,
    for an owner beyond n has no gradient.

    >>> FewerRanks(8, 0.1).counts()
    (7, Fraction(3999, 5000))
    """

    ranks: int
    loss: float
    independent_links = False

    def counts(self) -> tuple[int, Fraction]:
        """The smaller n, and its probability."""
        kappa = aggregation.owner_weight(self.ranks, exact(self.loss))
        few = math.floor(1 / kappa)
        return few, (kappa - Fraction(1, few + 1)) * few * (few + 1)

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        few, share = self.counts()
        return share if src == few else Fraction(src > few)

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return Fraction(k == 0)

    def sample(self, draw: Draw, memory: Memory) -> tuple[Mask, Memory]:
        shape = np.broadcast_shapes(draw.src.shape, draw.dst.shape, draw.packet.shape)
        if draw.phase == "parameters":
            return np.zeros(shape, dtype=np.bool_), memory
        few, share = self.counts()
        return np.broadcast_to(draw.src >= few + (draw.common() >= threshold(share)), shape), memory


@dataclass(frozen=True)
class Case:
    """A run; `curve` notes the validation loss that many times."""

    settings: Settings
    protocol: str = "this protocol"
    momentum: float | None = None
    curve: int = 0

    @property
    def name(self) -> str:
        said = json.dumps([self.settings.record(), self.protocol, self.momentum, self.curve], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]


class Curve:
    """Validation loss of the owners' model along a run, in nats; an observer of `train`."""

    def __init__(self, cluster: Any, tokens_VC: torch.Tensor, every: int) -> None:
        self.tokens_VC, self.every, self.steps, self.points = tokens_VC.to(cluster.fresh_PE.device), every, 0, []

    points: list[tuple[int, float]]

    @torch.no_grad()
    def observe(self, cluster: Any, step_PE: torch.Tensor) -> None:
        self.steps += 1
        if self.steps % self.every == 0:
            owners = cluster.owners_model()
            loss = objective(lambda **inputs: functional_call(cluster.model, owners, (), inputs), self.tokens_VC)
            self.points.append((self.steps, float(loss)))

    def summary(self) -> dict[str, Any]:
        return {"curve": self.points}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "points": list(self.points)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.points = state["steps"], list(state["points"])


_done: dict[tuple[str, str], dict[str, Any]] = {}
"""Figures of one process share their runs."""


def run_all(
    cases: Iterable[Case], progress: Progress, work: Path, text: Path = TEXT, workers: int | None = None
) -> list[dict[str, Any]]:
    """What `_train` found, in the order of the cases; in as many processes as there are processors, one thread each."""
    cases = list(cases)
    left = [case for case in dict.fromkeys(cases) if (case.name, str(text)) not in _done]
    workers = min(len(left), _processors() if workers is None else workers)
    for number, (case, found) in enumerate(_each(left, work, text, workers), 1):
        _done[case.name, str(text)] = found
        progress(number, len(left))
    return [_done[case.name, str(text)] for case in cases]


def _each(cases: list[Case], work: Path, text: Path, workers: int) -> Iterator[tuple[Case, dict[str, Any]]]:
    if workers < 2:
        for case in cases:
            yield case, _train(case, work, text)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin) as pool:
        futures = {pool.submit(_in_worker, case, work, text): case for case in cases}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _processors() -> int:
    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin() -> None:
    """A worker has one thread, and stops as if told to (SIGTERM) if the process that started it is gone."""
    torch.set_num_threads(1)
    parent = parent_process()
    assert parent

    def outlive_nobody() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=outlive_nobody, daemon=True).start()


def _in_worker(case: Case, work: Path, text: Path) -> dict[str, Any]:
    try:
        return _train(case, work, text)
    except KeyboardInterrupt:  # the run is saved; a worker that went on would take the next one
        os._exit(130)


def _train(case: Case, work: Path, text: Path) -> dict[str, Any]:
    """The validation loss of the owners' model and the mean of the ranks' own, in nats; packets without a survivor; the
    curve. A run that was interrupted goes on from its checkpoint in `work`."""
    return dict(kept(work, case.name, partial(_train_anew, case, work / f"{case.name}-unfinished", text)))


def _train_anew(case: Case, folder: Path, text: Path) -> dict[str, Any]:
    corpus, settings = Corpus.from_path(text), case.settings
    observer: Callable[..., Any] | None = None
    if case.curve:
        tokens_VC = corpus.validation_batches(settings.validation, 1, settings.context)[:, 0]
        observer = partial(Curve, tokens_VC=tokens_VC, every=settings.steps // case.curve)
    kind = PROTOCOLS[case.protocol] if case.momentum is None else _with_momentum(case.momentum)
    result = train(settings, corpus, out=folder, resume=True, observer=observer, cluster=kind)
    shutil.rmtree(folder)
    return {
        "log_perplexity": result.log_perplexity,
        "replicas": statistics.fmean(map(math.log, result.replica_perplexity)),
        "no_survivor": result.counts["no_survivor"],
        "curve": result.observed["curve"] if result.observed else [],
    }


def _with_momentum(momentum: float) -> type[Cluster]:
    class WithMomentum(Cluster):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            for group in self.optimizer.param_groups:
                group["momentum"] = momentum

    return WithMomentum


def environment() -> dict[str, str]:
    """What the digits depend on: the text, and where the runs are."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"text": hashlib.sha256(TEXT.read_bytes()).hexdigest(), "device": device}
