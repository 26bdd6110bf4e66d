"""The HF Trainer over lossy links, on two real processes: one more callback, and everything else as it was."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import together
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import lossproof.impl.distributed.trainer
from lossproof.impl.distributed import LossyCallback
from lossproof.theory.laws import Bernoulli, GilbertElliott

State = dict[str, torch.Tensor]
RANKS = 2


# The job --------------------------------------------------------------------------------------------------------------


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=2, max_position_embeddings=16, **sizes))


def sequences(count: int, seed: int) -> list[State]:
    """Counting upwards from anywhere, modulo 16: easy to learn."""
    first = torch.randint(0, 16, (count, 1), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": row} for row in (first + torch.arange(8)) % 16]


def make_trainer(out: Path, callbacks: list[TrainerCallback], **arguments: Any) -> Trainer:
    if dist.is_initialized():  # what torchrun sets; the group is there already, so nobody looks at its address
        rank, size = dist.get_rank(), dist.get_world_size()
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "lo", "MASTER_PORT": 0}
        os.environ.update({name: str(value) for name, value in environment.items()})
    options = {"max_steps": 8, "save_strategy": "no", "logging_steps": 1, "learning_rate": 0.02} | arguments
    arguments = {"per_device_train_batch_size": 4, "report_to": [], "disable_tqdm": True, "use_cpu": True} | options
    return Trainer(
        llama(),
        TrainingArguments(str(out), **arguments),
        train_dataset=sequences(64, seed=1),
        eval_dataset=sequences(16, seed=2),
        callbacks=callbacks,
    )


def weights(model: torch.nn.Module) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def history(trainer: Trainer) -> list[dict[str, float]]:
    """The training log, without times and what only a lossy run logs."""
    names = ("loss", "grad_norm", "learning_rate", "epoch", "step", "eval_loss")
    return [{k: line[k] for k in names if k in line} for line in trainer.state.log_history if "train_loss" not in line]


def saved(folder: Path) -> State:
    """The model that rank 0 has saved; all ranks call it."""
    dist.barrier()
    return load_file(folder / "model.safetensors")


class Spy(TrainerCallback):
    """Stands before the lossy callback and sees, at every step, the owners' model and this rank's replica."""

    def __init__(self, lossy: LossyCallback) -> None:
        self.lossy = lossy
        self.owners: dict[int, State] = {}
        self.replicas: dict[int, State] = {}

    def stale(self, step: int) -> bool:
        """Whether this rank had something else than the owners' model: else a comparison shows nothing."""
        return any(not torch.equal(self.replicas[step][name], value) for name, value in self.owners[step].items())

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.owners[state.global_step] = self.lossy.attachment.owners_model()
        self.replicas[state.global_step] = weights(model)


def watched(law: Any, **options: Any) -> tuple[LossyCallback, Spy]:
    lossy = LossyCallback(law, packet_bytes=64, **options)
    return lossy, Spy(lossy)


def require_same(found: State, expected: State) -> None:
    if different := [name for name in expected if name not in found or not torch.equal(found[name], expected[name])]:
        raise AssertionError(f"differ: {different}")


# Without loss ---------------------------------------------------------------------------------------------------------


def trained(out: Path, callbacks: list[TrainerCallback], arguments: dict[str, Any]) -> tuple[State, Any]:
    job = make_trainer(out, callbacks, **arguments)
    job.train()
    return weights(job.model), history(job)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_grad_norm": 0.3, "ddp_bucket_cap_mb": 1},
        {"gradient_accumulation_steps": 3, "max_grad_norm": 0.0, "ddp_find_unused_parameters": False, "bf16": True},
        {"gradient_accumulation_steps": 2, "max_steps": -1, "num_train_epochs": 1, "optim": "adafactor"},
    ],
    ids=["clipped", "accumulated", "whole epoch"],
)
def test_nothing_lost_is_the_ordinary_trainer_bit_for_bit(tmp_path: Path, arguments: dict[str, Any]) -> None:
    ordinary = together(trained, RANKS, tmp_path / "ordinary", [], arguments)
    lossless = together(trained, RANKS, tmp_path / "lossless", [LossyCallback(Bernoulli(0))], arguments)
    for (expected, log), (found, same_log) in zip(ordinary, lossless, strict=True):
        require_same(found, expected)
        assert same_log == log
        assert len(log) >= 4


