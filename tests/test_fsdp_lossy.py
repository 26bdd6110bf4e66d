"""`attach` of FSDP2 models with loss: the masks and parameters of the in-process cluster, in every mode of FSDP2."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lossy_ddp import MODELS, OPTIMIZERS, batch, loss_of
from lossy_fsdp import (
    FACTOR,
    HALF,
    Job,
    accumulated,
    clip_at,
    clipped,
    divided,
    freeze,
    plain,
    prefetch,
    reduced_by_parts,
    skipping,
    with_unused,
)
from processes import together

from lossproof.impl.cluster import Cluster
from lossproof.impl.loss import Arrivals
from lossproof.theory.laws import Bernoulli, CommonOutage, GilbertElliott, PerSender

STEPS = 8
PACKET = 32


@pytest.fixture(autouse=True)
def _in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def played(cases):
    """What one rank sees of each case: its replicas, now and then; the owners' model; what the telemetry says."""
    torch.set_default_dtype(torch.float64)
    found = []
    for model, optimizer, law, one, protocol, options in cases:
        options = dict(options)
        attach = {"drift_every": 2, "drift_alarm": None} | protocol | options.pop("attach", {})
        job, replicas = Job(model, optimizer, law, attach=attach, **options), {}
        for step in range(STEPS):
            job.losses.append(one(job, step).item())
            if step % 3 == 2:  # else the forward pass gathers
                replicas[step] = job.replica()
        lossy = job.lossy
        job.train(1, one, start=STEPS)  # its gradients are those of the last broadcast; its drift is measured
        found.append({
            "replicas": replicas, "owners": lossy.owners_model(), "telemetry": lossy.telemetry.gather(),
            "steps": list(lossy.telemetry.steps), "drift": list(lossy.telemetry.drift), "losses": job.losses,
            "no_survivor": lossy.telemetry.no_survivor, "skipped": lossy.telemetry.skipped,
            "counts": lossy.counts,
        })  # fmt: skip
    return found


class Reference:
    """The same run on the in-process cluster."""

    def __init__(self, ranks, case, inside=1):
        model, optimizer, law, one, protocol, options = case
        protocol = {name: value for name, value in protocol.items() if name != "resync_every"}
        torch.manual_seed(5)
        module = MODELS[model]()
        options.get("before", lambda module: None)(module)
        self.cluster = Cluster(
            module, loss_of, OPTIMIZERS[optimizer], law, ranks, packet_bytes=PACKET, layout="dim0", **protocol
        )
        self.masks, self.replicas, self.fresh, self.losses = [], [], [], []
        resync = case[4].get("resync_every", 0)
        for step in range(STEPS + 1):
            parts = [10 * step + part for part in range(3)] if one in (accumulated, reduced_by_parts) else [step]
            members = [range(rank, ranks * inside, ranks) for rank in range(ranks)]
            texts = [torch.cat([batch(model, p, member) for p in parts for member in of]) for of in members]
            self.step(torch.stack(texts), step, one, options)
            if resync and (step + 1) % resync == 0:
                self.cluster.replicas_NPE.copy_(self.cluster.fresh_PE.expand_as(self.cluster.replicas_NPE))
            self.masks.append({phase: mask.clone() for phase, mask in self.cluster.round.arrived.items()})
            self.replicas.append(self.cluster.replicas_NPE.clone())
            self.fresh.append(self.cluster.fresh_PE.clone())

    def step(self, batch_N, step, one, options):
        before = self.cluster.replicas_NPE.clone()
        payload, losses = self.cluster.gradients(batch_N)
        self.losses.append(losses.tolist())

        def update(estimate):
            estimate = estimate.clone()
            if options.get("after") is divided:
                estimate *= self.cluster.ranks / FACTOR
            if one is clipped:
                estimate *= min(1.0, clip_at(step) / (float(estimate.norm()) + 1e-6))
            if one is not skipping or step % 4 != 1:
                self.cluster._update(estimate)

        self.cluster.round.step(payload, update)
        if one is skipping and step % 4 == 1:
            self.cluster.round.replicas_HPE = before


