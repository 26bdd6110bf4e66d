"""Records of measurements, `benchmarks/results/NAME.json`: figures and pages read them, and make none.

They stay in the source tree: an installed package has none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lossproof.paper_figures.figure import Effort, Inputs
from lossproof.paper_figures.manifest import digest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def read(name: str) -> dict[str, Any]:
    """A record. Raises FileNotFoundError where there is none."""
    file = FOLDER / f"{name}.json"
    if not file.is_file():
        raise FileNotFoundError(f"no record here: benchmarks/results/{name}.json is part of the source tree")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def inputs(name: str) -> Callable[[Effort], Inputs]:
    """The inputs of a figure that is drawn from a record: its hash, and how and where it was measured."""

    def of(effort: Effort) -> Inputs:
        found = read(name)
        sha256 = digest((FOLDER / f"{name}.json").read_bytes())
        return {"record": name, "sha256": sha256, "machine": found["machine"], "settings": found["settings"]}

    return of


def crossing(losses: Sequence[float], udp: Sequence[float], tcp: Sequence[float]) -> tuple[float | None, float | None]:
    """The highest of these losses, in rising order, at which UDP takes no less time than TCP, and the one after it.

    >>> crossing([0, 0.01, 0.1], [6, 8, 10], [4, 5, 12])
    (0.01, 0.1)
    >>> crossing([0, 0.01], [6, 8], [7, 9]), crossing([0, 0.01], [6, 8], [7, 7])
    ((None, 0), (0.01, None))
    """
    first = len(losses)
    while first and udp[first - 1] < tcp[first - 1]:
        first -= 1
    return losses[first - 1] if first else None, losses[first] if first < len(losses) else None


def faster(losses: Sequence[float], udp: Sequence[float], tcp: Sequence[float]) -> str:
    """The losses at which UDP takes less time, in words.

    >>> faster([0, 0.01, 0.1], [6, 8, 10], [4, 5, 12])
    'above a loss of 1 to 10 %'
    """
    below, above = crossing(losses, udp, tcp)
    if below is None:
        return "at every loss"
    if above is None:
        return f"at no loss up to {100 * below:g} %"
    return f"above a loss of {100 * below:g} to {100 * above:g} %"
