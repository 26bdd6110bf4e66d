"""What `attach` refuses: before training, leaving all as it was; in training, on every rank, never silently wrong."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lossy_ddp import Job, mlp, scaled
from processes import outcomes, together
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.optim import ZeroRedundancyOptimizer, _apply_optimizer_in_backward
from torch.nn.parallel import DistributedDataParallel

from lossproof.impl.distributed import attach
from lossproof.impl.distributed.exchange import ProcessChannel
from lossproof.impl.distributed.options import Given, Options
from lossproof.theory.laws import Bernoulli, PerSender

LAW = Bernoulli(0.1)


def ddp(module=None, **options):
    torch.manual_seed(0)
    return DistributedDataParallel(module or mlp(), **options)


def hooked():
    model = ddp()
    model.register_comm_hook(None, allreduce_hook)
    return model


def mixed():
    return ddp(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()))


def frozen():
    model = ddp()
    model.module.requires_grad_(False)
    return model


def ignoring():
    module = mlp()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ["2.weight"])
    return ddp(module)


def low_precision():
    from torch.nn.parallel.distributed import _MixedPrecision

    return ddp(mixed_precision=_MixedPrecision(param_dtype=torch.bfloat16))


def stepped_in_backward():
    module = mlp()
    _apply_optimizer_in_backward(torch.optim.SGD, module.parameters(), {"lr": 0.1})
    return ddp(module)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


class Wrapper:
    def __init__(self, optimizer):
        self.optimizer = optimizer


def two_groups_lack_one(model):
    return torch.optim.SGD(list(model.parameters())[1:], lr=0.1)


def of_another_model(model):
    return torch.optim.SGD([*model.parameters(), *nn.Linear(2, 2).parameters()], lr=0.1)


MODELS = [
    (mlp, "TypeError: model must be a DistributedDataParallel or an FSDPModule (fully_shard), got Sequential"),
    (hooked, "ValueError: model must have no communication hook yet"),
    (
        mixed,
        "ValueError: model must have trainable parameters of one dtype and device, got torch.float32 on cpu, torch.fl",
    ),
    (frozen, "ValueError: model must have trainable parameters, got none"),
    (low_precision, "ValueError: model must not use DDP's mixed_precision"),
    (stepped_in_backward, "ValueError: model must not be updated inside the backward pass"),
    (ignoring, "ValueError: model must reduce all its trainable parameters, but ignores 2.weight"),
    (
        lambda: ddp(nn.Embedding(3, 2, sparse=True)),
        "ValueError: model must have dense gradients, got sparse=True in the mod",
    ),
    (
        lambda: ddp(nn.Linear(2, 2).to(torch.complex64)),
        "ValueError: model must have floating-point parameters, got torch.c",
    ),
]
OPTIMIZERS = [
    (lambda model: Wrapper(sgd(model)), "TypeError: optimizer must be the torch optimizer itself"),
    (lambda model: None, "TypeError: optimizer must be a torch.optim.Optimizer, got NoneType"),
    (
        lambda model: ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1),
        "must not share out its state",
    ),
    (lambda model: torch.optim.LBFGS(model.parameters()), "must take its step without a closure, got LBFGS"),
    (two_groups_lack_one, "must hold all trainable parameters of the model, but lacks 0.weight (1 in all)"),
    (of_another_model, "optimizer must hold parameters of this model only, got 2 of others"),
]
OPTIONS = [
    ({"law": None}, "ValueError: exactly one of law and channel must be given"),
    ({"channel": ProcessChannel}, "ValueError: exactly one of law and channel must be given"),
    (
        {"law": None, "channel": ProcessChannel, "rule": "inverse_probability"},
        "without a law, which knows the probabilities",
    ),
    ({"law": 0.1}, "TypeError: law must offer marginal, age_tail and sample, got 0.1"),
    ({"law": PerSender((0.1, 0.1, 0.1))}, "ValueError: losses must hold one probability for each of 2 ranks, got 3"),
    ({"seed": -1}, "ValueError: seed must"),
    ({"packet_bytes": 3}, "ValueError: packet_bytes must be at least 4 for torch.float32, got 3"),
    ({"packet_bytes": 0}, "ValueError: packet_bytes must be a positive int, got 0"),
    ({"packet_bytes": 64.0}, "ValueError: packet_bytes must be a positive int, got 64.0"),
    ({"layout": "flat"}, "ValueError: layout must be 'tensors' for DDP"),
    ({"own_link": "fast"}, "ValueError: own_link must be 'reliable' or 'lossy', got 'fast'"),
    ({"rule": "mean"}, "ValueError: rule must be one of survivor_mean, inverse_probability, zero_fill, got 'mean'"),
    ({"no_survivor": "skip"}, "ValueError: no_survivor must be one of zero, hold, own, raise, got 'skip'"),
    ({"non_finite": "skip"}, "ValueError: non_finite must be one of raise, carry, got 'skip'"),
    ({"resync_every": -1}, "ValueError: resync_every must be an int, 0 for never, got -1"),
    ({"drift_every": True}, "ValueError: drift_every must be an int, 0 for never, got True"),
    ({"log_every": 1.5}, "ValueError: log_every must be an int, 0 for never, got 1.5"),
    ({"drift_alarm": float("nan")}, "ValueError: drift_alarm must be positive or None, got nan"),
]


def refused():
    """For every case: what it was told, and whether anything was left behind."""
    rank, found = dist.get_rank(), []
    cases = [(make, sgd, {}) for make, _ in MODELS] + [(ddp, make, {}) for make, _ in OPTIMIZERS]
    cases += [(ddp, sgd, options) for options, _ in OPTIONS]
    cases += [(ddp, sgd, {"seed": rank}), (ddp, sgd, {"drift_every": 10 * rank})]
    alone = [dist.new_group([k]) for k in range(2)][rank]
    cases += [(lambda: ddp(process_group=alone), sgd, {})]
    for make_model, make_optimizer, options in cases:
        model = make_model()
        optimizer = make_optimizer(model)
        try:
            attach(model, optimizer, **{"law": LAW} | options)
        except (TypeError, ValueError) as error:
            left = [hasattr(model, "_lossproof"), "join" in vars(model)]
            for hooks in (
                "_optimizer_step_pre_hooks",
                "_optimizer_step_post_hooks",
                "_optimizer_state_dict_post_hooks",
            ):
                left.append(
                    bool(getattr(optimizer, hooks, None)) and not isinstance(optimizer, ZeroRedundancyOptimizer)
                )
            left += [bool(parameter._backward_hooks) for parameter in model.parameters()]
            found.append((f"{type(error).__name__}: {error}", any(left)))
        else:
            found.append(("nothing raised", False))
    return found


def test_what_cannot_be_trained_is_refused_and_left_as_it_was():
    expected = [message for _, message in MODELS + OPTIMIZERS + OPTIONS]
    expected += [
        "ValueError: seed must be the same on all ranks, got 0 on rank 0 and 1 on rank 1",
        "ValueError: drift_every must be the same on all ranks, got 0 on rank 0 and 10 on rank 1",
        "ValueError: model must be trained by at least two ranks: a process group of one has no links",
    ]
    for found in together(refused, 2):
        for (told, left), message in zip(found, expected, strict=True):
            assert message in told
            assert not left, message


class DeafToRank1(Bernoulli):
    """No gradient reaches rank 1."""

    def sample(self, draw, memory):
        return np.broadcast_to(draw.dst == 1, draw.words().shape), memory


def misused(how):
    options = {"non_finite": "carry"} if how == "another backward after a skip" else {}
    options |= {"no_survivor": "raise", "own_link": "lossy"} if how == "no survivor" else {}
    law = DeafToRank1(0.5) if how == "no survivor" else LAW
    job = Job("mlp", "SGD", None if how == "attached twice" else law, attach=options)
    if how == "attached twice":
        attach(job.wrapped, job.opt, LAW)
        attach(job.wrapped, job.opt, LAW)
    job.train(0 if how == "no survivor" else 2)
    job.opt.zero_grad()
    x = torch.randn(4, 6)
    if how == "closure":
        job.opt.step(lambda: job.loss(3))
    elif how == "module":
        job.module(x).sum().backward()
        job.opt.step()
    elif how == "no_sync to the end":
        with job.wrapped.no_sync():
            job.loss(3).backward()
        job.opt.step()
    elif how == "module after a skip":
        job.loss(3).backward()
        job.opt.zero_grad()
        job.module(x).sum().backward()
        job.opt.step()
    elif how in ("another optimizer", "by hand"):
        job.loss(3).backward()
        if how == "by hand":
            with torch.no_grad():
                for parameter in job.module.parameters():
                    parameter -= 0.1 * parameter.grad
        else:
            torch.optim.AdamW(job.module.parameters()).step()
        job.opt.zero_grad()
        job.loss(4).backward()
    elif how == "not finite":
        (job.loss(3) * (float("nan") if job.rank else 1.0)).backward()
    elif how == "no survivor":
        job.train(1)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("attached twice", "ValueError: model must not be attached already: detach() the other attachment first"),
        ("closure", "ValueError: closure must be None"),
        ("module", "RuntimeError: optimizer.step() was called with gradients that were never reduced"),
        ("no_sync to the end", "RuntimeError: optimizer.step() was called with gradients that were never reduced"),
        ("module after a skip", "RuntimeError: optimizer.step() was called with gradients that were never reduced"),
        (
            "another optimizer",
            "RuntimeError: the parameters have changed since the last backward pass, but not by the st",
        ),
        ("by hand", "RuntimeError: the parameters have changed since the last backward pass, but not by the step() of"),
        ("not finite", "NonFiniteGradient: the aggregated gradient of 0.weight is not finite; pass non_finite='carry'"),
        ("no survivor", "no_survivor"),
    ],
)
def test_misuse_is_an_error_on_every_rank(how, message):
    for end in outcomes(misused, 2, how):
        assert message in end.error.splitlines()[-1]


def goes_on_after(what):
    """What may look like misuse and is none."""
    job = Job("mlp", "SGD", LAW, attach={"non_finite": "carry"}).train(2)
    if what == "resync after a skip":
        job.train(2, scaled, start=4)  # step 5 is skipped
        job.lossy.resync()
    elif what == "step without gradients":
        job.opt.zero_grad()
        job.opt.step()
    elif what == "evaluation":
        with torch.no_grad():
            job.loss(3)
        torch.autograd.grad(job.module(torch.ones(1, 6)).sum(), list(job.module.parameters()))
    skipped = job.lossy.telemetry.skipped
    job.train(3, start=6)
    return job.lossy.stages.step_number, job.lossy.telemetry.skipped - skipped


@pytest.mark.parametrize(
    ("what", "end"),
    [("resync after a skip", (7, 1)), ("step without gradients", (5, 0)), ("evaluation", (5, 0))],
)
def test_what_is_no_misuse(what, end):
    assert together(goes_on_after, 2, what) == [end] * 2


def test_the_options_are_the_same_wherever_they_are_listed():
    """As keywords of `attach`, as the dataclass that holds them, and as the types that its overloads share."""
    held = {field.name: field.type for field in fields(Options)}
    assert set(signature(attach).parameters) == {"model", "optimizer"} | set(held)
    assert held.keys() == {"law"} | Given.__annotations__.keys()
    given = {name: kind.__forward_arg__ for name, kind in Given.__annotations__.items()}
    assert {name: kind for name, kind in held.items() if given.get(name, kind) != kind} == {"layout": "LayoutKind"}
