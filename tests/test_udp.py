"""The UDP channel between processes over loopback: without loss the simulated channel at p = 0; losses, silence.

Deadlines are half a minute long wherever packets must arrive, so that a busy machine changes nothing: a turn then ends
by the words of the peers alone.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lossy_ddp import Job, accumulated, clipped, plain
from processes import together

from lossproof.impl.distributed import attach
from lossproof.impl.distributed.exchange import Exchange, ProcessChannel
from lossproof.impl.loss import Arrivals
from lossproof.impl.transport import UdpChannel, wire
from lossproof.impl.transport.channel import UdpEnd
from lossproof.impl.transport.peers import Deadline, Limits
from lossproof.theory.laws import Bernoulli

KEY = b"a key for tests, not for you"
PATIENT = Limits(floor=30.0, ceiling=30.0)


def channel(**options: Any) -> UdpChannel:
    return UdpChannel(**({"key": KEY, "limits": PATIENT} | options))


def exchange(owners: list[int]) -> Exchange:
    group = dist.group.WORLD
    assert group is not None
    return Exchange(torch.tensor(owners), group)


def payloads(rank: int, step: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(shape, generator=generator).to(dtype)


def beside_the_simulated_one(owners: list[int], elements: int, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    to = exchange(owners)
    end = channel(**options)(to)
    reference = ProcessChannel(to, Arrivals(Bernoulli(0), owners, to.ranks, receiver=to.rank))
    P, Q = len(owners), len(to.own_Q)
    for step in range(6):
        gradients = payloads(to.rank, step, (1, P, elements), dtype)
        if step % 2:  # in portions, as DDP's buckets
            for portion in ([range(P // 2, P)], [range(P // 4), range(P // 4, P // 2)]):
                end.send(gradients, portion)
        fresh = payloads(to.rank, step + 100, (Q, elements), dtype)
        for phase, sent in (("gradients", gradients), ("parameters", fresh)):
            if step == 3 and phase == "parameters":
                end.skip(step)
                continue
            received, arrived = getattr(end, phase)(step, sent)
            expected, arrivals = getattr(reference, phase)(step, sent)
            assert torch.equal(arrived, arrivals)
            assert torch.equal(received, expected)
            assert received.dtype == dtype
    return end.statistics()


@pytest.mark.parametrize(
    ("ranks", "owners", "elements", "dtype", "options"),
    [
        (2, [0] * 700 + [1] * 600, 350, torch.float32, {}),
        (2, [1] * 5, 3, torch.float64, {"algorithm": "blake2b"}),
        (3, [k % 2 for k in range(101)], 7, torch.bfloat16, {"offload": False}),
        (2, [0, 1] * 150, 350, torch.float32, {"buffer_bytes": 1 << 16, "pace": 60e6}),  # gradients by turns, no room
        (4, [3, 0, 0, 2, 1, 1, 2, 3], 1, torch.float32, {"algorithm": "gmac"}),
    ],
)
def test_without_loss_it_is_the_simulated_channel(
    ranks: int, owners: list[int], elements: int, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    for found in together(beside_the_simulated_one, ranks, owners, elements, dtype, options):
        assert found["algorithm"] == options.get("algorithm", "gmac")
        assert found["forged"] == found["malformed"] == found["cut_off"] == found["downs"] == 0
        assert found["duplicate"] == found["late"] == 0


def trained(model: str, optimizer: str, over_udp: bool) -> dict[str, torch.Tensor]:
    job = Job(model=model, optimizer=optimizer)
    if over_udp:
        attach(job.wrapped, job.opt, channel=channel(), packet_bytes=32, log_every=0)
    for step, one in enumerate((plain, clipped, accumulated, plain)):
        one(job, step)
    return job.state()


def udp_and_plain_ddp(model: str, optimizer: str) -> None:
    over_udp, over_tcp = (trained(model, optimizer, over) for over in (True, False))
    for name, value in over_tcp.items():
        assert torch.equal(over_udp[name], value), name


@pytest.mark.parametrize(("model", "optimizer"), [("llama", "AdamW"), ("conv", "SGD")])
def test_attached_over_udp_without_loss_is_plain_ddp_bit_for_bit(model: str, optimizer: str) -> None:
    together(udp_and_plain_ddp, 2, model, optimizer)


def opened(*algorithms: Any) -> str:
    group = exchange([0, 1])
    try:
        return channel(algorithm=algorithms[group.rank])(group)._seal.algorithm
    except ValueError as error:
        return str(error)[:16]


def test_ranks_that_ask_for_different_tags_agree_or_all_learn_it() -> None:
    assert together(opened, 2, None, "blake2b") == ["blake2b"] * 2
    assert together(opened, 2, "blake2b", "gmac") == ["algorithm 'gmac'"] * 2


def detached() -> None:
    job = Job(model="mlp")
    for _ in range(2):  # a socket of its own each time
        lossy = attach(job.wrapped, job.opt, channel=channel(), packet_bytes=32, log_every=0)
        job.train(2)
        assert lossy.channel.socket._socket.fileno() >= 0
        lossy.detach()
        assert lossy.channel.socket._socket.fileno() == -1
        assert lossy.telemetry.offered_2N.sum() == 2 * lossy.layout.packets  # in each step own ones and the other's
        assert lossy.channel.statistics()["accepted"] == 2 * lossy.layout.packets
        assert lossy.exchange.total(torch.ones(1)) == 2  # no longer over the channel
    job.train(2)


def test_detaching_closes_the_socket_and_keeps_the_counts() -> None:
    together(detached, 2)


class Lossy:
    """A socket's `send` that loses packets by a seeded draw, and repeats, delays and shuffles others."""

    def __init__(self, end: UdpEnd, rank: int) -> None:
        self.send, self.random, self.kept = end.socket.send, np.random.default_rng(rank), {}
        self.arrive: dict[tuple[int, int], set[int]] = {}
        end.socket.send = self  # type: ignore[method-assign, assignment]

    def __call__(self, rows: memoryview, row_bytes: int, peer: tuple[str, int]) -> bool:
        now = [bytes(rows[k * row_bytes : (k + 1) * row_bytes]) for k in range(len(rows) // row_bytes)]
        now = [row for row in now if row[3] != wire.DATA or self.random.random() > 0.3]
        self.random.shuffle(now)  # type: ignore[arg-type]
        for row in now:
            fields = np.frombuffer(row[:32], wire.HEADER)[0]
            if fields["kind"] == wire.DATA:
                turn = int(fields["src_turn"]) & 0xFFFFFFFFFFFF
                self.arrive.setdefault((turn, peer[1]), set()).add(int(fields["packet"]))
        # the kept ones are of an earlier train or turn: late, or copies
        for row in [*now, *self.kept.get(peer, []), *now[::3]]:
            while not self.send(memoryview(row), len(row), peer):
                time.sleep(0.001)
        self.kept[peer] = now[:5]
        return True


def over_a_lossy_socket(owners: list[int], steps: int) -> Any:
    to = exchange(owners)
    end = channel()(to)
    lossy = Lossy(end, to.rank)
    E, masks, totals = 4, {}, 0
    for step in range(steps):
        sent = torch.arange(len(owners)).float()[:, None] + 1000 * torch.arange(1.0, 1 + to.ranks)[to.rank] + step / 16
        received, arrived = end.gradients(step, sent.expand(-1, E)[None].contiguous())
        masks[2 * step] = arrived.numpy()
        for src in range(to.ranks):
            expected = to.own_Q[arrived[src]] + 1000 * (src + 1) + step / 16
            assert torch.equal(received[src][arrived[src]], expected[:, None].expand(-1, E))
        received, arrived = end.parameters(step, (to.own_Q + step / 16)[:, None].expand(-1, E).contiguous())
        masks[2 * step + 1] = arrived[0].numpy()
        at = arrived[0].nonzero().squeeze(-1)
        assert torch.equal(received[at], (at + step / 16)[:, None].expand(-1, E))
        totals += int((~arrived).sum())
    dist.barrier()
    return (
        masks,
        {(turn, port): sorted(sent) for (turn, port), sent in lossy.arrive.items()},
        end.addresses,
        end.statistics(),
    )


def test_what_is_lost_is_missing_and_nothing_else() -> None:
    owners, ranks, steps = [k % 3 for k in range(60)], 3, 8
    found = together(over_a_lossy_socket, ranks, owners, steps)
    ports = [port for _, port in found[0][2]]
    lost = 0
    for rank, (masks, _, _, counted) in enumerate(found):
        assert counted["duplicate"] + counted["late"] > 50
        assert counted["forged"] == counted["malformed"] == counted["cut_off"] == 0
        own = [p for p, owner in enumerate(owners) if owner == rank]
        for turn in range(2 * steps):
            for src in set(range(ranks)) - {rank}:
                sent = found[src][1].get((turn, ports[rank]), [])
                arrived = masks[turn][src].nonzero()[0] if turn % 2 == 0 else masks[turn].nonzero()[0]
                names = [own[q] for q in arrived] if turn % 2 == 0 else [p for p in arrived if owners[p] == src]
                assert names == sent
                lost += len(own if turn % 2 == 0 else [p for p in owners if p == src]) - len(sent)
    offered = 2 * steps * ranks * 2 * 20
    assert 0.2 < lost / offered < 0.4


def one_goes_away(owners: list[int]) -> Any:
    """Rank 1 takes no part in five rounds of seven; the others go on, and rank 1 catches up."""
    to = exchange(owners)
    end = channel(limits=Limits(floor=0.2, ceiling=0.2), silent_rounds=2)(to)
    shares, down = [], []
    for step in range(10):
        if step == 1:
            dist.barrier()
            if to.rank == 1:
                dist.barrier()
        _, gradients = end.gradients(step, torch.ones(1, len(owners), 2))
        _, parameters = end.parameters(step, torch.ones(len(to.own_Q), 2))
        owner_P = to.owner_P
        shares.append([
            (float(gradients[src].float().mean()), float(parameters[0, owner_P == src].float().mean()))
            for src in range(to.ranks)
        ])  # fmt: skip
        if step == 6:
            end._deadlines = (Deadline(PATIENT), Deadline(PATIENT))
        if step == 6 and to.rank != 1:
            down = end.peers.down_N.tolist()
            dist.barrier()
            deadline = time.monotonic() + 60
            while to.rank == 0 and end.peers.turn_N[1] < 14 and time.monotonic() < deadline:
                end._receive()  # until rank 1 has come to this round: what comes next must be whole again
                time.sleep(0.001)
    return shares, end.statistics(), down


def test_who_is_silent_is_not_waited_for_and_may_come_back() -> None:
    (shares, counted, down), (returned, _, _), (others, other, _) = together(one_goes_away, 3, [0, 1, 2] * 4)
    for seen in (shares, others):
        assert [of[1] for of in seen[1:7]] == [(0.0, 0.0)] * 6  # nothing of rank 1; how much of the third, time decides
    for seen in (shares, returned, others):
        assert seen[8] == seen[9] == [(1.0, 1.0)] * 3
    assert down == [False, True, False]
    for found in (counted, other):
        assert (found["downs"], found["returns"]) == (1, 1)
        assert found["cut_off"] >= 4  # two rounds of two turns; then nobody waits for it
        assert found["withheld"] >= 4  # and nothing is sent to it


def refused(options: list[dict[str, Any]], packet_bytes: int = 32) -> str:
    job = Job(model="mlp")
    for name in ("LOSSPROOF_KEY", "LOSSPROOF_KEY_FILE"):
        os.environ.pop(name, None)
    rank = dist.get_rank()
    try:
        attach(job.wrapped, job.opt, channel=UdpChannel(**options[rank]), packet_bytes=packet_bytes)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("options", "packet_bytes", "reason"),
    [
        ([{"key": KEY}, {"key": KEY + b"!"}], 32, "key must be the same on all ranks"),
        ([{"key": KEY}, {"key": b"short"}], 32, "rank 1: key must have at least 16 bytes, got 5"),
        ([{"key": KEY}, {}], 32, "rank 1: the UDP transport needs a key: put one that all ranks share "
         "into LOSSPROOF_KEY, or its file's name into LOSSPROOF_KEY_FILE"),
        ([{"key": KEY}, {"key": KEY}], 1 << 16, "packet_bytes must be at most 64952 over these links, got 65536"),
    ],
)  # fmt: skip
def test_all_ranks_refuse_together(options: list[dict[str, Any]], packet_bytes: int, reason: str) -> None:
    for message in together(refused, 2, options, packet_bytes):
        assert message.startswith(reason)
        assert KEY.decode() not in message


def with_an_address_that_is_not_here(address: str) -> str:
    job = Job(model="mlp")
    options = {"address": address} if dist.get_rank() == 1 else {}
    try:
        attach(job.wrapped, job.opt, channel=channel(**options), packet_bytes=32)
    except ValueError as error:
        attach(job.wrapped, job.opt, channel=channel(), packet_bytes=32).detach()  # as if nothing had happened
        return str(error)
    return ""


@pytest.mark.parametrize("address", ["192.0.2.1", "not a host"])
def test_an_address_that_one_rank_cannot_open_is_refused_on_all(address: str) -> None:
    for message in together(with_an_address_that_is_not_here, 2, address):
        assert message.startswith("rank 1 cannot open its address, see LOSSPROOF_ADDRESS: [Errno ")


def half_sent() -> None:
    to = exchange([0, 1, 1, 0])
    end = channel()(to)
    payload = torch.zeros(1, 4, 2)
    end.send(payload, [range(2)])
    with pytest.raises(RuntimeError, match="twice"):
        end.send(payload, [range(4)])
    with pytest.raises(RuntimeError, match="before they were collected"):
        end.gradients(0, payload)
    with pytest.raises(ValueError, match="one size and type"):
        end.gradients(0, payload.double())


def test_portions_that_are_not_the_whole_are_refused() -> None:
    together(half_sent, 2)
