"""Every shipped law against its mathematics, samples against plain loops, frequencies against probabilities.

Legend: L rows of links, P packets.
"""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lossproof.impl.loss import Arrivals
from lossproof.impl.losslog import log_arrivals
from lossproof.proofs_checks import laws
from lossproof.theory.laws import (
    Bernoulli,
    CommonOutage,
    GilbertElliott,
    HeavyTailed,
    Law,
    PerSender,
    Renewal,
    Trace,
    exact,
)

NAN, INF = float("nan"), float("inf")
TIMED = "src,dst,lost,step,phase,packet\n"
ALPHA = (
    1e-9  # the chance that one frequency test rejects a right sampler; seeds are fixed, so it does so always or never
)
RANKS = 3
LINKED = Trace(tuple(((i, j), "0110100"[i + j :] + "0") for i in range(RANKS) for j in range(RANKS) if i != j), "step")
RECORDED = (
    *(((i, j, "gradients"), ("01100"[j:] + "01100"[:j], "10010")[: 1 + j % 2]) for i in range(3) for j in range(2)),
    *(((i, j, "parameters"), ("00101", "11011", "00010")[: 1 + i]) for i in range(3) for j in range(3) if i != j),
)  # ranks 0 and 1 own one and two packets where gradients were recorded, 2 none; parameters are of one, two, three
JOB = Trace(RECORDED, "step")
LAWS = {
    "bernoulli": Bernoulli(0.3),
    "lossless": Bernoulli(0),
    "per sender": PerSender((0.1, 0.25, 0.5)),
    "step": GilbertElliott(0.2, burst=3),
    "packet": GilbertElliott(0.2, burst=3, clock="packet"),
    "four parameters": GilbertElliott.from_transitions(0.3, 0.4, loss_good=0.05, loss_bad=0.9),
    "flips": GilbertElliott.from_transitions(0.9, 0.8),
    "trace": Trace("0010110"),
    "links": LINKED,
    "job": JOB,
    "renewal": Renewal(0.3, (0.5, 0, 0.25, 0.25)),
    "heavy tail": HeavyTailed(0.3),
    "outage": CommonOutage(0.3, outage=0.2),
}


def states() -> st.SearchStrategy[tuple[Fraction, Fraction, Fraction, Fraction]]:
    """The four parameters in eighths: transitions may be 1, the two losses differ."""
    eighths = [Fraction(i, 8) for i in range(9)]
    return st.tuples(
        st.sampled_from(eighths[1:]), st.sampled_from(eighths[1:]), st.sampled_from(eighths), st.sampled_from(eighths)
    ).filter(lambda p: p[2] < p[3])


# -- mathematics


@given(laws(ranks=RANKS) | st.sampled_from(list(LAWS.values())), st.integers(1, 5))
def test_age_tail_is_a_tail_that_starts_at_the_marginal(law: Law, ticks: int) -> None:
    assert isinstance(law, Law)
    for src, dst in ((0, 1), (2, 0)):
        tail = [law.age_tail(k, src, dst, ticks) for k in range(9)]
        assert all(isinstance(t, Fraction) for t in [*tail, law.marginal(src, dst)])
        assert tail[:2] == [1, law.marginal(src, dst)]
        assert all(0 <= b <= a for a, b in pairwise(tail))
        convex = [a - b for a, b in pairwise(tail)]  # P(A = k) = P(a run of k losses begins) falls
        assert convex[1:] == sorted(convex[1:], reverse=True)


@pytest.mark.parametrize("name", LAWS)
def test_laws_are_values(name: str) -> None:
    law = LAWS[name]
    assert hash(law) == hash(LAWS[name])
    field = next(iter(vars(law)))
    with pytest.raises(AttributeError):
        setattr(law, field, 0)


@given(st.integers(0, 99), st.integers(0, 12), st.sampled_from(["step", "packet"]))
def test_gilbert_elliott_without_memory_is_bernoulli(percent: int, k: int, clock: Any) -> None:
    p = Fraction(percent, 100)
    law = GilbertElliott(p, burst=1 / (1 - p), clock=clock)
    assert law.age_tail(k, ticks=3) == Bernoulli(p).age_tail(k) == p**k
    assert sum(law.transitions) == 1


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 10))
def test_gilbert_elliott_two_parameters(percent: int, extra: int, k: int) -> None:
    p = Fraction(percent, 100)
    burst = max(Fraction(1), p / (1 - p)) + Fraction(extra - 1, 4)
    assert GilbertElliott(p, burst).age_tail(k) == p * (1 - 1 / burst) ** (k - 1)


