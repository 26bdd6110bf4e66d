"""Claims on real processes: DDP and `attach` over gloo, each rank a process of its own, started once and used again.

A mistake is planted in the processes by its name in `mistakes`: see `planting`.

Legend: N ranks; P packets, Q of one rank; E elements; T steps.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore
from torch.nn.parallel import DistributedDataParallel

from lossproof.impl.distributed import attach
from lossproof.impl.optimizers import make_optimizer
from lossproof.impl.transport import UdpChannel
from lossproof.proofs_checks.claim import Mutant
from lossproof.proofs_checks.instruments import (
    attached_job,
    attached_mistakes,
    datagram_mistakes,
    datagrams,
    mistakes,
    sharded_job,
)
from lossproof.theory.laws import Bernoulli, Law

PLANTED: str | None = None
_START = "from lossproof.proofs_checks.instruments.processes import serve; serve()"
_PATIENCE = 60.0  # seconds, after which a rank that does not answer is an error
_pools: dict[int, list[subprocess.Popen[bytes]]] = {}


def planting(name: str) -> Mutant:
    """`NAME` of `mistakes`, `attached_mistakes`, `sharded_job` or `datagram_mistakes`, planted in the processes."""
    return Mutant(f"in the processes: {_mistake(name).description}", sys.modules[__name__], "PLANTED", name)


def _mistake(name: str) -> Mutant:
    modules = mistakes, attached_mistakes, sharded_job, datagram_mistakes
    found: Mutant = next(getattr(module, name) for module in modules if hasattr(module, name))
    return found


@dataclass(frozen=True)
class Played:
    """What the ranks hold after the steps; `estimates_TPE` are the owners'."""

    owner_P: torch.Tensor
    fresh_PE: torch.Tensor
    replicas_NPE: torch.Tensor
    estimates_TPE: torch.Tensor


def play(ranks: int, law: Law, seed: int, own_link: str, gradients_TNE: torch.Tensor, packets: int) -> Played:
    """SGD with learning rate 1 from 0 under DDP and `attach`; rank i's gradient of every packet is the given one.

    `packets` is the number that each rank owns; packets of E float64 elements.
    """
    parts = _call(ranks, "_play", law, seed, own_link, gradients_TNE, packets)
    owner_P = parts[0][0]
    replicas_NPE = torch.stack([replica for _, replica, _ in parts])
    estimates_TPE = torch.empty(len(gradients_TNE), *replicas_NPE.shape[1:], dtype=torch.float64)
    for rank, (_, _, estimates_TQE) in enumerate(parts):
        estimates_TPE[:, owner_P == rank] = estimates_TQE
    return Played(owner_P, replicas_NPE[owner_P, torch.arange(len(owner_P))], replicas_NPE, estimates_TPE)


def lossless(
    ranks: int, optimizer: str, steps: int, seed: int, sharded: bool = False, over_udp: bool = False
) -> tuple[bool, float]:
    """Plain DDP, or FSDP2, against `attach` at p = 0, or DDP over UDP on loopback, which loses nothing: whether all
    parameters of all ranks are the same bits; how far apart."""
    parts = _call(ranks, "_lossless", optimizer, steps, seed, sharded, over_udp)
    return all(same for same, _ in parts), max(gap for _, gap in parts)


def attached(ranks: int, scenario: str, *arguments: Any) -> list[Any]:
    """A scenario of `attached_job` - `played`, `resumed`, `uneven` or `hosted` - on every rank."""
    return _call(ranks, "_attached", scenario, *arguments)


def close() -> None:
    """Ends the processes; the next use starts new ones."""
    for pool in _pools.values():
        for process in pool:
            process.kill()
            process.communicate()
    _pools.clear()


