"""What an attachment lets go of: the tensors of a collective, and itself with its model, once nobody holds them."""

from __future__ import annotations

import gc
import weakref
from contextlib import ExitStack
from queue import SimpleQueue
from typing import ClassVar
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from lossy_ddp import Job
from processes import together
from torch.utils._pytree import tree_leaves

import lossproof.impl.distributed.exchange
from lossproof.impl.distributed.exchange import Exchange
from lossproof.theory.laws import Bernoulli


def noting(note):
    """Shows `note` every tensor that an exchange gives to the group."""
    stack = ExitStack()

    def noted(collective):
        def call(*args, **options):
            for leaf in tree_leaves(args):
                if isinstance(leaf, torch.Tensor):
                    note(leaf)
            return collective(*args, **options)

        return call

    for name in ("all_to_all_single", "broadcast", "all_reduce", "all_gather", "gather"):
        stack.enter_context(mock.patch.object(dist, name, noted(getattr(dist, name))))
    return stack


def held_by_the_group():
    """How many tensors the group's threads hold after each call of an exchange, and how many they were given."""
    exchange, given, held = Exchange(torch.arange(6) % 2, dist.group.WORLD), [], []
    values, payload_PE = torch.ones(8), torch.ones(6, 4)
    with noting(lambda tensor: given.append(weakref.ref(tensor))):
        for _ in range(100):
            for call in (
                lambda: exchange.total(values),
                lambda: exchange.spread(values),
                lambda: exchange.every(values),
                lambda: exchange.objects(dist.get_rank()),
                lambda: exchange.objects(dist.get_rank(), to=0),
                lambda: exchange.gather(payload_PE[exchange.own_Q]),
                lambda: exchange.collect(payload_PE),
            ):
                call()
                held.append(sum(tensor() is not None for tensor in given))
    return sum(held), len(given)


def test_the_group_lets_go_of_all_tensors():
    # a thread of gloo that lets go of one while the interpreter ends aborts the process
    assert together(held_by_the_group, 2) == [(0, 2100), (0, 1900)]


class Patience(SimpleQueue):
    """Notes how long it is waited for."""

    noted: ClassVar = []

    def get(self, timeout):
        self.noted.append(timeout)
        return super().get(timeout=timeout)


def kept_by_another():
    """What an exchange returns while somebody keeps all its tensors, and how long it waits for them each time."""
    exchange, kept, rank = Exchange(torch.arange(6) % 2, dist.group.WORLD), [], dist.get_rank()
    payload_PE = torch.arange(24.0).view(6, 4) + 100 * rank
    with (
        noting(kept.append),
        mock.patch.object(lossproof.impl.distributed.exchange, "SimpleQueue", Patience),
        mock.patch.object(lossproof.impl.distributed.exchange._UnderWay, "patience", 0.1),
    ):
        found = [
            exchange.total(torch.tensor([1.0, rank])),
            exchange.every(torch.tensor([rank])),
            exchange.objects(f"of {rank}"),
            exchange.gather(payload_PE[exchange.own_Q]),
            exchange.collect(payload_PE),
        ]
    return found, Patience.noted


def test_who_keeps_the_tensors_is_waited_for_once():
    sent_NPE = torch.arange(24.0).view(6, 4) + torch.tensor([0.0, 100.0])[:, None, None]
    owner_P = torch.arange(6) % 2
    for rank, ((total, every, objects, gathered, collected), waited) in enumerate(together(kept_by_another, 2)):
        assert total.tolist() == [2, 1]
        assert every.tolist() == [[0], [1]]
        assert objects == ["of 0", "of 1"]
        assert gathered.equal(sent_NPE[owner_P, torch.arange(6)])
        assert collected.equal(sent_NPE[:, owner_P == rank])
        assert waited[0] == 0.1
        assert set(waited[1:]) == {0.0}


def dropped(how):
    """Whether model, optimizer and attachment are gone once nobody holds them."""
    job = Job("mlp", "AdamW", None if how == "plain" else Bernoulli(0.3))
    if how != "only attached":
        job.train(2)
    if how == "between backward and step":
        job.opt.zero_grad()
        job.loss(2).backward()
    if how == "detached":
        job.lossy.detach()
    if how == "consolidated":
        job.lossy.consolidate()
    parts = [weakref.ref(part) for part in (job.wrapped, job.module, job.opt, job.lossy) if part is not None]
    parts += [weakref.ref(parameter) for parameter in job.module.parameters()]
    del job
    gc.collect()
    return [part() is None for part in parts]


@pytest.mark.parametrize(
    "how", ["plain", "only attached", "attached", "between backward and step", "consolidated", "detached"]
)
def test_what_nobody_holds_is_freed(how):
    assert together(dropped, 2, how) == [[True] * (9 if how == "plain" else 10)] * 2


def alone() -> Exchange:
    """The exchange of a rank that has no group."""
    exchange = Exchange.__new__(Exchange)
    exchange.rank, exchange.ranks, exchange._buffers = 0, 2, {}
    exchange._under_way, exchange._sent = [], 0
    return exchange


def test_after_a_lost_rank_nothing_is_under_way() -> None:
    exchange = alone()
    exchange._under_way, exchange._sent = [(None, torch.zeros(1), torch.zeros(1))], 3
    assert "never came" in str(exchange._lost(RuntimeError("closed")))
    assert (exchange._under_way, exchange._sent) == ([], 0)


def test_a_buffer_is_kept_for_one_shape_and_dtype() -> None:
    exchange = alone()
    single = exchange._buffer("out", torch.zeros(1), 2, 3)
    assert exchange._buffer("out", torch.zeros(1), 2, 3) is single
    assert exchange._buffer("out", torch.zeros(1, dtype=torch.float64), 2, 3).dtype == torch.float64
    assert exchange._buffer("out", torch.zeros(1), 3, 3).shape == (3, 3)