@given(states(), st.integers(0, 3), st.integers(1, 3), st.sampled_from(["step", "packet"]))
def test_gilbert_elliott_tail_sums_all_paths(p: tuple[Fraction, ...], k: int, ticks: int, clock: Any) -> None:
    if p[2] == 1 or (p[0] * p[3] + p[1] * p[2]) / (p[0] + p[1]) == 1:
        return
    law = GilbertElliott.from_transitions(*p, clock=clock)
    assert law.transitions == p[:2]
    expected = oracles.Chain(*p, clock).age_tail(k, ticks if clock == "packet" else 1)
    assert law.age_tail(k, ticks=ticks) == expected


@given(st.integers(1, 9), st.integers(0, 8), st.integers(1, 4), st.integers(1, 6))
def test_a_packet_clock_of_many_ticks_is_a_step_clock_of_slower_memory(
    tenths: int, extra: int, ticks: int, k: int
) -> None:
    p = Fraction(tenths, 10)
    burst = 1 / (1 - p) + Fraction(extra, 2)
    packet = GilbertElliott(p, burst, clock="packet")
    memory = 1 - sum(packet.transitions)
    slower = GilbertElliott(p, 1 / ((1 - p) * (1 - memory**ticks)), clock="step")
    assert packet.age_tail(k, ticks=ticks) == slower.age_tail(k)


@given(st.text("01", min_size=1, max_size=9).filter(lambda bits: "0" in bits), st.integers(0, 5), st.integers(1, 4))
def test_trace_tail_replays_every_start(bits: str, k: int, ticks: int) -> None:
    assert Trace(bits).marginal() == Fraction(sum(map(int, bits)), len(bits))
    for clock, stride in (("packet", ticks), ("step", 1)):
        endless = bits * (k * stride + 2)
        runs = [endless[start::stride][:k] == "1" * k for start in range(len(bits))]
        assert Trace(bits, clock).age_tail(k, ticks=ticks) == Fraction(sum(runs), len(bits))


def test_a_float_is_the_decimal_it_prints_as() -> None:
    assert exact(0.1) == exact(Decimal("0.1")) == Fraction(1, 10)
    assert exact(np.float64(0.3)) == Fraction(3, 10)
    assert Bernoulli(0.1).age_tail(3) == Fraction(1, 1000)


# -- samples, word by word


@st.composite
def draws(draw: st.DrawFn) -> list[oracles.TableDraw]:
    """Several steps of both phases, with owners and packet numbers in any order."""
    packets = draw(st.integers(1, 4))
    owner_P = np.array(draw(st.lists(st.integers(0, RANKS - 1), min_size=packets, max_size=packets)))
    packet_P = np.array(draw(st.permutations(range(packets))))
    words = np.random.default_rng(draw(st.integers(0, 2**32)))
    rank_L1 = np.arange(RANKS)[:, None]
    result = []
    for _ in range(draw(st.integers(1, 5))):
        for phase, src, dst in (("gradients", rank_L1, owner_P), ("parameters", owner_P, rank_L1)):
            table = [words.integers(0, 2**32, (RANKS, packets)) for _ in range(4)]
            result.append(oracles.TableDraw(phase, RANKS, src, dst, packet_P, table))
    return result


def samples(law: Law, draws: list[oracles.TableDraw]) -> list[list[list[bool]]]:
    memory: Any = {}
    masks = []
    for draw in draws:
        before = {name: array.copy() for name, array in memory.items()}
        lost, after = law.sample(draw, memory)  # type: ignore[arg-type]
        assert lost.dtype == np.bool_
        assert all(np.array_equal(memory[name], before[name]) for name in before), "memory was changed in place"
        masks.append(lost.tolist())
        memory = after
    return masks


