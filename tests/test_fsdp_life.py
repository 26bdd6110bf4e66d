"""`attach` of FSDP2 models: saving and going on, detaching, evaluation in between, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lossy_ddp import mlp
from lossy_fsdp import Job, blocks, plain, reduced_by_parts, skipping, with_unused, wrap
from processes import together
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import Shard

from lossproof.impl.aggregate import NonFiniteGradient
from lossproof.impl.distributed import attach
from lossproof.theory.laws import Bernoulli, GilbertElliott


def differences(left, right):
    """Where two jobs on this rank are not the same bits."""
    found = [name for name, value in left.owners().items() if not value.equal(right.owners()[name])]
    found += [f"replica of {n}" for n, value in left.replica().items() if not value.equal(right.replica()[n])]
    if left.lossy.step_number != right.lossy.step_number:
        found.append(f"step {left.lossy.step_number} and {right.lossy.step_number}")
    for name in ("offered_2N", "lost_2N", "no_survivor", "skipped"):
        if not torch.equal(*(torch.as_tensor(getattr(job.lossy.telemetry, name)) for job in (left, right))):
            found.append(name)
    return found


def resumed(folder, cases):
    """What differs between a job that goes on and one that loads what it has saved, after each of several steps."""
    found = []
    for number, (law, one, options, saved_at) in enumerate(cases):
        for at in saved_at:
            job, path = Job("mlp", "AdamW", law, attach=options).train(at, one), f"{folder}/{number}-{at}"
            if at % 2:
                job.replica()  # the broadcast has taken place, else it is still due
            model, optimizer = get_state_dict(job.module, job.opt)
            dcp.save({"model": model, "optimizer": optimizer, "lossy": job.lossy}, checkpoint_id=path)
            again = Job("mlp", "AdamW", law, attach=options, seed=77)
            model, optimizer = get_state_dict(again.module, again.opt)
            state = {"model": model, "optimizer": optimizer, "lossy": again.lossy}
            dcp.load(state, checkpoint_id=path)
            set_state_dict(again.module, again.opt, model_state_dict=model, optim_state_dict=optimizer)
            for each in (job, again):
                each.train(5, one, start=at)
            found += [(number, at, name) for name in differences(job, again)]
            found += [(number, at, "losses")] if job.losses[at:] != again.losses else []
    return found


def test_a_job_goes_on_bit_for_bit_from_a_distributed_checkpoint(tmp_path):
    cases = [
        (Bernoulli(0.4), plain, {"no_survivor": "hold", "own_link": "lossy"}, (0, 3, 4)),
        (GilbertElliott(0.2, 3), skipping, {"resync_every": 4, "stale": "bfloat16"}, (2, 4, 5)),
    ]
    assert together(resumed, 2, str(tmp_path), cases) == [[]] * 2


def loaded_wrongly():
    """What is said of states that do not fit."""
    job = Job("mlp", "SGD", Bernoulli(0.3)).train(2)
    state, errors = job.lossy.state_dict(), []
    state = copy.deepcopy(state)
    other = Job("mlp", "SGD", Bernoulli(0.2))
    errors.append(error_of(ValueError, other.lossy.load_state_dict, state))
    other = Job("mlp", "SGD", Bernoulli(0.3), attach={"stale": "bfloat16"})
    errors.append(error_of(ValueError, other.lossy.load_state_dict, state))
    (part,) = state.values()
    errors.append(error_of(ValueError, Job("mlp", "SGD", Bernoulli(0.3)).lossy.load_state_dict, {"rank7": part}))
    untouched = Job("mlp", "SGD", Bernoulli(0.3), seed=78)
    untouched.lossy.load_state_dict(state)  # and not the model
    errors.append(error_of(ValueError, untouched.train, 1))
    return errors


def error_of(kind, call, *args, **options):
    with pytest.raises(kind) as caught:
        call(*args, **options)
    return str(caught.value)


def test_states_that_do_not_fit_are_refused_on_all_ranks():
    for law, stale, rank, model in together(loaded_wrongly, 2):
        assert "law must be 'Bernoulli(loss=0.3)' as in the saved run" in law
        assert "stale must be 'device' as in the saved run" in stale
        assert "state must hold the part of rank" in rank
        assert "the model must be the one that was saved" in model


def lives():
    """Detached, evaluated, set by hand, left without gradients: what goes wrong, and the errors."""
    wrong, errors = [], []
    job = Job("mlp", "SGD", Bernoulli(0.4)).train(4)
    owners = job.owners()
    stale = job.replica()
    if dist.get_world_size() > 1 and all(stale[name].equal(owners[name]) for name in stale):
        wrong.append("nothing is stale")
    job.lossy.resync()
    wrong += [f"resynced {name}" for name, value in job.replica().items() if not value.equal(owners[name])]
    job.train(3, start=4)
    job.lossy.detach()
    owners = job.owners()
    wrong += [f"detached {name}" for name, value in job.replica().items() if not value.equal(owners[name])]
    plainly = Job("mlp", "SGD")
    plainly.module.load_state_dict(job.module.state_dict())
    plainly.opt.load_state_dict(copy.deepcopy(job.opt.state_dict()))
    for each in (job, plainly):
        each.train(3, start=7)
    wrong += [f"plain again {n}" for n, value in job.owners().items() if not value.equal(plainly.owners()[n])]
    lossy = attach(job.module, job.opt, Bernoulli(0.4), packet_bytes=32, log_every=0)  # once more
    job.train(2, start=10)
    assert lossy.step_number == 2
    errors.append(error_of(ValueError, attach, job.module, job.opt, Bernoulli(0.4)))

    hand = Job("mlp", "SGD", Bernoulli(0.4)).train(2)
    hand.replica()
    with torch.no_grad():
        for parameter in hand.module.parameters():
            parameter.mul_(2)
    errors.append(error_of(RuntimeError, hand.loss, 2))
    hand = Job("mlp", "SGD", Bernoulli(0.4)).train(2)
    with torch.no_grad():
        for parameter in hand.module.parameters():
            parameter.mul_(2)
    hand.lossy.resync()
    hand.train(1, start=2)

    held = Job("mlp", "SGD", Bernoulli(0.4), attach={"no_survivor": "hold"})
    errors.append(error_of(RuntimeError, held.train, 1, reduced_by_parts))
    missing = Job("tied", "SGD", Bernoulli(0.4))
    errors.append(error_of(RuntimeError, missing.train, 1))
    infinite = Job("mlp", "SGD", Bernoulli(0))
    (infinite.loss(0) * (float("inf") if dist.get_rank() else 1.0)).backward()
    errors.append(error_of(NonFiniteGradient, infinite.opt.step))
    carried = Job("mlp", "SGD", Bernoulli(0), attach={"non_finite": "carry"})
    (carried.loss(0) * (float("inf") if dist.get_rank() else 1.0)).backward()
    carried.opt.step()
    alone = Job("mlp", "SGD", Bernoulli(0.6), attach={"no_survivor": "raise", "own_link": "lossy"})
    errors.append(error_of(ValueError, alone.train, 3))
    left = Job("mlp", "SGD", Bernoulli(0.4)).train(1)
    left.opt.zero_grad()
    left.loss(1).backward()
    errors.append(error_of(RuntimeError, left.lossy.detach))
    errors.append(error_of(ValueError, left.opt.step, lambda: 0.0))
    left.opt.step()
    errors.append(error_of(RuntimeError, left.opt.step))
    unused = Job("tied", "SGD", Bernoulli(0.4), after=with_unused).train(2)
    norm = unused.lossy.clip_grad_norm_(1.0)
    if not norm.isfinite():
        wrong.append("norm")
    return wrong, errors


SAID = [
    "model must not be attached already",
    "have changed, but not by the step() of the attached",
    "no_survivor='hold' takes one reduction a step",
    "got no gradient in this backward pass",
    "an aggregated gradient is not finite",
    "no survivor",
    "gradients that no step has used are left",
    "closure must be None",
    "gradients that no backward pass has reduced",
]


def test_detached_evaluated_set_by_hand():
    for wrong, errors in together(lives, 2):
        assert not wrong
        for error, said in zip(errors, SAID, strict=True):
            assert said in error or (said == "no survivor" and "could not aggregate" in error)


def infinite_somewhere():
    """The errors of a step whose gradients are infinite in the first of two reductions, on the last rank only."""
    job = Job("mlp", "SGD", Bernoulli(0), mesh=(2, 2), attach={"lossy_dimension": "shard"})
    for part in range(2):
        (job.loss(part) * (float("inf") if part == 0 and dist.get_rank() == 3 else 1.0)).backward()
    return error_of(NonFiniteGradient, job.opt.step)


def test_infinite_gradients_of_one_rank_and_one_reduction_are_refused_by_all_ranks_of_a_hybrid_mesh():
    for error in together(infinite_somewhere, 4):
        assert "an aggregated gradient is not finite" in error


def differently_stale():
    """The error where the two groups of a hybrid mesh that are replicas of each other keep their copies differently."""
    stale = ("device", "cpu")[dist.get_rank() // 2]
    return error_of(ValueError, Job, "mlp", "SGD", Bernoulli(0.1), mesh=(2, 2),
                    attach={"lossy_dimension": "shard", "stale": stale})  # fmt: skip


def test_the_replicas_of_a_hybrid_mesh_keep_their_stale_copies_alike():
    for error in together(differently_stale, 4):
        assert error == "stale must be the same on all ranks, got 'device' on rank 0 and 'cpu' on rank 1"


def logged(path, mesh):
    """A job with a log; one that starts anew with it; one that resumes. What the second says, and the rows of each."""

    def job():
        return Job("mlp", "SGD", Bernoulli(0.4), mesh=mesh,
                   attach={"loss_log": path, "lossy_dimension": "shard" if len(mesh) == 2 else None})  # fmt: skip

    def rows():
        dist.barrier()
        with open(path, encoding="utf-8") as file:
            found = sorted(file.read().splitlines())
        dist.barrier()
        return found

    first, found = job().train(2), []
    state = copy.deepcopy((first.module.state_dict(), first.opt.state_dict(), first.lossy.state_dict()))
    first.train(2, start=2)
    lost = int(first.lossy.telemetry.gather()["lost"].sum())
    found.append(rows())
    error = error_of(ValueError, job().train, 1)
    found.append(rows())
    again = job()
    for part, saved in zip((again.module, again.opt, again.lossy), state, strict=True):
        part.load_state_dict(saved)
    again.train(2, start=2)
    found.append(rows())
    return error, found, lost


@pytest.mark.parametrize("mesh", [(2,), (2, 2)])
def test_a_used_loss_log_is_refused_on_all_ranks_and_goes_on_where_the_job_does(tmp_path, mesh):
    path = str(tmp_path / "log.csv")
    for error, (first, refused, resumed), lost in together(logged, 2 ** len(mesh), path, mesh):
        assert f"loss_log must be a new file, or the job's own where it resumes, but {path} holds the rows" in error
        assert first == refused == resumed
        assert sum(row.split(",")[2] == "1" for row in first) == lost > 0


def second_dimension(parameter):
    return Shard(1) if parameter.ndim == 2 and parameter.shape[1] % 2 == 0 else None


def refused():
    """The errors, and whether anything was changed by the attempt."""
    mesh, found, changed = init_device_mesh("cpu", (2,)), [], []

    def attempt(model, mesh_options, attach_options, before=None, optimizer=None):
        torch.manual_seed(1)
        net = model()
        if mesh_options is not None:
            wrap(net, **({"mesh": mesh, "each": blocks} | mesh_options))
        if before:
            before(net)
        opt = torch.optim.SGD([p for p in (optimizer or net).parameters() if p.requires_grad] or
                              [nn.Parameter(torch.zeros(1))], lr=0.1)  # fmt: skip
        law = attach_options.pop("law", Bernoulli(0.1))
        try:
            attach(net, opt, law, **{"log_every": 0} | attach_options)
        except (TypeError, ValueError) as error:
            found.append(f"{type(error).__name__}: {error}")
        else:
            found.append("accepted")
        if opt._optimizer_step_pre_hooks or opt._optimizer_step_post_hooks:
            changed.append(len(found))

    def custom(net):
        from torch.distributed.fsdp._fully_shard._fsdp_collectives import ProcessGroupAllocAllGather

        net.set_custom_all_gather(ProcessGroupAllocAllGather(mesh.get_group()))

    attempt(mlp, None, {})
    attempt(mlp, {}, {"layout": "tensors"})
    attempt(mlp, {}, {"channel": lambda exchange: None, "law": None})
    attempt(mlp, {}, {"stale": "float16"})
    attempt(mlp, {}, {"lossy_dimension": "replicate"})
    attempt(mlp, {"offload_policy": CPUOffloadPolicy(pin_memory=False)}, {})
    attempt(mlp, {"shard_placement_fn": second_dimension}, {})
    attempt(mlp, {"mesh": init_device_mesh("cpu", (2, 1), mesh_dim_names=("a", "b"))}, {})
    attempt(mlp, {"mesh": init_device_mesh("cpu", (2, 1), mesh_dim_names=("a", "b"))}, {"lossy_dimension": "shard"})
    attempt(mlp, {}, {}, before=custom)
    attempt(lambda: mlp().requires_grad_(False), {}, {})
    attempt(mlp, {}, {}, optimizer=nn.Linear(2, 2))
    attempt(mlp, {}, {"packet_bytes": 2})
    attempt(mlp, {}, {"seed": dist.get_rank()})
    attempt(mlp, {}, {"stale": ("device", "cpu")[dist.get_rank()]})
    attempt(lambda: nn.Sequential(nn.Linear(6, 17), nn.Linear(17, 3)), None, {},
            before=lambda net: fully_shard(net[0], mesh=mesh))  # fmt: skip
    mixed = lambda: nn.Sequential(nn.Linear(6, 17), nn.Linear(17, 3).bfloat16())  # noqa: E731
    attempt(mixed, {"each": lambda module: False}, {})
    return found, changed


REFUSED = [
    "TypeError: model must be a DistributedDataParallel or an FSDPModule (fully_shard), got Sequential",
    "ValueError: layout must be 'dim0' for FSDP2",
    "ValueError: channel must be None for FSDP2, whose units travel one by one: give a law",
    "ValueError: stale must be one of device, cpu, bfloat16, got 'float16'",
    "ValueError: lossy_dimension must be 'shard' or None",
    "ValueError: model must not use CPUOffloadPolicy",
    "ValueError: model must be sharded along dimension 0",
    "ValueError: model must be sharded over a mesh of one dimension, or lossy_dimension must be 'shard'",
    "ValueError: model must be sharded over at least two ranks",
    "ValueError: model must have FSDP2's own collectives",
    "ValueError: model must have trainable parameters, got none",
    "ValueError: optimizer must hold all trainable parameters",
    "ValueError: packet_bytes must be at least 4",
    "ValueError: seed must be the same on all ranks",
    "ValueError: stale must be the same on all ranks, got 'device' on rank 0 and 'cpu' on rank 1",
    "TypeError: model must be a DistributedDataParallel or an FSDPModule",
    "ValueError: model must have trainable parameters of one dtype",
]


def test_refused_before_anything_is_changed():
    for found, changed in together(refused, 2):
        assert not changed
        for error, expected in zip(found, REFUSED, strict=True):
            assert error.startswith(expected), (error, expected)
