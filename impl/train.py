"""The job behind `lossproof train`: a causal language model, unmodified from transformers, over lossy links.

Legend: N ranks, in W processes; B sequences of a rank's batch; C tokens of a sequence; P packets; E elements of a
packet.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
import transformers

from lossproof.impl.checkpoint import BetweenSteps, check_same, save
from lossproof.impl.cluster import Cluster
from lossproof.impl.corpus import Corpus
from lossproof.impl.distributed.cluster import WATCHED_PACKETS, HostedCluster, ProcessCluster
from lossproof.impl.distributed.launch import hosted_ranks
from lossproof.impl.language_model import build_model as build_model
from lossproof.impl.language_model import objective as objective
from lossproof.impl.layout import Layout
from lossproof.impl.memory import Budget, available_bytes, plan_memory, saved_bytes
from lossproof.impl.optimizers import make_optimizer
from lossproof.impl.settings import Settings
from lossproof.impl.transport import UdpChannel
from lossproof.theory.laws import Law


class Observer(Protocol):
    """Looks at the cluster after every step; its time is not counted as training."""

    def observe(self, cluster: Cluster | ProcessCluster, step_PE: torch.Tensor) -> None:
        """`step_PE`: by how much the owners moved in this step."""
        ...

    def summary(self) -> dict[str, Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Progress:
    """What a callback sees after each step; `loss` is the mean over ranks."""

    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Result:
    """What a run found. Perplexities are per byte, or per token of the model's tokenizer, on validation text;
    `log_perplexity` is the owners', in nats.

    `counts` are packets (see `Counts`); `seconds` are training alone, `measuring_seconds` the observer's. `datagrams`:
    over UDP, what each rank's end of the network counted since it was opened (see `UdpEnd.statistics`).
    """

    settings: dict[str, Any]
    log_perplexity: float
    perplexity: float
    replica_perplexity: list[float]
    train_losses: list[float]
    counts: dict[str, int]
    observed: dict[str, Any] | None
    seconds: float
    measuring_seconds: float
    steps_per_second: float
    tokens_per_second: float
    memory: str
    chunk: int
    text: dict[str, Any]
    versions: dict[str, str]
    datagrams: list[dict[str, Any]] | None = None


def memory_budget(settings: Settings) -> Budget:
    """What the job needs in this process against what the device has; ValueError if it cannot fit."""
    B, C = settings.batch, settings.context
    with torch.device("meta"):
        model = build_model(settings)
        tokens_BC, mask_11CC = torch.zeros(B, C, dtype=torch.int64), torch.zeros(1, 1, C, C)
    # a ready-made mask, for the model would look into the tokens to make one, and on `meta` there are none
    kept = saved_bytes(lambda: model(input_ids=tokens_BC, labels=tokens_BC, attention_mask=mask_11CC).loss, model)
    shapes, E = [tuple(p.shape) for p in model.parameters()], max(1, settings.packet_bytes // 4)
    layout = Layout.build(shapes, settings.ranks, E, settings.layout)
    # parameters, gradients as packets and as tensors, and chunks being joined; `dim0` joins the parameters' chunks too
    copies, here, received = 5 if settings.layout == "dim0" else 4, settings.ranks, 0
    if dist.is_initialized():
        W = dist.get_world_size()
        here = len(hosted_ranks(settings.ranks, W, dist.get_rank()))
        if here > 1:  # every rank's packets that are owned here, and the watched ones while they are gathered
            owned = int(np.bincount(np.array(layout.owner_P) % W).max())
            received = (owned + 4 * min(WATCHED_PACKETS, layout.packets)) * settings.ranks * E * 4
        else:  # gradients, packets sent, received and stale, and the optimizer's state of what is owned
            copies = 6
    available = available_bytes(torch.device(settings.device))
    if available is not None and settings.device == "cpu":
        available //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # the processes of one machine share its memory
    return plan_memory(here, layout.packets * E * 4, copies, kept, available, received)


class Job:
    """One run: made from settings, moved by `step`, saved and restored whole.

    Args:
        observer: made once the cluster stands; None for none.
        cluster: the kind of cluster in one process, for a protocol that differs from this one.

    Raises:
        ValueError: a text too short, or a job that does not fit into memory; before anything large is allocated.
    """

    def __init__(
        self,
        settings: Settings,
        corpus: Corpus,
        observer: Callable[[Cluster | ProcessCluster], Observer] | None = None,
        cluster: type[Cluster] = Cluster,
    ) -> None:
        corpus.require(settings.context)
        self.settings, self.corpus, self.device = settings, corpus, torch.device(settings.device)
        self.budget = memory_budget(settings)
        chunk = None if self.budget.chunk == self.budget.ranks else self.budget.chunk
        kind: Callable[..., Cluster | ProcessCluster] = partial(cluster, chunk=chunk)
        if dist.is_initialized():
            if cluster is not Cluster:
                raise ValueError(f"cluster must be Cluster in several processes, got {cluster.__name__}")
            kind = ProcessCluster if self.budget.ranks == 1 else partial(HostedCluster, chunk=chunk)
        law: Law | None = settings.law
        if settings.transport == "udp":
            if kind is not ProcessCluster:
                raise ValueError(
                    "transport 'udp' needs a process for every rank, and two at least: start them with torchrun "
                    "--nproc-per-node 2, without --ranks"
                )
            kind, law = partial(ProcessCluster, channel=UdpChannel()), None
        self.cluster = kind(
            build_model(settings).to(self.device),
            objective,
            make_optimizer(settings.optimizer, settings.lr, settings.layout)[0],
            law,
            settings.ranks,
            seed=settings.seed,
            own_link=settings.own_link,
            rule=settings.rule,
            no_survivor=settings.no_survivor,
            layout=settings.layout,
            packet_bytes=settings.packet_bytes,
        )
        warm = max(1, settings.steps // 20)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.cluster.optimizer,
            lambda t: min(1, (t + 1) / warm) * (1 + math.cos(math.pi * t / settings.steps)) / 2,
        )
        self.observer = observer(self.cluster) if observer else None
        self.losses: list[float] = []
        self.seconds = self.measuring_seconds = 0.0

    def step(self) -> float:
        """One round and what the observer makes of it; the mean loss over ranks."""
        started, before_PE = time.perf_counter(), None
        if self.observer:
            before_PE = self.cluster.fresh_PE.clone()
            self.measuring_seconds += time.perf_counter() - started
            started = time.perf_counter()
        s = self.settings
        tokens_NBC = self.corpus.batch(len(self.losses), s.ranks, s.batch, s.context, s.seed).to(self.device)
        self.losses.append(float(self.cluster.step(tokens_NBC).mean()))
        self.scheduler.step()
        self.seconds += time.perf_counter() - started
        if self.observer and before_PE is not None:
            started = time.perf_counter()
            self.observer.observe(self.cluster, self.cluster.fresh_PE - before_PE)
            self.measuring_seconds += time.perf_counter() - started
        return self.losses[-1]

    def validate(self) -> torch.Tensor:
        """The mean validation loss of every replica, then of the owners' model: float64 (N + 1,), in nats."""
        batches_VBC = self.corpus.validation_batches(
            self.settings.validation, self.settings.batch, self.settings.context
        )
        losses = [self.cluster.evaluate(tokens_BC.to(self.device)) for tokens_BC in batches_VBC]
        return torch.stack(losses).double().mean(0).cpu()

    def result(self) -> Result:
        """Validates and reports. Raises FloatingPointError if a perplexity is not finite."""
        loss_N1 = self.validate()
        perplexity_N1 = loss_N1.exp()
        if not bool(perplexity_N1.isfinite().all()):
            raise FloatingPointError(f"the run diverged: validation losses {loss_N1.tolist()}")
        s, rate, datagrams = self.settings, len(self.losses) / self.seconds, None
        if s.transport == "udp" and isinstance(self.cluster, ProcessCluster):
            datagrams = self.cluster.exchange.objects(self.cluster.attachment.channel.statistics())
        return Result(
            settings=s.record(),
            log_perplexity=float(loss_N1[-1]),
            perplexity=float(perplexity_N1[-1]),
            replica_perplexity=perplexity_N1[:-1].tolist(),
            train_losses=self.losses,
            counts=asdict(self.cluster.counts),
            observed=self.observer.summary() if self.observer else None,
            seconds=self.seconds,
            measuring_seconds=self.measuring_seconds,
            steps_per_second=rate,
            tokens_per_second=rate * s.ranks * s.batch * s.context,
            memory=str(self.budget),
            chunk=self.budget.chunk,
            text={
                "name": self.corpus.name,
                "digest": self.corpus.digest,
                f"train_{self.corpus.unit}s": len(self.corpus.train),
                f"validation_{self.corpus.unit}s": len(self.corpus.validation),
            },
            versions=versions(),
            datagrams=datagrams,
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "settings": self.settings.record(),
            "text": self.corpus.digest,
            "cluster": self.cluster.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "observer": self.observer.state_dict() if self.observer else None,
            "losses": list(self.losses),
            "seconds": (self.seconds, self.measuring_seconds),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError, before anything is changed, naming the setting that differs from the saved run's."""
        mine = self.settings.record() | {"text": self.corpus.digest, "observer": self.observer is not None}
        saved = state["settings"] | {"text": state["text"], "observer": state["observer"] is not None}
        check_same(saved, mine)
        self.cluster.load_state_dict(state["cluster"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.observer:
            self.observer.load_state_dict(state["observer"])
        self.losses = list(state["losses"])
        self.seconds, self.measuring_seconds = state["seconds"]


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def train(
    settings: Settings,
    corpus: Corpus,
    *,
    out: Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 100,
    observer: Callable[[Cluster | ProcessCluster], Observer] | None = None,
    progress: Callable[[Progress], None] | None = None,
    cluster: type[Cluster] = Cluster,
) -> Result:
    """Trains to the end and reports; in a process group all processes call it, each for the replicas of its own ranks.

    Args:
        out: a folder for `checkpoint.pt`, written every `checkpoint_every` steps, at the end, on Ctrl-C; None for none.
            Of several processes each writes its own there.
        resume: go on from the checkpoint in `out` if there is one; the rest has the digits it would have had.
        observer, progress: called in every step; see `Observer` and `Progress`.
        cluster: see `Job`.

    Raises:
        ValueError: see `Job`; settings that differ from the checkpoint's; a checkpoint in `out` without `resume`, or of
            another number of processes, or not of all of them.
        KeyboardInterrupt: after the step that was under way, with the checkpoint saved.

    >>> short = Settings(ranks=2, steps=1, context=16, hidden=8, layers=1, heads=1, intermediate=8, validation=16)
    >>> train(short, Corpus.standard_library()).counts["gradients_lost"]
    0
    """
    if isinstance(checkpoint_every, bool) or not isinstance(checkpoint_every, int) or checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be a positive int, got {checkpoint_every!r}")
    several = dist.is_initialized()
    name, all_of_them = "checkpoint.pt", "checkpoint.pt"
    if several:
        name, all_of_them = (f"checkpoint-{part}-of-{dist.get_world_size()}.pt" for part in (dist.get_rank(), "*"))
    path = out / name if out else None
    saved = None
    if out and path:
        there = sorted(out.glob("checkpoint*.pt"))
        if there and not resume:
            raise ValueError(f"out holds a checkpoint already ({there[0]}): resume it or name another folder")
        if there and not there[0].match(all_of_them):
            raise ValueError(f"out holds a checkpoint of another number of processes ({there[0]}): resume with as many")
        if path.exists():
            saved = torch.load(path, map_location=settings.device, weights_only=True)
    job = Job(settings, corpus, observer, cluster)
    if saved:
        job.load_state_dict(saved)
        del saved
    if isinstance(job.cluster, HostedCluster | ProcessCluster):
        done_by = job.cluster.exchange.objects(len(job.losses))
        if len(set(done_by)) > 1:
            raise ValueError(f"out must hold checkpoints of all processes, of one step, got {done_by} steps done")
    with BetweenSteps() as interrupt:
        while len(job.losses) < settings.steps:
            loss, done = job.step(), len(job.losses)
            if progress:
                progress(Progress(done, settings.steps, loss))
            asked = job.cluster.agreed(interrupt.asked)
            if path and (asked or done % checkpoint_every == 0 or done == settings.steps):
                save(job.state_dict(), path, together=dist.barrier if several else None)
            if asked:
                raise KeyboardInterrupt
    return job.result()
