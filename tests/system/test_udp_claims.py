"""A1, A3 and B2 on real datagrams, between namespaces whose kernel drops 10 to 30 % of them; see `netns`.

What is tested is what the claims' own rungs test (`instruments/datagrams.py`), each with its false-alarm probability;
and the kernel's counters, packet for packet.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lossproof.proofs_checks.claim import Refuted
from lossproof.proofs_checks.instruments import datagrams
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_probability

sys.path.insert(0, str(Path(__file__).parent))
from netns import Network, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not run: {missing()}")

RANKS, PACKETS = 4, 2000
LINKS = [(src, dst) for src in range(RANKS) for dst in range(RANKS) if src != dst]
DATA_BYTES = 64  # header and tag of the protocol, the UDP header, one float64; a datagram without payload is smaller


class Ranks:
    """Ranks on all nodes of a network, started once."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.file, self.number = network, folder / "part", 0
        self.running = network.launch(
            str(Path(__file__).with_name("udp_rank.py")), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, line: str, answer: str) -> None:
        for process in self.running:
            assert process.stdin
            process.stdin.write(line + "\n")
            process.stdin.flush()
        for process in self.running:
            assert process.stdout
            said = process.stdout.readline().strip()
            assert said == answer, f"a rank said {said!r}, not {answer!r}"

    def play(self, loss: float, links: dict[tuple[int, int], float] | None = None, **case: Any) -> datagrams.Played:
        """Rounds over links that lose; `self.data` counts, by link, the data that came to the router and passed."""
        self.network.lose(0)
        self.tell(json.dumps({"packets": PACKETS, "file": str(self.file), **case}), "ready")
        self.network.lose(loss, links)
        self.network.count_data(DATA_BYTES)
        self.tell("", "played")
        self.data, self.counters = self.network.data(), self.network.counters("udp")
        self.network.lose(0)
        self.tell("", "done")
        return datagrams.together([pickle.loads(Path(f"{self.file}{rank}").read_bytes()) for rank in range(RANKS)])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with Network(RANKS) as network:
        yield Ranks(network, tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_what_arrives_is_what_the_kernel_let_through(ranks: Ranks, loss: float) -> None:
    rounds = 6
    played = ranks.play(loss, gradients="gradients", rounds=rounds)
    assert all(counted["overflowed"] == counted["cut_off"] == counted["forged"] == 0 for counted in played.statistics_N)
    datagrams.require_round(played, datagrams.gradients(rounds, RANKS))
    for src, dst in LINKS:
        masks = played.gradients_TNP[:, src] if dst == 0 else played.parameters_TNP[:, dst]
        arrived = int(masks.sum()) if 0 in (src, dst) else 0
        assert arrived == ranks.data[src, dst][1]  # packet for packet
        if 0 in (src, dst):
            require_probability(f"data from {src} to {dst}", masks.numel() - arrived, masks.numel(), loss)
        offered, dropped = ranks.counters[src, dst]  # words without payload among them
        require_probability(f"all from {src} to {dst}", dropped, offered, loss)
    datagrams.require_exchangeable(
        f"gradients at loss {loss}", played.gradients_TNP[:, 1:].permute(1, 0, 2).flatten(1).numpy(), ALPHA
    )
    datagrams.require_exchangeable(
        f"parameters at loss {loss}", played.parameters_TNP[:, 1:].permute(1, 0, 2).flatten(1).numpy(), ALPHA
    )


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_a1_the_survivor_mean_of_datagrams_is_unbiased(ranks: Ranks, loss: float) -> None:
    played = ranks.play(loss, gradients="gradients", rounds=6, remote=True)
    datagrams.require_unbiased(f"loss {loss}", played, datagrams.gradients(6, RANKS), ALPHA)


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_a3_the_reliable_own_link_has_the_owners_weight(ranks: Ranks, loss: float) -> None:
    played = ranks.play(loss, gradients="gradients", rounds=6)
    datagrams.require_owner_weight(f"loss {loss}", played, datagrams.gradients(6, RANKS), loss, ALPHA)


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_b2_replicas_drift_as_far_as_the_masks_say(ranks: Ranks, loss: float) -> None:
    played = ranks.play(loss, gradients="orthonormal", rounds=6)
    datagrams.require_round(played, datagrams.orthonormal(6, RANKS))
    datagrams.require_drift(f"loss {loss}", played, loss, ALPHA)


def checked(played: datagrams.Played, loss: float) -> None:
    given = datagrams.gradients(4, RANKS)
    datagrams.require_round(played, given)
    datagrams.require_owner_weight("planted", played, given, loss, ALPHA)


@pytest.mark.parametrize("mistake", ["STALE_SLOT", "NEIGHBOURS_PAYLOAD", "COUNTED_TWICE", "LATE_TAKEN"])
def test_mistakes_of_the_transport_are_seen_on_the_link(ranks: Ranks, mistake: str) -> None:
    checked(ranks.play(0.2, gradients="gradients", rounds=4), 0.2)
    planted = ranks.play(0.2, gradients="gradients", rounds=4, copies=mistake in ("COUNTED_TWICE", "LATE_TAKEN"),
                         planted=mistake)  # fmt: skip
    with pytest.raises(Refuted):
        checked(planted, 0.2)


def test_copies_and_late_packets_alone_change_nothing(ranks: Ranks) -> None:
    played = ranks.play(0.2, gradients="gradients", rounds=4, copies=True)
    datagrams.require_round(played, datagrams.gradients(4, RANKS))
    for counted in played.statistics_N:
        assert counted["duplicate"] > 0
        assert counted["late"] > 0


def test_links_that_are_not_alike_are_seen(ranks: Ranks) -> None:
    """A6: what A1 does not allow. Sender 3 loses three times as much; its gradients are missing from the mean."""
    played = ranks.play(0.1, {(3, 0): 0.3}, gradients="gradients", rounds=6, remote=True)
    given = datagrams.gradients(6, RANKS)
    with pytest.raises(Refuted, match="arrivals of exactly"):
        datagrams.require_unbiased("unequal", played, given, ALPHA)


def test_a_wrong_constant_is_seen(ranks: Ranks) -> None:
    played = ranks.play(0.3, gradients="gradients", rounds=10)
    with pytest.raises(Refuted, match="bias"):
        datagrams.require_owner_weight("no loss assumed", played, datagrams.gradients(10, RANKS), 0.0, ALPHA)
    played = ranks.play(0.3, gradients="orthonormal", rounds=6)
    with pytest.raises(Refuted, match="drift"):
        datagrams.require_drift("half as much loss again", played, 0.45, ALPHA)
    assert torch.equal(played.estimates_TPE[0, 0], torch.eye(6, dtype=torch.float64)[0] * -1)
