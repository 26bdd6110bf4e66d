"""The cluster in several processes, each with some of the ranks: the masks of one process, and its parameters.

Legend: N ranks, H of them hosted in each of W processes; P packets, Q of them owned by hosted ranks; E elements.
"""

from __future__ import annotations

import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lossy_ddp import OPTIMIZERS, batch, linear, loss_of, mlp
from processes import outcomes, together

import lossproof.impl.train as job
from lossproof.impl.cluster import Cluster
from lossproof.impl.corpus import Corpus
from lossproof.impl.distributed.cluster import HostedCluster, ProcessCluster
from lossproof.impl.distributed.launch import hosted_ranks
from lossproof.impl.optimizers import make_optimizer
from lossproof.impl.settings import Settings
from lossproof.proofs_checks.realised_drift import DriftMeter
from lossproof.theory.laws import Bernoulli, CommonOutage, GilbertElliott, PerSender, Trace

STEPS = 6
PACKET = 32
MODELS = {"mlp": mlp, "linear": linear}


@pytest.fixture(autouse=True)
def _in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batches(model, step, ranks):
    return torch.stack([batch(model, step, rank) for rank in range(ranks)])


def made(kind, law, ranks, optimizer="SGD", model="mlp", **options):
    torch.manual_seed(5)
    make = OPTIMIZERS.get(optimizer) or make_optimizer(optimizer)[0]
    return kind(MODELS[model](), loss_of, make, law, ranks, packet_bytes=PACKET, **options)


def played(processes, law, ranks, options):
    """What one process sees of a run: its own part of every step, and what is the same on all."""
    torch.set_default_dtype(torch.float64)
    kind = {1: Cluster, ranks: ProcessCluster}.get(processes, HostedCluster)
    cluster, model = made(kind, law, ranks, **options), options.get("model", "mlp")
    masks, losses, watched = [], [], []
    for step in range(STEPS):
        losses.append(cluster.step(batches(model, step, ranks)))
        masks.append({phase: mask.clone() for phase, mask in cluster.round.arrived.items()})
        watched.append((cluster.owner_P, cluster.fresh_PE.clone(), cluster.replicas_NPE.clone()))
    attached = getattr(cluster, "attachment", None)
    replicas_HPE = attached._packed()[None] if attached else cluster.replicas_HPE
    return {
        "masks": masks, "losses": torch.stack(losses), "replicas": replicas_HPE, "counts": cluster.counts,
        "owners": (attached or cluster).owners_model(), "evaluated": cluster.evaluate(batch(model, 99, 0)),
        "watched": watched,
    }  # fmt: skip


def require_same(processes, law, ranks, options):
    """Every process's part of the run of one process: masks and counts exactly, numbers up to rounding."""
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    one, owner_P = played(1, law, ranks, options), torch.tensor(made(Cluster, law, ranks, **options).owner_P)
    for process, part in enumerate(together(played, processes, processes, law, ranks, options)):
        hosted = list(range(process, ranks, processes))
        own_P = torch.isin(owner_P, torch.tensor(hosted))
        for mine, expected in zip(part["masks"], one["masks"], strict=True):
            assert mine["gradients"].equal(expected["gradients"][:, own_P])
            assert mine["parameters"].equal(expected["parameters"][hosted])
        close(part["replicas"], one["replicas"][hosted])
        for name in ("losses", "evaluated", "owners"):
            close(part[name], one[name])
        assert part["counts"] == one["counts"]
        sample = torch.linspace(0, len(owner_P) - 1, min(64, len(owner_P))).long()
        for (owners, fresh_SE, replicas_NSE), (_, fresh_PE, replicas_NPE) in zip(
            part["watched"], one["watched"], strict=True
        ):
            assert owners == tuple(owner_P[sample].tolist())
            close(fresh_SE, fresh_PE[sample])
            close(replicas_NSE, replicas_NPE[:, sample])
    return one["counts"]


CASES = [
    (Bernoulli(0.3), {"seed": 3, "optimizer": "AdamW"}),
    (Bernoulli(0.5), {"own_link": "lossy", "no_survivor": "hold", "layout": "flat"}),
    (PerSender((0.1, 0.2, 0.3, 0.4)), {"rule": "inverse_probability", "own_link": "lossy", "seed": 1 << 40}),
    (GilbertElliott(0.3, 4), {"own_link": "lossy", "no_survivor": "own", "layout": "dim0", "optimizer": "fused AdamW"}),
    (GilbertElliott(0.3, 3, clock="packet"), {"rule": "zero_fill", "seed": 7}),
    (CommonOutage(0.3, 0.2), {"optimizer": "Muon", "own_link": "lossy"}),
    (Trace("0110100", clock="packet"), {"optimizer": "adagrad", "layout": "flat", "rule": "inverse_probability"}),
    (Bernoulli(0.3), {"model": "linear", "chunk": 1}),  # one tensor: a process without a packet of its own
]