# With loss ------------------------------------------------------------------------------------------------------------


def train_lossily(out: Path) -> tuple[list[float], dict[str, float], int]:
    lossy, spy = watched(Bernoulli(0.1))
    job = make_trainer(out, [spy, lossy], max_steps=30, gradient_accumulation_steps=2)
    job.train()
    job.save_model(str(out))
    assert lossy.attachment is not None
    assert spy.stale(30)
    require_same(weights(job.model), spy.owners[30])
    require_same(saved(out), spy.owners[30])
    log = [line for line in job.state.log_history if "loss" in line]

    attachment, job.args.max_steps = lossy.attachment, 2
    job.train()
    assert lossy.attachment is attachment
    require_same(weights(job.model), spy.owners[2])
    return [line["loss"] for line in log], log[-1], attachment.stages.step_number


def test_a_tenth_lost_trains_and_ends_with_the_owners_model(tmp_path: Path) -> None:
    for losses, log, steps in together(train_lossily, RANKS, tmp_path):
        assert losses[-1] < losses[0] / 5
        assert 0.08 < log["gradients_lost"] < 0.12
        assert 0.08 < log["parameters_lost"] < 0.12
        assert log["no_survivor"] == 0  # own_link is reliable
        assert steps == 32


def resume(out: Path) -> None:
    def start() -> tuple[Trainer, LossyCallback, Spy]:
        # a law with memory, and estimates that are held where nothing arrives: all of the state there is
        lossy, spy = watched(GilbertElliott(0.2, 3), own_link="lossy", no_survivor="hold")
        return make_trainer(out, [spy, lossy], save_strategy="steps", save_steps=3), lossy, spy

    job, lossy, spy = start()
    job.train()
    assert spy.stale(3)
    assert spy.stale(6)
    require_same(saved(out / "checkpoint-3"), spy.owners[3])
    require_same(saved(out / "checkpoint-8"), spy.owners[8])

    again, lossy_again, spy_again = start()
    again.model.load_state_dict({name: torch.zeros_like(value) for name, value in weights(again.model).items()})
    again.train(resume_from_checkpoint=str(out / "checkpoint-3"))
    resumed = [(again, lossy_again, spy_again)]
    first = {step: spy.replicas[step] for step in (4, 7, 8)}
    totals = lossy.attachment.telemetry.state_dict()
    log = history(job)
    job.train(resume_from_checkpoint=str(out / "checkpoint-3"))  # with the attachment that it has
    resumed.append((job, lossy, spy))
    for job, lossy, spy in resumed:
        for step, replica in first.items():
            require_same(spy.replicas[step], replica)
        assert history(job) == log
        found = lossy.attachment.telemetry.state_dict()
        assert torch.equal(found["offered"], totals["offered"])
        assert torch.equal(found["lost"], totals["lost"])
        assert found["no_survivor"] == totals["no_survivor"] > 0


def test_a_checkpoint_holds_the_owners_model_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    together(resume, RANKS, tmp_path)


def evaluate(out: Path, arguments: dict[str, Any]) -> tuple[int, int, list[float]]:
    lossy, spy = watched(Bernoulli(0.3))
    options = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 0.3} | arguments
    job = make_trainer(out, [spy, lossy], **options)
    job.train()
    best = job.state.best_global_step
    require_same(weights(job.model), spy.owners[best])
    require_same(saved(out / f"checkpoint-{best}"), spy.owners[best])
    evaluations = {line["step"]: line["eval_loss"] for line in job.state.log_history if "eval_loss" in line}
    for step, loss in evaluations.items():
        assert spy.stale(step)
        job.model.load_state_dict(spy.owners[step])
        assert job.evaluate()["eval_loss"] == loss
    return best, job.state.global_step, list(evaluations.values())


