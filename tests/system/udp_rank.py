"""One rank on a node of `netns.Network`: plays the rounds that it is asked for, on lines of its standard input.

Each answer goes to a file, and its name to standard output. Everything that must be reliable happens before the parent
lets the links lose: a rank says "ready" when its channel is open, and waits for a line.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from lossproof.impl.distributed.exchange import Exchange
from lossproof.impl.transport import UdpChannel
from lossproof.proofs_checks.instruments import datagram_mistakes, datagrams


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    for line in sys.stdin:
        case = json.loads(line)
        if case.get("planted"):
            with getattr(datagram_mistakes, case["planted"]).planted():
                part = rounds(case)
        else:
            part = rounds(case)
        with open(case["file"] + str(dist.get_rank()), "wb") as file:
            pickle.dump(part, file)
        print("done", flush=True)


def rounds(case: dict[str, Any]) -> Any:
    group = dist.group.WORLD
    assert group is not None
    exchange = Exchange(torch.zeros(case["packets"], dtype=torch.long), group)
    end = UdpChannel(os.environ["LOSSPROOF_ADDRESS"], **datagrams.OPTIONS)(exchange)
    if case.get("copies"):  # nothing thrown away here; copies and late packets for a link that makes none
        end.socket.send = datagrams.LossySocket(end, 0.0, 0)  # type: ignore[method-assign]
    gradients_TNE = getattr(datagrams, case["gradients"])(case["rounds"], dist.get_world_size())
    print("ready", flush=True)
    sys.stdin.readline()
    part = datagrams.one_rank(end, gradients_TNE, case.get("remote", False))
    print("played", flush=True)
    sys.stdin.readline()  # the socket stays open: a closed one would answer
    end.close()
    return part


if __name__ == "__main__":
    main()
