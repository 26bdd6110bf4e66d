"""The training job, once more: an ordinary loop over one model, its text, schedule and report computed by themselves.

Every position of the model predicts by itself and a rank has two sequences, so that sums have one order: bit for bit.

Legend: N ranks; B sequences of C tokens; V windows of validation text.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from inspect import signature
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.func import functional_call, grad_and_value, vmap

from lossproof.impl.corpus import Corpus
from lossproof.impl.settings import Settings
from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments.plain_text import TEXTS, split, validation_windows, windows, write
from lossproof.proofs_checks.judge import MissingExtra
from lossproof.theory.laws import Bernoulli

SIZES: dict[str, Any] = {"batch": 2, "context": 8, "hidden": 8, "heads": 1, "layers": 1, "intermediate": 8}


def job_module() -> ModuleType:
    try:
        from lossproof.impl import train
    except ModuleNotFoundError as missing:
        raise MissingExtra(f"needs {missing.name}: install lossproof[llm]") from None
    return train


class Positions(torch.nn.Module):
    """Each position predicts the next byte from the one before, by a line of its own."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.linspace(-1, 1, context - 1))
        self.offset = torch.nn.Parameter(torch.zeros(context - 1))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, attention_mask: Any = None) -> SimpleNamespace:
        before, after = input_ids[..., :-1] / 128, labels[..., 1:] / 128
        return SimpleNamespace(loss=(self.slope * before + self.offset - after).square().sum() / 64)


def recipes(effort: str) -> Iterator[Settings]:
    yield Settings(Bernoulli(0), ranks=3, seed=2**32 + 7, steps=41, optimizer="AdamW", lr=0.01, validation=64, **SIZES)
    yield Settings(Bernoulli(0), ranks=2, seed=3, steps=4, optimizer="sgd", layout="dim0", validation=8, **SIZES)
    if effort == "full":
        for optimizer in ("adagrad", "nadam"):
            yield Settings(Bernoulli(0), ranks=5, steps=60, optimizer=optimizer, layout="flat", lr=0.01, **SIZES)


