"""A link on which the kernel drops packets: what arrived against the kernel's own counters, and training over it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parent))
from netns import Network, missing

KEY = {"LOSSPROOF_KEY": "for tests, made up and public"}
RANK = str(Path(__file__).with_name("lossy_rank.py"))
pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not run: {missing()}")


DATA_BYTES = 8 + 32 + 1400 + 16  # of UDP, header, payload, tag; a datagram without payload is smaller
SEND = "import socket, sys\nsocket.socket(type=socket.SOCK_DGRAM).sendto(b'', (sys.argv[1], 9))"


def test_networks_side_by_side_of_which_one_has_a_dead_link() -> None:
    with Network(2) as dead, Network(2) as whole:
        dead.lose(0.0, {(0, 1): 1.0})
        for network, expected in ((dead, (1, 1)), (whole, (1, 0))):
            assert network.start(0, sys.executable, "-c", SEND, network.addresses[1]).wait(60) == 0
            until = time.monotonic() + 30
            while not network.counters("udp")[0, 1][0] and time.monotonic() < until:
                time.sleep(0.01)
            assert network.counters("udp") == {(0, 1): expected, (1, 0): (0, 0)}
        for loss in (-0.1, 1.5):
            with pytest.raises(ValueError, match="loss must be in"):
                dead.lose(loss)
        other = Network(1)
        other.nodes = [dead.nodes[0]]
        with pytest.raises(RuntimeError, match="File exists"), other:
            pass
        assert dead.start(0, "true").wait(60) == 0  # who fails to enter removes what is its own


def counted(network: Network, packets: int, rounds: int) -> list[dict[str, Any]]:
    outputs = network.ranks(RANK, str(packets), str(rounds), env=KEY)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def in_vain(end: dict[str, Any]) -> int:
    """Data that reached a rank and that it did not use."""
    return int(end["late"] + end["early"] + end["duplicate"])


@pytest.mark.parametrize(("nodes", "join"), [(2, True), (3, True), (2, False)])
def test_what_arrives_is_what_the_kernel_let_through(nodes: int, join: bool) -> None:
    with Network(nodes, join=join) as network:
        network.lose(0.1)
        network.count_data(DATA_BYTES)
        ranks = counted(network, 600, 20)
        udp, data = network.counters("udp"), network.data()
    for name in ("forged", "malformed", "foreign", "unsendable", "overflowed"):
        assert all(rank[name] == 0 for rank in ranks), name
    assert sum(came for came, _ in udp.values()) == sum(rank["sent"] for rank in ranks)
    for dst, rank in enumerate(ranks):
        others = sorted(set(range(nodes)) - {dst})
        assert rank["received"] == sum(udp[src, dst][0] - udp[src, dst][1] for src in others)
        assert [rank["offered"][src] for src in others] == [2 * 20 * 600 // nodes] * (nodes - 1)
        assert rank["lost"][dst] == 0
        for src in others:
            assert rank["lost"][src] >= rank["offered"][src] - data[src, dst][1]
        passed = sum(data[src, dst][1] for src in others)
        assert sum(rank["lost"]) == sum(rank["offered"][src] for src in others) - passed + in_vain(rank)
    for src, rank in enumerate(ranks):
        offered = sum(ranks[dst]["offered"][src] for dst in range(nodes) if dst != src)
        assert offered == sum(data[src, dst][0] for dst in range(nodes) if dst != src) + rank["withheld"]
    for came, passed in data.values():
        assert binomtest(came - passed, came, 0.1).pvalue > 1e-8


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
    """And every packet that training missed is accounted for: dropped by the kernel, not sent, or come in vain."""
    with Network(2) as network:
        network.lose(0.1)
        network.count_data(DATA_BYTES)
        network.ranks(
            "-m", "lossproof", "train", "--transport", "udp", "--steps", "40", "--context", "64", "--hidden", "32",
            "--lr", "0.01", "--layers", "1", "--intermediate", "64", "--packet-bytes", "1400",
            "--json", str(tmp_path / "run.json"), env=KEY, limit=500,
        )  # fmt: skip
        udp, data = network.counters("udp"), network.data()
    (run,) = json.loads((tmp_path / "run.json").read_text())["runs"]
    assert run["law"] == "udp"
    assert run["train_losses"][0] > 5.3  # ln 256 = 5.55: it knows nothing
    assert run["log_perplexity"] < 4
    counts, ends = run["counts"], run["datagrams"]
    lost = counts["gradients_lost"] + counts["parameters_lost"]
    offered = counts["gradients_offered"] + counts["parameters_offered"]
    came, passed = (sum(both[k] for both in data.values()) for k in range(2))
    assert all(end["overflowed"] == 0 for end in ends)
    assert offered == came + sum(end["withheld"] + end["unsendable"] for end in ends)
    unread = sum(came - dropped for came, dropped in udp.values()) - sum(end["received"] for end in ends)
    assert 0 <= lost - (offered - passed + sum(map(in_vain, ends))) <= unread  # come after the last look at the socket
    assert binomtest(came - passed, came, 0.1).pvalue > 1e-8
    assert all(binomtest(dropped, came, 0.1).pvalue > 1e-8 for came, dropped in udp.values())
