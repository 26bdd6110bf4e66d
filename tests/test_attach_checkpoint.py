"""Checkpoints of an attached job: bit for bit where all is there, an error on every rank where it is not."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
from lossy_ddp import Job, clipped, plain, scaled
from processes import outcomes, together
from torch.nn.parallel import DistributedDataParallel

from lossproof.impl.distributed import attach
from lossproof.theory.laws import Bernoulli, GilbertElliott

LAW = Bernoulli(0.3)
BURSTY = GilbertElliott(0.3, 3)


def save(job, path):
    torch.save({"model": job.module.state_dict(), "optimizer": job.opt.state_dict()}, path)


def load(job, path):
    file = torch.load(path, weights_only=True)
    job.module.load_state_dict(file["model"])
    job.opt.load_state_dict(file["optimizer"])
    return job


def end_of(job):
    """All that two equal runs have in common: losses, replica, counts by link, what the next save would hold."""
    totals = {name: value.tolist() for name, value in job.lossy.telemetry.gather().items()}
    own = job.lossy.state_dict()["own"]
    return job.losses[-5:], job.state(), totals, own["stages"]["counts"], job.lossy.telemetry.skipped


def require_identical(first, second):
    for (losses, state, *rest), (other_losses, other_state, *other_rest) in zip(first, second, strict=True):
        assert losses == other_losses
        assert all(value.equal(other_state[name]) for name, value in state.items())
        assert rest == other_rest


def resumed(path, per_rank, model, optimizer, law, options, one=plain, early=False):
    """A run of ten steps, saved after five; and its second half once more, from the files."""
    rank = dist.get_rank()
    file = f"{path}/{rank if per_rank else 'all'}"
    job = Job(model, optimizer, law, attach=options).train(5, one)
    if not per_rank:
        job.lossy.consolidate(to=1)
        assert job.lossy.consolidated
    scale = job.scaler.state_dict()
    if per_rank or rank == 1:
        save(job, file)
    dist.barrier()
    whole = end_of(job.train(5, one, start=5))
    if early:  # the optimizer's state is loaded first, then the model is wrapped and attached
        again = Job(model, optimizer)
        load(again, file)
        again.lossy = attach(again.wrapped, again.opt, law, **{"packet_bytes": 32, "log_every": 0} | options)
        assert "lossproof" not in again.opt.param_groups[0]
    else:
        again = load(Job(model, optimizer, law, attach=options, seed=6), file)
    again.scaler.load_state_dict(scale)
    return whole, end_of(again.train(5, one, start=5))


CASES = [
    ("mlp", "AdamW", LAW, {}, plain),
    ("conv", "SGD", BURSTY, {"own_link": "lossy", "no_survivor": "hold"}, clipped),
    ("mlp", "Adafactor", GilbertElliott(0.2, 3, clock="packet"), {"resync_every": 3}, plain),
    ("mlp", "Muon", LAW, {"rule": "zero_fill"}, plain),
    ("mlp", "fused AdamW", BURSTY, {"non_finite": "carry"}, scaled),  # step 5 is skipped
]


def resumed_all(path, per_rank, cases):
    return [resumed(path, per_rank, model, *rest, early=k % 2 == 1) for k, (model, *rest) in enumerate(cases)]


@pytest.mark.parametrize("per_rank", [True, False])
def test_resumed_runs_go_on_bit_for_bit(tmp_path, per_rank):
    for pairs in together(resumed_all, 3, tmp_path, per_rank, CASES):
        require_identical(*zip(*pairs, strict=True))


def skipped_last(path):
    """Saved right behind a step that the scaler skipped: the links' clocks have ticked for it."""
    job = Job("mlp", "SGD", BURSTY, attach={"non_finite": "carry"}).train(6, partial(scaled, clip=False))
    save(job, f"{path}/{dist.get_rank()}")
    scale = job.scaler.state_dict()
    assert job.lossy.telemetry.skipped == 1  # of step 1; that of step 5 counts once the next gradients come
    whole = end_of(job.train(5, scaled, start=6))
    again = load(Job("mlp", "SGD", BURSTY, attach={"non_finite": "carry"}, seed=6), f"{path}/{dist.get_rank()}")
    again.scaler.load_state_dict(scale)
    return whole, end_of(again.train(5, scaled, start=6))


def test_a_checkpoint_behind_a_skipped_step(tmp_path):
    require_identical(*zip(*together(skipped_last, 2, tmp_path), strict=True))


def states_held():
    job = Job("mlp", "AdamW", LAW).train(2)
    lossy = job.lossy
    held = [lambda: sorted(lossy.names[lossy.number[p]] for p in job.opt.state)]
    counts = [held[0]()]
    before = job.state()
    owners = lossy.owners_model()
    untouched = all(value.equal(before[name]) for name, value in job.state().items())
    lossy.consolidate()
    counts.append(held[0]())
    equal = all(value.equal(owners[name]) for name, value in job.state().items())
    job.train(1)
    counts.append(held[0]())
    own = [lossy.names[number] for number in lossy.owned]
    own_is_fresh = all(before[name].equal(owners[name]) for name in own)
    stale = any(not before[name].equal(owners[name]) for name in before)
    return {"names": lossy.names, "own": sorted(own), "counts": counts, "consolidated": lossy.consolidated,
            "owners' model": (untouched, equal, own_is_fresh, stale), "owners": owners}  # fmt: skip


