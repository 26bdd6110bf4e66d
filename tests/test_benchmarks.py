"""The benchmarks run, and count what they say they count; no time is asserted."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import cluster, paired, stages


def test_variants_take_turns_and_each_begins() -> None:
    calls: list[str] = []
    clock, processor = paired.take_turns(
        [lambda name=name: calls.append(name) for name in "abc"], warm=1, turns=3, before=lambda: calls.append("|")
    )
    assert "".join(calls) == "|a|b|c|b|c|a|c|a|b|a|b|c"
    assert [len(seconds) for seconds in (*clock, *processor)] == [3] * 6


def test_the_spread_is_of_the_ratios_not_the_ratio_of_the_spreads() -> None:
    assert paired.ratios([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == {"median": 3.0, "quartiles": [2.5, 3.5]}
    assert paired.show(paired.spread([1.0, 2.0, 3.0]), digits=1) == "2.0 (1.5, 2.5)"


def test_a_missed_target_says_so() -> None:
    assert paired.verdict(1.15, 1.15) == "target 1.15: reached"
    assert paired.verdict(1.16, 1.15) == "target 1.15: MISSED"


def test_stages_compares_the_default_call_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert stages.CASES[0] == stages.DEFAULT == stages.Case((16, 16384, 256), torch.float32, 0.1, "survivor_mean")
    small = replace(stages.DEFAULT, shape=(16, 64, 256))
    payload, arrived = small.arguments()
    assert (payload.shape, payload.dtype, arrived.shape) == ((16, 64, 256), torch.float32, (16, 64))
    assert 0 < int((~arrived).sum()) < 300  # of 1024; 102 expected
    monkeypatch.setattr(paired, "RESULTS", tmp_path)
    monkeypatch.setattr(stages, "DEFAULT", small)
    monkeypatch.setattr(stages, "CASES", [small, replace(small, rule="inverse_probability")])
    monkeypatch.setattr(sys, "argv", ["stages", "--turns", "2", "--threads", "1"])
    stages.main()
    written = json.loads((tmp_path / "stages.json").read_text())
    assert list(written["aggregate"]) == [str(case) for case in stages.CASES]
    assert written["machine"]["threads"] == 1


def test_the_protocol_is_a_step_less_its_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(cluster.DEFAULT, ranks=3, batch=1, context=16, hidden=16, intermediate=16, validation=16)
    found = cluster.measure(tiny, 1, 3)
    assert found["ranks"] == 3
    assert 0 < found["protocol_share"]["median"] < 1
    assert 0 < found["protocol_seconds"]["median"] < found["step_seconds"]["median"]
    monkeypatch.setattr(paired, "RESULTS", tmp_path)
    paired.save("cluster", {"by_ranks": [found]}, cluster.picture([found, found], [found, found]))
    assert json.loads((tmp_path / "cluster.json").read_text())["by_ranks"] == [found]
    assert (tmp_path / "cluster.png").stat().st_size > 1000


def test_the_default_is_what_train_does_by_default_at_512_tokens() -> None:
    from lossproof.impl.train import Settings

    assert cluster.DEFAULT.batch * cluster.DEFAULT.context == 512
    assert replace(cluster.DEFAULT, law=Settings().law, batch=Settings().batch) == Settings()
