"""A law's losses and `impl.loss.Arrivals` against the scalar simulation of `scalar_masks`, mask by mask.

Legend: N = 3 ranks, P packets; L rows of links.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lossproof.impl import loss
from lossproof.proofs_checks.claim import Run, require
from lossproof.proofs_checks.instruments import scalar_masks
from lossproof.proofs_checks.instruments.laws_by_definition import marginal
from lossproof.theory import laws

PHASES = scalar_masks.PHASES
OWNERS = [0, 2, 2, 0, 2, 2]
"""Several packets on a link, in no order; rank 1 owns none."""


def require_refused(call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except ValueError:
        return
    require(False, f"{what} is not refused")


def require_logs() -> None:
    """A recorded log in its documented format: further columns, links in any order, their rows in that of sending."""
    rows = ("1,0,9,1", "0,1,8,0", "1,0,7,0", "0,1,6,1", "0,1,5,1", "2,0,4,0")
    recorded = (((0, 1), "011"), ((1, 0), "10"), ((2, 0), "0"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        path.write_text("\n".join(("src,dst,time,lost", *rows)), encoding="utf-8")
        for read, clock in (
            (laws.Trace.from_csv(str(path)), "packet"),
            (laws.Trace.from_csv(str(path), "step"), "step"),
        ):
            require((read.recorded, read.clock) == (recorded, clock), f"a log is read as {read}")
        for line, wrong in ((3, "0,-1,0,0"), (2, "0,1,0,2"), (4, "0,1")):
            path.write_text("\n".join(("src,dst,time,lost", *rows[: line - 2], wrong)), encoding="utf-8")
            require_refused(lambda: laws.Trace.from_csv(str(path)), f"a row such as {wrong}")
        path.write_text("src,dst\n0,1", encoding="utf-8")
        require_refused(lambda: laws.Trace.from_csv(str(path)), "a log without losses")
        _require_timed_logs(path)
    links = [(i, j) for i, j in product(range(3), repeat=2) if i != j]
    for missing in links:
        some = laws.Trace(tuple((link, "01") for link in links if link != missing))
        arrivals = loss.Arrivals(some, [0, 1, 2], 3)
        require_refused(lambda: arrivals.gradients(0), f"a log without the link {missing}")


def _require_timed_logs(path: Path) -> None:
    """A log that says when: rows in any order, a phase that a step lacks, a last step that is not whole."""
    head, random = "packet,src,dst,lost,phase,step", Random(0)
    lost = {(p, t): int((t + p) % 4 == 0) for p, t in product((4, 7), range(3, 9))}
    rows = [f"{p},0,1,{lost[p, t]},gradients,{t}" for p, t in lost]
    rows += [f"0,1,0,{t % 2},parameters,{t}" for t in range(3, 9) if t != 5]
    random.shuffle(rows)
    wanted = (((0, 1, "gradients"), ("010001", "001000")), ((1, 0, "parameters"), ("100010",)))
    for more, steps in (([], 6), (["4,0,1,0,gradients,9"], 6), (["4,0,1,0,gradients,9", "7,0,1,0,gradients,9"], 7)):
        path.write_text("\n".join((head, *rows, *more)), encoding="utf-8")
        read = laws.Trace.from_csv(path)
        ends = tuple((link, tuple((bits + "0")[:steps] for bits in strings)) for link, strings in wanted)
        require((read.recorded, read.clock) == (ends, "step"), f"a log step by step is read as {read}")
        rows_of = laws.Trace.from_csv(path, "packet")
        require(rows_of.clock == "packet" and "gradients" not in repr(rows_of), f"read by packet as {rows_of}")
    for wrong, what in (
        ([row for row in rows if row != f"7,0,1,{lost[7, 4]},gradients,4"], "a packet that a step lacks"),
        ([*rows, rows[0]], "a packet twice in a step"),
        ([*rows, "4,0,1,0,gradients,11"], "a step without rows"),
        ([row for row in rows if row[-1] != "6"], "a step that is left out"),
        ([*rows, "0,2,0,1,parameters,8"], "a link that earlier steps lack"),
    ):
        path.write_text("\n".join((head, *wrong)), encoding="utf-8")
        require_refused(lambda: laws.Trace.from_csv(path), what)


def require_arrivals(name: str, one: Any, seed: int, own_link: Any, steps: int) -> int:
    """Arrivals against the scalar simulation: step after step, from every resume on, and in any order if it may."""
    scalar = scalar_masks.Masks(one, OWNERS, 3, seed, own_link)
    moments = list(product(range(steps), PHASES))
    wanted = {(step, phase): scalar.arrived(phase, step) for step, phase in moments}
    arrivals = loss.Arrivals(one, OWNERS, 3, seed, own_link)
    states = []
    for step, phase in moments:
        states.append(arrivals.state_dict())
        _require_mask(name, getattr(arrivals, phase)(step), wanted[step, phase], step, phase, "")
    for receiver in range(3):  # a rank that draws only what it receives draws the same
        alone = loss.Arrivals(one, OWNERS, 3, seed, own_link, receiver=receiver)
        mine = [packet for packet, owner in enumerate(OWNERS) if owner == receiver]
        for step, phase in moments[:4]:
            part = [[row[packet] for packet in mine] for row in wanted[step, phase]]
            part = part if phase == "gradients" else wanted[step, phase][receiver : receiver + 1]
            _require_mask(name, getattr(alone, phase)(step), part, step, phase, f", drawn by rank {receiver}")
        q_NQ = arrivals.gradient_probability()[:, mine]
        require(torch.equal(alone.gradient_probability(), q_NQ), f"{name}: rank {receiver}'s arrival probabilities")
    remembers = bool(states[-1]["memory"])
    for cut, state in enumerate(states if remembers else states[1:2]):
        resumed = loss.Arrivals(one, OWNERS, 3, seed, own_link)
        resumed.load_state_dict(state)
        for step, phase in moments[cut : cut + 3] if remembers else moments[1:3]:
            _require_mask(name, getattr(resumed, phase)(step), wanted[step, phase], step, phase, ", resumed")
    if remembers:
        step, phase = moments[len(moments) // 2]
        for wrong in (step - 1, step + 1):
            resumed.load_state_dict(states[len(moments) // 2])
            require_refused(lambda: getattr(resumed, phase)(wrong), f"{name}: a step out of order")
        ahead = loss.Arrivals(one, OWNERS, 3, seed, own_link)
        ahead.parameters(0)
        require_refused(lambda: ahead.gradients(0), f"{name}: gradients after the parameters of a step")
        ahead.gradients(1)
        require_refused(lambda: ahead.gradients(1), f"{name}: gradients of a step twice")
        sizes = {array.numel() for array in states[-1]["memory"].values()}
        require(sizes in ({3 * len(OWNERS)}, {3 * 3}), f"{name}: remembers {sizes}, not one of each packet or link")
    else:
        for step, phase in reversed(moments):
            _require_mask(name, getattr(arrivals, phase)(step), wanted[step, phase], step, phase, ", backwards")
    q_NP = [[1.0 if rank == owner and own_link == "reliable" else float(1 - marginal(one, rank, owner))
             for owner in OWNERS] for rank in range(3)]  # fmt: skip
    require(arrivals.gradient_probability().tolist() == q_NP, f"{name}: the arrival probabilities of gradients")
    return len(moments)


def _require_mask(name: str, got: torch.Tensor, wanted: list[list[bool]], step: int, phase: str, how: str) -> None:
    require(got.dtype == torch.bool and got.tolist() == wanted, f"{name}: {phase} of step {step}{how}")


@dataclass
class _Table:
    """A draw whose words are given; packets in any order."""

    phase: Any
    ranks: int
    src: NDArray[np.int64]
    dst: NDArray[np.int64]
    packet: NDArray[np.int64]
    table: list[NDArray[np.int64]]
    common_1P: NDArray[np.int64]

    def words(self, k: int = 0) -> NDArray[np.int64]:
        return self.table[k]

    def common(self, k: int = 0) -> NDArray[np.int64]:
        return self.common_1P


def require_edges(name: str, one: Any, run: Run) -> None:
    """The law alone, on words just below, at and above every number that they are held against."""
    scalar_masks.THRESHOLDS.clear()
    random, P = Random(run.seed), 12
    state: dict[Any, Any] = {}
    memory: Any = {}
    for number, phase in enumerate(PHASES * run.pick(9, 60)):
        if number % 6 == 0:
            state, memory = {}, {}
        edges = [edge + off for edge in sorted(scalar_masks.THRESHOLDS) for off in (-1, 0, 1)] + [0, 2**32 - 1]
        edges = [word for word in edges if 0 <= word < 2**32]
        table = [np.array([[random.choice(edges) for _ in range(P)] for _ in range(3)]) for _ in range(4)]
        by_packet = getattr(one, "clock", "step") == "packet"  # a law with a step clock knows a packet by its column
        number_P = np.array(random.sample(range(P), P)) if by_packet else np.arange(P)
        rank_N1, common_1P = np.arange(3)[:, None], np.array([[random.choice(edges) for _ in range(P)]])
        owner_P = number_P % 3
        src, dst = (rank_N1, owner_P) if phase == "gradients" else (owner_P, rank_N1)
        lost, memory = one.sample(_Table(phase, 3, src, dst, number_P, table, common_1P), memory)
        for (row, column), packet in _in_order(table, common_1P, number_P, src, dst, phase):
            wanted = scalar_masks.is_lost(one, packet, state)
            require(bool(lost[row, column]) == wanted, f"{name}: words {[int(w[row, column]) for w in table]}")


def _in_order(
    table: Any, common_1P: Any, number_P: Any, src: Any, dst: Any, phase: str
) -> Iterator[tuple[tuple[int, int], scalar_masks.Packet]]:
    shape = table[0].shape
    src, dst = np.broadcast_to(src, shape), np.broadcast_to(dst, shape)
    for column in np.argsort(number_P):
        for row in range(shape[0]):
            at = (row, int(column))
            words, common = [int(word[at]) for word in table], int(common_1P[0, column])
            link = int(src[at]), int(dst[at])
            alike = sorted(int(n) for n, s, d in zip(number_P, src[row], dst[row], strict=True) if (s, d) == link)
            among = alike.index(int(number_P[column])), len(alike)
            yield at, scalar_masks.Packet(phase, *link, int(number_P[column]), words.__getitem__, lambda k: common,
                                          among)  # fmt: skip
