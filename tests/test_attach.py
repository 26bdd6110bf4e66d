"""`attach` without loss is plain DDP: bit for bit on two ranks, to rounding on more, however the loop is written.

On two ranks DDP's sum has one order. On more it has another than the owners' sum, so these run in float64, where the
difference stays below 1e-9.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
from lossy_ddp import (
    Job,
    accumulated,
    clipped,
    clipped_by_value,
    clipped_otherwise,
    plain,
    scaled,
    zeros_kept,
)
from processes import together

from lossproof.theory.laws import Bernoulli

NO_LOSS = Bernoulli(0)
ALL_OPTIMIZERS = ["SGD", "AdamW", "foreach AdamW", "fused AdamW", "Adafactor", "Muon", "groups"]


def both(cases, steps, one=plain, dtype=torch.float32):
    """Each case (model, optimizer, DDP options, attach options) trained by plain DDP and attached."""
    torch.set_default_dtype(dtype)
    found = []
    for model, optimizer, ddp, options in cases:
        jobs = [Job(model, optimizer, law, ddp, options).train(steps, one) for law in (None, NO_LOSS)]
        found.append([(job.losses, job.state()) for job in jobs])
    return found


def require_equal(ranks, *work, rounding=False):
    for on_rank in together(both, ranks, *work):
        for case, ((plain_losses, plain_state), (losses, state)) in zip(work[0], on_rank, strict=True):
            assert len(set(plain_losses)) > 1, "a loop that does not train compares nothing"
            assert state.keys() == plain_state.keys()
            if rounding:
                assert losses == pytest.approx(plain_losses, rel=1e-9), case
            else:
                assert losses == plain_losses, case
            for name, value in plain_state.items():
                good = (
                    torch.allclose(state[name], value, rtol=1e-9, atol=1e-9) if rounding else state[name].equal(value)
                )
                assert good, (case, name)


@pytest.mark.parametrize("model", ["mlp", "conv"])
def test_every_optimizer_equals_plain_ddp_bit_for_bit(model):
    optimizers = ALL_OPTIMIZERS if model == "mlp" else ["SGD", "AdamW", "Muon"]
    require_equal(2, [(model, optimizer, {}, {}) for optimizer in optimizers], 50)


@pytest.mark.parametrize("ranks", [3, 4])
def test_more_ranks_equal_plain_ddp_to_rounding(ranks):
    optimizers = ALL_OPTIMIZERS if ranks == 3 else ["SGD", "AdamW"]
    cases = [("mlp", optimizer, {}, {}) for optimizer in optimizers] + [("conv", "AdamW", {}, {})]
    require_equal(ranks, cases, 50, plain, torch.float64, rounding=True)


def test_a_llama_equals_plain_ddp():
    cases = [("llama", "AdamW", {}, {}), ("tied llama", "Muon", {}, {"packet_bytes": 1024})]
    require_equal(2, cases, 50)


BUCKETS = {"bucket_cap_mb": 1e-4}  # several buckets, rebuilt after the first step


@pytest.mark.parametrize(
    ("one", "optimizer"),
    [
        (plain, "SGD"),
        (zeros_kept, "AdamW"),
        (accumulated, "AdamW"),
        (clipped, "SGD"),
        (partial(clipped, foreach=False), "SGD"),
        (clipped_by_value, "SGD"),
    ],
)
def test_loops_and_buckets(one, optimizer):
    cases = [
        ("mlp", optimizer, BUCKETS | {"gradient_as_bucket_view": True}, {}),
        ("mlp", optimizer, BUCKETS, {"packet_bytes": 1024}),
        ("mlp", optimizer, {"static_graph": True}, {}),
    ]
    require_equal(2, cases[: 2 if one is accumulated else 3], 12, one)


def test_norms_other_than_l2_are_clipped_by_the_attachment():
    require_equal(2, [("mlp", "SGD", BUCKETS, {})], 12, clipped_otherwise)
    require_equal(3, [("mlp", "SGD", BUCKETS, {})], 12, clipped_otherwise, torch.float64, rounding=True)


@pytest.mark.parametrize("clip", [True, False])
def test_a_grad_scaler_skips_the_same_steps(clip):
    carry = {"non_finite": "carry"}
    cases = [("mlp", optimizer, BUCKETS, carry) for optimizer in ("SGD", "AdamW", "fused AdamW")]
    require_equal(2, cases, 14, partial(scaled, clip=clip))


def test_tied_frozen_and_unused_parameters_and_buffers():
    unused = {"find_unused_parameters": True}
    cases = [
        ("tied", optimizer, unused | more, {}) for optimizer in ("SGD", "groups", "Muon") for more in ({}, BUCKETS)
    ]
    require_equal(2, cases, 12)
    require_equal(2, cases, 12, clipped)
    require_equal(4, cases[:2], 12, plain, torch.float64, rounding=True)


def on_gpus():
    """Plain, without loss, with loss and consolidated; NCCL, one GPU for each rank."""
    device = f"cuda:{dist.get_rank()}"
    torch.cuda.set_device(device)
    jobs = [Job("conv", "AdamW", law, BUCKETS, device=device).train(8) for law in (None, NO_LOSS, Bernoulli(0.3))]
    jobs[2].lossy.consolidate()
    return [{name: value.cpu() for name, value in job.state().items()} for job in jobs]


@pytest.mark.device
def test_gpus_over_nccl():
    if torch.cuda.device_count() < 2:
        pytest.skip("not run: needs two GPUs")
    found = together(on_gpus, 2, backend="nccl")
    for plain_ddp, no_loss, lossy in found:
        for name, value in plain_ddp.items():
            assert torch.allclose(no_loss[name], value, rtol=1e-4, atol=1e-5), name
            assert "running" in name or "tracked" in name or lossy[name].equal(found[0][2][name]), name