def test_optimizer_state_and_the_owners_model():
    found = together(states_held, 2)
    for rank, one in enumerate(found):
        assert one["counts"] == [one["own"], sorted(one["names"]) if rank == 0 else one["own"], one["own"]]
        assert one["owners' model"] == (True, True, True, True)
        assert not one["consolidated"]
        assert all(value.equal(found[0]["owners"][name]) for name, value in one["owners"].items())
    assert sorted(found[0]["own"] + found[1]["own"]) == sorted(found[0]["names"])


def loaded_wrongly(path, how):
    """What `load` raises on this rank; the model is that of a step ago where it raises."""
    rank = dist.get_rank()
    job = Job("mlp", "AdamW", LAW).train(3)
    if how in ("consolidated elsewhere", "a step later"):
        job.lossy.consolidate(to=1 if how == "consolidated elsewhere" else 0)
    if how == "a step later":
        job.train(1, start=3)
    save(job, f"{path}/{rank}")
    dist.barrier()
    options = {"seed": 1} if how == "another seed" else {}
    again = Job("mlp", "AdamW", LAW, attach=options, seed=6)
    try:
        if how == "before attach":
            again = Job("mlp", "AdamW", seed=6)
            load(again, f"{path}/0")
            attach(again.wrapped, again.opt, LAW, packet_bytes=32)
        load(again, f"{path}/{rank if how == 'another seed' else 0}")
    except ValueError as error:
        again.train(2)  # what was refused is not there
        return str(error)
    return "nothing raised"


@pytest.mark.parametrize("how", ["not consolidated", "consolidated elsewhere", "a step later", "before attach"])
def test_a_file_of_rank_0_that_lacks_what_others_own_is_refused_on_all_ranks(tmp_path, how):
    found = together(loaded_wrongly, 2, tmp_path, how)
    assert found[0] == found[1]
    assert "state must be rank 1's own or a consolidated one, got rank 0's" in found[0]


def test_other_settings_are_refused_on_all_ranks(tmp_path):
    found = together(loaded_wrongly, 2, tmp_path, "another seed")
    assert found == ["seed must be 0 as in the saved run in order to resume it, got 1"] * 2


def another_model(path, how):
    rank = dist.get_rank()
    job = Job("mlp", "AdamW", LAW).train(3)
    save(job, f"{path}/{rank}")
    dist.barrier()
    again = Job("mlp", "AdamW", LAW, seed=6)
    file = torch.load(f"{path}/{rank}", weights_only=True)
    if how == "wrapped after loading":
        again = Job("mlp", "AdamW", seed=6)
        again.module.load_state_dict(file["model"])
        again.wrapped = DistributedDataParallel(again.module)
        again.opt.load_state_dict(file["optimizer"])
        attach(again.wrapped, again.opt, LAW, packet_bytes=32)
    else:
        again.opt.load_state_dict(file["optimizer"])
        again.module.load_state_dict(torch.load(f"{path}/0", weights_only=True)["model"])
    again.train(1)


@pytest.mark.parametrize("how", ["wrapped after loading", "the model of rank 0"])
def test_a_stale_model_under_the_optimizers_state_is_refused_on_all_ranks(tmp_path, how):
    for end in outcomes(another_model, 2, tmp_path, how):
        assert (
            "ValueError: the model must be the one that was saved with the optimizer's state, but what ranks [1]"
            in end.error
        )


def warm_start(path):
    """A file of plain DDP starts an attached job; a detached job's file goes on as plain DDP's."""
    rank = dist.get_rank()
    job = Job("mlp", "AdamW").train(3)
    if rank == 0:
        save(job, f"{path}/plain")
    dist.barrier()
    again = load(Job("mlp", "AdamW", Bernoulli(0), seed=6), f"{path}/plain").train(3, start=3)
    again.lossy.detach()
    if rank == 0:
        save(again, f"{path}/detached")
    dist.barrier()
    last = load(Job("mlp", "AdamW", seed=6), f"{path}/detached").train(3, start=6)
    return job.train(6, start=3).state(), last.state()


def test_files_of_plain_ddp_fit_and_the_other_way_round(tmp_path):
    for plain_state, state in together(warm_start, 2, tmp_path):
        assert all(value.equal(state[name]) for name, value in plain_state.items())


def test_consolidate_names_a_rank():
    ends = outcomes(consolidate_nowhere, 2)
    assert all("ValueError: to must be a rank in [0, 2), got 2" in end.error for end in ends)


def consolidate_nowhere():
    Job("mlp", "SGD", LAW).lossy.consolidate(to=2)