SIX = GilbertElliott(0.2, 4)
CASES = {
    2: [
        ("mlp", "AdamW", Bernoulli(0.3), plain, {"seed": 3}, {}),
        ("mlp", "SGD", Bernoulli(0.3), plain, {"own_link": "lossy", "no_survivor": "hold"},
         {"fsdp": {"reshard_after_forward": False}}),
        ("mlp", "SGD", Bernoulli(0.3), accumulated, {"seed": 6}, {"attach": {"stale": "cpu"}}),
        ("mlp", "SGD", Bernoulli(0.3), reduced_by_parts, {"seed": 6}, {}),
        ("mlp", "SGD", Bernoulli(0.3), plain, {}, {"after": divided}),
    ],
    3: [
        ("llama", "AdamW", Bernoulli(0.1), plain, {"own_link": "lossy", "no_survivor": "own", "seed": 1 << 40}, {}),
        ("mlp", "SGD", PerSender((0.1, 0.2, 0.3)), clipped, {"rule": "inverse_probability"}, {"after": prefetch}),
        ("mlp", "AdamW", SIX, skipping, {"seed": 4}, {}),
        ("mlp", "SGD", CommonOutage(0.1, 0.1), plain, {"rule": "zero_fill", "resync_every": 3}, {"before": freeze}),
    ],
    4: [
        ("mlp", "SGD", GilbertElliott(0.1, 3, clock="packet"), plain, {}, {"fsdp": {"reshard_after_forward": 2}}),
    ],
}  # fmt: skip


def require_same(found, reference, rank):
    owner_P = np.array(reference.cluster.owner_P)
    for step, replica in found["replicas"].items():
        expected = dict(zip(reference.cluster._names, reference.cluster.layout.unpack(reference.replicas[step][rank]),
                            strict=True))  # fmt: skip
        for name, value in expected.items():
            assert torch.allclose(replica[name], value, rtol=1e-9, atol=1e-10), (step, name)
    for name, value in reference.cluster.owners_model().items():
        assert torch.allclose(found["owners"][name], value, rtol=1e-9, atol=1e-10), name
    for record, masks in zip(found["steps"], reference.masks, strict=False):
        lost_2N = np.zeros_like(record.lost_2N)
        for packet, home in enumerate(owner_P):
            if home == rank:
                lost_2N[0] += ~masks["gradients"][:, packet].numpy()
            elif record.offered_2N[1].any():
                lost_2N[1, home] += not masks["parameters"][rank, packet]
        lost_2N[:, rank] = 0
        assert np.array_equal(record.lost_2N, lost_2N), record.step
        assert not record.reliable or not record.offered_2N[1].any()
    sample = np.linspace(0, len(owner_P) - 1, min(64, len(owner_P))).astype(int)
    assert [drift.step for drift in found["drift"]] == list(range(2, STEPS, 2))
    for drift in found["drift"]:
        gap = reference.replicas[drift.step][:, sample] - reference.fresh[drift.step][sample]
        expected = float(gap.square().sum()) / (len(sample) * (reference.cluster.ranks - 1))
        assert np.isclose(drift.owner, expected, rtol=1e-6, atol=1e-18), drift.step


@pytest.mark.parametrize("ranks", CASES)
def test_masks_and_parameters_are_those_of_the_in_process_cluster(ranks):
    every = together(played, ranks, CASES[ranks])
    for number, case in enumerate(CASES[ranks]):
        reference = Reference(ranks, case)
        for rank in range(ranks):
            found = every[rank][number]
            require_same(found, reference, rank)
            if case[3] is plain:
                ours = [losses[rank] for losses in reference.losses]
                assert np.allclose(found["losses"], ours, rtol=1e-9), (number, rank)
            assert len(found["steps"]) == STEPS + 1
            assert found["skipped"] == (2 if case[3] is skipping else 0)
        assert sum(one[number]["no_survivor"] for one in every) == reference.cluster.counts.no_survivor
        lost = every[0][number]["telemetry"]["lost"].sum((1, 2))
        assert lost[0] == reference.cluster.counts.gradients_lost
        assert lost.all()
        if case[3] is plain:  # one reduction a step
            assert sum(one[number]["counts"].gradients_lost for one in every) == lost[0]
            assert sum(one[number]["counts"].no_survivor for one in every) == reference.cluster.counts.no_survivor
        assert [record.step for record in every[0][number]["steps"] if record.reliable] == (
            [2, 5, 8] if "resync_every" in case[4] else []
        )


