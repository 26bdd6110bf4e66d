"""Mistakes that were found in code of this field. Each test fails if its mistake is made here.

- gradients not zeroed between simulated workers, so that worker i sends the sum of the first i;
- lost parameters replaced by zero instead of the stale value;
- a burst clock that ticks once per tensor, so that bursts mean something else for every model;
- losses drawn from torch's global generator;
- an injection that the framework no longer calls, so that nothing is ever lost;
- a sum that is never divided by N, hidden by Adam.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from scipy.stats import binomtest

from lossproof.impl.cluster import Cluster
from lossproof.impl.loss import Arrivals
from lossproof.theory.laws import Bernoulli, GilbertElliott, Law

RANKS = 4


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))


def objective(model: Any, batch: torch.Tensor) -> torch.Tensor:
    return (model(batch) - 1).square().mean()  # type: ignore[no-any-return]


def cluster(law: Law, ranks: int = RANKS, optimizer: Any = torch.optim.SGD, **options: Any) -> Cluster:
    options = {"packet_bytes": 8, "seed": 3} | options
    return Cluster(model(), objective, partial(optimizer, lr=0.05), law, ranks, **options)


def batches(step: int, ranks: int = RANKS) -> torch.Tensor:
    return torch.randn(ranks, 6, 3, generator=torch.Generator().manual_seed(step))


def replica(cluster: Cluster, rank: int) -> torch.nn.Module:
    """Rank's model as an ordinary module with ordinary parameters."""
    alone = model()
    for parameter, value in zip(alone.parameters(), cluster.layout.unpack(cluster.replicas_NPE[rank]), strict=True):
        parameter.data.copy_(value)
    return alone


def test_every_rank_sends_its_own_gradient_and_no_other() -> None:
    c = cluster(Bernoulli(0.5))
    for step in range(3):
        batch = batches(step)
        for _ in range(2):  # asking again adds nothing to what is there
            payload, losses = c.gradients(batch)
        for rank in range(RANKS):
            alone = replica(c, rank)
            loss = objective(alone, batch[rank])
            loss.backward()  # type: ignore[no-untyped-call]
            expected = c.layout.pack([p.grad for p in alone.parameters() if p.grad is not None])
            torch.testing.assert_close(payload[rank], expected, rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(losses[rank], loss.detach(), rtol=1e-6, atol=0)
        c.step(batch)
    assert not torch.equal(c.replicas_NPE[0], c.replicas_NPE[1])


def test_a_lost_parameter_packet_leaves_the_stale_value() -> None:
    c = cluster(Bernoulli(0.5))
    stale = 0
    for step in range(6):
        before = c.replicas_NPE.clone()
        c.step(batches(step))
        arrived = Arrivals(Bernoulli(0.5), c.layout.owner_P, RANKS, seed=3).parameters(step)
        for rank, packet in torch.cartesian_prod(torch.arange(RANKS), torch.arange(c.layout.packets)).tolist():
            source = c.fresh_PE if arrived[rank, packet] else before[rank]
            assert torch.equal(c.replicas_NPE[rank, packet], source[packet])
            stale += not arrived[rank, packet]
    assert stale > 50
    assert c.replicas_NPE.count_nonzero() > 0.9 * c.replicas_NPE.numel()


@pytest.mark.parametrize("packets", [1, 3, 40])
def test_a_burst_lasts_as_many_steps_for_every_model(packets: int) -> None:
    """With a clock that ticks per tensor or packet, more packets would mean shorter bursts in steps."""
    law, steps, ranks = GilbertElliott(0.2, burst=5), 40, 121
    arrivals = Arrivals(law, [0] * packets, ranks, seed=11)
    lost = torch.stack([~arrivals.parameters(step)[1:, 0] for step in range(steps)])  # packet 0 of each link
    in_burst = int(lost[:-1].sum())
    goes_on = int((lost[:-1] & lost[1:]).sum())
    assert binomtest(goes_on, in_burst, 1 - 1 / 5).pvalue > 1e-9
    alone = Arrivals(law, [0], ranks, seed=11)
    assert torch.equal(lost, torch.stack([~alone.parameters(step)[1:, 0] for step in range(steps)]))


def test_a_burst_does_not_know_where_tensors_end() -> None:
    """The same elements as one tensor or as many: the same number of packets, the same masks."""
    law = GilbertElliott(0.4, burst=5)
    masks = []
    for shapes in ([(12, 2)], [(4, 2), (4, 2), (4, 2)], [(1, 2)] * 12):
        net = torch.nn.Module()
        for number, shape in enumerate(shapes):
            net.register_parameter(f"p{number}", torch.nn.Parameter(torch.ones(shape)))
        c = Cluster(
            net,
            lambda model, x: (x * 0).sum(),
            partial(torch.optim.SGD, lr=0.1),
            law,
            2,
            layout="flat",
            packet_bytes=8,
        )
        channel = c.round.channel
        seen = [channel.parameters(step, c.fresh_PE)[1] for step in range(10)]
        masks.append(torch.stack(seen))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("law", [Bernoulli(0.5), GilbertElliott(0.5, burst=3, clock="packet")])
def test_losses_have_nothing_to_do_with_the_global_generator(law: Law) -> None:
    results = []
    for global_seed in (1, 2):
        c = cluster(law)
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        for step in range(4):
            c.step(batches(step))
        assert torch.equal(torch.get_rng_state(), before)
        results.append((c.round.counts, c.replicas_NPE))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("layout", ["flat", "tensors", "dim0"])
def test_packets_really_get_lost(layout: Any) -> None:
    """Counted where the protocol runs, not where losses are drawn; and seen in what the ranks hold."""
    c = cluster(Bernoulli(0.1), layout=layout)
    for step in range(40):
        c.step(batches(step))
    counts = c.round.counts
    links = (RANKS - 1) * c.layout.packets * 40
    assert counts.gradients_offered == counts.parameters_offered == links
    assert binomtest(counts.gradients_lost, links, 0.1).pvalue > 1e-9
    assert binomtest(counts.parameters_lost, links, 0.1).pvalue > 1e-9
    assert any(not torch.equal(c.replicas_NPE[rank], c.fresh_PE) for rank in range(RANKS))


@pytest.mark.parametrize("rule", ["survivor_mean", "zero_fill", "inverse_probability"])
def test_a_step_is_as_long_for_every_number_of_ranks(rule: Any) -> None:
    """With SGD, whose step shows the gradient's length: N ranks with one and the same batch move as one rank does."""
    moved = {}
    for ranks in (1, 2, 4, 8):
        c = cluster(Bernoulli(0), ranks, rule=rule, layout="flat")
        before = c.owners_model()
        c.step(batches(0, 1).expand(ranks, -1, -1))
        moved[ranks] = {name: value - before[name] for name, value in c.owners_model().items()}
    for ranks in (2, 4, 8):
        for name, value in moved[1].items():
            torch.testing.assert_close(moved[ranks][name], value, rtol=1e-5, atol=1e-7)
    assert max(float(value.abs().max()) for value in moved[1].values()) > 1e-3
