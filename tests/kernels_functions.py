"""`aggregate`, `retain` and training with the kernels as their bodies, in Triton's interpreter.

`test_kernels.py` runs this file. Legend: N ranks, P packets, E elements of a packet.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_interpreter import FALLBACKS, KERNELS, NAN, RULES, same_bits

from lossproof.impl import aggregate as plain_1
from lossproof.impl import kernels
from lossproof.impl import retain as plain_2
from lossproof.impl.cluster import Cluster
from lossproof.proofs_checks.realised_drift import DriftMeter
from lossproof.theory.laws import Bernoulli


@pytest.mark.parametrize("order", ["NEP", "PNE", "2E", "mask"])
def test_arguments_may_lie_in_memory_as_they_like(order: str) -> None:
    random = torch.Generator().manual_seed(0)
    payload, arrived = torch.randn(3, 4, 10, generator=random), torch.rand(3, 4, generator=random) < 0.6
    scattered = {
        "NEP": payload.transpose(1, 2).contiguous().transpose(1, 2),
        "PNE": payload.transpose(0, 1).contiguous().transpose(0, 1),
        "2E": payload.repeat_interleave(2, -1)[..., ::2],
        "mask": payload,
    }[order]
    mask = arrived.T.contiguous().T
    expected = plain_1.aggregate(payload, arrived)[0]
    assert same_bits(KERNELS.stage1.aggregate(scattered, mask, survivors_divide=True)[0], expected)
    expected = plain_2.retain(payload, payload.flip(0), arrived)
    assert same_bits(KERNELS.stage2.retain(scattered, scattered.flip(0), mask), expected)
    assert same_bits(
        KERNELS.stage2.retain(scattered[0], scattered[1], mask[0]), plain_2.retain(payload[0], payload[1], arrived[0])
    )


def test_nothing_to_do() -> None:
    mask = torch.ones(2, 0, dtype=torch.bool)
    estimate, count, bad = KERNELS.stage1.aggregate(
        torch.ones(2, 0, 3), mask, survivors_divide=True, find_non_finite=True
    )
    assert (estimate.shape, count.shape, bad) == ((0, 3), (0,), 0)
    assert KERNELS.stage2.retain(torch.ones(2, 0, 3), torch.ones(0, 3), mask).shape == (2, 0, 3)
    nothing = torch.ones(0, 3, dtype=torch.bool)
    assert KERNELS.stage2.retain(torch.ones(0, 3, 4), torch.ones(3, 4), nothing).shape == (0, 3, 4)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda device: True)


@pytest.mark.usefixtures("on_gpu")
@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 3), st.sampled_from(RULES), st.sampled_from(FALLBACKS), st.integers(0, 2**31))
def test_the_functions_pass_everything_on(N: int, P: int, rule: Any, no_survivor: Any, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    payload = torch.randint(-8, 9, (N, P, 3), generator=random).float()
    arrived = torch.rand(N, P, generator=random) < 0.4
    options: dict[str, Any] = {
        "no_survivor": no_survivor,
        "arrival_probability_N": 0.5 ** torch.randint(0, 3, (N,), generator=random).double(),
        "previous_PE": torch.randn(P, 3, generator=random),
        "owner": seed % N,
    }
    found = plain_1.aggregate(payload, arrived, rule, **options)
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setattr(kernels, "available", lambda device: False)
        expected = plain_1.aggregate(payload, arrived, rule, **options)
        kept = plain_2.retain(payload, payload[0], arrived)
    assert same_bits(found[0], expected[0] + 0.0)
    assert torch.equal(found[1], expected[1])
    assert same_bits(plain_2.retain(payload, payload[0], arrived), kept)


@pytest.mark.usefixtures("on_gpu")
def test_errors_are_those_of_the_plain_body() -> None:
    payload, arrived = torch.ones(2, 3, 4), torch.tensor([[True, False, True], [True, False, True]])
    with pytest.raises(ValueError, match="no survivor for packet 1"):
        plain_1.aggregate(payload, arrived, no_survivor="raise")
    payload[1, 2, 3] = NAN
    with pytest.raises(plain_1.NonFiniteGradient, match="estimate of packet 2 is not finite"):
        plain_1.aggregate(payload, arrived)
    estimate, _ = plain_1.aggregate(payload, arrived, non_finite="carry")
    assert int(estimate.isnan().sum()) == 1


def test_the_plain_body_serves_the_cpu_and_whoever_wants_a_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not kernels.serve(torch.ones(1))
    monkeypatch.setattr(kernels, "available", lambda device: True)
    assert kernels.serve(torch.ones(1), torch.ones(1, dtype=torch.bfloat16))
    assert not kernels.serve(torch.ones(1, dtype=torch.complex64))
    wanted = torch.ones(1, requires_grad=True)
    assert not kernels.serve(torch.ones(1), wanted)
    with torch.no_grad():
        assert kernels.serve(wanted)


def trained() -> tuple[Cluster, DriftMeter]:
    random = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(3, 5)
    model.load_state_dict({"weight": torch.randn(5, 3, generator=random), "bias": torch.randn(5, generator=random)})
    cluster = Cluster(
        model, lambda model, x: model(x).square().mean(), partial(torch.optim.SGD, lr=0.1), Bernoulli(0.6), ranks=4,
        packet_bytes=16, no_survivor="hold", own_link="lossy",
    )  # fmt: skip
    meter = DriftMeter.of(cluster)
    for _ in range(4):
        before = cluster.fresh_PE.clone()
        cluster.step(torch.randn(4, 6, 3, generator=random))
        meter.observe(cluster, cluster.fresh_PE - before)
    return cluster, meter


def test_training_is_the_same_with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks, estimates and replicas bit for bit; the drift, measured in the pass of stage 2, to rounding."""
    here, plain_meter = trained()
    monkeypatch.setattr(kernels, "available", lambda device: True)
    there, fused_meter = trained()
    assert here.counts == there.counts
    assert here.counts.no_survivor > 0
    assert same_bits(here.replicas_NPE, there.replicas_NPE)
    assert same_bits(here.fresh_PE, there.fresh_PE)
    assert here.round.drift is None
    assert there.round.drift is not None
    for name in ("owner", "pair"):
        plain, fused = plain_meter.summary()[name], fused_meter.summary()[name]
        assert fused["measured"] == pytest.approx(plain["measured"], rel=1e-5)
        assert plain["measured"] > 0
