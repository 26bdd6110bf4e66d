"""Words over UDP: small values that must reach all ranks, where every second datagram is lost; ranks that stall."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lossy_ddp import Job
from processes import outcomes, together
from test_udp import channel, exchange

from lossproof.impl.distributed import attach
from lossproof.impl.transport import wire
from lossproof.impl.transport import words as words_module
from lossproof.impl.transport.channel import UdpEnd
from lossproof.impl.transport.peers import Limits, Peers
from lossproof.impl.transport.words import ENOUGH, Words


class HalfLost:
    """A socket's `send` that loses every second datagram by a seeded draw, of any kind."""

    def __init__(self, end: UdpEnd, loss: float = 0.5) -> None:
        self.send, self.random, self.loss = end.socket.send, np.random.default_rng(end.exchange.rank), loss
        self.lost = dict.fromkeys((wire.WORD, wire.HEARD), 0)
        end.socket.send = self  # type: ignore[method-assign, assignment]

    def __call__(self, rows: memoryview, row_bytes: int, peer: tuple[str, int]) -> bool:
        for at in range(0, len(rows), row_bytes):
            if self.random.random() < self.loss:
                self.lost[rows[at + 3]] = self.lost.get(rows[at + 3], 0) + 1
            else:
                self.send(rows[at : at + row_bytes], row_bytes, peer)
        return True


def summed(dtype: torch.dtype) -> Any:
    """Sums and gathers over the channel, in and between phases, and collectives of the group right behind them."""
    to = exchange([0, 1, 2] * 4)
    end = channel()(to)
    end.gradients(0, torch.ones(1, 12, 2))
    lossy, plain = HalfLost(end), end.exchange
    for k in range(40):
        values = torch.arange(5).to(dtype) + 10 * to.rank + k
        assert plain.total(values.clone()).tolist() == (3 * torch.arange(5) + 30 + 3 * k).tolist()
        every = plain.every(values[:2])
        assert every.dtype == dtype
        assert every.tolist() == [[10 * rank + k, 10 * rank + k + 1] for rank in range(3)]
        if k % 8 == 0:
            dist.barrier()  # who has left the word no longer answers
        if k % 8 == 4:
            lossy.loss = 0.0
            end.parameters(k, torch.ones(4, 2))
            end.gradients(k, torch.ones(1, 12, 2))
            lossy.loss = 0.5
    assert end.words.number == 80
    return lossy.lost


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_word_reaches_all_ranks_whatever_is_lost(dtype: torch.dtype) -> None:
    for lost in together(summed, 3, dtype):
        assert min(lost[wire.WORD], lost[wire.HEARD]) > 50


