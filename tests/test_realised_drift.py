"""The drift meter against the double sum of its definition, and against averages over all mask histories."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch

from lossproof.impl.loss import Arrivals
from lossproof.impl.retain import retain
from lossproof.proofs_checks.realised_drift import DriftMeter, geometric_tails
from lossproof.theory.laws import Bernoulli, CommonOutage, GilbertElliott, Law, PerSender, Trace

OWNERS = (0, 1, 1, 2)


def walk(steps: int, packets: int = len(OWNERS), elements: int = 3) -> torch.Tensor:
    """Strongly correlated steps u_t, float64 (T, P, E)."""
    noise = torch.randn(steps, packets, elements, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return noise.cumsum(0) * 0.3 + noise


def double_sum(law: Law, steps_TPE: torch.Tensor, owners: tuple[int, ...], ranks: int) -> tuple[float, float]:
    """Per packet, averaged over packets and over all steps: straight from the definition, (owner, pair)."""
    T, total_owner, total_pair = len(steps_TPE), 0.0, 0.0
    for p, owner in enumerate(owners):
        tail = [float(law.age_tail(k, owner, (owner + 1) % ranks)) for k in range(T + 2)]
        dot = steps_TPE[:, p] @ steps_TPE[:, p].T
        for t in range(T):
            for k, l in product(range(t + 1), repeat=2):
                total_owner += tail[max(k, l) + 1] * float(dot[t - k, t - l])
                total_pair += 2 * (tail[max(k, l) + 1] - tail[k + 1] * tail[l + 1]) * float(dot[t - k, t - l])
    return total_owner / T / len(owners), total_pair / T / len(owners)


def fed(law: Law, steps_TPE: torch.Tensor, owners: tuple[int, ...] = OWNERS, ranks: int = 4) -> DriftMeter:
    meter, fresh = DriftMeter(law, owners, ranks), torch.zeros_like(steps_TPE[0])
    for step_PE in steps_TPE:
        fresh = fresh + step_PE
        meter.add(step_PE, fresh, fresh.expand(ranks, *fresh.shape))
    return meter


@pytest.mark.parametrize(
    "law",
    [
        Bernoulli(0),
        Bernoulli(0.3),
        GilbertElliott(0.2, burst=5),
        GilbertElliott(0.3, burst=1.5),
        PerSender((0.1, 0.5, 0, 0.9)),
    ],
)
def test_the_recursion_is_the_double_sum(law: Law) -> None:
    steps = walk(9)
    summary = fed(law, steps).summary()
    owner, pair = double_sum(law, steps, OWNERS, 4)
    assert summary["owner"]["predicted"] == pytest.approx(owner, rel=1e-12, abs=1e-14)
    assert summary["pair"]["predicted"] == pytest.approx(pair, rel=1e-12, abs=1e-14)


def bernoulli_weight(arrived: tuple[bool, ...]) -> Fraction:
    """Of one link's history at loss 1/3."""
    return Fraction(1, 3) ** arrived.count(False) * Fraction(2, 3) ** arrived.count(True)


def bursty_weight(arrived: tuple[bool, ...]) -> Fraction:
    """Of one link's history at loss 1/5 in bursts of mean 4: bad stays bad with 3/4, good turns bad with 1/16."""
    weight = Fraction(4, 5) if arrived[0] else Fraction(1, 5)
    for before, now in pairwise(arrived):
        stays_or_turns_bad = Fraction(1, 16) if before else Fraction(3, 4)
        weight *= 1 - stays_or_turns_bad if now else stays_or_turns_bad
    return weight


@pytest.mark.parametrize(
    ("law", "weight"),
    [(Bernoulli(Fraction(1, 3)), bernoulli_weight), (GilbertElliott(Fraction(1, 5), burst=4), bursty_weight)],
)
def test_the_prediction_is_the_mean_over_all_mask_histories(law: Law, weight: Callable[..., Fraction]) -> None:
    """Three ranks, one packet of rank 0: every history of both links with its exact weight, against the prediction."""
    steps = walk(4, packets=1)
    found, histories = torch.zeros(2, dtype=torch.float64), list(product((True, False), repeat=len(steps)))
    assert sum(weight(history) for history in histories) == 1
    for one, two in product(histories, repeat=2):
        meter, fresh = DriftMeter(law, [0], 3), torch.zeros(1, 3, dtype=torch.float64)
        replicas = fresh.expand(3, 1, 3)
        for step, arrived_1, arrived_2 in zip(steps, one, two, strict=True):
            fresh = fresh + step
            replicas = retain(replicas, fresh, torch.tensor([[True], [arrived_1], [arrived_2]]))
            meter.add(step, fresh, replicas)
        summary = meter.summary()
        measured = torch.tensor([summary[name]["measured"] for name in ("owner", "pair")], dtype=torch.float64)
        found += float(weight(one) * weight(two)) * measured
    assert found[0].item() == pytest.approx(summary["owner"]["predicted"], rel=1e-12)
    assert found[1].item() == pytest.approx(summary["pair"]["predicted"], rel=1e-12)


