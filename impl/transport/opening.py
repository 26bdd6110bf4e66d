"""What the ranks agree on over the process group when the channel opens."""

from __future__ import annotations

import os

from lossproof.impl.distributed.exchange import Exchange
from lossproof.impl.transport import wire
from lossproof.impl.transport.socket import TrainSocket

UDP_AND_IP_BYTES, LARGEST_DATAGRAM = 28, 65_000


def agree(
    exchange: Exchange, socket: TrainSocket, key: bytes | None, algorithm: wire.Algorithm | None
) -> tuple[wire.Seal, list[tuple[str, int]], int, int]:
    """The seal of this job, all addresses, the largest payload that fits every link, and the smallest receive buffer.

    Raises ValueError on all ranks: for a key that one of them lacks or does not share, for an algorithm that one lacks.
    """
    secret, problem = b"", ""
    try:
        secret = wire.read_key(key)
    except (ValueError, TypeError, OSError) as error:
        problem = f"{type(error).__name__} on rank {exchange.rank}: {error}"
    fast = algorithm != "blake2b" and wire.fastest() == "gmac"
    everyone = exchange.objects((socket.address, socket.room, os.urandom(16), fast, problem))
    for *_, problem in everyone:
        if problem:
            raise ValueError(problem)
    addresses = [address for address, *_ in everyone]
    common: wire.Algorithm = "gmac" if all(fast for *_, fast, _ in everyone) else "blake2b"
    if algorithm == "gmac" != common:
        raise ValueError("algorithm 'gmac' needs the package cryptography on every rank: lossproof[udp]")
    seal = wire.Seal(secret, [nonce for _, _, nonce, _, _ in everyone], common)
    links = (socket.mtu(address) for rank, address in enumerate(addresses) if rank != exchange.rank)
    datagram = min(LARGEST_DATAGRAM, min(links, default=LARGEST_DATAGRAM) - UDP_AND_IP_BYTES)
    found = exchange.objects((seal.job, datagram - wire.OVERHEAD))
    if any(job != found[0][0] for job, _ in found):
        raise ValueError("key must be the same on all ranks: they do not share one")
    return seal, addresses, min(size for _, size in found), min(room for _, room, *_ in everyone)
