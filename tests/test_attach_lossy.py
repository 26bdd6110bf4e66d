"""`attach` with loss: the masks of the in-process cluster and its parameters, and what the telemetry says of them."""

from __future__ import annotations

import csv
import logging
from collections import Counter

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lossy_ddp import OPTIMIZERS, Job, batch, loss_of, mlp, plain
from processes import outcomes, together

from lossproof.impl.cluster import Cluster
from lossproof.impl.distributed.exchange import ProcessChannel
from lossproof.impl.distributed.telemetry import Drift
from lossproof.impl.loss import Arrivals
from lossproof.theory.fit import fit
from lossproof.theory.laws import Bernoulli, CommonOutage, GilbertElliott, PerSender

STEPS = 20
PACKET = 32


@pytest.fixture(autouse=True)
def _in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def record(law, optimizer, options, steps=STEPS):
    """One rank's masks, model, and counts of a run of several steps."""
    torch.set_default_dtype(torch.float64)
    job, masks = Job("mlp", optimizer, law, attach={"drift_every": 4} | options), []
    for step in range(steps):
        plain(job, step)
        masks.append({phase: mask.clone() for phase, mask in job.lossy.stages.arrived.items()})
    lossy = job.lossy
    return {
        "masks": masks, "model": job.state(), "own": lossy.exchange.own_Q, "owners": lossy.owners_model(),
        "counts": lossy.stages.counts, "telemetry": lossy.telemetry.gather(), "steps": list(lossy.telemetry.steps),
        "no_survivor": lossy.telemetry.no_survivor,
    }  # fmt: skip


def in_one_process(law, optimizer, ranks, steps=STEPS, **options):
    """The same run by the in-process cluster: the cluster, and its masks step by step."""
    torch.manual_seed(5)
    cluster = Cluster(mlp(), loss_of, OPTIMIZERS[optimizer], law, ranks, packet_bytes=PACKET, **options)
    masks = []
    for step in range(steps):
        cluster.step(torch.stack([batch("mlp", step, rank) for rank in range(ranks)]))
        masks.append({phase: mask.clone() for phase, mask in cluster.round.arrived.items()})
    return cluster, masks


def require_same(model, expected):
    for name, value in expected.items():
        assert torch.allclose(model[name], value, rtol=1e-9, atol=1e-10), name


@pytest.mark.parametrize(
    ("ranks", "law", "optimizer", "options"),
    [
        (2, Bernoulli(0.3), "AdamW", {"seed": 3}),
        (2, Bernoulli(0.3), "SGD", {"own_link": "lossy", "no_survivor": "hold"}),
        (3, PerSender((0.1, 0.2, 0.3)), "SGD", {"rule": "inverse_probability", "seed": 1 << 40}),
        (3, GilbertElliott(0.2, 4), "AdamW", {"own_link": "lossy", "no_survivor": "own", "seed": 4}),
        (4, GilbertElliott(0.1, 3, clock="packet"), "SGD", {"rule": "zero_fill"}),
        (4, CommonOutage(0.1, 0.1), "Muon", {}),
    ],
)
def test_masks_and_parameters_are_those_of_the_in_process_cluster(ranks, law, optimizer, options):
    found = together(record, ranks, law, optimizer, options)
    cluster, masks = in_one_process(law, optimizer, ranks, **options)
    for rank, one in enumerate(found):
        for mine, expected in zip(one["masks"], masks, strict=True):
            assert mine["gradients"].equal(expected["gradients"][:, one["own"]])
            assert mine["parameters"].equal(expected["parameters"][rank : rank + 1])
        unpacked = cluster.layout.unpack(cluster.replicas_NPE[rank])
        require_same(one["model"], dict(zip(one["model"], unpacked, strict=True)))
        require_same(one["owners"], cluster.owners_model())
    total = sum((Counter(vars(one["counts"])) for one in found), Counter())
    assert total == Counter({name: count for name, count in vars(cluster.counts).items() if count})
    assert total["gradients_lost"] > 0
    assert total["parameters_lost"] > 0
    assert sum(one["no_survivor"] for one in found) == cluster.counts.no_survivor
    if options.get("own_link") == "lossy":
        assert cluster.counts.no_survivor > 0


