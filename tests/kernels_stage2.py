"""Stage 2 in Triton's interpreter against the plain body on the CPU; `test_kernels.py` runs this file.

Legend: N ranks, H replicas, P packets, E elements of a packet.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_interpreter import (
    FAR,
    FLOATS,
    KERNELS,
    NAN,
    Check,
    both_tests,
    place,
    run,
    same_bits,
    spread,
)  # fmt: skip

from lossproof.impl import kernels
from lossproof.impl import retain as plain


def check_stage_2(k: Any, H: int, P: int, E: int, dtype: torch.dtype, shared: bool, drift: bool, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    stale = torch.randn(H, P, E, generator=random).to(dtype)
    fresh = torch.randn(*(() if shared or drift else (H,)), P, E, generator=random).to(dtype)
    arrived = torch.rand(H, P, generator=random) < 0.6
    expected = plain.retain(stale, fresh, arrived)
    dirty = fresh if fresh.ndim == 2 else fresh.masked_fill(~arrived[..., None], NAN)
    launch, replica, sums = k.stage2.stage2_launch(
        place(stale.masked_fill(arrived[..., None], NAN)), place(dirty), place(arrived), drift
    )
    replica, names = place(replica), ("count_ptr", "square_ptr", "square_of_sum_ptr")
    sums = [place(x) for x in sums] if drift else [None] * 3
    outputs = dict(zip(names, sums, strict=True))
    run(launch, replica_ptr=replica, **outputs)
    assert same_bits(replica, expected)
    if drift:
        exact = plain.drift_sums(expected, fresh)
        wide = torch.promote_types(dtype, torch.float32)
        error = 4 * (H + E) * torch.finfo(wide).eps * exact.square_P + torch.finfo(wide).tiny  # of sums of H E numbers
        assert torch.equal(sums[0], arrived.sum(0))
        assert ((sums[1].sum(-1).double() - exact.square_P).abs() <= error).all()
        assert ((sums[2].sum(-1).double() - exact.square_of_sum_P).abs() <= H * error).all()


@settings(max_examples=80)
@given(
    st.integers(1, 18),
    st.integers(1, 3),
    st.one_of(st.integers(1, 40), st.sampled_from([256, 513, 1030])),
    st.sampled_from(FLOATS),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_stage_2_is_the_plain_body(
    H: int, P: int, E: int, dtype: torch.dtype, shared: bool, drift: bool, seed: int
) -> None:
    check_stage_2(KERNELS, H, P, E, dtype, shared, drift, seed)


def test_drift_is_that_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners are fresh; over pairs of non-owners, and to the owner, from the sums of one pass, by either body."""
    N, P, E = 5, 4, 6
    random = torch.Generator().manual_seed(0)
    owner = torch.arange(P) % N
    stale, fresh = torch.randn(N, P, E, generator=random), torch.randn(P, E, generator=random)
    arrived = (torch.rand(N, P, generator=random) < 0.4) | (torch.arange(N)[:, None] == owner)
    for on_gpu in (False, True):
        monkeypatch.setattr(kernels, "available", lambda device: on_gpu)
        replicas, count, sums = plain.retain_and_measure(stale, fresh, arrived)
        assert sums.square_P.dtype == (torch.float32 if on_gpu else torch.float64)  # so it was that body
        assert same_bits(replicas, torch.where(arrived[..., None], fresh, stale))
        assert torch.equal(count, arrived.sum(0))
        for p in range(P):
            others = [i for i in range(N) if i != owner[p]]
            to_owner = [(replicas[i, p] - fresh[p]).double().square().sum() for i in others]
            pairs = [
                (replicas[i, p] - replicas[j, p]).double().square().sum() for i in others for j in others if i != j
            ]
            assert torch.isclose(sums.to_owner(N)[p].double(), torch.stack(to_owner).mean())
            assert torch.isclose(sums.between_pairs(N)[p].double(), torch.stack(pairs).mean())
        with pytest.raises(ValueError, match="stale_HPE and fresh_PE must"):
            plain.retain_and_measure(stale, stale, arrived)
        nobody = plain.retain_and_measure(stale[:0], fresh, arrived[:0])
        assert (nobody[0].shape, nobody[1].tolist(), float(nobody[2].square_P.sum())) == ((0, P, E), [0] * P, 0)


def check_far_offsets(k: Any) -> None:
    random = torch.Generator().manual_seed(0)
    stale, fresh = torch.randn(3, 3, 8, generator=random), torch.randn(3, 3, 8, generator=random)
    arrived = torch.tensor([[True, False, True], [False, True, False], [True, False, False]])
    for received in (fresh[0], fresh):
        launch, _, _ = k.stage2.stage2_launch(stale, received, arrived)
        replicas, kept = spread(torch.zeros_like(stale)), spread(stale)
        far = {"fresh_ptr": spread(fresh)[0], "fresh_stride_h": FAR} if received.ndim == 3 else {}
        run(launch, replica_ptr=replicas[0], replica_stride_h=FAR, stale_ptr=kept[0], stale_stride_h=FAR, **far)
        assert same_bits(torch.stack(replicas), plain.retain(stale, received, arrived))


def test_offsets_beyond_two_to_the_31() -> None:
    check_far_offsets(KERNELS)


def everything(k: Any) -> None:
    for seed in range(4):
        for shared, drift in ((True, False), (False, False), (True, True)):
            check_stage_2(k, 10, 2, 20, torch.float32, shared, drift, seed)


MISTAKES: dict[str, tuple[Check, str, str, str]] = {
    name: (check, "stage2", right, wrong)
    for name, (check, right, wrong) in {
        "stale and fresh swapped": (
            everything, "((bits >> j) & 1) != 0, shared, kept[j])", "((bits >> j) & 1) == 0, shared, kept[j])"),
        "the stale row of the next packet": (
            everything, "stale_ptr += packet * stale_stride_p", "stale_ptr += ((packet + 1) % P) * stale_stride_p"),
        "the first replica's fresh packets": (everything, "fresh_ptr + (row + j) * fresh_stride_h", "fresh_ptr"),
        "what is kept is not read": (everything, "hosted &= arrived == 0", "hosted &= arrived != 0"),
        "rows beyond the last": (everything, "replica, mask=hosted)", "replica, mask=inside)"),
        "stores of an unmasked tail": (everything, "replica, mask=hosted)", "replica, mask=row + j < H)"),
        "loads of an unmasked tail": (
            everything, "hosted = inside & (row + j < H)\n            source",
            "hosted = (element >= 0) & (row + j < H)\n            source"),
        "drift without the owner": (everything, "replica.to(SUM) - shared.to(SUM)", "replica.to(SUM)"),
        "drift of rows beyond the last": (
            everything, "tl.where(hosted, replica.to(SUM) - shared.to(SUM), 0)", "replica.to(SUM) - shared.to(SUM)"),
        "the last gap alone": (everything, "gaps += gap", "gaps = gap"),
        "32-bit replica offsets": (check_far_offsets, "tl.to_tensor(base).to(tl.int64)", "tl.to_tensor(base)"),
    }.items()
}  # fmt: skip


test_planted_mistakes_are_caught, test_without_a_mistake_the_same_checks_pass = both_tests(MISTAKES)
