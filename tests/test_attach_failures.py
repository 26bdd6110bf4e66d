"""A rank that dies or stands still: every other one ends with an error that says so, within the group's timeout."""

from __future__ import annotations

import os
import signal

import pytest
import torch.distributed as dist
from lossy_ddp import Job, plain
from processes import outcomes

from lossproof.theory.laws import Bernoulli

VICTIM = 1


def struck(where, how):
    """Rank 1 is struck in its third step, at `where`."""
    job = Job("mlp", "AdamW", Bernoulli(0.2), {"bucket_cap_mb": 1e-4})
    parameters, steps = list(job.module.parameters()), [0]

    def strike(*_):
        if steps[0] == 2 and dist.get_rank() == VICTIM:
            os.kill(os.getpid(), how)

    if where == "backward":  # some packets have left, others have not
        parameters[0].register_hook(strike)
    elif where == "step":
        job.opt.register_step_pre_hook(strike)
    else:
        job.opt.register_step_post_hook(strike)  # behind stage 2: the others meet it missing in the next step
    for step in range(6):
        steps[0] = step
        plain(job, step)


@pytest.mark.parametrize("where", ["backward", "step", "after the step"])
def test_a_killed_rank_ends_the_others_with_an_error(where):
    ends = outcomes(struck, 3, where, signal.SIGKILL, group_timeout=120)
    assert ends[VICTIM].error == "died with exit code -9"
    for rank in {0, 1, 2} - {VICTIM}:
        assert f"RankLost: rank {rank} of 3 waited for packets that never came: another rank died" in ends[rank].error
        assert "Timed out" not in ends[rank].error  # the death is noticed, not the timeout waited for


@pytest.mark.parametrize("where", ["backward", "step"])
def test_a_stopped_rank_ends_the_others_within_the_timeout_and_then_itself(where):
    ends = outcomes(struck, 3, where, signal.SIGSTOP, group_timeout=6, stopped=VICTIM)
    for rank, end in enumerate(ends):
        assert f"RankLost: rank {rank} of 3 waited for packets that never came" in end.error


def gone_while_saving():
    job = Job("mlp", "AdamW", Bernoulli(0.2)).train(2)
    if dist.get_rank() == VICTIM:
        os.kill(os.getpid(), signal.SIGKILL)
    job.lossy.consolidate()


def test_a_rank_that_dies_before_consolidate():
    ends = outcomes(gone_while_saving, 3)
    assert all("RankLost: " in ends[rank].error for rank in (0, 2))