def _ordinary(s: Settings, text: bytes) -> tuple[Positions, list[float]]:
    """One model, one optimizer, warm-up and cosine; the mean over ranks of the gradients, summed in rank order."""
    model = Positions(s.context)
    kind: Any = {name.lower(): kind for name, kind in vars(torch.optim).items()}[s.optimizer.lower()]
    rate = {"sgd": 0.1}.get(s.optimizer, 0.001) if s.lr is None else s.lr
    optimizer = kind(model.parameters(), lr=rate)
    losses = []
    for t in range(s.steps):
        totals, loss = [torch.zeros_like(p) for p in model.parameters()], 0.0
        for rank in range(s.ranks):
            tokens = torch.tensor(windows(text, rank, t, s.batch, s.context, s.seed))
            of_rank = model(input_ids=tokens, labels=tokens).loss
            loss += of_rank.item() / s.ranks
            for total, gradient in zip(totals, torch.autograd.grad(of_rank, list(model.parameters())), strict=True):
                total += gradient
        for p, total in zip(model.parameters(), totals, strict=True):
            p.grad = total / s.ranks
        warm = max(1, s.steps // 20)
        optimizer.param_groups[0]["lr"] = rate * (min(1, (t + 1) / warm) * (1 + math.cos(math.pi * t / s.steps)) / 2)
        optimizer.step()
        losses.append(loss)
    return model, losses


class Sums:
    """An observer: how often it was asked, and the sum of the owners' steps by packet and element."""

    def __init__(self, cluster: Any) -> None:
        self.start_PE, self.steps, self.moved_PE = cluster.fresh_PE.clone(), 0, torch.zeros_like(cluster.fresh_PE)

    def observe(self, cluster: Any, step_PE: torch.Tensor) -> None:
        self.steps += 1
        self.moved_PE += step_PE
        apart = float((cluster.fresh_PE - self.start_PE - self.moved_PE).abs().max())
        require(apart <= 1e-5, f"the observer's steps sum to {apart} beside where the owners are")

    def summary(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "moved": self.moved_PE.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.moved_PE = state["steps"], state["moved"]


@contextmanager
def _of_positions(job: ModuleType, jobs: list[Any]) -> Iterator[None]:
    """The job trains `Positions` instead of a LLaMA, by a clock that ticks when looked at; the jobs made are noted."""
    make = job.Job

    def noted(*args: Any) -> Any:
        jobs.append(make(*args))
        return jobs[-1]

    clock = SimpleNamespace(perf_counter=count().__next__)
    with (
        mock.patch.object(job, "build_model", lambda s: Positions(s.context)),
        mock.patch.object(job, "Job", noted),
        mock.patch.object(job, "time", clock),
    ):
        yield


def require_job(s: Settings) -> None:
    """`train` against the ordinary loop: parameters bit for bit, everything it reports, and resumes."""
    job, what, jobs = job_module(), f"train, {s.optimizer}, N = {s.ranks}, {s.layout}", []  # type: ignore[var-annotated]
    with tempfile.TemporaryDirectory() as folder, _of_positions(job, jobs):
        root, out = Path(folder) / "text", Path(folder) / "runs" / "one"
        root.mkdir()
        write(root)
        corpus = Corpus.from_path(root)
        train, validation = split(list(TEXTS))
        observer = Sums if s.layout != "tensors" else None
        handler = signal.getsignal(signal.SIGINT)
        result = job.train(s, corpus, observer=observer)
        require(signal.getsignal(signal.SIGINT) is handler, f"{what}: Ctrl-C is not handled as before")
        took = (s.steps, 2 * s.steps if observer else 0)  # the observer is given a copy, then looks
        got = (result.seconds, result.measuring_seconds)
        require(got == took, f"{what}: takes {got} ticks, not {took}")
        model, losses = _ordinary(s, train)
        trained = jobs[0].cluster.owners_model()
        for name, p in model.named_parameters():
            require(torch.equal(trained[name], p.detach()), f"{what}: {name} is not that of ordinary training")
        _require_report(what, s, result, model, losses, validation, jobs[0])
        _require_owners_report(
            job, what, replace(s, law=Bernoulli(0.9), packet_bytes=4, steps=4), corpus, validation, jobs
        )
        _require_saves(job, what, s, corpus, out)
        _require_memory(job, what, s, corpus)
        _require_resumes(partial(job.train, observer=observer), what, s, corpus, out, result)


def _require_report(
    what: str, s: Settings, result: Any, model: Positions, losses: list[float], validation: bytes, made: Any
) -> None:
    close = all(abs(a - b) <= 1e-5 * b for a, b in zip(result.train_losses, losses, strict=True))
    require(close, f"{what}: losses {result.train_losses}, not {losses}")
    log = _validated(model, s, validation)
    require(
        abs(result.log_perplexity - log) <= 1e-5 * log, f"{what}: log perplexity {result.log_perplexity}, not {log}"
    )
    every = [result.perplexity, *result.replica_perplexity]
    require(len(every) == s.ranks + 1, f"{what}: {len(every) - 1} replicas evaluated")
    require(all(abs(math.log(one) - log) <= 1e-5 * log for one in every), f"{what}: perplexities {every}")
    packets = made.cluster.layout.packets * (s.ranks - 1) * s.steps
    counts = {"gradients_offered": packets, "gradients_lost": 0, "parameters_offered": packets, "parameters_lost": 0}
    require(result.counts == counts | {"no_survivor": 0}, f"{what}: counts {result.counts}")
    rate = s.steps / result.seconds
    timed = (result.steps_per_second, result.tokens_per_second / s.ranks / s.batch / s.context)
    require(result.seconds > 0 and all(abs(one / rate - 1) < 1e-9 for one in timed), f"{what}: steps a second {timed}")
    require(result.chunk == s.ranks, f"{what}: {result.chunk} replicas at a time")
    observed = {"steps": s.steps} if s.layout != "tensors" else None
    require(result.observed == observed, f"{what}: observed {result.observed}")
    copies, size = 5 if s.layout == "dim0" else 4, 4 * made.cluster.fresh_PE.numel()  # padding takes memory, too
    budget = made.budget
    require((budget.replicas, budget.owners) == (copies * s.ranks * size, 8 * size), f"{what}: memory {budget}")
    text = (len(made.corpus.train), len(made.corpus.validation), made.corpus.digest)
    told = tuple(result.text[name] for name in ("train_bytes", "validation_bytes", "digest"))
    frozen = type(result).__dataclass_params__.frozen
    require(
        frozen and told == text and result.settings == s.record(), f"{what}: reports a text {told} or other settings"
    )


def _validated(model: Positions, s: Settings, validation: bytes) -> float:
    batches = validation_windows(validation, s.validation, s.batch, s.context)
    return math.fsum(model(input_ids=torch.tensor(b), labels=torch.tensor(b)).loss.item() for b in batches) / len(
        batches
    )


def _require_owners_report(
    job: ModuleType, what: str, s: Settings, corpus: Corpus, validation: bytes, jobs: list[Any]
) -> None:
    """With losses the replicas differ from each other and from the owners' model: which of them is reported as what."""
    result = job.train(s, corpus)
    cluster = jobs[-1].cluster
    every = [*cluster.layout.unpack(cluster.replicas_NPE)[0]], [*cluster.layout.unpack(cluster.replicas_NPE)[1]]
    logs = []
    for slope, offset in (*zip(*every, strict=True), tuple(cluster.owners_model().values())):
        model = Positions(s.context)
        model.load_state_dict({"slope": slope, "offset": offset})
        logs.append(_validated(model, s, validation))
    told = [*map(math.log, result.replica_perplexity), math.log(result.perplexity)]
    require(all(abs(a - b) <= 1e-5 * b for a, b in zip(told, logs, strict=True)), f"{what}, lossy: perplexities {told}")
    require(told[-1] not in told[:-1] and abs(result.log_perplexity - logs[-1]) <= 1e-5 * logs[-1], f"{what}: owners'")


def _require_saves(job: ModuleType, what: str, s: Settings, corpus: Corpus, out: Path) -> None:
    saved: list[int] = []
    with mock.patch.object(job, "save", lambda state, path, **_: saved.append(len(state["losses"]))):
        job.train(s, corpus, out=out, checkpoint_every=3)
    wanted = sorted({*range(3, s.steps + 1, 3), s.steps})
    require(saved == wanted, f"{what}: saved after steps {saved}, not {wanted}")
    default = {name: x.default for name, x in signature(job.train).parameters.items()}
    require((default["resume"], default["checkpoint_every"]) == (False, 100), f"{what}: {default} unless said")


def _require_memory(job: ModuleType, what: str, s: Settings, corpus: Corpus) -> None:
    """Processes of one machine share what is free; where not all replicas fit, they are computed by turns."""
    budget = job.memory_budget(s)
    room = int((budget.replicas + budget.owners + 1.5 * budget.activations) / 0.9) + 1  # for one replica at a time
    for free, processes, chunk in ((None, None, None), (2**40, None, None), (room, None, 1), (2 * room, "2", 1)):
        environment = {} if processes is None else {"LOCAL_WORLD_SIZE": processes}
        with mock.patch.object(job, "available_bytes", return_value=free), mock.patch.dict(os.environ, environment):
            if processes is None:
                os.environ.pop("LOCAL_WORLD_SIZE", None)
            made = job.Job(s, corpus)
        got = made.budget.available, made.cluster.chunk
        wanted = (free if free is None else free // int(processes or 1)), chunk
        require(got == wanted, f"{what}: {free} bytes free for {processes} processes: {got}, not {wanted}")


def _digits(result: Any) -> tuple[Any, ...]:
    found = result.train_losses, result.log_perplexity, result.replica_perplexity, result.counts, result.observed
    return *found, result.seconds, result.measuring_seconds


def _require_resumes(train: Callable[..., Any], what: str, s: Settings, corpus: Corpus, out: Path, whole: Any) -> None:
    """Stopped by an error, by Ctrl-C, and gone on with; another setting is refused, and so is writing over a run."""
    every = max(1, s.steps // 3)

    def failing(now: Any) -> None:
        if now.step == every + 1:
            raise OSError("stopped")

    interrupts = threading.current_thread() is threading.main_thread()  # no other thread receives Ctrl-C
    stops: list[tuple[Callable[[Any], None], type[BaseException]]] = [(failing, OSError)]
    if interrupts:
        stops.append(
            (lambda now: signal.raise_signal(signal.SIGINT) if now.step == every + 1 else None, KeyboardInterrupt)
        )
    for progress, stopped in stops:
        try:
            train(s, corpus, out=out, resume=True, checkpoint_every=every, progress=progress)
            require(False, f"{what}: {stopped.__name__} was swallowed")
        except stopped:
            pass
    for changed, resume in ((replace(s, seed=s.seed + 1), True), (s, False)):
        try:
            train(changed, corpus, out=out, resume=resume)
        except ValueError:
            continue
        require(False, f"{what}: goes on with {changed}, resume {resume}")
    seen: list[int] = []
    resumed = train(s, corpus, out=out, resume=True, progress=lambda now: seen.append(now.step))
    first = every + 2 if interrupts else every + 1
    require(seen == list(range(first, s.steps + 1)), f"{what}: resumed, steps {seen}")
    require(_digits(resumed) == _digits(whole), f"{what}: resumed, other digits")
    again = train(s, corpus, out=out, resume=True)
    require(_digits(again) == _digits(whole), f"{what}: a run that is over reports other digits")


def require_model() -> None:
    """What is asked of transformers: a LLaMA over bytes; torch's own draws go on as before."""
    job, s, asked = job_module(), replace(next(recipes("quick")), heads=2, layers=3), {}

    def model(config: Any) -> torch.nn.Module:
        asked.update(config)
        return torch.nn.Linear(3, 3)

    home = sys.modules[job.build_model.__module__]
    with mock.patch.object(home, "transformers", SimpleNamespace(LlamaConfig=dict, LlamaForCausalLM=model)):
        before = torch.random.get_rng_state()
        first, again = job.build_model(s), job.build_model(s)
        other = job.build_model(replace(s, seed=s.seed + 1))
        require(torch.equal(torch.random.get_rng_state(), before), "making a model moves torch's generator")
    require(torch.equal(first.weight, again.weight), "equal seeds, other weights")
    require(not torch.equal(first.weight, other.weight), "weights do not depend on the seed")
    sizes = {
        "vocab_size": 256, "hidden_size": s.hidden, "intermediate_size": s.intermediate, "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads, "num_key_value_heads": s.heads, "max_position_embeddings": s.context,
        "attn_implementation": "eager", "use_cache": False,
    }  # fmt: skip
    require(asked == sizes, f"a model of {asked}, not {sizes}")


def require_llama() -> None:
    """The real model: the gradients vectorised as in the cluster, one AdamW, the mean in rank order; bit for bit."""
    job, N = job_module(), 3
    s = Settings(
        Bernoulli(0), ranks=N, steps=4, context=16, hidden=16, layers=2, heads=2, intermediate=16, validation=32
    )
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        corpus = Corpus.from_path(folder)
    model = job.build_model(s)
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(named.values(), lr=0.001)

    def loss(parameters: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        return job.objective(lambda **inputs: functional_call(model, parameters, (), inputs), tokens)  # type: ignore[no-any-return]

    for t in range(s.steps):
        tokens = torch.tensor(
            [windows(corpus.train.tobytes(), rank, t, s.batch, s.context, s.seed) for rank in range(N)]
        )
        copies = {name: p.detach().expand(N, *p.shape).clone() for name, p in named.items()}
        gradients, _ = vmap(grad_and_value(loss))(copies, tokens)
        for name, p in named.items():
            p.grad = (gradients[name][0] + gradients[name][1] + gradients[name][2]) / N
        optimizer.param_groups[0]["lr"] = 0.001 * ((1 + math.cos(math.pi * t / s.steps)) / 2)
        optimizer.step()
    made = job.Job(s, corpus)
    for _ in range(s.steps):
        made.step()
    trained = made.cluster.owners_model()
    for name, p in named.items():
        require(torch.equal(trained[name], p.detach()), f"LLaMA: {name} is not that of ordinary training")
