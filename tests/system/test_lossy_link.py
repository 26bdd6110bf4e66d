"""A link on which the kernel drops packets: what arrived against the kernel's own counters, and training over it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parent))
from netns import Network, missing

KEY = {"LOSSPROOF_KEY": "for tests, made up and public"}
RANK = str(Path(__file__).with_name("lossy_rank.py"))
pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not run: {missing()}")


def counted(network: Network, packets: int, rounds: int) -> list[dict[str, Any]]:
    outputs = network.ranks(RANK, str(packets), str(rounds), env=KEY)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.parametrize(("nodes", "join"), [(2, True), (3, True), (2, False)])
def test_what_arrives_is_what_the_kernel_let_through(nodes: int, join: bool) -> None:
    with Network(nodes, join=join) as network:
        network.lose(0.1)
        ranks = counted(network, 600, 20)
        udp = network.counters("udp")
    assert all(rank["forged"] == rank["malformed"] == rank["foreign"] == rank["unsendable"] == 0 for rank in ranks)
    assert sum(came for came, _ in udp.values()) == sum(rank["sent"] for rank in ranks)
    for dst, rank in enumerate(ranks):
        through = sum(udp[src, dst][0] - udp[src, dst][1] for src in range(nodes) if src != dst)
        assert rank["received"] == through - rank["overflowed"]
        assert rank["lost"][dst] == 0
        for src in set(range(nodes)) - {dst}:
            assert rank["offered"][src] == 2 * 20 * 600 // nodes
            others = rank["overflowed"] + rank["late"] + rank["early"] + ranks[src]["withheld"]
            assert rank["lost"][src] <= udp[src, dst][1] + others
    lost, offered = (sum(sum(rank[name]) for rank in ranks) for name in ("lost", "offered"))
    offered -= sum(rank["offered"][k] for k, rank in enumerate(ranks))
    late = sum(rank["late"] + rank["early"] + rank["overflowed"] + rank["withheld"] for rank in ranks)
    for share in (lost - late, lost):  # what came too late, or not at all, counts as lost: the truth lies between
        print(f"{nodes} nodes: {share} of {offered} lost")
    assert binomtest(lost - late, offered, 0.1, alternative="greater").pvalue > 1e-8
    assert binomtest(lost, offered, 0.1, alternative="less").pvalue > 1e-8


def test_without_loss_everything_arrives_and_one_bad_direction_is_the_only_one() -> None:
    with Network(2) as network:
        for loss in (0.0, 0.3):
            network.lose(0.0, {(0, 1): loss})
            first, second = counted(network, 400, 20)
            dropped = network.counters("udp")[0, 1][1]
            assert first["lost"] == [0, 0]
            assert (second["lost"][0] == 0) == (loss == 0)
            assert second["lost"][0] <= dropped + second["late"] + second["early"] + first["withheld"]
            assert second["lost"][0] >= 0.5 * dropped


def test_a_llama_trains_over_a_link_that_loses_a_tenth(tmp_path: Path) -> None:
    with Network(2) as network:
        network.lose(0.1)
        network.ranks(
            "-m", "lossproof", "train", "--transport", "udp", "--steps", "40", "--context", "64", "--hidden", "32",
            "--lr", "0.01", "--layers", "1", "--intermediate", "64", "--packet-bytes", "1400",
            "--json", str(tmp_path / "run.json"), env=KEY, limit=500,
        )  # fmt: skip
        udp = network.counters("udp")
    (run,) = json.loads((tmp_path / "run.json").read_text())["runs"]
    assert run["law"] == "udp"
    assert run["train_losses"][0] > 5.3  # ln 256 = 5.55: it knows nothing
    assert run["log_perplexity"] < 4
    counts = run["counts"]
    lost = counts["gradients_lost"] + counts["parameters_lost"]
    offered = counts["gradients_offered"] + counts["parameters_offered"]
    assert binomtest(lost, offered, 0.1, alternative="less").pvalue > 1e-8  # what the deadline cuts off comes on top
    assert all(0.05 < dropped / came < 0.15 for came, dropped in udp.values())
