"""How the UDP channel goes on between processes: room, what was seen, lost ends, lateness, deadlines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import together
from test_udp import channel, exchange

from lossproof.impl.transport import wire
from lossproof.impl.transport.peers import Limits


def to_a_receiver_that_does_not_read() -> Any:
    to = exchange([0] * 400 + [1] * 400)
    end = channel(buffer_bytes=1 << 16)(to)
    payload = torch.arange(800.0)[:, None].expand(-1, 350)[None].contiguous()
    end.send(payload, [range(800)])
    dist.barrier()
    under_way, window = end.socket.counts.sent, end._open(0, payload).window
    received, arrived = end.gradients(0, payload)
    assert torch.equal(received[1 - to.rank], payload[0, to.own_Q])
    return under_way, window, bool(arrived.all()), end.statistics()["overflowed"]


def test_no_more_is_under_way_than_the_receiver_has_room_for() -> None:
    for under_way, window, whole, overflowed in together(to_a_receiver_that_does_not_read, 2):
        assert under_way == window < 50
        assert whole
        assert overflowed == 0


def windows() -> None:
    """Rank 0 is told by hand what has been seen, and sends so much more; then what rank 1 says is looked at."""
    to = exchange([0] * 400 + [1] * 400)
    end = channel(buffer_bytes=1 << 16)(to)
    payload = torch.arange(800.0)[:, None].expand(-1, 350)[None].contiguous()
    outbox = end._open(0, payload)
    if to.rank == 0:
        end.send(payload, [range(800)])
        for seen, most in ((0, 0), (7, 7), (7, 7), (3, 7), (11, 11)):  # an old word takes nothing back
            outbox.credit(np.array([-1, 400 + seen]))
            while outbox.pump():
                pass
            assert end.socket.counts.sent == most + 1 + outbox.window
    dist.barrier()
    said, send = {0: [], 2: []}, end.socket.send

    def listening(rows: memoryview, row_bytes: int, peer: tuple[str, int]) -> bool:
        if rows[3] == wire.SEEN:  # nothing is lost or overtaken here, so it is the packet of this number
            turn, number = int.from_bytes(rows[18:24], "big"), int.from_bytes(rows[24:28], "big")
            said[turn].append((number, int(end._box.slot(turn).got_N[1 - to.rank])))
        return send(rows, row_bytes, peer)

    end.socket.send = listening  # type: ignore[method-assign]
    for step in range(2):
        _, arrived = end.gradients(step, payload)
        assert arrived.all()
        assert len(said[2 * step]) >= 400 // outbox.window - 1
        assert all(number == 400 * to.rank + got for number, got in said[2 * step])
        dist.barrier()


def test_a_receiver_says_what_it_has_seen_and_a_sender_goes_on_by_so_much() -> None:
    together(windows, 2)


def unheard() -> dict[str, Any]:
    """No word of what has been seen arrives: a sender goes on all the same, a train for each reminder."""
    to = exchange([0] * 200 + [1] * 200)
    end = channel(buffer_bytes=1 << 16)(to)
    send = end.socket.send
    end.socket.send = lambda rows, *where: rows[3] == wire.SEEN or send(rows, *where)  # type: ignore[method-assign]
    _, arrived = end.gradients(0, torch.zeros(1, 400, 350))
    assert arrived.all()
    return end.statistics()


def test_a_sender_that_is_told_nothing_goes_on_slowly() -> None:
    assert all(found["cut_off"] == 0 for found in together(unheard, 2))


def late_once() -> tuple[float, float]:
    """Rank 1 plays a turn only after rank 0 has given it up; the deadline of such turns before and after."""
    to = exchange([0, 1])
    end = channel(limits=Limits(floor=0.05, ceiling=2.0))(to)
    for step in range(17):
        end.gradients(step, torch.zeros(1, 2, 2))
        end.parameters(step, torch.zeros(1, 2))
    before = end._deadlines[0].seconds
    if to.rank == 1:
        dist.barrier()
    _, arrived = end.gradients(17, torch.zeros(1, 2, 2))
    if to.rank == 0:
        assert not arrived[1].any()
        dist.barrier()
    while to.rank == 0 and end.peers.turn_N[1] < 34:
        end._receive()
    end._learn()
    after = end._deadlines[0].seconds
    end.parameters(17, torch.zeros(1, 2))
    return before, after


def test_who_was_only_late_is_given_twice_the_time() -> None:
    before, after = together(late_once, 2)[0]
    assert after == pytest.approx(min(2.0, 2 * before))


def lost_ends() -> dict[str, Any]:
    """The last packet and the first words of the end are lost; each waits, until one is reminded and goes on."""
    to = exchange([0, 1, 1, 0])
    end, reminded = channel()(to), []
    send = end.socket.send

    def lossy(rows: memoryview, row_bytes: int, peer: tuple[str, int]) -> bool:
        if rows[3] == wire.END:
            first = len(rows) > row_bytes
            reminded.append(not first)
            return True if first else send(rows, row_bytes, peer)
        return send(rows[:-row_bytes], row_bytes, peer) if rows[3] == wire.DATA else send(rows, row_bytes, peer)

    end.socket.send = lossy  # type: ignore[method-assign]
    for step in range(3):
        if step == 2:  # nobody goes on after the last turn
            end.socket.send = send  # type: ignore[method-assign]
        _, arrived = end.gradients(step, torch.zeros(1, 4, 2))
        assert arrived[1 - to.rank].tolist() == [True, step == 2]
        _, arrived = end.parameters(step, torch.zeros(2, 2))
        assert int(arrived.sum()) == 3 + (step == 2)
    return end.statistics() | {"reminded": sum(reminded)}


def test_an_end_that_was_lost_is_said_again() -> None:
    found = together(lost_ends, 2)
    assert all(one["cut_off"] == 0 for one in found)
    assert sum(one["reminded"] for one in found) >= 4  # turns


def too_slow() -> dict[str, Any]:
    """A pace that lets out one train in the time that there is."""
    to = exchange([0] * 400 + [1] * 400)
    end = channel(pace=1e5, limits=Limits(floor=0.05, ceiling=0.05))(to)
    for step in range(3):
        dist.barrier()
        end.gradients(step, torch.zeros(1, 800, 350))
        end.parameters(step, torch.zeros(400, 350))
    dist.barrier()
    while end._receive():
        pass
    return end.statistics()


def test_what_the_deadline_leaves_unsent_is_counted() -> None:
    found = together(too_slow, 2)
    total = {name: sum(one[name] for one in found) for name in ("withheld", "accepted", "late", "cut_off")}
    assert total["cut_off"] > 0
    assert total["withheld"] > 0
    assert total["withheld"] + total["accepted"] + total["late"] == 2 * 3 * 2 * 400