def test_telemetry_counts_by_link():
    ranks, law = 3, Bernoulli(0.3)
    found = together(record, ranks, law, "SGD", {"resync_every": 5})
    arrivals = Arrivals(law, (owner := np.array(in_one_process(law, "SGD", ranks, 1)[0].owner_P)), ranks)
    offered, lost = np.zeros((2, 2, ranks, ranks), dtype=np.int64)
    for step in range(STEPS):
        gradients, parameters = arrivals.gradients(step).numpy(), arrivals.parameters(step).numpy()
        for packet, home in enumerate(owner):
            for rank in set(range(ranks)) - {home}:
                offered[0, rank, home] += 1
                lost[0, rank, home] += not gradients[rank, packet]
                if step % 5 != 4:
                    offered[1, home, rank] += 1
                    lost[1, home, rank] += not parameters[rank, packet]
    for rank, one in enumerate(found):
        assert np.array_equal(one["telemetry"]["offered"], offered)
        assert np.array_equal(one["telemetry"]["lost"], lost)
        assert np.array_equal(sum(record.offered_2N for record in one["steps"]), offered[:, :, rank])
        assert np.array_equal(sum(record.lost_2N for record in one["steps"]), lost[:, :, rank])
        assert [record.step for record in one["steps"] if record.reliable] == [4, 9, 14, 19]
        require_same(one["model"], one["owners"])  # the last step was a resync
        assert all(value.equal(found[0]["model"][name]) for name, value in one["model"].items())


class Messages(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, entry):
        self.texts.append((entry.levelname, entry.getMessage()))


def measured(alarm):
    """The drift records, the same from the definition, and what was logged."""
    torch.set_default_dtype(torch.float64)
    logging.getLogger("lossproof").setLevel(logging.INFO)
    logging.getLogger().addHandler(messages := Messages())
    job = Job("mlp", "SGD", Bernoulli(0.4), attach={"drift_every": 3, "drift_alarm": alarm, "log_every": 5})
    lossy, N = job.lossy, dist.get_world_size()
    owner, packets = lossy.exchange.owner_P, lossy.layout.packets
    sample = lossy.telemetry.sample_S
    assert len(sample) == min(64, packets)
    expected, before, squares, steps = [], None, 0.0, 0
    for step in range(10):
        plain(job, step)
        every = lossy.exchange.every(lossy.layout.pack([p.detach() for p in lossy.parameters]))[:, sample]
        fresh = every[owner[sample], torch.arange(len(sample))]
        if before is not None:
            squares, steps = squares + float((fresh - before).square().sum()) / len(sample), steps + 1
        before = fresh
        if step % 3 == 0 and steps:
            pairs, gaps = [], []
            for s, home in enumerate(owner[sample].tolist()):
                others = [rank for rank in range(N) if rank != home]
                gaps += [float((every[rank, s] - fresh[s]).square().sum()) for rank in others]
                pairs += [float((every[a, s] - every[b, s]).square().sum()) for a in others for b in others if a < b]
            expected.append((step, np.mean(pairs) if pairs else np.nan, np.mean(gaps), squares / steps))
            squares, steps = 0.0, 0
    return [vars(drift) for drift in lossy.telemetry.drift], expected, messages.texts, lossy.telemetry.alarms


@pytest.mark.parametrize("ranks", [2, 4])
def test_drift_is_measured_as_defined_and_only_rank_0_speaks(ranks):
    for rank, (drift, expected, messages, alarms) in enumerate(together(measured, ranks, 1e-6)):
        assert [one["step"] for one in drift] == [3, 6, 9]
        for one, values in zip(drift, expected, strict=True):
            assert list(one.values()) == pytest.approx(values, rel=1e-9, nan_ok=True)
        assert alarms == 3
        assert [level for level, _ in messages] == ([] if rank else ["INFO", "WARNING", "INFO", "WARNING", "WARNING"])
        assert rank or ("step 3: drift is" in messages[1][1] and "nan" not in str(messages))


