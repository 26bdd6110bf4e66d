"""What the two stages cost on a CPU: `aggregate` against `payload.mean(0)`, `retain` against a copy of the replicas.

The target is the default call at 10 % loss: at most 1.15 times the ordinary mean, which reads all packets where
`aggregate` reads those that arrived.
"""

from __future__ import annotations

import argparse
from itertools import product
from typing import Any

import torch

from benchmarks import paired
from lossproof.impl.aggregate import aggregate
from lossproof.impl.retain import retain

TARGET = 1.15
DEFAULT = "16 x 16384 x 256 float32, 10% loss"


def cases() -> dict[str, tuple[torch.Tensor, torch.Tensor, str]]:
    """Payload, mask and rule by name; the first is the default call that the target is about."""
    found = {}
    for (N, P, E), dtype, loss in product(
        ((16, 16384, 256), (64, 4096, 256), (16, 16000, 250)), (torch.float32, torch.bfloat16), (0.1, 0.0)
    ):
        random = torch.Generator().manual_seed(0)
        payload = torch.randn(N, P, E, generator=random).to(dtype)
        arrived = torch.rand(N, P, generator=random) >= loss
        found[f"{N} x {P} x {E} {str(dtype).removeprefix('torch.')}, {loss:.0%} loss"] = (
            payload,
            arrived,
            "survivor_mean",
        )
    payload, arrived, _ = next(iter(found.values()))
    return found | {f"{DEFAULT}, inverse probability": (payload, arrived, "inverse_probability")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--turns", type=int, default=41)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: dict[str, Any] = {}
    print(f"{'aggregate / mean(0), median (quartiles) of the turns':56}{'ratio':>20}{'ms':>8}")
    for name, (payload, arrived, rule) in cases().items():
        q = torch.full((len(payload),), 0.9, dtype=torch.float64)
        clock, _ = paired.take_turns(
            [lambda: aggregate(payload, arrived, rule, arrival_probability_N=q), lambda: payload.mean(0)],
            options.warm,
            options.turns,
        )
        rows[name] = {"ratio": paired.ratios(*clock), "seconds": paired.spread(clock[0])}
        print(f"{name:56}{paired.show(rows[name]['ratio']):>20}{1e3 * rows[name]['seconds']['median']:8.1f}")
        if name == DEFAULT:
            print(f"    {paired.verdict(rows[name]['ratio']['median'], TARGET)}")

    random = torch.Generator().manual_seed(0)
    stale, fresh = torch.randn(16, 16384, 256, generator=random), torch.randn(16384, 256, generator=random)
    arrived = torch.rand(16, 16384, generator=random) >= 0.1
    clock, _ = paired.take_turns([lambda: retain(stale, fresh, arrived), stale.clone], options.warm, options.turns)
    retained = {"ratio": paired.ratios(*clock), "seconds": paired.spread(clock[0])}
    print(f"{'retain / clone of the replicas, ' + DEFAULT:56}{paired.show(retained['ratio']):>20}")
    paired.save("stages", {"target": TARGET, "default": DEFAULT, "aggregate": rows, "retain": retained})


if __name__ == "__main__":
    main()
