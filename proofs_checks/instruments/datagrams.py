"""Rounds over the UDP transport in one process: real sockets on loopback, a thread for every rank; root is not needed.

Loopback loses nothing, so each sender throws sealed packets away at its own socket. Which ones is drawn from seed,
link, turn and packet, not with `Arrivals`, so that equal seeds lose the same whatever the timing. The first train of
every turn is sent again with each later one, and half of it in the next turn, which is too late. Nothing else differs
from a job: the channel, `aggregate` and `retain` are those that train.

Legend: N ranks; P packets, Q of one rank; E elements; R rows of a train; T rounds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lossproof.impl.round import Round
from lossproof.impl.transport import UdpChannel, wire
from lossproof.impl.transport.channel import UdpEnd
from lossproof.impl.transport.peers import Limits
from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments.histories import Through
from lossproof.proofs_checks.instruments.patterns import Scripted
from lossproof.proofs_checks.instruments.statistics import require_mean, require_probability
from lossproof.theory import aggregation, drift

_KEY = b"a key of the checks, which is no secret"
_PATIENT = Limits(floor=30.0, ceiling=30.0)  # seconds: a turn ends by the words of the peers, on a busy machine too
OPTIONS: dict[str, Any] = {"key": _KEY, "limits": _PATIENT}


def lost(loss: float, seed: int, src: int, dst: int, turn: int, packets: int) -> NDArray[np.bool_]:
    """Which packets of a turn are thrown away on a link."""
    found: NDArray[np.bool_] = np.random.default_rng([seed % 2**64, src, dst, turn]).random(packets) < loss
    return found


class LossySocket:
    """Stands for a socket's `send`."""

    def __init__(self, end: UdpEnd, loss: float, seed: int) -> None:
        self._send, self._loss, self._seed = end.socket.send, loss, seed
        self._rank, self._packets = end.exchange.rank, len(end.exchange.owner_P)
        self._rank_at = {address: rank for rank, address in enumerate(end.addresses)}
        self._lost: dict[tuple[int, int], NDArray[np.bool_]] = {}
        self._late: dict[int, tuple[int, bytes]] = {}
        self._again: dict[int, tuple[int, memoryview]] = {}

    def __call__(self, rows: memoryview, row_bytes: int, peer: tuple[str, int]) -> bool:
        if rows[3] != wire.DATA:
            return self._send(rows, row_bytes, peer)
        rows_R = np.frombuffer(rows, np.uint8).reshape(-1, row_bytes)
        dst, turn = self._rank_at[peer], int.from_bytes(rows[18:24], "big")
        packet_R = np.ascontiguousarray(rows_R[:, 24:28]).view(">u4").ravel()
        if (dst, turn) not in self._lost:
            self._lost[dst, turn] = lost(self._loss, self._seed, self._rank, dst, turn, self._packets)
        chosen = rows_R[~self._lost[dst, turn][packet_R]]
        if len(chosen) and not self._send(memoryview(chosen.tobytes()), row_bytes, peer):
            return False
        if dst in self._late and self._late[dst][0] < turn:  # lost then or not
            late = self._late.pop(dst)[1]
            for k in range(0, len(late), row_bytes):
                self._send(memoryview(late[k : k + row_bytes]), row_bytes, peer)
        if self._again.get(dst, (-1,))[0] < turn and len(chosen):
            self._again[dst] = turn, memoryview(chosen.tobytes())
        if dst in self._again:
            self._send(self._again[dst][1], row_bytes, peer)
        if dst not in self._late:
            self._late[dst] = turn, rows_R[: 1 + len(rows_R) // 2].tobytes()
        return True


class _Threads:
    """What a channel asks of an `Exchange`, for ranks that are threads."""

    def __init__(self, rank: int, owner_P: torch.Tensor, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.ranks, self.owner_P, self._board, self._barrier = rank, len(board), owner_P, board, barrier
        self.own_Q = (owner_P == rank).nonzero().squeeze(-1)
        self.place_P = torch.full_like(owner_P, -1)
        self.place_P[self.own_Q] = torch.arange(len(self.own_Q))

    def objects(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait()
        found = list(self._board)
        self._barrier.wait()
        return found


class Watched(Through):
    """Notes what came; `remote`: a server without a gradient of its own, which averages what the network brings."""

    def __init__(self, channel: UdpEnd, remote: bool) -> None:
        super().__init__(channel)
        self._rank, self._remote, self.noted = channel.exchange.rank, remote, list[torch.Tensor]()

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        received_NQE, arrived_NQ = self.channel.gradients(step, payload_HPE)
        if self._remote:
            arrived_NQ[self._rank] = False
        self.noted.append(arrived_NQ.clone())
        return received_NQE, arrived_NQ

    def parameters(self, step: int, fresh_QE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        received_PE, arrived_HP = self.channel.parameters(step, fresh_QE)
        self.noted.append(arrived_HP.clone())
        return received_PE, arrived_HP


@dataclass(frozen=True)
class Played:
    """What the ranks hold after the rounds; rank 0 owns all packets.

    `gradients_TNP`: whose gradients reached it. `parameters_TNP`: where its packets arrived. `statistics_N`: see
    `UdpEnd.statistics`.
    """

    gradients_TNP: torch.Tensor
    parameters_TNP: torch.Tensor
    estimates_TPE: torch.Tensor
    replicas_NPE: torch.Tensor
    statistics_N: list[dict[str, Any]]


def one_rank(
    end: UdpEnd, gradients_TNE: torch.Tensor, remote: bool = False, until: Callable[[int], None] = lambda step: None
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, dict[str, Any]]:
    """The rounds of one rank: SGD with rate 1 from 0, every packet's gradient the given one of its rank and round."""
    rank, owner_P = end.exchange.rank, end.exchange.owner_P
    start_PE = torch.zeros(len(owner_P), gradients_TNE.shape[-1], dtype=gradients_TNE.dtype)
    watched = Watched(end, remote)
    round_ = Round.in_process(start_PE, owner_P, watched, hosted=range(rank, rank + 1))
    estimates: list[torch.Tensor] = []

    def update(estimate_QE: torch.Tensor) -> None:
        estimates.append(estimate_QE.clone())
        round_.fresh_QE.sub_(estimate_QE)

    for step, gradient_NE in enumerate(gradients_TNE):
        round_.step(gradient_NE[rank].expand(1, *start_PE.shape).contiguous(), update)
        until(step)
    return watched.noted, torch.stack(estimates), round_.replicas_HPE[0], end.statistics()


def together(parts: list[tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, dict[str, Any]]]) -> Played:
    """What `one_rank` gave on every rank, as one."""
    return Played(
        torch.stack(parts[0][0][::2]),
        torch.stack([torch.cat(masks) for masks in zip(*(part[0][1::2] for part in parts), strict=True)]),
        parts[0][1],
        torch.stack([part[2] for part in parts]),
        [part[3] for part in parts],
    )


def play(gradients_TNE: torch.Tensor, packets: int, loss: float, seed: int, remote: bool = False) -> Played:
    """Rounds of N ranks over loopback."""
    ranks = gradients_TNE.shape[1]
    board: list[Any] = [None] * ranks
    parts: list[Any] = [None] * ranks
    barrier, owner_P = threading.Barrier(ranks, timeout=60), torch.zeros(packets, dtype=torch.long)

    def work(rank: int) -> None:
        try:
            exchange: Any = _Threads(rank, owner_P, board, barrier)
            end = UdpChannel(**OPTIONS)(exchange)
            try:
                end.socket.send = LossySocket(end, loss, seed)  # type: ignore[method-assign]
                parts[rank] = one_rank(end, gradients_TNE, remote)
                barrier.wait()
            finally:
                end.close()
        except BaseException as error:
            parts[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [part for part in parts if isinstance(part, BaseException)]
    for error in failed:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    if failed:
        raise failed[0]
    return together(parts)


# What must hold of any rounds, over loopback or over a link that loses -----------------------------------------------


def require_round(played: Played, gradients_TNE: torch.Tensor) -> None:
    """Estimates and replicas are bit for bit what the realised masks make of what was sent: nothing stale or twice."""
    _, N, P = played.gradients_TNP.shape
    channel = Scripted(N, played.gradients_TNP, played.parameters_TNP)
    start_PE = torch.zeros(P, gradients_TNE.shape[-1], dtype=gradients_TNE.dtype)
    expected = Round.in_process(start_PE, torch.zeros(P, dtype=torch.long), channel)
    for step, gradient_NE in enumerate(gradients_TNE):
        estimate_PE, _ = expected.reduce(gradient_NE[:, None].expand(N, P, -1).contiguous())
        wrong = (estimate_PE != played.estimates_TPE[step]).any(-1).nonzero().flatten().tolist()
        require(not wrong, f"round {step}: the estimates of packets {wrong[:5]} are not those of what arrived")
        expected.fresh_QE.sub_(estimate_PE)
        expected.replicas_HPE = expected.broadcast(expected.replicas_HPE, expected.fresh_QE)
    wrong = (expected.replicas_HPE != played.replicas_NPE).any(-1).nonzero().tolist()
    require(not wrong, f"replicas (rank, packet) {wrong[:5]} are not those of what arrived")


def require_exchangeable(what: str, arrived_NP: NDArray[np.bool_], alpha: float) -> None:
    """Refutes, at level alpha, "arrival vectors are independent from packet to packet and exchangeable across senders".

    Given its size each set of senders is as likely as any other of that size: exact binomial tests, one a set.
    """
    N, _ = arrived_NP.shape
    word_P = (arrived_NP * (1 << np.arange(N))[:, None]).sum(0)
    size_P = arrived_NP.sum(0)
    sets = [members for size in range(1, N) for members in combinations(range(N), size)]
    for members in sets:
        among = int((size_P == len(members)).sum())
        found = int((word_P == sum(1 << n for n in members)).sum())
        name = f"{what}: arrivals of exactly {list(members)} among those of {len(members)} senders"
        require_probability(name, found, among, 1 / comb(N, len(members)), alpha / len(sets))


def require_unbiased(what: str, played: Played, gradients_TNE: torch.Tensor, alpha: float) -> None:
    """A1 for a server that averages the remote senders; gradients in (0, 1], so that a mean of 0 has no survivor."""
    remote = played.gradients_TNP[:, 1:].permute(1, 0, 2).flatten(1).numpy()
    require(not played.gradients_TNP[:, 0].any(), f"{what}: the server has a gradient of its own")
    require_exchangeable(what, remote, alpha / 2)
    off = []
    for estimate_PE, gradient_NE in zip(played.estimates_TPE, gradients_TNE, strict=True):
        some = estimate_PE[estimate_PE[:, 0] != 0, 0]
        off.append(some - float(aggregation.survivor_mean(gradient_NE[1:, 0].tolist())))
    require_mean(f"{what}, E[survivor mean | K >= 1] - gbar", torch.cat(off).numpy(), 0, -1, 1, alpha / 2)


def require_owner_weight(what: str, played: Played, gradients_TNE: torch.Tensor, loss: float, alpha: float) -> None:
    """A3 with gradients in [0, 1]."""
    off = []
    for estimate_PE, gradient_NE in zip(played.estimates_TPE, gradients_TNE, strict=True):
        g = gradient_NE[:, 0].tolist()
        gbar = float(aggregation.survivor_mean(g))
        towards = 1 if g[0] > gbar else -1  # or rounds of opposite bias would hide each other
        off.append(towards * (estimate_PE[:, 0] - gbar - float(aggregation.owner_bias(g[0], gbar, len(g), loss))))
    require_mean(f"{what}, E[survivor mean] - gbar - bias towards the owner", torch.cat(off).numpy(), 0, -1, 1, alpha)


def require_drift(what: str, played: Played, loss: float, alpha: float) -> None:
    """B2 after orthonormal steps, between ranks 1 and 2, and B3 of rank 1, at the common loss of the links."""
    steps = len(played.estimates_TPE)
    fresh_PE, one_PE, two_PE = played.replicas_NPE[:3]
    for name, far_PE, claimed in (
        ("pairwise drift", one_PE - two_PE, drift.pair(loss, steps)),
        ("drift to the owner", one_PE - fresh_PE, drift.owner(loss, steps)),
    ):
        require_mean(f"{what}, {name}", far_PE.square().sum(-1).numpy(), float(claimed), 0, steps, alpha / 2)


def orthonormal(steps: int, ranks: int) -> torch.Tensor:
    """(T, N, T): all ranks have the same gradient, so that a step is exact whoever survives."""
    return -torch.eye(steps, dtype=torch.float64)[:, None].expand(-1, ranks, -1)


def gradients(rounds: int, ranks: int) -> torch.Tensor:
    """(T, N, 1) in (0, 1], another pattern each round, so that nothing of one round looks like another's."""
    step, rank = torch.arange(rounds)[:, None, None], torch.arange(ranks)[None, :, None]
    return (1 + (5 * step + rank * rank) % 8).double() / 8
