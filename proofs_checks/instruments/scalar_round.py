"""One round of the protocol, once more: plain numbers and lists, a packet and a rank at a time, from the definitions.

Legend: N ranks, P packets, E elements; masks as rows of bools by remote rank, [rank][packet].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lossproof.theory import protocol

Vector = list[Any]
Mask = Sequence[Sequence[bool]]


@dataclass
class ScalarRound:
    """Owners' packets x, replicas theta[rank][packet], and what `hold` remembers; in the numbers given."""

    x: list[Vector]
    owners: Sequence[int]
    ranks: int
    rule: str = "survivor_mean"
    no_survivor: str = "zero"
    probability: Sequence[Sequence[Any]] | None = None
    theta: list[list[Vector]] = field(default_factory=list)
    held: list[Vector] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        self.theta = [[list(packet) for packet in self.x] for _ in range(self.ranks)]
        self.held = [[0 * value for value in packet] for packet in self.x]
        names = ("gradients_offered", "gradients_lost", "parameters_offered", "parameters_lost", "no_survivor")
        self.counts = dict.fromkeys(names, 0)

    def step(
        self, gradient: Sequence[Sequence[Vector]], sent: Mask, broadcast: Mask, update: Callable[[Any, Any], None]
    ) -> list[int]:
        """gradient[rank][packet] -> estimates -> update(x, estimates) -> replicas. Returns the survivors K."""
        survivors = [[i for i in range(self.ranks) if sent[i][p]] for p in range(len(self.owners))]
        self.held = [self._estimate(p, survivors[p], [g[p] for g in gradient]) for p in range(len(self.owners))]
        update(self.x, [list(packet) for packet in self.held])
        for p, owner in enumerate(self.owners):
            for i in range(self.ranks):
                self.theta[i][p] = [
                    protocol.replica(1 if broadcast[i][p] else 0, fresh, stale)
                    for fresh, stale in zip(self.x[p], self.theta[i][p], strict=True)
                ]
                if i != owner:
                    self.counts["gradients_offered"] += 1
                    self.counts["gradients_lost"] += 0 if sent[i][p] else 1
                    self.counts["parameters_offered"] += 1
                    self.counts["parameters_lost"] += 0 if broadcast[i][p] else 1
            self.counts["no_survivor"] += 0 if survivors[p] else 1
        self.steps += 1
        return [len(some) for some in survivors]

    def _estimate(self, p: int, survivors: list[int], g: list[Vector]) -> Vector:
        if not survivors and self.no_survivor == "hold":
            return self.held[p]
        if not survivors and self.no_survivor == "own":
            return g[self.owners[p]]
        estimate = []
        for e in range(len(self.x[p])):
            total = 0 * g[0][e]
            for i in survivors:
                total = total + g[i][e] * (1 / self.probability[i][p] if self._weighs() else 1)  # type: ignore[index]
            by = max(len(survivors), 1) if self.rule == "survivor_mean" else self.ranks
            estimate.append(total / by)
        return estimate

    def _weighs(self) -> bool:
        return self.rule == "inverse_probability"


def descend(x: list[Vector], by: list[Vector]) -> None:
    """x - by, in place."""
    for packet, change in zip(x, by, strict=True):
        packet[:] = [value - c for value, c in zip(packet, change, strict=True)]