def _call(ranks: int, scenario: str, *arguments: Any) -> list[Any]:
    if ranks not in _pools:
        _pools[ranks] = _start(ranks)
    try:
        request = pickle.dumps((scenario, arguments, PLANTED))
        for process in _pools[ranks]:
            assert process.stdin
            process.stdin.write(request)
            process.stdin.flush()
        answers = [pickle.load(process.stdout) for process in _pools[ranks] if process.stdout]
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        close()
        raise RuntimeError(f"a process ended during {scenario}") from None
    failed = [answer for good, answer in answers if not good]
    if failed:
        close()
        raise RuntimeError(f"{scenario} failed in a process: {failed[0]}")
    return [answer for _, answer in answers]


def _start(ranks: int) -> list[subprocess.Popen[bytes]]:
    with tempfile.NamedTemporaryFile(delete=False) as file:  # torch's FileStore deletes it with the last rank
        store = file.name
    return [
        subprocess.Popen(
            [sys.executable, "-c", _START, store, str(rank), str(ranks)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(ranks)
    ]


def serve() -> None:
    """A rank: answers requests on standard input until it is killed or its parent is gone."""
    store, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not garble the answers
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=FileStore(store, ranks), rank=rank, world_size=ranks, timeout=timedelta(seconds=_PATIENCE)
    )
    while True:
        try:
            scenario, arguments, planted = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            with _mistake(planted).planted() if planted else nullcontext():
                answer = True, globals()[scenario](*arguments)
        except Exception:
            answer = False, traceback.format_exc(limit=-3)
        pickle.dump(answer, answers)
        answers.flush()


class _Given(torch.nn.Module):
    """A model whose gradient in every row of every parameter is its input."""

    def __init__(self, tensors: int, rows: int, elements: int) -> None:
        super().__init__()
        self.parts = torch.nn.ParameterList([torch.zeros(rows, elements, dtype=torch.float64) for _ in range(tensors)])

    def forward(self, gradient_E: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = torch.stack([(part * gradient_E).sum() for part in self.parts]).sum()
        return total


def _play(law: Law, seed: int, own_link: Any, gradients_TNE: torch.Tensor, packets: int) -> Any:
    rank, elements = dist.get_rank(), gradients_TNE.shape[-1]
    model = DistributedDataParallel(_Given(dist.get_world_size(), packets, elements))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    attachment = attach(
        model, optimizer, law, seed=seed, packet_bytes=8 * elements, own_link=own_link, drift_every=0, log_every=0
    )
    estimates = []
    for gradients_NE in gradients_TNE:
        optimizer.zero_grad()
        model(gradients_NE[rank]).backward()
        own = [part.grad for number, part in enumerate(attachment.parameters) if number in attachment.owned]
        estimates.append(torch.cat([gradient for gradient in own if gradient is not None]).clone())
        optimizer.step()
    replica_PE = torch.cat([part.detach() for part in attachment.parameters])
    return torch.tensor(attachment.layout.owner_P), replica_PE, torch.stack(estimates)


def _attached(scenario: str, *arguments: Any) -> Any:
    return getattr(attached_job, scenario)(*arguments)


def _lossless(name: str, steps: int, seed: int, sharded: bool, over_udp: bool) -> tuple[bool, float]:
    finals = []
    for lossy in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            net = torch.nn.Sequential(torch.nn.Linear(6, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))
        model = sharded_job.wrapped(net) if sharded else DistributedDataParallel(net)
        optimizer = make_optimizer(name, layout="dim0" if sharded else "tensors")[0](list(net.named_parameters()))
        if lossy:
            network: Any = {"channel": UdpChannel(**datagrams.OPTIONS)} if over_udp else {"law": Bernoulli(0)}
            attach(model, optimizer, **network, seed=seed, packet_bytes=64, drift_every=0, log_every=0)
        inputs = torch.Generator().manual_seed((seed * dist.get_world_size() + dist.get_rank()) % 2**63)
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 6, generator=inputs)).square().mean().backward()
            optimizer.step()
        finals.append(torch.cat([sharded_job.whole(p).flatten() for p in net.parameters()]))
    return bool(torch.equal(*finals)), float((finals[0] - finals[1]).abs().max())
