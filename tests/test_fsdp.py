"""`attach` of FSDP2 models: p = 0 is plain FSDP2, bit for bit on two ranks."""

from __future__ import annotations

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