def too_large() -> Any:
    to = exchange([0, 1])
    end = channel()(to)
    before = end.every(torch.ones(2)) is None  # no packets yet, so nobody listens
    end.gradients(0, torch.ones(1, 2, 2))
    large = torch.arange(1.0 + 64 * (end.largest_packet // 4))
    assert end.every(large) is None
    rows, there = end.every(large[1:])
    assert end.words.number == 64
    assert torch.equal(rows, large[1:].expand(2, -1))
    assert there.all()
    assert end.statistics()["unsendable"] == 0  # two copies in one train would be more than a datagram holds
    to.total(large)
    end.close()
    assert to.small is None
    return before, torch.equal(large, 2 * torch.arange(1.0 * len(large))), to.total(torch.ones(1)).tolist()


def test_larger_values_take_several_words_and_very_large_ones_the_group() -> None:
    assert together(too_large, 2) == [(True, True, [2.0])] * 2


def unequal() -> None:
    to = exchange([0, 1])
    end = channel()(to)
    end.gradients(0, torch.ones(1, 2, 2))
    with pytest.raises(RuntimeError, match=r"ranks ask for different values: of \[4, 8\] bytes"):
        to.total(torch.ones(1 + to.rank))


def test_values_of_different_size_are_refused_on_all_ranks() -> None:
    together(unequal, 2)


def one_does_not_answer(survive: bool) -> Any:
    """Rank 2 takes no part in three rounds; then it goes on where it stopped, while the others do a fourth."""
    to = exchange([0, 1, 2] * 2)
    end = channel(limits=Limits(floor=0.1, ceiling=0.1), patience=0.5, survive=survive)(to)
    end.gradients(0, torch.ones(1, 6, 2))
    found = []
    if to.rank == 2:
        dist.barrier()
    for k in range(4):
        if k == 3 and to.rank != 2:
            dist.barrier()
        found.append((to.total(torch.tensor([1.0 + to.rank])).tolist(), to.every(torch.tensor([1.0 * k])).tolist()))
        end.parameters(k, torch.ones(2, 2))
        end.gradients(k + 1, torch.ones(1, 6, 2))
    return repr(found), end.peers.downs


def test_who_does_not_answer_is_lost() -> None:
    ends = outcomes(one_does_not_answer, 3, False, group_timeout=20)
    for rank in (0, 1):
        assert f"RankLost: rank {rank} of 3: rank 2 did not answer for 0.5 s: it died, or is stuck" in ends[rank].error


def listening() -> tuple[Words, list[tuple[int, ...]]]:
    """Rank 0 of three, and what it says: kind, receiver, turn, number, copies."""
    said: list[tuple[int, ...]] = []

    class Sender:
        def say(self, kind: int, dst: int, turn: int, number: int, copies: int = 1, payload: bytes = b"") -> None:
            said.append((kind, dst, turn, number, copies))

    return Words(Sender(), Peers(0, 3)), said  # type: ignore[arg-type]


def test_words_are_acknowledged_as_often_as_they_come_and_kept_one_ahead() -> None:
    words, said = listening()
    words.number = 5
    for number in (7, 4, 5, 6):  # one that comes too early, the word before, this one, the next one
        words.take(wire.WORD, 1, number, bytes([number]))
    words.acknowledge(3)
    words.acknowledge(3)
    assert said == [(wire.HEARD, 1, 3, number, 4) for number in (4, 5, 6)]
    assert words._said == ({1: b"\x06"}, {1: b"\x05"})
    words.take(wire.WORD, 1, 5, b"another")
    assert words._said[1][1] == b"\x05"  # the first one counts
    assert words.wanted(np.array([3, 4, 5, 6, 100])).tolist() == [False, True, True, True, True]


def test_a_word_is_over_when_all_is_heard_or_was_said_often_enough() -> None:
    words, said = listening()
    times = 0

    def receive() -> int:
        nonlocal times
        times += 1
        if times == 1:
            words.take(wire.WORD, 1, 0, b"one")
            words.take(wire.HEARD, 1, 0, b"")
        if times == 2:
            words.take(wire.HEARD, 2, 1, b"")  # of the next word: says nothing of this one
            words.take(wire.WORD, 2, 0, b"two")
        return 1

    assert words.exchange(b"own", 7, receive, 60.0, survive=False) == {0: b"own", 1: b"one", 2: b"two"}
    to_one = [copies for kind, dst, *_, copies in said if dst == 1]
    to_two = [copies for kind, dst, *_, copies in said if dst == 2]
    assert to_one == [2]  # rank 1 heard it at once
    assert len(to_two) >= 1 + ENOUGH  # rank 2 was never heard to have it
    assert words.number == 1


def attached_without_one_rank() -> Any:
    """Rank 1 is killed in its fourth step, before its norms have left; rank 0 trains on."""
    job = Job(model="mlp")
    lossy = attach(
        job.wrapped, job.opt, packet_bytes=32, log_every=0, drift_every=2,
        channel=channel(limits=Limits(floor=0.05, ceiling=0.1), patience=0.3, survive=True, silent_rounds=2),
    )  # fmt: skip
    job.train(3)
    if dist.get_rank() == 1:
        lossy.exchange.small = lambda values: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    before = lossy.fresh()
    job.train(6)
    changed = (lossy.fresh() != before).any(dim=1)
    return bool(changed.any()), lossy.channel.peers.down_N.tolist(), lossy.stages.step_number


def test_an_attached_job_survives_a_killed_rank_if_told_so() -> None:
    survivor, killed = outcomes(attached_without_one_rank, 2)
    assert survivor.value == (True, [False, True], 9), survivor.error
    assert "SIGKILL" in killed.error or "-9" in killed.error


def test_words_go_on_without_a_rank_which_is_told_so_when_it_comes_back() -> None:
    """It would train a model of its own."""
    *found, lost = outcomes(one_does_not_answer, 3, True)
    for end in found:
        assert not end.error
        assert end.value == (repr([([3.0], [[1.0 * k], [1.0 * k], [float("nan")]]) for k in range(4)]), 1)
    assert "took this rank for lost and went on: start again from a checkpoint" in lost.error
    assert "RankLost: rank 2 of 3: rank " in lost.error


def a_dead_link() -> Any:
    """From rank 1 to rank 0 nothing arrives until rank 1 has long gone on, as one who has all words may."""
    words_module.ENOUGH = 2
    to = exchange([0, 1])
    end = channel(limits=Limits(floor=0.1, ceiling=0.1), patience=20.0)(to)
    end.gradients(0, torch.ones(1, 2, 2))
    send, until = end.socket.send, time.monotonic() + 0.5
    if to.rank == 1:
        end.socket.send = lambda *train: time.monotonic() < until or send(*train)  # type: ignore[method-assign]
    found = [to.total(torch.tensor([1.0 + to.rank])).item()]
    end.parameters(0, torch.ones(1, 2))
    end.gradients(1, torch.ones(1, 2, 2))
    return found + [to.total(torch.tensor([10.0**k + to.rank])).item() for k in range(1, 4)]


def test_who_went_on_says_its_word_again_to_who_lacks_it() -> None:
    assert together(a_dead_link, 2) == [[3.0, 21.0, 201.0, 2001.0]] * 2


def test_the_word_before_is_kept_for_who_has_not_said_that_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """And to who has it no more is said, whatever comes: else two who are through would answer each other for ever."""
    monkeypatch.setattr(words_module, "ENOUGH", 1)
    words, said = listening()
    words.take(wire.WORD, 1, 0, b"one")
    words.take(wire.WORD, 2, 0, b"two")
    words.exchange(b"own", 7, lambda: words.take(wire.HEARD, 2, 0, b"") or 1, 60.0, survive=False)
    for src, again in ((1, [(wire.HEARD, 1, 8, 0, 4), (wire.WORD, 1, 8, 0, 2)]), (2, [(wire.HEARD, 2, 8, 0, 4)])):
        words.acknowledge(8)
        said.clear()
        words.take(wire.WORD, src, 0, b"the same")
        words.acknowledge(8)
        assert said == again
    words.take(wire.HEARD, 1, 0, b"")
    said.clear()
    words.take(wire.WORD, 1, 0, b"one")
    words.acknowledge(8)
    assert said == [(wire.HEARD, 1, 8, 0, 4)]


def test_who_is_at_the_next_word_has_this_one() -> None:
    """Though it never said so; not so the other one, whom this rank waited for long before it spoke."""
    words, said = listening()
    steps = iter([*[lambda: None] * 4, lambda: words.take(wire.WORD, 2, 0, b"two")])
    words.take(wire.WORD, 1, 0, b"one")
    words.take(wire.WORD, 1, 1, b"one more")

    def receive() -> int:
        next(steps, lambda: None)()
        time.sleep(0.01)
        return 1

    assert words.exchange(b"own", 7, receive, 60.0, survive=False) == {0: b"own", 1: b"one", 2: b"two"}
    assert [dst for kind, dst, *_ in said if dst == 1] == []
    assert len([dst for kind, dst, *_ in said if dst == 2]) > 1 + ENOUGH  # those before it spoke do not count


def test_who_is_two_words_ahead_has_given_this_rank_up() -> None:
    words, _ = listening()
    words.take(wire.WORD, 2, 2, b"much later")
    with pytest.raises(TimeoutError, match="rank 2 took this rank for lost"):
        words.exchange(b"own", 7, lambda: 1, 0.5, survive=True)


def test_who_is_waited_for_long_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(words_module, "FIRST_NOTICE", 0.0)
    words, _ = listening()
    words.take(wire.WORD, 1, 0, b"one")
    with pytest.raises(TimeoutError, match=r"rank 2 did not answer for 0.01 s: it died, or is stuck"):
        words.exchange(b"own", 7, lambda: 1, 0.01, survive=False)
    assert "rank 0 waits for rank 2 since 0 s" in caplog.text