def test_no_alarm_below_it():
    for rank, (_, _, messages, alarms) in enumerate(together(measured, 2, 1e6)):
        assert alarms == 0
        assert [level for level, _ in messages] == ([] if rank else ["INFO", "INFO"])


@pytest.mark.parametrize(
    ("pair", "owner", "step_square", "ratio"),
    [(6.0, 4.0, 2.0, 3.0), (float("nan"), 4.0, 2.0, 2.0), (1.0, 1.0, 0.0, float("inf")), (0.0, 0.0, 0.0, 0.0)],
)
def test_ratio_of_drift_to_steps(pair, owner, step_square, ratio):
    assert Drift(0, pair, owner, step_square).ratio == ratio


class Poisoned(ProcessChannel):
    """Fills the slots of lost packets with NaN."""

    def gradients(self, step, payload):
        received, arrived = super().gradients(step, payload)
        return torch.where(arrived[..., None], received, torch.nan), arrived

    def parameters(self, step, fresh):
        received, arrived = super().parameters(step, fresh)
        return torch.where(arrived[0, :, None], received, torch.nan), arrived


def through_a_channel(rule):
    def channel(exchange):
        owners = exchange.owner_P.tolist()
        return Poisoned(exchange, Arrivals(Bernoulli(0.3), owners, exchange.ranks, receiver=exchange.rank))

    job = Job("mlp", "SGD", attach={})
    from lossproof.impl.distributed import attach

    attach(job.wrapped, job.opt, channel=channel, packet_bytes=PACKET, rule=rule)
    return job.train(8).state(), Job("mlp", "SGD", Bernoulli(0.3), attach={"rule": rule}).train(8).state()


@pytest.mark.parametrize("rule", ["survivor_mean", "zero_fill"])
def test_what_lies_in_the_slot_of_a_lost_packet_does_not_matter(rule):
    for poisoned, clean in together(through_a_channel, 3, rule):
        assert all(value.equal(clean[name]) for name, value in poisoned.items())


class Idle(Bernoulli):
    """Claims losses and has none."""

    def sample(self, draw, memory):
        return np.zeros(draw.words().shape, dtype=bool), memory


def idle(scaled):
    from lossy_ddp import scaled as step_with_scaler

    options = {"packet_bytes": 8, "non_finite": "carry"}
    return Job("mlp", "SGD", Idle(0.02), attach=options).train(30, step_with_scaler if scaled else None).losses


@pytest.mark.parametrize("scaled", [False, True])
def test_losses_that_never_come_are_an_error(scaled):
    ends = outcomes(idle, 2, scaled)
    assert any("LossNotInjected: none of" in end.error and "Idle(loss=0.02)" in end.error for end in ends)
    assert all("LossNotInjected" in end.error or "RankLost" in end.error for end in ends)


def logged(path):
    job = Job("mlp", "SGD", Bernoulli(0.3), attach={"loss_log": path, "resync_every": 5})
    job.train(8)
    return job.lossy.telemetry.gather()


def test_a_loss_log_holds_what_the_telemetry_counts(tmp_path):
    path = tmp_path / "log.csv"
    counted = together(logged, 2, path)[0]
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name, wanted in (("offered", "01"), ("lost", "1")):
        found = Counter((r["phase"], int(r["src"]), int(r["dst"])) for r in rows if r["lost"] in wanted)
        for k, phase in enumerate(("gradients", "parameters")):
            for src, dst in ((0, 1), (1, 0)):
                assert found[phase, src, dst] == counted[name][k, src, dst]
    assert {r["step"] for r in rows if r["phase"] == "parameters"} == set("0123567")  # the resync is not of the links
    assert fit(path).verdict == "bernoulli"