@pytest.mark.parametrize(
    "arguments",
    [
        {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 2, "max_steps": 7},
        {"save_strategy": "epoch", "eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2},
    ],
    ids=["best", "epoch"],
)
def test_evaluation_sees_the_owners_model_and_the_best_is_kept(tmp_path: Path, arguments: dict[str, Any]) -> None:
    zero, one = together(evaluate, RANKS, tmp_path, arguments)
    assert zero == one
    assert zero[2][0] != zero[2][-1]


class AsksForSaving(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = state.global_step == 2


def save_on_demand(out: Path) -> str:
    lossy, spy = watched(Bernoulli(0.1))
    job = make_trainer(out / "before", [AsksForSaving(), spy, lossy], max_steps=2)
    job.train()
    require_same(saved(out / "before" / "checkpoint-2"), spy.owners[2])
    with pytest.raises(RuntimeError) as refusal:
        make_trainer(out / "behind", [LossyCallback(Bernoulli(0.1)), AsksForSaving()], max_steps=2).train()
    return str(refusal.value)


def test_a_callback_that_asks_for_saving_too_late_is_noticed(tmp_path: Path) -> None:
    for message in together(save_on_demand, RANKS, tmp_path):
        assert "step 2 is rank 0's stale replica" in message


# Refusals -------------------------------------------------------------------------------------------------------------


def refused(out: Path, arguments: dict[str, Any], wrapper: Any = None) -> str:
    """What the Trainer says; its model is as before."""
    job = make_trainer(out, [LossyCallback(Bernoulli(0.1))], **arguments)
    before = weights(job.model)
    if wrapper:  # stands for what FSDP or DeepSpeed would wrap the model in
        job._wrap_model = lambda model: wrapper(model)
    with pytest.raises((TypeError, ValueError)) as refusal:
        job.train()
    require_same(weights(job.model), before)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "wrapper", "message"),
    [
        ({"auto_find_batch_size": True}, None, "auto_find_batch_size must be off"),
        ({"enable_jit_checkpoint": True}, None, "enable_jit_checkpoint must be off"),
        ({}, torch.nn.Sequential, "must wrap its model in DistributedDataParallel, got Sequential: FSDP, DeepSpeed"),
    ],
    ids=["batch size", "jit checkpoint", "other wrapper"],
)
def test_what_cannot_work_is_refused_before_the_first_step(
    tmp_path: Path, arguments: dict[str, Any], wrapper: Any, message: str
) -> None:
    for found in together(refused, RANKS, tmp_path, arguments, wrapper):
        assert message in found


def test_a_single_process_is_refused_before_the_first_step(tmp_path: Path) -> None:
    assert "at least two ranks, got one" in together(refused, 1, tmp_path, {})[0]


def test_an_option_that_attach_does_not_have_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="packet_size"):
        LossyCallback(Bernoulli(0.1), packet_size=64)


@pytest.mark.parametrize(
    ("fp16", "given", "expected"),
    [(True, {}, "carry"), (True, {"non_finite": "raise"}, "raise"), (False, {}, None)],
)
def test_a_grad_scaler_gets_to_see_the_overflow(
    monkeypatch: pytest.MonkeyPatch, fp16: bool, given: dict[str, Any], expected: str | None
) -> None:
    """The Trainer refuses fp16 on a CPU, so this looks at what `attach` would be told."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(lossproof.impl.distributed.trainer, "attach", lambda *_, **options: told.update(options))
    monkeypatch.setattr(lossproof.impl.distributed.trainer, "_wrapped_model", lambda *_: None)
    callback = LossyCallback(Bernoulli(0.1), **given)
    callback.on_train_begin(type("Arguments", (), {"fp16": fp16}), None, None)
    assert told.get("non_finite") == expected


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lossproof.impl.distributed.trainer")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"lossproof\[llm\]"):
        from lossproof.impl.distributed import LossyCallback  # noqa: F401
