"""Stage 1 in Triton's interpreter against the plain body on the CPU; `test_kernels.py` runs this file.

Legend: N ranks, P packets, E elements of a packet.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_interpreter import (
    FALLBACKS,
    FAR,
    FLOATS,
    KERNELS,
    NAN,
    RULES,
    Check,
    both_tests,
    place,
    run,
    same_bits,
    spread,
    ulps,
)  # fmt: skip

from lossproof.impl import aggregate as plain


def stage_1(
    k: Any, payload: torch.Tensor, mask: Any, rule: str, no_survivor: str, q: Any, previous: Any, own: Any
) -> Any:
    """The kernel with every array at the end of memory."""
    wide = torch.promote_types(payload.dtype, torch.float32)
    first_bad = torch.full((1,), payload.shape[1])
    launch, estimate, count = k.stage1.stage1_launch(
        place(payload),
        mask if isinstance(mask, k.masks.Draw) else place(mask),
        survivors_divide=rule == "survivor_mean",
        weight_NP=place((1 / q).to(wide)) if rule == "inverse_probability" else None,
        previous_PE=place(previous) if no_survivor == "hold" else None,
        own_P=own if no_survivor == "own" else None,
        first_bad=first_bad,
    )
    estimate, count = place(estimate), place(count)
    run(launch, estimate_ptr=estimate, count_ptr=count)
    return estimate, count, int(first_bad)


def check_stage_1(k: Any, N: int, P: int, E: int, dtype: torch.dtype, rule: Any, no_survivor: Any, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    whole = seed % 2 == 0  # whole numbers and powers of two: every sum is exact, so even weights leave no doubt
    payload = (
        torch.randint(-8, 9, (N, P, E), generator=random) if whole else torch.randn(N, P, E, generator=random)
    ).to(dtype)
    arrived = torch.rand(N, P, generator=random) < torch.rand(P, generator=random)
    arrived[:, seed % P] &= bool(seed % 3)
    q = 0.5 ** torch.randint(0, 3, (N, P), generator=random).double()
    q = q if whole else q * 0.9
    previous = torch.randn(P, E, generator=random).to(dtype)
    own = torch.randint(0, N, (P,), generator=random)
    options = {"no_survivor": no_survivor, "arrival_probability_N": q, "previous_PE": previous, "owner": own}
    expected, expected_count = plain.aggregate(payload, arrived, rule, **options)

    dirty = payload.clone()
    lost = ~arrived
    if no_survivor == "own":
        lost[own, torch.arange(P)] = False
    dirty[lost] = NAN
    estimate, count, bad = stage_1(k, dirty, arrived, rule, no_survivor, q, previous, own)
    assert torch.equal(count, expected_count)
    assert bad == P
    if dtype in (torch.float32, torch.float64):
        if rule != "inverse_probability" or whole:
            assert same_bits(estimate, expected + 0.0)  # + 0: a fallback of -0 is as good
        else:  # the plain body may fuse its multiplications and additions, the kernel may not
            size = (payload.abs() / q[..., None].to(dtype) * arrived[..., None]).sum(0) / N
            assert ((estimate - expected).abs() <= (N + 3) * torch.finfo(dtype).eps * size).all()
    else:
        assert ulps(estimate, expected) <= 1


@settings(max_examples=120)
@given(
    st.one_of(st.integers(1, 6), st.integers(15, 34)),
    st.integers(1, 3),
    st.one_of(st.integers(1, 40), st.sampled_from([128, 256, 513, 1030])),
    st.sampled_from(FLOATS),
    st.sampled_from(RULES),
    st.sampled_from(FALLBACKS),
    st.integers(0, 2**31),
)
def test_stage_1_is_the_plain_body(N: int, P: int, E: int, dtype: Any, rule: str, no_survivor: str, seed: int) -> None:
    check_stage_1(KERNELS, N, P, E, dtype, rule, no_survivor, seed)


@pytest.mark.parametrize("N", [255, 1024])
def test_many_ranks(N: int) -> None:
    check_stage_1(KERNELS, N, 2, 5, torch.float32, "survivor_mean", "zero", seed=1)


def many_in_16_bits(k: Any) -> None:
    """Sums of many small numbers with large ones: to be summed in float32, and rounded once."""
    random = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        payload = (1 + torch.rand(200, 2, 24, generator=random)).to(dtype)
        everything = torch.ones(200, 2, dtype=torch.bool)
        exact = payload.double().mean(0).to(dtype)
        assert ulps(k.stage1.aggregate(payload, everything, survivors_divide=True)[0], exact) <= 1


def test_sixteen_bits_are_summed_in_float32() -> None:
    many_in_16_bits(KERNELS)


def test_stage_1_finds_the_first_packet_that_is_not_finite() -> None:
    payload = torch.zeros(3, 4, 600)
    payload[1, 2, 599], payload[0, 3, 0] = NAN, float("inf")
    everything = torch.ones(3, 4, dtype=torch.bool)
    assert KERNELS.stage1.aggregate(payload, everything, survivors_divide=True, find_non_finite=True)[2] == 2
    everything[1, 2] = False
    assert KERNELS.stage1.aggregate(payload, everything, survivors_divide=True, find_non_finite=True)[2] == 3
    half = torch.full((2, 1, 1), 6e4, dtype=torch.float16)  # the sum is above what float16 holds, the mean is not
    assert KERNELS.stage1.aggregate(half, everything[:2, :1], survivors_divide=True, find_non_finite=True)[2] == 1
    four = KERNELS.stage1.aggregate(
        half, everything[:2, :1], survivors_divide=True, find_non_finite=True, weight_NP=torch.full((2, 1), 4.0)
    )
    assert four[2] == 0  # stored as float16 it overflows


def check_far_senders(k: Any) -> None:
    payload = torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(0))
    arrived = torch.ones(3, 3, dtype=torch.bool)
    arrived[0, 1] = False
    launch, estimate, _ = k.stage1.stage1_launch(payload, arrived, survivors_divide=True)
    run(launch, payload_ptr=spread(payload)[0], payload_stride_n=FAR)
    assert same_bits(estimate, plain.aggregate(payload, arrived)[0])
    own = torch.tensor([2, 2, 0])
    launch, estimate, _ = k.stage1.stage1_launch(payload, ~arrived, survivors_divide=True, own_P=own)
    run(launch, payload_ptr=spread(payload)[0], payload_stride_n=FAR)
    assert same_bits(estimate, plain.aggregate(payload, ~arrived, no_survivor="own", owner=own)[0])
    weight = torch.tensor([[1.0, 2, 4], [2, 4, 8], [4, 8, 16]])
    launch, estimate, _ = k.stage1.stage1_launch(payload.round(), arrived, survivors_divide=False, weight_NP=weight)
    run(launch, weight_ptr=spread(weight)[0], weight_stride_n=FAR)
    expected, _ = plain.aggregate(payload.round(), arrived, "inverse_probability", arrival_probability_N=1 / weight)
    assert same_bits(estimate, expected)


def check_far_packets(k: Any) -> None:
    payload = torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(0))
    by_packet = payload.transpose(0, 1).contiguous()
    everything = torch.ones(3, 3, dtype=torch.bool)
    launch, estimate, _ = k.stage1.stage1_launch(by_packet.transpose(0, 1), everything, survivors_divide=True)
    run(launch, payload_ptr=spread(by_packet)[0], payload_stride_n=8, payload_stride_p=FAR)
    assert same_bits(estimate, plain.aggregate(payload, everything)[0])


@pytest.mark.parametrize("check", [check_far_senders, check_far_packets])
def test_offsets_beyond_two_to_the_31(check: Check) -> None:
    check(KERNELS)


def everything(k: Any) -> None:
    for seed, rule in enumerate(RULES * 2):
        for no_survivor in FALLBACKS:
            check_stage_1(k, 18, 3, 20, torch.float32, rule, no_survivor, 7 * seed)
            check_stage_1(k, 3, 2, 20, torch.bfloat16, rule, no_survivor, 7 * seed + 1)


MISTAKES: dict[str, tuple[Check, str, str, str]] = {
    "the mask of the packet before": (
        everything, "masks", "packet[None, :] * arrived_stride_p", "(packet[None, :] - 1) * arrived_stride_p"),
    "the mask of the next sender": (
        everything, "masks", "row[:, None] * arrived_stride_r", "(row[:, None] ^ 1) * arrived_stride_r"),
    "the payload of the packet after": (
        everything, "stage1", "payload_ptr += packet * payload_stride_p",
        "payload_ptr += ((packet + 1) % P) * payload_stride_p"),
    "division by a count of zero": (everything, "stage1", "tl.maximum(count, 1)", "count"),
    "zero fill divides by survivors": (
        everything, "stage1", "if SURVIVORS_DIVIDE else N", "if SURVIVORS_DIVIDE else tl.maximum(count, 1)"),
    "lost slots are read": (
        everything, "stage1", "mask=inside & arrived, other=0)", "mask=inside & (sender + j < N), other=0)"),
    "loads of an unmasked tail": (everything, "stage1", "mask=inside & arrived, other=0)", "mask=arrived, other=0)"),
    "stores of an unmasked tail": (everything, "stage1", "result, mask=inside)", "result)"),
    "a last group that is never summed": (everything, "stage1", "range(0, N, GROUP)", "range(0, N - GROUP + 1, GROUP)"),
    "one weight for all packets": (everything, "stage1", " + packet * weight_stride_p", ""),
    "the first rank's gradient for one's own": (
        everything, "stage1", "owner * payload_stride_n", "0 * payload_stride_n * owner"),
    "what was held is forgotten": (everything, "stage1", "tl.where(empty, previous, estimate)", "estimate"),
    "sums in 16 bits": (
        many_in_16_bits, "stage1", "total += gradient ",
        "total = (total + gradient).to(payload_ptr.dtype.element_ty).to(SUM) "),
    "32-bit sender offsets": (check_far_senders, "stage1", "tl.to_tensor(base).to(tl.int64)", "tl.to_tensor(base)"),
    "32-bit packet offsets": (
        check_far_packets, "stage1", "(tl.program_id(0) // columns).to(tl.int64)", "tl.program_id(0) // columns"),
}  # fmt: skip


test_planted_mistakes_are_caught, test_without_a_mistake_the_same_checks_pass = both_tests(MISTAKES)
