"""What `benchmarks.training_over_loss` makes of its runs; the link itself needs root."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import training_over_loss as benchmark


def made(seed: int, loss: float, transport: str, step_seconds: float, log_perplexity: float) -> dict[str, Any]:
    losses = [5.0 - 0.1 * k for k in range(30)]
    return {"seed": seed, "loss": loss, "transport": transport, "seconds": [step_seconds] * 30, "losses": losses,
            "log_perplexity": log_perplexity, "reliable_ms": 1.0}  # fmt: skip


def test_the_time_to_a_perplexity_is_that_of_the_first_step_that_is_there() -> None:
    run = made(0, 0.0, "udp", 0.5, 2.0)
    assert benchmark.seconds_to(run, 4.551) == pytest.approx(5.0)  # the mean of the first ten losses, after ten steps
    assert benchmark.seconds_to(run, 4.5) == pytest.approx(5.5)
    assert benchmark.seconds_to(run, 1.0) is None


def test_differences_are_paired_by_seed_and_have_students_interval() -> None:
    runs = []
    for seed, (clean, lossy) in enumerate([(3.0, 3.1), (2.0, 2.3), (4.0, 4.2)]):
        for loss, value in ((0.0, clean), (0.1, lossy)):
            runs.append(made(seed, loss, "udp", 0.25 if loss else 0.125, value))
            runs.append(made(seed, loss, "tcp", 1.0 if loss else 0.25, value - 1))
    runs[0]["losses"] = [value + 1 for value in runs[0]["losses"]]  # the target is one that this run reaches too
    found = benchmark.summary(runs[::-1], [0.0, 0.1])
    assert found["difference"]["mean"] == pytest.approx(0.2)
    low, high = found["difference"]["interval"]  # 0.1 / sqrt(3) times Student's 0.975 quantile of 2 degrees: 4.3027
    assert (low, high) == pytest.approx((0.2 - 0.248414, 0.2 + 0.248414), abs=1e-5)
    assert [row["mean_step_udp_over_tcp"] for row in found["table"]] == [0.5, 0.25]
    assert found["table"][1]["udp"]["steps"] == 90
    assert found["target_log_perplexity"] == pytest.approx(6.0 - 0.1 * 24.5)


def test_a_step_lasts_as_long_as_on_the_slowest_rank() -> None:
    parts = [
        {"seconds": [1.0, 4.0], "losses": [2.0, 4.0], "log_perplexity": 1.5, "statistics": {"cut_off": 2},
         "reliable_seconds": 1.0},
        {"seconds": [3.0, 2.0], "losses": [4.0, 0.0], "log_perplexity": 1.5, "statistics": {"cut_off": 1},
         "reliable_seconds": 0.5},
    ]  # fmt: skip
    found = benchmark.joined(parts)
    assert found["seconds"] == [3.0, 4.0]
    assert found["losses"] == [3.0, 2.0]
    assert (found["cut_off"], found["reliable_ms"]) == (3, 500.0)
