"""Faults on a real link: three ranks that exchange rounds over UDP, and what is done to them and to the link.

Every rank compares each packet that arrives with the one that was sent, and ends if it is another one; so one that is
still there at the end of a test took nothing wrong. With LOSSPROOF_FAULTS=FILE what happened is written to a JSON file,
of which `python -m docs.faults` makes docs/faults.md. No time is asserted beyond the channel's own hard bound.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from netns import Network, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not run: {missing()}")

HERE = Path(__file__).parent
RANKS, ATTACKER = 3, 3
CEILING = 0.5  # seconds a phase may last: see fault_rank.py
PATIENCE = 120.0
Lines = dict[int, list[dict[str, Any]]]


class Field:
    """Three ranks at work, and a node for whoever wants to disturb them."""

    def __init__(self, network: Network, folder: Path, buffer_bytes: int, port: int) -> None:
        self.network, self.files = network, [folder / f"rank{rank}" for rank in range(RANKS)]
        network.lose(0)
        env = {"MASTER_ADDR": network.addresses[0], "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "eth0",
               "WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1", "LOSSPROOF_KEY": "for tests, made up"}  # fmt: skip
        self.ranks = [
            network.start(
                rank, sys.executable, str(HERE / "fault_rank.py"), str(file), network.addresses[rank],
                str(buffer_bytes),
                env=env | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
            )
            for rank, file in enumerate(self.files)
        ]  # fmt: skip
        self.wait(lambda: all(len(lines) > 20 for lines in self.lines().values()), "the ranks did not start")
        self.first = [json.loads(file.read_text().splitlines()[0]) for file in self.files]

    def lines(self) -> Lines:
        """The rounds of each rank so far."""
        found: Lines = {}
        for rank, file in enumerate(self.files):
            text = file.read_text() if file.exists() else ""
            found[rank] = [json.loads(line) for line in text.splitlines()[1:] if line.endswith("}")]
        return found

    def wait(self, ready: Callable[[], bool], complaint: str) -> None:
        until = time.monotonic() + PATIENCE
        while not ready():
            for rank, process in enumerate(self.ranks):
                if process.poll() not in (None, -signal.SIGKILL):
                    raise AssertionError(f"rank {rank} ended: {process.stderr and process.stderr.read()[-2000:]}")
            assert time.monotonic() < until, complaint
            time.sleep(0.05)

    def rounds(self, number: int, ranks: tuple[int, ...] = (0, 1, 2)) -> None:
        """Waits until these ranks have done so many more rounds."""
        goal = {rank: len(lines) + number for rank, lines in self.lines().items()}
        self.wait(lambda: all(len(self.lines()[rank]) >= goal[rank] for rank in ranks), f"no {number} rounds more")

    def healthy(self) -> None:
        """Waits until all ranks have done rounds in which nothing at all was lost."""

        def whole() -> bool:
            return all(
                line["got"] == [40 + line["own"]] * RANKS for lines in self.lines().values() for line in lines[-3:]
            )

        self.rounds(3)
        self.wait(whole, f"packets still are lost: {[lines[-1] for lines in self.lines().values()]}")

    def down(self, rank: int) -> list[bool]:
        found: list[bool] = self.lines()[rank][-1]["down"]
        return found


def row(what: str, times: int, before: Lines, after: Lines, ranks: tuple[int, ...], outcome: str) -> dict[str, Any]:
    """What the rounds of a fault say, over the ranks that were not hit."""
    during = [line for rank in ranks for line in after[rank][len(before[rank]) :]]
    offered = len(during) * 2 * (40 + 40)  # from two others: gradients and parameters
    got = sum(sum(line["got"]) - line["own"] - 40 for line in during)
    refused = {
        name: sum(after[rank][-1][name] - before[rank][-1][name] for rank in ranks)
        for name in ("foreign", "malformed", "forged", "late", "overflowed", "cut_off", "downs", "returns")
    }
    slowest = 1000 * max(line["seconds"] for line in during)
    assert slowest < 1000 * PATIENCE
    return {"fault": what, "times": times, "rounds": len(during), "offered": offered, "lost": offered - got,
            "slowest_ms": round(slowest, 1), "wrong": 0, "outcome": outcome} | refused  # fmt: skip


ROWS: list[dict[str, Any]] = []


@pytest.fixture(scope="module", autouse=True)
def record() -> Iterator[None]:
    yield
    if (file := os.environ.get("LOSSPROOF_FAULTS")) and ROWS:
        found = {"schema": 1, "ceiling_seconds": CEILING, "rows": ROWS}
        Path(file).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with Network(RANKS + 1) as network:
        yield Field(network, tmp_path_factory.mktemp("field"), 8 << 20, 29578)


def test_a_stopped_peer_is_reported_down_and_its_return_handled(field: Field) -> None:
    times = 3
    field.healthy()
    before = field.lines()
    for _ in range(times):
        victim = field.ranks[2].pid
        os.kill(victim, signal.SIGSTOP)
        field.wait(lambda: field.down(0)[2] and field.down(1)[2], "nobody noticed that rank 2 stopped")
        assert not field.down(0)[1]
        assert not field.down(1)[0]
        field.rounds(20, (0, 1))  # goes on without it
        os.kill(victim, signal.SIGCONT)
        field.wait(lambda: not field.down(0)[2] and not field.down(1)[2], "nobody noticed that rank 2 is back")
        field.healthy()
    after = field.lines()
    for rank in (0, 1):
        assert after[rank][-1]["downs"] - before[rank][-1]["downs"] >= times
        assert after[rank][-1]["returns"] - before[rank][-1]["returns"] >= times
    ROWS.append(row("a rank stopped (SIGSTOP) in a round, and woken", times, before, after, (0, 1),
                    "reported down after 3 silent rounds, not waited for; back, and every packet arrives"))  # fmt: skip


def test_bursts_in_which_all_is_lost(field: Field) -> None:
    times = 5
    field.healthy()
    before = field.lines()
    for _ in range(times):
        field.network.lose(1.0)
        time.sleep(0.05)
        field.network.lose(0.0)
        field.healthy()
    after = field.lines()
    found = row("all links dead for about 50 ms", times, before, after, (0, 1, 2), "every packet arrives afterwards")
    assert found["lost"] > 0
    ROWS.append(found)


def test_the_outage_of_one_link(field: Field) -> None:
    times = 2
    field.healthy()
    before = field.lines()
    for _ in range(times):
        field.network.lose(0.0, {(1, 2): 1.0, (2, 1): 1.0})
        field.wait(lambda: field.down(1)[2] and field.down(2)[1], "the outage was not noticed")
        field.rounds(20)
        assert field.down(0) == [False] * RANKS
        assert field.down(1)[0] == field.down(2)[0] == False  # noqa: E712
        assert all(line["got"][0] == 40 + line["own"] for line in field.lines()[1][-3:])  # the other link is whole
        field.network.lose(0.0)
        field.healthy()
    after = field.lines()
    ROWS.append(row("one link of three dead in both directions", times, before, after, (0, 1, 2),
                    "its ends report each other down, the third notices nothing; all well afterwards"))  # fmt: skip


def test_asymmetric_loss(field: Field) -> None:
    field.healthy()
    field.network.lose(0.0, {(0, 1): 0.5})
    field.rounds(3)
    before = field.lines()
    field.rounds(60)
    after = field.lines()
    dropped = {link: counts[1] for link, counts in field.network.counters("udp").items()}
    assert dropped.pop((0, 1)) > 0
    assert not any(dropped.values())
    found = {rank: [line["got"] for line in after[rank][len(before[rank]) :]] for rank in range(RANKS)}
    share = sum(got[0] for got in found[1]) / (80 * len(found[1]))
    assert 0.4 < share < 0.6  # 4800 packets or more: 14 standard deviations
    assert not any(line["down"][k] for lines in after.values() for line in lines[-50:] for k in range(RANKS))
    field.network.lose(0.0)
    field.healthy()
    ROWS.append(row("half of what goes one way over one link is lost", 1, before, after, (0, 1, 2),
                    "nobody is reported down; all other links are whole"))  # fmt: skip


def flooded(field: Field, seconds: float) -> tuple[Lines, Lines, dict[str, int]]:
    field.healthy()
    before = field.lines()
    (address, port), job = field.first[0]["address"], field.first[0]["job"]
    flood = field.network.start(
        ATTACKER, sys.executable, str(HERE / "flood.py"), address, str(port), str(job), str(seconds),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    sent = json.loads(flood.communicate(timeout=PATIENCE)[0])
    field.rounds(3)
    after = field.lines()
    field.healthy()
    return before, after, sent


def test_a_flood_of_forged_datagrams_changes_nothing(field: Field) -> None:
    before, after, sent = flooded(field, 4.0)
    found = row("a flood of forged datagrams at one rank, from one core for 4 s", sum(sent.values()), before, after,
                (0, 1, 2), "none is taken: truncated, oversized, random, empty, made up")  # fmt: skip
    for name in ("forged", "malformed", "foreign"):
        assert found[name] > 0
    assert after[0][-1]["accepted"] - before[0][-1]["accepted"] <= 160 * (len(after[0]) - len(before[0]) + 2)
    ROWS.append(found | {"sent": sent})


def overflows(field: Field, node: int) -> int:
    """Datagrams that the kernel of a node dropped for want of room in a receive buffer."""
    text = field.network._in(field.network.nodes[node], "cat", "/proc/net/snmp")
    names, values = (line.split() for line in text.splitlines() if line.startswith("Udp:"))
    return int(values[names.index("RcvbufErrors")])


def test_full_receive_buffers_are_counted_as_the_kernel_counts_them(field: Field, tmp_path: Path) -> None:
    small = Field(field.network, tmp_path, 1 << 16, 29579)  # other ranks, on the same nodes
    os.kill(field.ranks[0].pid, signal.SIGSTOP)
    kernel = overflows(field, 0)
    os.kill(small.ranks[0].pid, signal.SIGSTOP)  # what comes now finds nobody who reads
    before = small.lines()
    (address, port), job = small.first[0]["address"], small.first[0]["job"]
    flood = [sys.executable, str(HERE / "flood.py"), address, str(port), str(job), "0.5"]
    sent = json.loads(field.network.start(ATTACKER, *flood, stdout=subprocess.PIPE, text=True).communicate()[0])
    os.kill(small.ranks[0].pid, signal.SIGCONT)
    small.healthy()
    after = small.lines()
    dropped = after[0][-1]["overflowed"]
    assert dropped > 1000
    assert dropped == overflows(field, 0) - kernel + before[0][-1]["overflowed"]
    for process in small.ranks:
        process.kill()
    os.kill(field.ranks[0].pid, signal.SIGCONT)
    ROWS.append(row("a flood at a stopped rank, receive buffer of 128 KiB", sum(sent.values()), before, after, (1, 2),
                    "it catches up once woken; what the buffer lost is counted exactly as the kernel counts it")
                | {"overflowed": dropped, "sent": sent})  # fmt: skip


def test_killed_peers_leave_the_others_at_work(field: Field) -> None:
    """The last test of the field: first one rank of three is killed, then another."""
    field.healthy()
    before = field.lines()
    for victim, left in ((2, (0, 1)), (1, (0,))):
        field.ranks[victim].kill()
        field.wait(lambda left=left, victim=victim: all(field.down(rank)[victim] for rank in left), "not noticed")  # type: ignore[misc]
        field.rounds(30, left)
        for rank in left:
            cut_off = [line["cut_off"] for line in field.lines()[rank]]
            assert cut_off[-1] == cut_off[-20]  # nobody waits for the dead
    after = field.lines()
    ROWS.append(row("a rank killed (SIGKILL) in a round, then another one", 2, before, after, (0,),
                    "reported down after 3 silent rounds; the rest go on at full speed without it"))  # fmt: skip