@given(draws(), states(), st.sampled_from(["step", "packet"]))
def test_gilbert_elliott_samples_as_a_loop_does(
    draws: list[oracles.TableDraw], p: tuple[Fraction, ...], clock: Any
) -> None:
    if p[2] == 1 or (p[0] * p[3] + p[1] * p[2]) / (p[0] + p[1]) == 1:
        return
    chain = oracles.Chain(*p, clock)
    assert samples(GilbertElliott.from_transitions(*p, clock=clock), draws) == [chain.sample(d).tolist() for d in draws]


@given(draws(), st.sampled_from(["step", "packet"]), st.booleans())
def test_trace_samples_as_a_loop_does(draws: list[oracles.TableDraw], clock: Any, linked: bool) -> None:
    trace = Trace(LINKED.recorded if linked else "01101", clock)

    def bits(src: int, dst: int) -> str:
        return dict(LINKED.recorded).get((src, dst), "0") if linked else "01101"  # type: ignore[arg-type]

    replay = oracles.Replay(bits, clock)
    assert samples(trace, draws) == [replay.sample(d).tolist() for d in draws]


@given(draws())
def test_a_job_is_replayed_as_a_loop_does(draws: list[oracles.TableDraw]) -> None:
    replay = oracles.Rerun(dict(RECORDED))
    assert samples(JOB, draws) == [replay.sample(d).tolist() for d in draws]


def test_a_replayed_job_loses_its_stated_share_and_ages(tmp_path: Path) -> None:
    """Over one cycle of the log every packet of a link is seen: shares are equal, not nearly."""
    owner_P, steps = [0, 2, 2, 0, 1, 2], 7
    log_arrivals(Arrivals(GilbertElliott(0.4, 3), owner_P, RANKS, seed=3), steps, tmp_path / "log.csv")
    trace = Trace.from_csv(tmp_path / "log.csv")
    arrivals, bits = Arrivals(trace, owner_P, RANKS, seed=8), {}
    for step in range(2 * steps):  # the second cycle begins where the first one ended
        for phase, mask in (("gradients", arrivals.gradients(step)), ("parameters", arrivals.parameters(step))):
            for packet, owner in enumerate(owner_P):
                for rank in set(range(RANKS)) - {owner}:
                    link = (rank, owner) if phase == "gradients" else (owner, rank)
                    bits.setdefault(link, {}).setdefault((phase, packet), []).append(not mask[rank, packet])
    for (src, dst), packets in bits.items():
        seen = np.array(list(packets.values()))
        assert trace.marginal(src, dst) == Fraction(int(seen[:, steps:].sum()), seen[:, steps:].size)
        for k in range(1, 5):
            runs = [seen[:, t - k + 1 : t + 1].all(1).sum() for t in range(steps, 2 * steps)]
            assert trace.age_tail(k, src, dst) == Fraction(int(sum(runs)), seen[:, steps:].size)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_another_layout_has_the_stated_probabilities(k: int) -> None:
    """A link that carries other packets than were recorded starts anywhere: at every step, not on average over them."""
    arrivals = Arrivals(JOB, [1] * 20_000, RANKS, seed=4)
    arrived_kP = [arrivals.parameters(step)[0] for step in range(k + 2)][2:]
    runs = int((~np.stack(arrived_kP)).all(0).sum())
    assert binomtest(runs, 20_000, float(JOB.age_tail(k, 1, 0))).pvalue > ALPHA


@given(draws(), st.integers(0, 7))
def test_memoryless_laws_compare_word_0(draws: list[oracles.TableDraw], eighths: int) -> None:
    p = Fraction(eighths, 8)
    losses = (p, Fraction(0), Fraction(1, 3))
    for draw in draws:
        ours, per_sender = samples(Bernoulli(p), [draw])[0], samples(PerSender(losses), [draw])[0]
        for (row, column), src, _, _ in draw.cells():
            assert ours[row][column] == oracles.is_lost(int(draw.words()[row, column]), p)
            assert per_sender[row][column] == oracles.is_lost(int(draw.words()[row, column]), losses[src])


