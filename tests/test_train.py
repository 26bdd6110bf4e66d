"""The training job: equal settings give equal digits, also through an interruption; the drift is the predicted one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad_and_value, vmap

import lossproof.impl.checkpoint as checkpoint
import lossproof.impl.train as job
from lossproof.impl.cluster import Cluster
from lossproof.impl.corpus import Corpus
from lossproof.impl.memory import MiB, plan_memory
from lossproof.impl.optimizers import make_optimizer
from lossproof.impl.settings import Settings
from lossproof.impl.train import Progress, Result
from lossproof.proofs_checks.realised_drift import DriftMeter
from lossproof.theory.laws import Bernoulli, GilbertElliott, PerSender

TINY = Settings(
    Bernoulli(0.3),
    ranks=3,
    steps=6,
    context=16,
    hidden=8,
    layers=1,
    heads=1,
    intermediate=8,
    packet_bytes=64,
    validation=64,
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    text = np.frombuffer(b"the quick brown fox jumps over the lazy dog; " * 40, dtype=np.uint8)
    return Corpus("fox", text[:1500], text[1500:])


@pytest.fixture(scope="module")
def library() -> Corpus:
    return Corpus.standard_library()


def digits(result: Result) -> dict[str, Any]:
    """All of a result but the time it took."""
    times = ("seconds", "measuring_seconds", "steps_per_second", "tokens_per_second", "memory")
    return {name: value for name, value in asdict(result).items() if name not in times}


def interrupt_at(*steps: int, by: signal.Signals = signal.SIGINT) -> Callable[[Progress], None]:
    """Ctrl-C, as often as the step is named."""

    def progress(now: Progress) -> None:
        for step in steps:
            if now.step == step:
                signal.raise_signal(by)

    return progress


def test_equal_settings_give_equal_digits_and_leave_the_global_generator_alone(corpus: Corpus) -> None:
    before = torch.random.get_rng_state()
    first = job.train(TINY, corpus)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert digits(job.train(TINY, corpus)) == digits(first)
    assert digits(job.train(replace(TINY, seed=1), corpus)) != digits(first)


def test_runs_of_one_seed_differ_by_their_losses_only(corpus: Corpus) -> None:
    """The same start and the same text, so the first step's loss is the same, and the later ones are not."""
    clean, lossy = (job.train(replace(TINY, law=law), corpus).train_losses for law in (Bernoulli(0), Bernoulli(0.6)))
    assert clean[0] == lossy[0]
    assert clean[2:] != lossy[2:]


