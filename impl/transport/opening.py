"""What the ranks agree on over the process group when the channel opens."""

from __future__ import annotations

import os
from collections.abc import Callable

from lossproof.impl.distributed.exchange import Exchange
from lossproof.impl.transport import wire
from lossproof.impl.transport.socket import TrainSocket

UDP_AND_IP_BYTES, LARGEST_DATAGRAM = 28, 65_000


def agree(
    exchange: Exchange, opened: Callable[[], TrainSocket], key: bytes | None, algorithm: wire.Algorithm | None
) -> tuple[TrainSocket, wire.Seal, list[tuple[str, int]], int, int]:
    """This rank's socket, the seal of the job, all addresses, the largest payload that fits every link, and the
    smallest receive buffer.

    Raises ValueError on all ranks: for an address that one of them cannot open, a key that one lacks or does not share,
    an algorithm that one lacks.
    """
    secret, socket, problem = b"", None, ""
    try:
        secret = wire.read_key(key)
        socket = opened()
    except (ValueError, TypeError) as error:
        problem = f"rank {exchange.rank}: {error}"
    except OSError as error:
        problem = f"rank {exchange.rank} cannot open its address, see LOSSPROOF_ADDRESS: {error}"
    fast = algorithm != "blake2b" and wire.fastest() == "gmac"
    own = (socket.address, socket.room) if socket else (("", 0), 0)
    everyone = exchange.objects((*own, os.urandom(16), fast, algorithm, problem))
    problems = [problem for *_, problem in everyone if problem]
    if problems or socket is None:
        if socket:
            socket.close()
        raise ValueError("; ".join(problems))
    addresses = [address for address, *_ in everyone]
    common: wire.Algorithm = "gmac" if all(fast for *_, fast, _, _ in everyone) else "blake2b"
    if common != "gmac" and any(asked == "gmac" for *_, asked, _ in everyone):
        raise ValueError(
            "algorithm 'gmac' needs a C compiler or the package cryptography (lossproof[udp]) on every rank, and no "
            "rank that asks for blake2b"
        )
    seal = wire.Seal(secret, [nonce for _, _, nonce, *_ in everyone], common)
    links = (socket.mtu(address) for rank, address in enumerate(addresses) if rank != exchange.rank)
    datagram = min(LARGEST_DATAGRAM, min(links, default=LARGEST_DATAGRAM) - UDP_AND_IP_BYTES)
    found = exchange.objects((seal.job, datagram - wire.OVERHEAD))
    if any(job != found[0][0] for job, _ in found):
        raise ValueError("key must be the same on all ranks (LOSSPROOF_KEY, LOSSPROOF_KEY_FILE): they do not share one")
    return socket, seal, addresses, min(size for _, size in found), min(room for _, room, *_ in everyone)