@pytest.mark.parametrize(("law", "options"), CASES)
def test_two_processes_are_one(law, options):
    counts = require_same(2, law, 4, options)
    assert counts.gradients_lost > 0
    assert counts.parameters_lost > 0


@pytest.mark.parametrize(("law", "options"), CASES[:5:4])
def test_one_rank_a_process_is_ddp_and_the_same(law, options):
    require_same(4, law, 4, options)


@pytest.mark.parametrize(
    ("law", "options"), [(GilbertElliott(0.3, 3, clock="packet"), {"own_link": "lossy"}), (Bernoulli(0), {})]
)
def test_three_processes_with_two_ranks_each(law, options):
    counts = require_same(3, law, 6, options)
    assert (counts.gradients_lost > 0) == (law != Bernoulli(0))


def resumed(law, options):
    """How the parts of a run that goes on and of one that starts from its saved state differ."""
    torch.set_default_dtype(torch.float64)
    whole, again = (made(HostedCluster, law, 6, **options) for _ in range(2))
    for step in range(3):
        whole.step(batches("mlp", step, 6))
        again.step(batches("mlp", step + 10, 6))  # another job, whose packets have been looked at as well
    saved = whole.state_dict()
    others, seen = again.replicas_NPE.clone(), whole.replicas_NPE.clone()
    whole.step(batches("mlp", 3, 6))  # what happens afterwards must not reach what was saved
    again.load_state_dict(saved)
    assert not others.equal(seen)
    assert again.replicas_NPE.equal(seen)
    again.step(batches("mlp", 3, 6))
    ends = []
    for cluster in (whole, again):
        for step in range(4, STEPS):
            cluster.step(batches("mlp", step, 6))
        ends.append((cluster.replicas_HPE, cluster.round.fresh_QE, cluster.replicas_NPE, cluster.counts))
    return [bool((a == b) if i == 3 else a.equal(b)) for i, (a, b) in enumerate(zip(*ends, strict=True))]


@pytest.mark.parametrize(
    ("law", "options"),
    [
        (GilbertElliott(0.3, 3), {"optimizer": "AdamW"}),
        (GilbertElliott(0.3, 9, clock="packet"), {"no_survivor": "hold", "own_link": "lossy", "layout": "flat"}),
    ],
)
def test_resume_is_bit_for_bit(law, options):
    assert together(resumed, 2, law, options) == [[True] * 4] * 2


TINY = Settings(
    GilbertElliott(0.3, 3), ranks=6, steps=6, context=16, hidden=8, layers=1, heads=1, intermediate=8, packet_bytes=64,
    validation=64,
)  # fmt: skip


def trained(settings, out=None, stop_at=0, **options):
    """The run of `lossproof train`; Ctrl-C reaches only the last process, in step `stop_at`."""
    text = np.frombuffer(b"the quick brown fox jumps over the lazy dog; " * 40, dtype=np.uint8)

    def progress(now):
        if now.step == stop_at and (not dist.is_initialized() or dist.get_rank() == dist.get_world_size() - 1):
            signal.raise_signal(signal.SIGINT)

    try:
        done = job.train(settings, Corpus("fox", text[:1500], text[1500:]), out=out, observer=DriftMeter.of,
                         progress=progress, **options)  # fmt: skip
    except (KeyboardInterrupt, ValueError) as error:
        return repr(error)
    return {name: getattr(done, name) for name in
            ("train_losses", "replica_perplexity", "perplexity", "counts", "observed", "chunk")}  # fmt: skip


def kind_of_cluster(ranks):
    corpus = Corpus("a", *(np.full(100, 97, dtype=np.uint8) for _ in range(2)))
    return type(job.Job(replace(TINY, ranks=ranks), corpus).cluster)


def test_one_rank_a_process_is_real_training_and_more_are_hosted():
    torch.set_default_dtype(torch.float32)
    assert kind_of_cluster(2) is Cluster
    assert together(kind_of_cluster, 2, 2) == [ProcessCluster] * 2
    assert together(kind_of_cluster, 2, 4) == [HostedCluster] * 2