def test_the_seed_sets_the_start(corpus: Corpus) -> None:
    starts = [job.Job(replace(TINY, seed=seed), corpus).cluster.fresh_PE for seed in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_perplexities_are_of_the_owners_and_of_every_replica(corpus: Corpus) -> None:
    run = job.Job(replace(TINY, law=Bernoulli(0.7)), corpus)
    for _ in range(6):
        run.step()
    result = run.result()
    model = job.build_model(run.settings)

    def log_perplexity() -> float:
        batches_VBC = corpus.validation_batches(64, 1, 16)
        with torch.no_grad():
            return float(np.mean([float(job.objective(model, tokens_BC)) for tokens_BC in batches_VBC]))

    model.load_state_dict(run.cluster.owners_model(), strict=False)
    assert result.log_perplexity == pytest.approx(log_perplexity(), rel=1e-6)
    assert result.perplexity == pytest.approx(np.exp(log_perplexity()), rel=1e-6)
    assert len(result.replica_perplexity) == 3
    for rank, perplexity in enumerate(result.replica_perplexity):
        replica = run.cluster.layout.unpack(run.cluster.replicas_NPE[rank])
        model.load_state_dict(dict(zip(run.cluster.owners_model(), replica, strict=True)), strict=False)
        assert perplexity == pytest.approx(np.exp(log_perplexity()), rel=1e-6)
    assert len({result.perplexity, *result.replica_perplexity}) == 4


def test_without_loss_a_llama_is_trained_as_ever_bit_for_bit(corpus: Corpus) -> None:
    """One model, one AdamW, the ordinary scheduler; the gradients vectorised as in the cluster."""
    settings = replace(TINY, law=Bernoulli(0), steps=4)
    model = job.build_model(settings)
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(named.items(), lr=1e-3)
    factors = [(1 + np.cos(np.pi * t / 4)) / 2 for t in range(4)]

    def loss(parameters: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        return job.objective(lambda **inputs: functional_call(model, parameters, (), inputs), tokens)

    for step, factor in enumerate(factors):
        optimizer.param_groups[0]["lr"] = 1e-3 * float(factor)
        copies = {name: p.detach().expand(3, *p.shape).clone() for name, p in named.items()}
        gradients, _ = vmap(grad_and_value(loss))(copies, corpus.batch(step, 3, 1, 16, seed=0))
        for name, p in named.items():
            p.grad = torch.mean(gradients[name], 0)
        optimizer.step()
    run = job.Job(settings, corpus)
    for _ in factors:
        run.step()
    for name, value in run.cluster.owners_model().items():
        assert torch.equal(value, named[name]), name


@pytest.mark.parametrize("law", [Bernoulli(0.3), GilbertElliott(0.3, burst=3), GilbertElliott(0.3, 50, clock="packet")])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_resume_after_ctrl_c_has_every_digit(law: Any, optimizer: str, corpus: Corpus, tmp_path: Path) -> None:
    settings = replace(TINY, law=law, optimizer=optimizer)
    whole = job.train(settings, corpus, observer=DriftMeter.of)
    with pytest.raises(KeyboardInterrupt):
        job.train(settings, corpus, out=tmp_path, observer=DriftMeter.of, progress=interrupt_at(4))
    seen: list[int] = []
    resumed = job.train(
        settings, corpus, out=tmp_path, resume=True, observer=DriftMeter.of, progress=lambda now: seen.append(now.step)
    )
    assert seen == [5, 6]
    assert digits(resumed) == digits(whole)


@pytest.fixture
def ctrl_c_heard() -> Iterator[None]:
    """Python's own handler, also where these tests were started in the background, which ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_heard")
def test_ctrl_c_waits_for_the_step_and_a_second_one_does_not(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        job.train(TINY, corpus, out=tmp_path / "one", progress=interrupt_at(2))
    assert (tmp_path / "one" / "checkpoint.pt").exists()
    with pytest.raises(KeyboardInterrupt):
        job.train(TINY, corpus, out=tmp_path / "two", progress=interrupt_at(2, 2))
    assert not (tmp_path / "two" / "checkpoint.pt").exists()
    with pytest.raises(KeyboardInterrupt):
        job.train(TINY, corpus, progress=interrupt_at(2))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_schedulers_sigterm_saves_what_ctrl_c_saves(corpus: Corpus, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        job.train(TINY, corpus, out=tmp_path, progress=interrupt_at(2, by=signal.SIGTERM))
    assert len(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["losses"]) == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_resume_with_other_settings_is_refused_by_name(corpus: Corpus, tmp_path: Path) -> None:
    job.train(TINY, corpus, out=tmp_path)
    others: list[dict[str, Any]] = [
        {"ranks": 2}, {"law": Bernoulli(0.2)}, {"lr": 0.5}, {"steps": 7}, {"optimizer": "sgd"}, {"seed": 1},
    ]  # fmt: skip
    for other in others:
        with pytest.raises(ValueError, match=f"^{next(iter(other))} must be"):
            job.train(replace(TINY, **other), corpus, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"^text must be"):
        job.train(TINY, Corpus("other", corpus.train[1:], corpus.validation), out=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"^observer must be"):
        job.train(TINY, corpus, out=tmp_path, resume=True, observer=DriftMeter.of)
    with pytest.raises(ValueError, match="out holds a checkpoint already"):
        job.train(TINY, corpus, out=tmp_path)


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save({"step": 1}, path)

    def fail_half_way(state: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save({"step": 2}, path)
    assert torch.load(path) == {"step": 1}


def test_checkpoints_come_every_so_many_steps(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(job, "save", lambda state, path, together=None: saved.append(len(state["losses"])))
    job.train(TINY, corpus, out=tmp_path, checkpoint_every=4)
    assert saved == [4, 6]


def test_the_chunk_follows_the_memory_and_changes_no_digit(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(TINY, ranks=4)
    whole = job.train(settings, corpus)
    assert whole.chunk == 4
    budget = job.memory_budget(settings)
    enough_for_two = (budget.replicas + budget.owners + 2.5 * budget.activations) / 0.9
    monkeypatch.setattr(job, "available_bytes", lambda device: int(enough_for_two))
    chunked = job.train(settings, corpus)
    assert chunked.chunk == 2
    assert chunked.train_losses == whole.train_losses
    assert chunked.replica_perplexity == whole.replica_perplexity
    monkeypatch.setattr(job, "available_bytes", lambda device: budget.replicas)
    with pytest.raises(ValueError, match=r"ranks=4 here and the model are too large .* needs .* MiB \(replicas 4 x "):
        job.train(settings, corpus)


def test_memory_is_planned_by_arithmetic() -> None:
    plan = partial(plan_memory, 10, payload_bytes=MiB, copies=4, activations=10 * MiB)
    assert plan(available=None).chunk == 10
    assert plan(available=1000 * MiB).chunk == 10
    assert plan(available=160 * MiB).chunk == 5, "9 would fit, but two rounds of 5 are as few"
    assert plan(available=66 * MiB).chunk == 1
    with pytest.raises(ValueError, match="too large"):
        plan(available=60 * MiB)
    short, long = (job.memory_budget(replace(TINY, context=c)).activations for c in (64, 128))
    assert 1.8 < long / short < 4.2, "activations grow with the tokens, attention with their square"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_drift_of_training_is_the_predicted_one(optimizer: str, seed: int, library: Corpus) -> None:
    """A LLaMA on real text. Steps depend on the masks through stale gradients, so not exactly (see `realised_drift`).

    Small packets, for the average to have many: with SGD the embedding of the space alone holds a quarter of the drift.
    """
    settings = Settings(
        Bernoulli(0.1), steps=60, optimizer=optimizer, seed=seed, context=64, validation=512, packet_bytes=32
    )
    result = job.train(settings, library, observer=DriftMeter.of)
    assert result.observed
    for which in ("pair", "owner"):
        assert 0.9 < result.observed[which]["ratio"] < 1.1
    assert result.log_perplexity < result.train_losses[0] - 1, "it did not learn"


@pytest.mark.parametrize(
    "name",
    ["adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "AdamW", "ASGD", "Muon", "NAdam", "RAdam", "RMSprop", "SGD"],
)
def test_every_optimizer_by_name_trains(name: str) -> None:
    def objective(model: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = (model(x) - x).square().mean()
        return loss

    make, lr = make_optimizer(name)
    assert lr > 0
    made = Cluster(torch.nn.Linear(4, 4), objective, make, Bernoulli(0.2), ranks=2)
    first = made.fresh_PE.clone()
    for _ in range(3):
        made.step(torch.ones(2, 5, 4))
    for before, after in zip(made.layout.unpack(first), made.layout.unpack(made.fresh_PE), strict=True):
        assert not torch.equal(before, after), "a parameter was left out"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ranks": 0}, "ranks must be at least 1, got 0"),
        ({"ranks": 2.0}, "ranks must be an int"),
        ({"steps": True}, "steps must be an int"),
        ({"context": 1}, "context must be at least 2"),
        ({"seed": -1}, "seed must lie in"),
        ({"heads": 3}, "hidden must be a multiple of twice heads=3"),
        ({"law": 0.1}, "law must offer"),
        ({"rule": "mean"}, "rule must be one of survivor_mean"),
        ({"no_survivor": "mean"}, "no_survivor must be one of zero"),
        ({"own_link": "good"}, "own_link must be one of reliable"),
        ({"layout": "rows"}, "layout must be one of flat"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of adadelta"),
        ({"optimizer": "muon", "layout": "flat"}, "layout must be 'tensors' for muon"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive and finite"),
        ({"lr": "fast"}, "lr must be a number"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_by_name(change: dict[str, Any], reason: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{reason}"):
        replace(TINY, **change)


def test_a_job_that_cannot_run_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="at least 4096 bytes"):
        job.train(replace(TINY, context=4096), corpus)
    with pytest.raises(ValueError, match="one probability for each of 3 ranks"):
        job.train(replace(TINY, law=PerSender((0.1, 0.2))), corpus)
    with pytest.raises(ValueError, match="checkpoint_every must be"):
        job.train(TINY, corpus, checkpoint_every=0)


def test_a_run_that_diverges_says_so(corpus: Corpus) -> None:
    with pytest.raises((FloatingPointError, ValueError), match=r"diverged|not finite"):
        job.train(replace(TINY, optimizer="sgd", lr=1e30), corpus)
