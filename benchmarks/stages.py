"""What the two stages cost on a CPU: `aggregate` against `payload.mean(0)`, `retain` against a copy of the replicas.

The target is the default call at 10 % loss: at most 1.15 times the ordinary mean, which reads all packets where
`aggregate` reads those that arrived.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks import paired
from lossproof.impl.aggregate import Rule, aggregate
from lossproof.impl.retain import retain

TARGET = 1.15


@dataclass(frozen=True)
class Case:
    shape: tuple[int, int, int] = (16, 16384, 256)
    dtype: torch.dtype = torch.float32
    loss: float = 0.1
    rule: Rule = "survivor_mean"

    def __str__(self) -> str:
        sizes, dtype = " x ".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")
        return f"{sizes} {dtype}, {self.loss:.0%} loss, {self.rule}"

    def arguments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Payload and mask."""
        random = torch.Generator().manual_seed(0)
        payload_NPE = torch.randn(self.shape, generator=random).to(self.dtype)
        return payload_NPE, torch.rand(self.shape[:2], generator=random) >= self.loss


DEFAULT = Case()  # the call that the target is about
CASES = [
    DEFAULT,
    Case(loss=0.0),
    Case(rule="inverse_probability"),
    Case((64, 4096, 256)),
    Case((16, 16000, 250)),
    Case(dtype=torch.bfloat16),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--turns", type=int, default=41)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: dict[str, Any] = {}
    print(f"{'aggregate / mean(0), median (quartiles) of the turns':56}{'ratio':>20}{'ms':>8}")
    for case in CASES:
        payload, arrived = case.arguments()
        q = torch.full((len(payload),), 1 - case.loss, dtype=torch.float64)
        work = partial(aggregate, payload, arrived, case.rule, arrival_probability_N=q)
        if case == DEFAULT:
            work = partial(aggregate, payload, arrived)
        clock, _ = paired.take_turns([work, partial(payload.mean, 0)], options.warm, options.turns)
        row = rows[str(case)] = {"ratio": paired.ratios(*clock), "seconds": paired.spread(clock[0])}
        print(f"{case!s:56}{paired.show(row['ratio']):>20}{1e3 * row['seconds']['median']:8.1f}")
        if case == DEFAULT:
            print(f"    {paired.verdict(row['ratio']['median'], TARGET)}")

    stale, arrived = DEFAULT.arguments()
    fresh = stale[0].clone()
    clock, _ = paired.take_turns([partial(retain, stale, fresh, arrived), stale.clone], options.warm, options.turns)
    retained = {"ratio": paired.ratios(*clock), "seconds": paired.spread(clock[0])}
    print(f"{'retain / clone of the replicas, same sizes':56}{paired.show(retained['ratio']):>20}")
    paired.save("stages", {"target": TARGET, "default": str(DEFAULT), "aggregate": rows, "retain": retained})


if __name__ == "__main__":
    main()
