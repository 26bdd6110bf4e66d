"""Variants of one piece of work that take turns: what else the machine does hits all of them alike.

A ratio compares times of one turn, and is reported as the median over turns with its quartiles.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

SCHEMA = 1
RESULTS = Path(__file__).with_name("results")
Work = Callable[[], Any]


def take_turns(
    works: Sequence[Work], warm: int, turns: int, before: Callable[[], None] | None = None
) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds by the clock and of the processor, by variant and turn, after `warm` turns that are not counted.

    Each turn begins with another variant; `before` runs ahead of each (a barrier, say) and is not timed.
    """
    clock: list[list[float]] = [[] for _ in works]
    processor: list[list[float]] = [[] for _ in works]
    for turn in range(warm + turns):
        for place in range(len(works)):
            variant = (place + turn) % len(works)
            if before:
                before()
            started = time.perf_counter(), time.process_time()
            works[variant]()
            ended = time.perf_counter(), time.process_time()
            if turn >= warm:
                clock[variant].append(ended[0] - started[0])
                processor[variant].append(ended[1] - started[1])
    return clock, processor


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median and the quartiles of at least two values."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "quartiles": [low, high]}  # type: ignore[dict-item]


def ratios(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """The spread of the ratio within a turn."""
    return spread([mine / theirs for mine, theirs in zip(seconds, reference, strict=True)])


def show(found: dict[str, Any], scale: float = 1, digits: int = 2) -> str:
    low, high = found["quartiles"]
    return f"{scale * found['median']:.{digits}f} ({scale * low:.{digits}f}, {scale * high:.{digits}f})"


def verdict(value: float, target: float, written: str = "") -> str:
    return f"target {written or format(target, 'g')}: {'reached' if value <= target else 'MISSED'}"


def save(name: str, result: dict[str, Any], figure: Any = None) -> None:
    """`results/NAME.json`, and the picture beside it."""
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"schema": SCHEMA, "machine": machine} | result, indent=1) + "\n", encoding="utf-8")
    if figure is not None:
        figure.savefig(path.with_suffix(".png"), dpi=150, bbox_inches="tight")
    print(f"written: {path}" + (" and its picture" if figure is not None else ""))
