"""The kernels on a GPU: checked against the plain bodies on the CPU, then timed against a copy of the same bytes.

Needs torch and triton only, and no installation:

    python benchmarks/kernels.py [--json FILE]

A ratio compares bytes per second: what a kernel must move, over its time, against a device-to-device copy that moves as
many. Rounds take all variants in turn; medians and quartiles over the rounds.

Legend: N ranks, P packets, E elements of a packet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

try:
    import lossproof
except (ImportError, PackageNotFoundError):  # straight from the source tree
    lossproof = ModuleType("lossproof")
    lossproof.__path__ = [str(Path(__file__).parents[1] / "src" / "lossproof")]
    sys.modules["lossproof"] = lossproof

from lossproof.impl import aggregate as plain_1
from lossproof.impl import retain as plain_2

SCHEMA = 1
SHAPES = [(16, 16384, 256, torch.float32), (16, 16384, 512, torch.bfloat16), (64, 8192, 256, torch.float32),
          (16, 16384, 250, torch.float32), (4, 256, 65536, torch.float32)]  # fmt: skip
LOSS = 0.1
Body = Callable[[], Any]


def close(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal digits; of stores in 16 bits, one rounding apart."""
    found = found.cpu()
    same = torch.equal(found, expected)
    if not same and found.element_size() == 2:
        same = torch.allclose(found.float(), expected.float(), rtol=2 * torch.finfo(found.dtype).eps, atol=0)
    if not same:
        raise SystemExit(f"{name}: the kernel disagrees with the plain body")


def check(device: torch.device) -> None:
    """Every kernel, every rule, packets of odd and even lengths."""
    from lossproof.impl.kernels import masks, stage1, stage2

    random = torch.Generator().manual_seed(0)
    for N, P, E in [(1, 3, 5), (3, 5, 7), (16, 33, 256), (40, 9, 1030), (1024, 3, 64)]:
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
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
                    given = (source, arrived, q, held, own)
                    results = []
                    for where in (device, torch.device("cpu")):
                        x, m, w, h, o = (t.to(where) for t in given)
                        options = {"arrival_probability_N": w, "previous_PE": h, "owner": o}
                        results.append(plain_1.aggregate(x, m, rule, no_survivor=no_survivor, **options))  # type: ignore[arg-type]
                    close(f"{rule}, {no_survivor}, {dtype}, {(N, P, E)}", results[0][0], results[1][0])
                    close("counts", results[0][1], results[1][1])
            replicas = plain_2.retain(payload, held, arrived)
            found, sums = stage2.retain_and_measure(*(t.to(device) for t in (payload, held, arrived)))
            close("retain_and_measure", found, replicas)
            close("arrivals by packet", sums.count_P, arrived.sum(0))
            drift = (replicas.double() - held.double()).square().sum((0, 2))
            if not torch.allclose(sums.square_P.cpu().double(), drift, rtol=1e-5):
                raise SystemExit("retain_and_measure: the drift is wrong")
            close("retain", plain_2.retain(*(t.to(device) for t in (payload, held, arrived))), replicas)
            copies = payload.flip(0)
            kept = plain_2.retain(*(t.to(device) for t in (payload, copies, arrived)))
            close("retain, own copies", kept, plain_2.retain(payload, copies, arrived))
            draw = masks.Draw(2**63 + 5, 2**32 - 1, torch.full((N,), 2**30, device=device), own.to(device),
                              torch.arange(P, device=device))  # fmt: skip
            drawn = masks.draw(draw, "gradients", N)
            close("mask", drawn.cpu(), reference_mask(draw, N, P))
            estimate, _, _ = stage1.aggregate(payload.to(device), draw, survivors_divide=True)
            close("stage 1, drawn", estimate, plain_1.aggregate(payload, drawn.cpu())[0])
    print("every kernel agrees with the plain bodies")


def reference_mask(draw: Any, N: int, P: int) -> torch.Tensor:
    from lossproof.impl.philox import philox4x32, split_seed

    sender, owner = torch.arange(N)[:, None], draw.owner_P.cpu()
    packet = torch.arange(P).expand(N, P)
    words = philox4x32((packet, sender << 16 | owner, 0, draw.step), split_seed(draw.seed))
    return (words[0] >= draw.threshold_N.cpu()[:, None]) | (sender == owner)


def variants(N: int, P: int, E: int, dtype: torch.dtype, device: torch.device) -> dict[str, tuple[int, Body]]:
    """By name: the bytes that must move, and what to run."""
    from lossproof.impl.kernels import masks, stage1, stage2

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

    @torch.compile
    def compiled_1(x: torch.Tensor, m: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The plain body's arithmetic, in a form that a compiler can fuse."""
        kept = torch.where(m[..., None], x, 0).float().sum(0)
        number = m.sum(0)
        return (kept / number.clamp(min=1)[:, None]).to(x.dtype), number

    compiled_2 = torch.compile(lambda s, f, m: torch.where(m[..., None], f, s))
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


def seconds(body: Body) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(1_000_000)  # the device is busy while the host prepares: what is timed starts at once
    start.record()
    body()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


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
            times[name].append(seconds(body))
    found: dict[str, Any] = {"N": N, "P": P, "E": E, "dtype": str(dtype), "loss": LOSS, "variants": {}}
    for name, (size, _) in bodies.items():
        which = "copy of stage 2's bytes" if "stage 2" in name else "copy of stage 1's bytes"
        speeds = [size / t for t in times[name]]
        ratios = [s / (bodies[which][0] / t) for s, t in zip(speeds, times[which], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found["variants"][name] = {
            "bytes": size,
            "GB/s": statistics.median(speeds) / 1e9,
            "of copy": [low, middle, high],
        }
        speed = statistics.median(speeds) / 1e9
        print(f"  {name:28} {speed:8.0f} GB/s   {middle:5.2f} of copy  [{low:.2f}, {high:.2f}]")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--rounds", type=int, default=41)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("not run: no device")
        return
    device = torch.device("cuda", torch.cuda.current_device())
    print(torch.cuda.get_device_name(device), "torch", torch.__version__)
    check(device)
    results = [measure(shape, device, options.rounds) for shape in SHAPES]
    if options.json:
        machine = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}
        options.json.write_text(json.dumps({"schema": SCHEMA} | machine | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
