"""Loss logs of real jobs: replayed they give the same masks and training; a log is of one job, resumed or not."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch.distributed as dist
from lossy_ddp import Job
from processes import outcomes, together

from lossproof.impl.loss import Arrivals
from lossproof.impl.losslog import LossLog, log_arrivals
from lossproof.theory.fit import fit
from lossproof.theory.laws import Bernoulli, GilbertElliott, Trace

BURSTY = GilbertElliott(0.3, 3)


def logged(path, law=None, steps=12, **options):
    """A job of so many steps; without a law, the replay of the log beside."""
    law = law or Trace.from_csv(f"{path}.csv")
    job = Job("mlp", "SGD", law, attach={"loss_log": f"{path}{options.pop('name', '')}.csv", **options}).train(steps)
    return job.losses, {name: value.clone() for name, value in job.module.state_dict().items()}


def rows(path):
    return sorted(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("options", [{}, {"resync_every": 4}], ids=repr)
def test_the_replay_of_a_job_is_the_job(tmp_path, options):
    """The same rows, losses and parameters, though the seed is another; and the same fit."""
    first = together(replayable, 3, str(tmp_path / "log"), BURSTY, options)
    again = together(replayable, 3, str(tmp_path / "log"), None, options)
    for (losses, state), (other_losses, other_state) in zip(first, again, strict=True):
        assert losses == other_losses
        assert all(value.equal(other_state[name]) for name, value in state.items())
    assert rows(tmp_path / "log.csv") == rows(tmp_path / "log-again.csv")
    one, other = (fit(tmp_path / f"log{name}.csv", simulations=200) for name in ("", "-again"))
    assert (one.verdict, one.clock) == ("gilbert-elliott", "step")
    assert {**vars(one), "source": ""} == {**vars(other), "source": ""}


def replayable(path, law, options):
    steps = {"steps": 24} if law else {"steps": 24, "name": "-again", "seed": 77}
    return logged(path, law, **steps, **options)


def test_the_replay_is_for_ever_and_on_any_rank(tmp_path):
    """Steps go round, and a rank that draws only what it receives draws the same."""
    owner_P = [0, 2, 2, 0, 1, 2]
    log_arrivals(Arrivals(BURSTY, owner_P, 3, seed=1), 5, tmp_path / "log.csv")
    trace, original = Trace.from_csv(tmp_path / "log.csv"), Arrivals(BURSTY, owner_P, 3, seed=1)
    masks = [(original.gradients(step), original.parameters(step)) for step in range(5)]
    replay, mine = Arrivals(trace, owner_P, 3, seed=2), Arrivals(trace, owner_P, 3, seed=3, receiver=2)
    for step in range(17):
        gradients_NP, parameters_NP = masks[step % 5]
        assert replay.gradients(step).equal(gradients_NP)
        assert mine.gradients(step).equal(gradients_NP[:, [owner == 2 for owner in owner_P]])
        state = copy.deepcopy(replay.state_dict())
        replay = Arrivals(trace, owner_P, 3, seed=9)
        replay.load_state_dict(state)
        assert replay.parameters(step).equal(parameters_NP)
        assert mine.parameters(step).equal(parameters_NP[2:])


# -- a log is of one job


def anew(path, shared):
    name = "" if shared else f"-{dist.get_rank()}"
    return logged(path, BURSTY, 3, name=name)


def test_a_second_job_is_refused_a_used_log(tmp_path):
    """On all ranks, also where only one of them was given a used file; nothing is added."""
    path = str(tmp_path / "log")
    together(anew, 2, path, True)
    before = rows(tmp_path / "log.csv")
    for end in outcomes(anew, 2, path, True):
        assert (
            f"ValueError: loss_log must be a new file, or the job's own where it resumes, but {path}.csv" in end.error
        )
    assert rows(tmp_path / "log.csv") == before
    (tmp_path / "log-1.csv").write_text((tmp_path / "log.csv").read_text())
    for end in outcomes(anew, 2, path, False):
        assert f"but {path}-1.csv holds the rows of another job: remove it or give another name" in end.error
    assert LossLog(tmp_path / "log-0.csv").fresh


def test_masks_in_one_process_are_refused_it_too(tmp_path):
    path, arrivals = tmp_path / "log.csv", Arrivals(BURSTY, [0, 1], 2)
    log_arrivals(arrivals, 3, path)
    log_arrivals(arrivals, 2, path)  # goes on
    before = rows(path)
    with pytest.raises(ValueError, match=r"loss_log must be a new file, .*log.csv holds the rows of another job"):
        log_arrivals(Arrivals(BURSTY, [0, 1], 2), 3, path)
    assert rows(path) == before


def interrupted(path, whole):
    job = Job("mlp", "SGD", BURSTY, attach={"loss_log": f"{path}.csv"}).train(5)
    state = copy.deepcopy((job.module.state_dict(), job.opt.state_dict()))
    job.train(7 if whole else 3, start=5)
    if whole:
        return
    dist.barrier()
    again = Job("mlp", "SGD", BURSTY, attach={"loss_log": f"{path}.csv"})
    again.module.load_state_dict(state[0])
    again.opt.load_state_dict(state[1])
    again.train(7, start=5)


def test_a_resumed_job_logs_again_what_it_does_again(tmp_path):
    """Saved after 5 steps, ended after 8, resumed from 5: the log is that of a job that was never interrupted."""
    together(interrupted, 3, str(tmp_path / "whole"), True)
    together(interrupted, 3, str(tmp_path / "resumed"), False)
    assert rows(tmp_path / "resumed.csv") == rows(tmp_path / "whole.csv")
    assert Trace.from_csv(tmp_path / "resumed.csv") == Trace.from_csv(tmp_path / "whole.csv")


@pytest.mark.parametrize("hosted", [range(2), range(0, 4, 2), range(3, 4)])
def test_the_log_of_hosted_ranks_is_their_part_of_the_whole_log(hosted: range, tmp_path: Path) -> None:
    for owners in ([0, 1, 2, 3], [0, 1], [3, 3, 0, 2]):
        law, name = Bernoulli(0.5), "-".join(map(str, owners))
        whole = log_arrivals(Arrivals(law, owners, ranks=4), 3, tmp_path / f"{name}-whole.csv")
        part = log_arrivals(Arrivals(law, owners, ranks=4, receiver=hosted), 3, tmp_path / f"{name}-part.csv")
        header, *rows = whole.read_text().splitlines()
        assert part.read_text().splitlines() == [header, *(r for r in rows if int(r.split(",")[1]) in hosted)]