def test_a_hybrid_mesh_is_a_cluster_of_machines():
    """Two machines of two ranks: N = 2, a machine's gradient is the mean of its ranks', p is that between machines."""
    case = ("mlp", "AdamW", Bernoulli(0.3), plain, {"seed": 8},
            {"mesh": (2, 2), "attach": {"lossy_dimension": "shard"}})  # fmt: skip
    every, reference = together(played, 4, [case]), Reference(2, case, inside=2)
    for rank, (found,) in enumerate(every):
        require_same(found, reference, rank % 2)


def rounded(cases):
    """Replica against owners, unit by unit and step by step, from the masks alone: where they differ."""
    torch.set_default_dtype(torch.float32)
    wrong = []
    for number, (model, law, options, dtype, kept) in enumerate(cases):
        job = Job(model, "AdamW", law, **options)
        layout, rank = job.lossy.layout, job.lossy.exchange.rank
        arrivals = Arrivals(law, layout.owner_P, job.lossy.exchange.ranks)
        names = job.lossy.names
        current = layout.pack([job.owners()[name].to(dtype) for name in names])
        for step in range(STEPS - 3):
            loss = job.loss(step)
            if step == 3:  # evaluation in between
                with torch.inference_mode():
                    job.loss(step)
            before = job.replica()
            loss.backward()
            again = job.replica()  # the backward pass has gathered again
            wrong += [(number, step, name) for name in names if not before[name].equal(again[name])]
            job.opt.step()
            job.opt.zero_grad()
            fresh = layout.pack([job.owners()[name].to(dtype) for name in names])
            arrived = arrivals.parameters(step)[rank]
            current = torch.where(arrived[:, None], fresh, current.to(kept).to(dtype))
            for name, value in zip(names, layout.unpack(current), strict=True):
                found = job.replica()[name]
                if found.dtype != dtype or not found.equal(value):
                    wrong.append((number, step, name, float((found - value).abs().max())))
    return wrong


def idled():
    """Where the last replica is not what arrived last, although a unit sat out most forward passes."""
    torch.set_default_dtype(torch.float32)
    job = Job("idle", "SGD", Bernoulli(0.4), after=with_unused)
    arrivals = Arrivals(Bernoulli(0.4), job.lossy.layout.owner_P, job.lossy.exchange.ranks)
    current = job.lossy.layout.pack([job.owners()[name] for name in job.lossy.names])
    for step in range(STEPS):
        plain(job, step)
        fresh = job.lossy.layout.pack([job.owners()[name] for name in job.lossy.names])
        arrived = arrivals.parameters(step)[job.rank]
        current = torch.where(arrived[:, None], fresh, current)
    expected = dict(zip(job.lossy.names, job.lossy.layout.unpack(current), strict=True))
    return [name for name, value in job.replica().items() if not value.equal(expected[name])]


def test_a_unit_that_sits_out_a_step_receives_its_broadcast_all_the_same():
    assert together(idled, 2) == [[]] * 2


def test_replicas_are_what_arrived_last_in_every_precision():
    whole, half = torch.float32, torch.bfloat16
    cases = [
        ("mlp", Bernoulli(0.4), {}, whole, whole),
        ("mlp", Bernoulli(0.4), {"attach": {"stale": "bfloat16"}}, whole, half),
        ("mlp", Bernoulli(0.4), {"fsdp": {"mp_policy": HALF}, "attach": {"stale": "bfloat16"}}, half, half),
        ("mlp", Bernoulli(0.4), {"fsdp": {"mp_policy": HALF}, "attach": {"stale": "cpu"}}, half, half),
        ("mlp", Bernoulli(0.4), {"after": prefetch, "attach": {"stale": "bfloat16"}}, whole, half),
    ]
    assert together(rounded, 2, cases) == [[]] * 2
