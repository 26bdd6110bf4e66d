"""Sends forged datagrams to a rank as fast as it can: `flood.py ADDRESS PORT JOB SECONDS`; prints how many of each.

They are what somebody can send who sees the traffic and has no key: random bytes; the right header, which is legible,
with a payload and a tag made up; the same, cut off or too long; headers of impossible packets; all copied packets
alike.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import sys
import time

HEADER = struct.Struct(">HBBIQQIHH")
PAYLOAD = 1400


def datagrams(job: int, chance: random.Random) -> dict[str, bytes]:
    """One of each kind; turns of all ages, numbers that may be wanted."""

    def header(kind: int = 1, length: int = PAYLOAD, packet: int | None = None, dst: int = 0) -> bytes:
        turn = 2 * chance.randrange(1 << chance.randrange(1, 16))
        packet = 3 * chance.randrange(40) if packet is None else packet
        return HEADER.pack(0x4C50, 1, kind, length, job, chance.choice([1, 2]) << 48 | turn, packet, dst, 0)

    body = os.urandom(PAYLOAD + 16)
    return {
        "random": os.urandom(chance.randrange(1, 1472)),
        "forged data": header() + body,
        "forged words": header(chance.choice([2, 3]), 0) + body[:16],
        "truncated": (header() + body)[: chance.randrange(48, PAYLOAD)],
        "oversized": header(length=60_000) + os.urandom(60_016),
        "empty": b"",
        "impossible": header(packet=1 << 31, dst=7) + body,
    }


def main(address: str, port: int, job: int, seconds: float) -> None:
    chance = random.Random(0)
    kinds = [datagrams(job, chance) for _ in range(64)]
    common = [(name, one[name]) for one in kinds for name in one if name != "oversized"]
    rare = [("oversized", one["oversized"]) for one in kinds[:4]]
    sent: dict[str, int] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for name, datagram in [*common, *rare]:
                try:
                    out.sendto(datagram, (address, port))
                except OSError:
                    continue
                sent[name] = sent.get(name, 0) + 1
    print(json.dumps(sent))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