def test_measured_is_the_mean_over_pairs_of_distinct_non_owners() -> None:
    generator = torch.Generator().manual_seed(0)
    fresh = torch.randn(len(OWNERS), 3, generator=generator, dtype=torch.float64)
    replicas = torch.randn(4, len(OWNERS), 3, generator=generator, dtype=torch.float64)
    to_owner, pairs = [], []
    for p, owner in enumerate(OWNERS):
        replicas[owner, p] = fresh[p]
        others = [rank for rank in range(4) if rank != owner]
        to_owner += [float((replicas[i, p] - fresh[p]).square().sum()) for i in others]
        pairs += [float((replicas[i, p] - replicas[j, p]).square().sum()) for i in others for j in others if i < j]
    meter = DriftMeter(Bernoulli(0.1), OWNERS, 4)
    meter.add(fresh, fresh, replicas)
    assert meter.summary()["owner"]["measured"] == pytest.approx(np.mean(to_owner))
    assert meter.summary()["pair"]["measured"] == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(
    "law", [Bernoulli(0.3), GilbertElliott(0.2, burst=4), PerSender((0.1, 0.4, 0.2, 0.3, 0.0, 0.0))]
)
def test_measured_meets_predicted_for_steps_that_ignore_the_masks(law: Law) -> None:
    """Real masks, 600 packets; bursts leave a spread of 2 % between seeds, and the seed is fixed."""
    owners, ranks = [p % 4 for p in range(600)], 6
    arrivals, meter = Arrivals(law, owners, ranks, seed=1), DriftMeter(law, owners, ranks)
    fresh = torch.zeros(600, 2, dtype=torch.float64)
    replicas = fresh.expand(ranks, 600, 2)
    steps = torch.randn(60, 600, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3
    for t, step in enumerate(steps):
        fresh = fresh + step
        replicas = retain(replicas, fresh, arrivals.parameters(t))
        meter.add(step, fresh, replicas)
    assert meter.summary()["owner"]["ratio"] == pytest.approx(1, abs=0.08)
    assert meter.summary()["pair"]["ratio"] == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize(
    ("law", "reason"),
    [
        (Trace("0010110", clock="step"), "not geometric"),
        (GilbertElliott(0.2, burst=5, loss_good=0.1), "not geometric"),
        (GilbertElliott(0.2, burst=5, clock="packet"), "step clock"),
        (Trace("00110"), "step clock"),
        (Trace((((0, 1), "01"), ((0, 2), "001"), ((1, 0), "0"), ((1, 2), "0"), ((2, 0), "0"), ((2, 1), "0")), "step"),
         "differs between receivers"),
    ],
)  # fmt: skip
def test_no_prediction_without_a_geometric_tail(law: Law, reason: str) -> None:
    meter = fed(law, walk(3)[:, :2], owners=(0, 1), ranks=3)
    assert reason in meter.summary()["reason"]
    assert meter.summary()["pair"] == {"measured": 0.0, "predicted": None, "ratio": None}


def test_tails_come_from_the_law_of_the_packets_owner() -> None:
    tails, reason = geometric_tails(PerSender((0.1, 0.5, 0)), [0, 1, 2], 3)
    assert reason is None
    assert tails == {0: (0.1, 0.1), 1: (0.5, 0.5), 2: (0.0, 0.0)}


def test_two_ranks_have_no_pair_and_one_has_nothing() -> None:
    two = fed(Bernoulli(0.1), walk(2)[:, :1], owners=(0,), ranks=2).summary()
    assert two["pair"] is None
    assert two["owner"]["ratio"] == 0
    assert fed(Bernoulli(0.1), walk(2)[:, :1], owners=(0,), ranks=1).summary()["owner"] is None
    assert fed(Bernoulli(0), walk(2)).summary()["owner"] == {"measured": 0.0, "predicted": 0.0, "ratio": None}


def test_resume_is_bit_for_bit() -> None:
    law, steps = GilbertElliott(0.2, burst=3), walk(8)
    meters: list[DriftMeter] = [DriftMeter(law, OWNERS, 4) for _ in range(2)]
    fresh: Any = torch.zeros_like(steps[0])
    for t, step in enumerate(steps):
        fresh = fresh + step
        if t == 4:
            meters[1].load_state_dict(meters[0].state_dict())
        for meter in meters if t >= 4 else meters[:1]:
            meter.add(step, fresh, torch.stack([fresh, fresh - step, fresh, fresh + 1]))
    assert meters[0].summary() == meters[1].summary()


def test_dependent_links_get_no_pairwise_prediction():
    """Replicas that miss the same packets drift less from each other than independent ones (B9)."""
    meter = DriftMeter(CommonOutage(0.5, outage=0.25), owner_P=[0], ranks=3)
    one = torch.ones(1, 1)
    meter.add(one, one, torch.stack([one, one, 0 * one]))
    assert meter.summary()["owner"]["predicted"] == 0.5
    assert meter.summary()["pair"] == {"measured": 1.0, "predicted": None, "ratio": None}
