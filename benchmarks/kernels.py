"""The kernels on a GPU: checked against the CPU, then timed against a copy of the same bytes.

Needs torch and triton only, and no installation:

    python benchmarks/kernels.py [--json FILE]
    python benchmarks/kernels.py --dry-run    # no GPU: all but the times, in Triton's interpreter, which needs numpy

A ratio compares bytes per second: what a kernel must move, over its time, against a device-to-device copy that moves as
many. Rounds take all variants in turn; medians and quartiles over the rounds.

Legend: N ranks, P packets, E elements of a packet.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton decides at its import
lossproof = ModuleType("lossproof")  # the tree of this file, installed or not, without what the package imports
lossproof.__path__ = [str(Path(__file__).parents[1] / "src" / "lossproof")]
sys.modules["lossproof"] = lossproof

from lossproof.impl import aggregate as plain_1  # noqa: E402
from lossproof.impl import kernels  # noqa: E402
from lossproof.impl import retain as plain_2  # noqa: E402
from lossproof.impl.kernels import masks, stage1, stage2  # noqa: E402
from lossproof.impl.philox import philox4x32, split_seed  # noqa: E402

SCHEMA = 1
F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
CHECKED = [(1, 3, 5), (3, 5, 7), (16, 33, 256), (40, 9, 1030), (1024, 3, 64)]
TIMED = [
    (16, 16384, 256, F32),
    (16, 16384, 512, BF16),
    (64, 8192, 256, F32),
    (16, 16384, 250, F32),
    (4, 256, 65536, F32),
]
DRY_CHECKED, DRY_TIMED = [(17, 2, 7)], [(3, 2, 9, BF16)]
LOSS = 0.1
Body = Callable[[], Any]


def reference(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The plain body, on the CPU."""
    available, kernels.available = kernels.available, lambda device: False
    try:
        return function(*(a.cpu() if isinstance(a, torch.Tensor) else a for a in arguments), **options)
    finally:
        kernels.available = available