@pytest.mark.parametrize(
    "p", [Fraction(0), Fraction(1, 2**32), Fraction(1, 3), Fraction(1, 10), Fraction(2**32 - 1, 2**32)]
)
def test_the_last_word_that_is_a_loss(p: Fraction) -> None:
    edge = math.floor(p * 2**32)
    near = np.array([[w for w in (0, edge - 1, edge, edge + 1, 2**32 - 1) if 0 <= w < 2**32]])
    draw = oracles.TableDraw("gradients", 2, np.array([[0]]), np.array([1]), np.arange(near.size), [near] * 4)
    for law in (Bernoulli(p), PerSender((p, 0)), GilbertElliott(p, burst=max(2, p / (1 - p)), clock="packet")):
        assert samples(law, [draw])[0][0][:1] == [edge > 0]
    assert samples(Bernoulli(p), [draw])[0][0] == [int(w) < edge for w in near[0]]


# -- frequencies, by exact binomial tests. One packet of each link, so that the counted events are independent.


def runs_of_losses(law: Law, k: int, seed: int, own_packets: int = 1) -> tuple[int, int]:
    """Links whose last k parameter packets of a kind were lost, and links, after 2 + k steps. Owners send to all."""
    ranks, owners = 1200, 8
    owner_P = np.repeat(np.arange(owners), own_packets)
    arrivals = Arrivals(law, owner_P, ranks, seed)
    for step in range(2):
        arrivals.parameters(step)
    masks = [arrivals.parameters(step)[owners:, ::own_packets] for step in range(2, 2 + k)]
    lost_k = ~np.stack(masks).any(0)
    return int(lost_k.sum()), lost_k.size


FREQUENCIES: dict[str, tuple[Law, int]] = {
    "bernoulli": (Bernoulli(0.3), 1),
    "step": (GilbertElliott(0.2, burst=4), 1),
    "packet": (GilbertElliott(0.2, burst=4, clock="packet"), 1),
    "packet, 3 ticks": (GilbertElliott(0.2, burst=4, clock="packet"), 3),
    "four parameters": (GilbertElliott.from_transitions(0.1, 0.3, loss_good=0.1, loss_bad=0.9, clock="step"), 1),
    "flips": (GilbertElliott.from_transitions(0.9, 0.7), 1),
    "trace": (Trace("0010110"), 2),
    "trace by step": (Trace("0010110", clock="step"), 2),
    "renewal": (Renewal(0.3, (0.5, 0, 0.25, 0.25)), 1),
    "heavy tail": (HeavyTailed(0.3), 1),
    "all arrivals are single": (HeavyTailed(Fraction(2, 3)), 1),
}


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("name", FREQUENCIES)
def test_runs_of_losses_have_the_stated_probability(name: str, k: int) -> None:
    law, ticks = FREQUENCIES[name]
    count, trials = runs_of_losses(law, k, seed=1000 + k, own_packets=ticks)
    assert binomtest(count, trials, float(law.age_tail(k, ticks=ticks))).pvalue > ALPHA


def test_every_sender_loses_its_own_share() -> None:
    losses = (0.05, 0.2, 0.6)
    lost_NP = ~Arrivals(PerSender(losses), [0] * 20_000, 3, seed=7, own_link="lossy").gradients(0)
    for sender, loss in enumerate(losses):
        assert binomtest(int(lost_NP[sender].sum()), 20_000, loss).pvalue > ALPHA


# -- a law of one's own


class EveryThird:
    """Loses every third packet of a step and, with memory, whatever is sent at odd times."""

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        return Fraction(2, 3)

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return Fraction(1) if k == 0 else Fraction(1, 3) if k > 1 else Fraction(2, 3)

    def sample(self, draw: Any, memory: Any) -> Any:
        time = memory.get("time", np.zeros(1, dtype=np.int64))
        return np.broadcast_to((draw.packet % 3 == 0) | (time % 2 == 1), draw.words().shape), {"time": time + 1}


def test_a_law_of_ones_own_runs() -> None:
    law = EveryThird()
    assert isinstance(law, Law)
    arrivals = Arrivals(law, [0] * 6, ranks=2)
    assert (~arrivals.gradients(0)[1]).tolist() == [True, False, False] * 2
    assert (~arrivals.gradients(1)[1]).all()
    assert (~arrivals.gradients(2)[1]).tolist() == [True, False, False] * 2
    assert math.isclose(float(arrivals.gradient_probability()[1, 0]), 1 / 3)
