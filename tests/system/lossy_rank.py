"""One rank of `test_lossy_link.py`: rounds over UDP between network namespaces; prints what it counted as JSON."""

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


def main(packets: int, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    group = dist.group.WORLD
    assert group is not None
    N, rank = group.size(), group.rank()
    exchange = Exchange(torch.arange(packets) % N, group)
    end = UdpChannel(limits=Limits(floor=30.0, ceiling=30.0))(exchange)  # the words of the peers alone end a turn
    number_P = torch.arange(packets).float()[:, None].expand(-1, 350)
    lost_N = torch.zeros(N, dtype=torch.int64)
    for step in range(rounds):
        received, arrived = end.gradients(step, (number_P + 10_000 * rank + step / 64)[None].contiguous())
        sent = number_P[exchange.own_Q] + 10_000 * torch.arange(N)[:, None, None] + step / 64
        assert torch.equal(received[arrived], sent[arrived]), "a packet came out as another one"
        lost_N += (~arrived).sum(1)
        received, arrived = end.parameters(step, (number_P[exchange.own_Q] + step / 64).contiguous())
        assert torch.equal(received[arrived[0]], (number_P + step / 64)[arrived[0]])
        lost_N += torch.bincount(exchange.owner_P[~arrived[0]], minlength=N)
    dist.barrier()
    time.sleep(0.3)
    while end._receive():
        pass
    offered_N = (len(exchange.own_Q) + torch.bincount(exchange.owner_P, minlength=N)) * rounds
    print(json.dumps({"lost": lost_N.tolist(), "offered": offered_N.tolist()} | end.statistics()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