def trained_with(options):
    return trained(**options)


def test_the_job_stops_together_and_goes_on_with_the_same_digits(tmp_path):
    torch.set_default_dtype(torch.float32)
    one, whole = trained(TINY), together(trained_with, 2, {"settings": TINY})
    assert whole[0] == whole[1]
    assert whole[0]["counts"] == one["counts"]
    assert whole[0]["train_losses"] == pytest.approx(one["train_losses"], abs=2e-6)
    assert whole[0]["chunk"] == 3
    stopped = together(trained_with, 2, {"settings": TINY, "out": tmp_path, "stop_at": 4})
    assert stopped == ["KeyboardInterrupt()"] * 2
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["checkpoint-0-of-2.pt", "checkpoint-1-of-2.pt"]
    for processes, kind in ((1, trained), (3, None)):
        again = {"settings": TINY, "out": tmp_path, "resume": True}
        ends = [kind(**again)] if kind else together(trained_with, processes, again)
        for end in ends:
            assert "out holds a checkpoint of another number of processes" in end
            assert "checkpoint-0-of-2.pt" in end
    kept = files[1].read_bytes()
    files[1].unlink()
    for end in together(trained_with, 2, {"settings": TINY, "out": tmp_path, "resume": True}):
        assert "out must hold checkpoints of all processes, of one step, got [4, 0] steps done" in end
    files[1].write_bytes(kept)
    for end in together(trained_with, 2, {"settings": TINY, "out": tmp_path}):
        assert "out holds a checkpoint already" in end
    assert together(trained_with, 2, {"settings": TINY, "out": tmp_path, "resume": True}) == whole


def test_the_memory_of_a_process_is_that_of_its_ranks(monkeypatch):
    """Counted by hand: 4 buffers of a replica each; 8 of the owners; gradients received; what is watched, 4 times."""
    settings = replace(TINY, packet_bytes=1024, ranks=12)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    sizes = [p.numel() for p in job.build_model(settings).parameters()]
    assert sizes[0] == sizes[-1] == 256 * 8  # two matrices of 8 packets; the others fit into one
    packets, budget = 16 + len(sizes) - 2, {}
    for processes in (2, 6):
        monkeypatch.setattr(dist, "get_world_size", lambda processes=processes: processes)
        budget[processes] = job.memory_budget(settings)
        assert budget[processes].ranks == 12 // processes
        assert budget[processes].replicas == 4 * 12 // processes * packets * 1024
    # rank 0 owns 8 packets, rank 1 as many, the others one each: so a half has 13, and ranks 0 and 6 have 9
    for processes, owned in ((2, 13), (6, 9)):
        received = budget[processes].owners - 8 * packets * 1024 - 4 * packets * 12 * 1024
        assert received == owned * 12 * 1024


def agreed_by_one():
    cluster = made(HostedCluster, Bernoulli(0.1), 4)
    return cluster.agreed(False), cluster.agreed(dist.get_rank() == 1)


def test_the_wish_of_one_is_the_wish_of_all():
    assert together(agreed_by_one, 2) == [(False, True)] * 2


def poisoned():
    cluster = made(HostedCluster, Bernoulli(0), 4, model="linear")  # rank 0 owns all
    cluster.step(torch.full((4, 4, 6), torch.inf))


def unlucky():
    made(HostedCluster, Bernoulli(0.9), 4, own_link="lossy", no_survivor="raise", layout="flat").step(
        batches("mlp", 0, 4)
    )


@pytest.mark.parametrize(("work", "reason"), [(poisoned, "is not finite"), (unlucky, "no survivor for packet")])
def test_what_one_process_refuses_all_do(work, reason):
    for end in outcomes(work, 2, group_timeout=60):
        assert "RankLost" not in end.error
        assert reason in end.error


def of_five():
    made(HostedCluster, Bernoulli(0.1), 5)


def test_each_process_hosts_as_many_ranks():
    for end in outcomes(of_five, 2):
        assert "ranks must be a multiple of the number of processes, 2, got 5" in end.error
    for ranks, processes in ((5, 2), (2, 4)):
        with pytest.raises(ValueError, match=f"number of processes, {processes}, got {ranks}"):
            hosted_ranks(ranks, processes, 0)
    parts = [hosted_ranks(12, 4, process) for process in range(4)]
    assert sorted(rank for part in parts for rank in part) == list(range(12))
    assert {len(part) for part in parts} == {3}
