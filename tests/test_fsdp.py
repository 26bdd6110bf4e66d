"""`attach` of FSDP2 models: p = 0 is plain FSDP2, bit for bit on two ranks."""

from __future__ import annotations

import pytest
from lossy_fsdp import (
    BF16,
    HALF,
    Job,
    accumulated,
    clipped,
    divided,
    freeze,
    plain,
    prefetch,
    reduced_by_parts,
    with_unused,
)
from processes import together
from torch.distributed import ReduceOp, _make_nccl_premul_sum

from lossproof.impl.distributed.fsdp import comms
from lossproof.impl.distributed.fsdp.attachment import ShardedAttachment
from lossproof.theory.laws import Bernoulli

STEPS = 50
FEWER = 6


def both(cases):
    """Whether the attached job is the plain one, bit for bit, case by case: what differs."""
    differ = []
    for number, (model, optimizer, one, options) in enumerate(cases):
        options = dict(options)
        attach = options.pop("attach", {})
        steps = STEPS if number < 2 else FEWER
        plain_job = Job(model, optimizer, **options).train(steps, one)
        lossy_job = Job(model, optimizer, Bernoulli(0), attach=attach, **options).train(steps, one)
        assert isinstance(lossy_job.lossy, ShardedAttachment)
        assert lossy_job.lossy.step_number == steps
        left, right = plain_job.owners(), lossy_job.owners()
        differ += [(number, name) for name in left if not left[name].equal(right[name])]
        differ += [(number, "losses")] if plain_job.losses != lossy_job.losses else []
    return differ


CASES = [
    ("mlp", "AdamW", plain, {}),
    ("llama", "AdamW", clipped, {}),
    ("mlp", "SGD", plain, {"fsdp": {"reshard_after_forward": False}}),
    ("llama", "SGD", plain, {"fsdp": {"mp_policy": HALF}}),
    ("llama", "AdamW", plain, {"fsdp": {"mp_policy": BF16}, "attach": {"stale": "cpu"}}),
    ("mlp", "fused AdamW", accumulated, {}),
    ("mlp", "SGD", reduced_by_parts, {"attach": {"stale": "bfloat16"}}),
    ("tied", "AdamW", plain, {"after": with_unused}),
    ("mlp", "SGD", plain, {"before": freeze, "after": prefetch}),
    ("mlp", "SGD", plain, {"after": divided}),
    ("mlp", "groups", plain, {"attach": {"resync_every": 7}}),
]


def test_no_loss_is_plain_fsdp2_bit_for_bit_on_two_ranks():
    assert together(both, 2, CASES) == [[]] * 2


@pytest.mark.parametrize(
    ("op", "divide_factor", "wanted"),
    [(ReduceOp.AVG, None, 1.0), (ReduceOp.SUM, 8.0, 4.0), (_make_nccl_premul_sum(1 / 8), 8.0, 0.5)],
    ids=["mean", "sum", "sum over a factor, which NCCL alone is asked for"],
)
def test_what_fsdp2_asks_for_in_units_of_the_mean_of_four_ranks(op, divide_factor, wanted):
    assert comms._of_mean(op, 4, divide_factor) == wanted
