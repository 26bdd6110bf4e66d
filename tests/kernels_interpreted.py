"""The kernels in Triton's interpreter against the plain bodies on the CPU. `test_kernels.py` runs this file, in a
process of its own, because Triton decides at its import whether it interprets.

Legend: N ranks, R rows of a mask, P packets, E elements of a packet.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_copies import original, with_mistake

from lossproof.impl import aggregate as plain_1
from lossproof.impl import kernels
from lossproof.impl import retain as plain_2
from lossproof.impl.loss import Arrivals
from lossproof.impl.philox import philox4x32, split_seed
from lossproof.theory.laws import Bernoulli, PerSender, threshold

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_kernels.py"

KERNELS = original()
RULES = ["survivor_mean", "inverse_probability", "zero_fill"]
FALLBACKS = ["zero", "hold", "own"]
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
NAN = float("nan")
PAGE = mmap.PAGESIZE


def place(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that ends where memory ends: whoever reads or writes behind it dies."""
    size = -(-max(1, tensor.nbytes) // PAGE) * PAGE
    memory = mmap.mmap(-1, size + PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + size), PAGE, 0) == 0
    start = size - tensor.nbytes
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=start).view(tensor.shape)
    return copy.copy_(tensor)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kind = BITS[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def ulps(a: torch.Tensor, b: torch.Tensor) -> int:
    """How many representable numbers lie between two tensors of 16-bit floats, at most."""
    a, b = (x.view(torch.int16).int() for x in (a, b))
    a, b = (torch.where(x < 0, -(x & 0x7FFF), x) for x in (a, b))
    return int((a - b).abs().max()) if a.numel() else 0


# -- stage 1


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
    replace(launch, arguments=launch.arguments | {"estimate_ptr": estimate, "count_ptr": count}).run(payload.device)
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
    expected, expected_count = plain_1.aggregate(payload, arrived, rule, **options)

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


# -- masks


def check_masks(k: Any, N: int, P: int, seed: int, step: int, own_link: Any, losses: list[Fraction]) -> None:
    owner = np.random.default_rng(seed).integers(0, N, P)
    law = Bernoulli(losses[0]) if len(losses) == 1 else PerSender(tuple(losses))
    arrivals = Arrivals(law, owner, N, seed, own_link)
    thresholds = torch.tensor([threshold(losses[i % len(losses)]) for i in range(N)])
    draw = k.masks.Draw(seed, step, thresholds, torch.from_numpy(owner), torch.arange(P), own_link == "reliable")
    gradients = arrivals.gradients(step)
    assert torch.equal(k.masks.draw(draw, "gradients", N), gradients)
    received = replace(draw, own_arrives=True)
    parameters = arrivals.parameters(step)
    assert torch.equal(k.masks.draw(received, "parameters", N), parameters)

    some = torch.arange(P)[:: max(1, P // 2)]  # the packets of one owner, the rows of a few receivers
    part = replace(draw, owner_P=draw.owner_P[some], packet_P=draw.packet_P[some])
    assert torch.equal(k.masks.draw(part, "gradients", N), gradients[:, some])
    last = replace(received, first=N - 1)
    assert torch.equal(k.masks.draw(last, "parameters", 1), parameters[-1:])

    words, _, _, _ = philox4x32(
        (np.arange(P), (np.int64(0) << 16) | owner, 0, np.int64(step)), split_seed(seed)
    )  # a packet is lost iff its word is below the threshold, so one that equals it arrives
    edge = replace(draw, threshold_N=torch.full((N,), int(words[0])), own_arrives=False)
    assert k.masks.draw(edge, "gradients", 1)[0].tolist() == (words >= words[0]).tolist()

    payload, stale = torch.randn(N, P, 5), torch.randn(N, P, 5)
    estimate, count, _ = k.stage1.aggregate(payload, draw, survivors_divide=True)
    expected = plain_1.aggregate(payload, gradients)
    assert same_bits(estimate, expected[0])
    assert torch.equal(count, expected[1])
    assert same_bits(k.stage2.retain(stale, payload[0], received), plain_2.retain(stale, payload[0], parameters))


@settings(max_examples=15)
@given(
    st.integers(1, 20),
    st.integers(1, 5),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["reliable", "lossy"]),
    st.lists(st.fractions(0, Fraction(999, 1000)), min_size=1, max_size=1),
)
def test_drawn_masks_are_those_of_the_simulation(
    N: int, P: int, seed: int, step: int, own_link: str, losses: list[Fraction]
) -> None:
    check_masks(KERNELS, N, P, seed, step, own_link, losses)


def test_every_sender_may_have_its_own_loss() -> None:
    check_masks(KERNELS, 4, 9, 3, 5, "lossy", [Fraction(1, 2), Fraction(1, 10), Fraction(9, 10), Fraction(0)])


# -- stage 2


def check_stage_2(k: Any, H: int, P: int, E: int, dtype: torch.dtype, shared: bool, drift: bool, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    stale = torch.randn(H, P, E, generator=random).to(dtype)
    fresh = torch.randn(*(() if shared or drift else (H,)), P, E, generator=random).to(dtype)
    arrived = torch.rand(H, P, generator=random) < 0.6
    expected = plain_2.retain(stale, fresh, arrived)
    dirty = fresh if fresh.ndim == 2 else fresh.masked_fill(~arrived[..., None], NAN)
    launch, replica, sums = k.stage2.stage2_launch(
        place(stale.masked_fill(arrived[..., None], NAN)), place(dirty), place(arrived), drift
    )
    replica, names = place(replica), ("count_ptr", "square_ptr", "square_of_sum_ptr")
    sums = [place(x) for x in sums] if drift else [None] * 3
    outputs = dict(zip(names, sums, strict=True))
    replace(launch, arguments=launch.arguments | {"replica_ptr": replica} | outputs).run(stale.device)
    assert same_bits(replica, expected)
    if drift:
        gap = expected.double() - fresh.double()
        close = {"rtol": 1e-5, "atol": 1e-12}
        assert torch.equal(sums[0], arrived.sum(0))
        assert torch.allclose(sums[1].sum(-1).double(), gap.square().sum((0, 2)), **close)
        of_sum = gap.sum(0).square().sum(-1)
        bound = 1e-5 * H * gap.square().sum((0, 2)) + 1e-12
        assert ((sums[2].sum(-1).double() - of_sum).abs() <= bound).all()


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


def test_drift_is_that_of_the_definition() -> None:
    """Owners are fresh; over pairs of non-owners, and to the owner, from the sums of one pass."""
    N, P, E = 5, 4, 6
    random = torch.Generator().manual_seed(0)
    owner = torch.arange(P) % N
    stale, fresh = torch.randn(N, P, E, generator=random), torch.randn(P, E, generator=random)
    arrived = (torch.rand(N, P, generator=random) < 0.4) | (torch.arange(N)[:, None] == owner)
    replicas, sums = KERNELS.stage2.retain_and_measure(stale, fresh, arrived)
    for p in range(P):
        others = [i for i in range(N) if i != owner[p]]
        to_owner = [(replicas[i, p] - fresh[p]).square().sum() for i in others]
        pairs = [(replicas[i, p] - replicas[j, p]).square().sum() for i in others for j in others if i != j]
        assert torch.isclose(sums.to_owner(N)[p], torch.stack(to_owner).mean())
        assert torch.isclose(sums.between_pairs(N)[p], torch.stack(pairs).mean())
    with pytest.raises(ValueError, match="fresh_PE must"):
        KERNELS.stage2.retain_and_measure(stale, stale, arrived)


# -- memory


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


def check_far_offsets(k: Any) -> None:
    """Rows 2^30 elements apart, so that the third lies beyond 2^31, in memory that is reserved but never used."""
    P, E, far = 3, 8, (1 << 30) + 16
    no_reserve = 0x4000  # MAP_NORESERVE of Linux, which Python 3.11 does not name
    reserved = mmap.mmap(-1, 2 * far * 4 + 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)

    def spread(rows: torch.Tensor) -> list[torch.Tensor]:
        parts = [
            torch.frombuffer(reserved, dtype=rows.dtype, count=r.numel(), offset=i * far * 4)
            for i, r in enumerate(rows)
        ]
        return [part.view(row.shape).copy_(row) for part, row in zip(parts, rows, strict=True)]

    def run(launch: Any, changes: dict[str, Any]) -> None:
        replace(launch, arguments=launch.arguments | changes).run(torch.device("cpu"))

    payload = torch.randn(3, P, E, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(3, P, dtype=torch.bool)
    everything[0, 1] = False
    by_rank = spread(payload)
    launch, estimate, _ = k.stage1.stage1_launch(payload, everything, survivors_divide=True)
    run(launch, {"payload_ptr": by_rank[0], "payload_stride_n": far})
    assert same_bits(estimate, plain_1.aggregate(payload, everything)[0])

    launch, _, _ = k.stage2.stage2_launch(payload, payload[0], everything)
    replicas = spread(torch.zeros_like(payload))
    run(launch, {"replica_ptr": replicas[0], "replica_stride_h": far})
    assert same_bits(torch.stack(replicas), plain_2.retain(payload, payload[0], everything))

    by_packet = spread(payload.transpose(0, 1).contiguous())
    launch, estimate, _ = k.stage1.stage1_launch(
        payload.transpose(0, 1).contiguous().transpose(0, 1), everything, survivors_divide=True
    )
    run(launch, {"payload_ptr": by_packet[0], "payload_stride_n": E, "payload_stride_p": far})
    assert same_bits(estimate, plain_1.aggregate(payload, everything)[0])


def test_offsets_beyond_two_to_the_31() -> None:
    check_far_offsets(KERNELS)


def test_nothing_to_do() -> None:
    mask = torch.ones(2, 0, dtype=torch.bool)
    estimate, count, bad = KERNELS.stage1.aggregate(
        torch.ones(2, 0, 3), mask, survivors_divide=True, find_non_finite=True
    )
    assert (estimate.shape, count.shape, bad) == ((0, 3), (0,), 0)
    assert KERNELS.stage2.retain(torch.ones(2, 0, 3), torch.ones(0, 3), mask).shape == (2, 0, 3)
    nothing = torch.ones(0, 3, dtype=torch.bool)
    assert KERNELS.stage2.retain(torch.ones(0, 3, 4), torch.ones(3, 4), nothing).shape == (0, 3, 4)


# -- the two functions, with the kernels as their bodies


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "serve", lambda *tensors: True)


@pytest.mark.usefixtures("on_device")
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
        elsewhere.setattr(kernels, "serve", lambda *tensors: False)
        expected = plain_1.aggregate(payload, arrived, rule, **options)
        kept = plain_2.retain(payload, payload[0], arrived)
    assert same_bits(found[0], expected[0] + 0.0)
    assert torch.equal(found[1], expected[1])
    assert same_bits(plain_2.retain(payload, payload[0], arrived), kept)


@pytest.mark.usefixtures("on_device")
def test_errors_are_those_of_the_plain_body() -> None:
    payload, arrived = torch.ones(2, 3, 4), torch.tensor([[True, False, True], [True, False, True]])
    with pytest.raises(ValueError, match="no survivor for packet 1"):
        plain_1.aggregate(payload, arrived, no_survivor="raise")
    payload[1, 2, 3] = NAN
    with pytest.raises(plain_1.NonFiniteGradient, match="estimate of packet 2 is not finite"):
        plain_1.aggregate(payload, arrived)
    estimate, _ = plain_1.aggregate(payload, arrived, non_finite="carry")
    assert int(estimate.isnan().sum()) == 1


def test_the_plain_body_serves_the_cpu_and_whoever_wants_a_derivative() -> None:
    assert not kernels.serve(torch.ones(1))


# -- planted mistakes


def all_of_stage_1(k: Any) -> None:
    for seed, rule in enumerate(RULES * 2):
        for no_survivor in FALLBACKS:
            check_stage_1(k, 18, 3, 20, torch.float32, rule, no_survivor, 7 * seed)
            check_stage_1(k, 3, 2, 20, torch.bfloat16, rule, no_survivor, 7 * seed + 1)


def all_of_stage_2(k: Any) -> None:
    for seed in range(4):
        for shared, drift in ((True, False), (False, False), (True, True)):
            check_stage_2(k, 10, 2, 20, torch.float32, shared, drift, seed)


def all_masks(k: Any) -> None:
    check_masks(k, 5, 7, 2**63 + 11, 2**31 + 3, "reliable", [Fraction(1, 3)])
    check_masks(k, 4, 9, 3, 5, "lossy", [Fraction(1, 2), Fraction(1, 10), Fraction(9, 10), Fraction(0)])


Check = Callable[[Any], None]
MISTAKES: dict[tuple[str, Check], dict[str, tuple[str, str]]] = {
    ("masks", all_of_stage_1): {
        "the mask of the packet before": (
            "packet[None, :] * arrived_stride_p",
            "(packet[None, :] - 1) * arrived_stride_p",
        ),
        "the mask of the next sender": ("row[:, None] * arrived_stride_r", "(row[:, None] ^ 1) * arrived_stride_r"),
    },
    ("masks", all_masks): {
        "the number of the next packet": (
            "mask=inside, other=0).to(tl.uint32)",
            "mask=inside, other=0).to(tl.uint32) + 1",
        ),
        "another counter word": ("return c0\n", "return c1\n"),
        "a round too few": ("static_range(10)", "static_range(9)"),
        "sender and receiver swapped": ("((src << 16) | dst)", "((dst << 16) | src)"),
        "always the first phase": ("zero + PHASE", "zero"),
        "the key's halves swapped": ("low, high = split_seed", "high, low = split_seed"),
        "lost at the threshold too": ("word.to(tl.int64) >= ", "word.to(tl.int64) > "),
        "the receiver's threshold": ("threshold_ptr + src", "threshold_ptr + dst"),
        "row 0 is always rank 0": ("row + first", "row"),
        "own messages are lost": ("arrived | (src == dst) if OWN_ARRIVES else arrived", "arrived"),
    },
    ("stage1", all_of_stage_1): {
        "division by a count of zero": ("tl.maximum(count, 1)", "count"),
        "zero fill divides by survivors": (
            "if SURVIVORS_DIVIDE else N",
            "if SURVIVORS_DIVIDE else tl.maximum(count, 1)",
        ),
        "lost slots are read": ("mask=inside & arrived, other=0)", "mask=inside & (sender + j < N), other=0)"),
        "loads of an unmasked tail": ("mask=inside & arrived, other=0)", "mask=arrived, other=0)"),
        "stores of an unmasked tail": ("result, mask=inside)", "result)"),
        "a last group that is never summed": ("range(0, N, GROUP)", "range(0, N - GROUP + 1, GROUP)"),
        "one weight for all packets": (" + packet * weight_stride_p", ""),
        "the first rank's gradient for one's own": ("owner * payload_stride_n", "0 * payload_stride_n * owner"),
        "what was held is forgotten": ("tl.where(empty, previous, estimate)", "estimate"),
    },
    ("stage1", check_far_offsets): {
        "32-bit sender offsets": ("tl.to_tensor(base).to(tl.int64)", "tl.to_tensor(base)"),
        "32-bit packet offsets": ("(tl.program_id(0) // columns).to(tl.int64)", "tl.program_id(0) // columns"),
    },
    ("stage2", check_far_offsets): {
        "32-bit replica offsets": ("tl.to_tensor(base).to(tl.int64)", "tl.to_tensor(base)"),
    },
    ("stage2", all_of_stage_2): {
        "stale and fresh swapped": (
            "tl.where(arrived, shared, tl.load(stale_row + element, mask=hosted & (arrived == 0), other=0))",
            "tl.load(stale_row + element, mask=hosted & arrived, other=0)",
        ),
        "the first replica's fresh packets": ("fresh_ptr + (row + j) * fresh_stride_h", "fresh_ptr"),
        "rows beyond the last": ("hosted = inside & (row + j < H)", "hosted = inside"),
        "stores of an unmasked tail in stage 2": ("hosted = inside & (row + j < H)", "hosted = row + j < H"),
        "drift without the owner": ("replica.to(SUM) - shared.to(SUM)", "replica.to(SUM)"),
        "the last gap alone": ("gaps += gap", "gaps = gap"),
    },
}


def fate(check: Check, k: Any) -> str:
    """What becomes of a check, in a process that may die of what the kernel does to memory."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        try:
            check(k)
        except AssertionError:
            os._exit(1)
        except BaseException:
            os._exit(2)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return {0: "passed", 1: "refuted", 2: "crashed"}[os.WEXITSTATUS(status)]


@pytest.mark.parametrize(
    ("module", "check", "mistake"), [(*where, mistake) for where, mistakes in MISTAKES.items() for mistake in mistakes]
)
def test_planted_mistakes_are_caught(module: str, check: Check, mistake: str) -> None:
    found = fate(check, with_mistake(module, *MISTAKES[module, check][mistake]))
    assert found in ("refuted", "signal 7", "signal 11"), found


@pytest.mark.parametrize("check", [all_of_stage_1, all_of_stage_2, all_masks, check_far_offsets])
def test_without_a_mistake_the_same_checks_pass(check: Check) -> None:
    assert fate(check, KERNELS) == "passed"