def close(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal digits; of stores in 16 bits, one rounding apart."""
    found = found.cpu()
    same = torch.equal(found, expected)
    if not same and found.element_size() == 2:
        same = torch.allclose(found.float(), expected.float(), rtol=2 * torch.finfo(found.dtype).eps, atol=0)
    if not same:
        raise SystemExit(f"{name}: the kernel disagrees with the plain body")


def by_definition(
    payload: torch.Tensor, arrived: torch.Tensor, q: Any, held: Any, own: Any, rule: str, no_survivor: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stage 1 of whole numbers and powers of two: all sums are exact, then comes one division and one rounding."""
    gradient = payload.double().masked_fill(~arrived[..., None], 0)
    if rule == "inverse_probability":
        gradient /= q[..., None]
    count = arrived.sum(0)
    divisor = count.clamp(min=1)[:, None] if rule == "survivor_mean" else len(payload)
    estimate = gradient.sum(0).to(torch.promote_types(payload.dtype, F32)) / divisor
    fallback = torch.zeros_like(payload[0]) if no_survivor == "zero" else held
    if no_survivor == "own":
        fallback = payload[own, torch.arange(len(own))]
    return torch.where((count == 0)[:, None], fallback, estimate.to(payload.dtype)), count


def check(device: torch.device, shapes: list[tuple[int, int, int]]) -> None:
    """Every kernel, every rule, packets of odd and even lengths."""
    random = torch.Generator().manual_seed(0)
    for N, P, E in shapes:
        for dtype in (F32, F64, BF16, F16):
            check_read(random, device, N, P, E, dtype)
            check_drawn(random, device, N, P, E, dtype)
    print("every kernel agrees with the CPU:", *shapes)


def check_read(random: torch.Generator, device: torch.device, N: int, P: int, E: int, dtype: torch.dtype) -> None:
    payload = torch.randint(-8, 9, (N, P, E), generator=random).to(dtype)  # exact sums, also with weights
    arrived = torch.rand(N, P, generator=random) < torch.rand(P, generator=random)
    arrived[:, 0] = False
    dirty = payload.masked_fill(~arrived[..., None], float("nan"))
    q = 0.5 ** torch.randint(0, 3, (N, P), generator=random).double()
    held = torch.randn(P, E, generator=random).to(dtype)
    own = torch.randint(0, N, (P,), generator=random)
    for rule in ("survivor_mean", "inverse_probability", "zero_fill"):
        for no_survivor in ("zero", "hold", "own"):
            source = payload if no_survivor == "own" else dirty
            options: dict[str, Any] = {"arrival_probability_N": q, "previous_PE": held, "owner": own}
            options = {"rule": rule, "no_survivor": no_survivor, **options}
            there = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
            found = plain_1.aggregate(source.to(device), arrived.to(device), **there)
            expected = by_definition(payload, arrived, q, held, own, rule, no_survivor)
            close(f"{rule}, {no_survivor}, {dtype}, {(N, P, E)}", found[0], expected[0])
            close("counts", found[1], expected[1])
    shared, copies = (payload, held, arrived), (payload, payload.flip(0), arrived)
    for name, arguments in (("retain", shared), ("retain, own copies", copies)):
        found = plain_2.retain(*(x.to(device) for x in arguments))
        close(name, found, reference(plain_2.retain, *arguments))
    replicas, count, drift = plain_2.retain_and_measure(*(x.to(device) for x in shared))
    exact_replicas, exact_count, exact = reference(plain_2.retain_and_measure, *shared)
    close("retain_and_measure", replicas, exact_replicas)
    close("arrivals by packet", count, exact_count)
    error = 4 * (N + E) * torch.finfo(drift.square_P.dtype).eps * exact.square_P
    for name, sums, expected, bound in (
        ("squares", drift.square_P, exact.square_P, error),
        ("square of sums", drift.square_of_sum_P, exact.square_of_sum_P, N * error),
    ):
        if not ((sums.cpu().double() - expected).abs() <= bound).all():
            raise SystemExit(f"retain_and_measure: {name} of the drift are wrong")


def check_drawn(random: torch.Generator, device: torch.device, N: int, P: int, E: int, dtype: torch.dtype) -> None:
    payload = torch.randint(-8, 9, (N, P, E), generator=random).to(dtype)
    own = torch.randint(0, N, (P,), generator=random)
    threshold = torch.randint(0, 2**32, (N,), generator=random)
    draw = masks.Draw(2**63 + 5, 2**32 - 1, threshold.to(device), own.to(device), torch.arange(P, device=device))
    for phase, rows in (("gradients", N), ("parameters", N)):
        close(f"mask of the {phase}", masks.draw(draw, phase, rows), reference_mask(draw, N, P, phase))  # type: ignore[arg-type]
    arrived = reference_mask(draw, N, P, "gradients")
    estimate, _, _ = stage1.aggregate(payload.to(device), draw, survivors_divide=True)
    close("stage 1, drawn", estimate, by_definition(payload, arrived, None, None, None, "survivor_mean", "zero")[0])
    arrived = reference_mask(draw, N, P, "parameters")
    replicas = stage2.retain(payload.to(device), payload[0].to(device), draw)
    close("stage 2, drawn", replicas, reference(plain_2.retain, payload, payload[0], arrived))


def reference_mask(draw: masks.Draw, N: int, P: int, phase: str) -> torch.Tensor:
    remote, owner = torch.arange(N)[:, None].expand(N, P), draw.owner_P.cpu().expand(N, P)
    src, dst = (remote, owner) if phase == "gradients" else (owner, remote)
    packet = torch.arange(P).expand(N, P)
    words = philox4x32((packet, src << 16 | dst, masks.PHASES.index(phase), draw.step), split_seed(draw.seed))
    return (words[0] >= draw.threshold_N.cpu()[src]) | (src == dst)


def variants(N: int, P: int, E: int, dtype: torch.dtype, device: torch.device) -> dict[str, tuple[int, Body]]:
    """By name: the bytes that must move, and what to run."""
    payload, fresh = torch.randn(N, P, E, device=device).to(dtype), torch.randn(P, E, device=device).to(dtype)
    owner = torch.arange(P, device=device) % N
    draw = masks.Draw(1, 0, torch.full((N,), int(LOSS * 2**32), device=device), owner, torch.arange(P, device=device))
    arrived = masks.draw(draw, "gradients", N)
    share = float(arrived.float().mean())
    packet, everything = P * E * dtype.itemsize, payload.nbytes
    stage_1, stage_2 = int(share * everything) + packet, int((1 - share) * everything) + packet + everything
    target = torch.empty(max(stage_1, stage_2), dtype=torch.uint8, device=device)
    source = torch.empty_like(target)

    def copy(size: int) -> Body:
        return lambda: target[: size // 2].copy_(source[: size // 2])  # reads and writes: half the bytes each

    def fusible_1(x: torch.Tensor, m: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The plain body's arithmetic, in a form that a compiler can fuse."""
        kept = torch.where(m[..., None], x, 0).float().sum(0)
        number = m.sum(0)
        return (kept / number.clamp(min=1)[:, None]).to(x.dtype), number

    compile = {"backend": "inductor" if device.type == "cuda" else "eager", "dynamic": False}
    compiled_1 = torch.compile(fusible_1, **compile)
    compiled_2 = torch.compile(lambda s, f, m: torch.where(m[..., None], f, s), **compile)
    carry: dict[str, Any] = {"survivors_divide": True}
    return {
        "copy of stage 1's bytes": (stage_1, copy(stage_1)),
        "stage 1, mask read": (stage_1, lambda: stage1.aggregate(payload, arrived, **carry)),
        "stage 1, mask drawn": (stage_1, lambda: stage1.aggregate(payload, draw, **carry)),
        "aggregate(payload, arrived)": (stage_1, lambda: plain_1.aggregate(payload, arrived)),
        "torch.compile of stage 1": (stage_1, lambda: compiled_1(payload, arrived)),
        "payload.mean(0)": (everything + packet, lambda: payload.mean(0)),
        "copy of stage 2's bytes": (stage_2, copy(stage_2)),
        "stage 2, mask read": (stage_2, lambda: stage2.retain(payload, fresh, arrived)),
        "stage 2, mask drawn": (stage_2, lambda: stage2.retain(payload, fresh, draw)),
        "stage 2 with drift": (stage_2, lambda: stage2.retain_and_measure(payload, fresh, draw)),
        "torch.compile of stage 2": (stage_2, lambda: compiled_2(payload, fresh, arrived)),
    }


def seconds(body: Body, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        body()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(1_000_000)  # the device is busy while the host prepares: what is timed starts at once
    begin.record()
    body()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def measure(shape: tuple[int, int, int, torch.dtype], device: torch.device, rounds: int) -> dict[str, Any]:
    N, P, E, dtype = shape
    print(f"\nN={N} P={P} E={E} {str(dtype)[6:]}, {LOSS:.0%} loss")
    bodies = variants(N, P, E, dtype, device)
    for _, body in bodies.values():
        for _ in range(3):
            body()
    times: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(rounds):
        for name, (_, body) in bodies.items():
            times[name].append(seconds(body, device))
    found: dict[str, Any] = {"N": N, "P": P, "E": E, "dtype": str(dtype), "loss": LOSS, "variants": {}}
    for name, (size, _) in bodies.items():
        which = "copy of stage 2's bytes" if "stage 2" in name else "copy of stage 1's bytes"
        speeds = [size / t / 1e9 for t in times[name]]
        ratios = [s / (bodies[which][0] / t / 1e9) for s, t in zip(speeds, times[which], strict=True)]
        speed, quartiles = statistics.median(speeds), statistics.quantiles(ratios, n=4)
        found["variants"][name] = {"bytes": size, "GB/s": speed, "of copy": quartiles}
        if device.type == "cuda":
            low, middle, high = quartiles
            print(f"  {name:28} {speed:8.0f} GB/s   {middle:5.2f} of copy  [{low:.2f}, {high:.2f}]")
        else:
            print(f"  {name:28} {size:8} bytes, ran")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--rounds", type=int, default=41, help="at least 2")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: everything but the times")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {options.rounds}")
    if options.dry_run:
        kernels.available = lambda device: True
        device, name, checked, timed = torch.device("cpu"), "none: a dry run", DRY_CHECKED, DRY_TIMED
        options.rounds = 2
    elif torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        name, checked, timed = torch.cuda.get_device_name(device), CHECKED, TIMED
    else:
        print("not run: no device")
        return
    print("device:", name, "torch:", torch.__version__)
    check(device, checked)
    results = [measure(shape, device, options.rounds) for shape in timed]
    if options.json and not options.dry_run:
        machine = {"device": name, "torch": torch.__version__}
        options.json.write_text(json.dumps({"schema": SCHEMA} | machine | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
