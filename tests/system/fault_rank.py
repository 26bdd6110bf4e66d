"""One rank of `test_udp_faults.py`: rounds over UDP until it is killed, one line of JSON a round into a file.

Every packet that arrives is compared with what was sent, which is known: a wrong one ends the rank.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from lossproof.impl.distributed.exchange import Exchange
from lossproof.impl.transport import UdpChannel
from lossproof.impl.transport.peers import Limits

PACKETS, ELEMENTS = 120, 350


def main(file: str, address: str, buffer_bytes: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    group = dist.group.WORLD
    assert group is not None
    N, rank = group.size(), group.rank()
    exchange = Exchange(torch.arange(PACKETS) % N, group)
    limits = Limits(floor=0.1, ceiling=0.5)
    end = UdpChannel(address, limits=limits, silent_rounds=3, buffer_bytes=buffer_bytes)(exchange)
    number_P = torch.arange(PACKETS).double()[:, None].expand(-1, ELEMENTS // 2)
    with open(file, "w", buffering=1, encoding="utf-8") as log:
        log.write(json.dumps({"address": end.socket.address, "job": end._seal.job, "room": end.socket.room}) + "\n")
        for step in range(1 << 30):
            started = time.perf_counter()
            received, arrived_NQ = end.gradients(step, (number_P + 1000 * rank + step * 1e5)[None].contiguous())
            sent = number_P[exchange.own_Q] + 1000 * torch.arange(N)[:, None, None] + step * 1e5
            assert torch.equal(received[arrived_NQ], sent[arrived_NQ]), "a gradient that nobody sent in this round"
            received, arrived_HP = end.parameters(step, (number_P[exchange.own_Q] + step * 1e5).contiguous())
            assert torch.equal(received[arrived_HP[0]], (number_P + step * 1e5)[arrived_HP[0]]), "a parameter of none"
            seconds = time.perf_counter() - started
            shares = [arrived_NQ.sum(1), torch.bincount(exchange.owner_P[arrived_HP[0]], minlength=N)]
            entry = {"step": step, "seconds": seconds, "got": (shares[0] + shares[1]).tolist(),
                     "own": len(exchange.own_Q), "down": end.peers.down_N.tolist()}  # fmt: skip
            log.write(json.dumps(entry | end.statistics()) + "\n")
            time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
