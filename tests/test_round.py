"""One round against a plain simulation of every packet, in whole numbers, over several steps.

Legend: N ranks, P packets, E elements of a packet.
"""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction
from math import lcm
from typing import Any

import oracles
import pytest
import torch
from hypothesis import given, settings

from lossproof.impl.aggregate import NonFiniteGradient
from lossproof.impl.channel import SimulatedChannel
from lossproof.impl.loss import Arrivals
from lossproof.impl.retain import drift_sums
from lossproof.impl.round import Round
from lossproof.proofs_checks import RoundCase, rounds
from lossproof.theory.laws import Bernoulli, GilbertElliott

HALF = Fraction(1, 2)


class PlainRound:
    """The protocol in dictionaries: x[p] is the owner's packet, theta[i, p] rank i's copy; nothing is vectorised."""

    def __init__(self, start: list[list[int]], owner: list[int], N: int, seed: int, own_link: str, **how: Any) -> None:
        self.owner, self.N, self.seed, self.own_link, self.how = owner, N, seed, own_link, how
        self.x = [[Fraction(v) for v in packet] for packet in start]
        self.theta = {(i, p): list(packet) for i in range(N) for p, packet in enumerate(self.x)}
        self.estimate = [[Fraction(0)] * len(packet) for packet in start]
        self.counts = dict.fromkeys(asdict(Round.in_process(torch.zeros(0, 1), torch.zeros(0), NoChannel()).counts), 0)

    def arrives(self, packet: int, src: int, dst: int, phase: str, t: int) -> bool:
        if src == dst and (phase == "parameters" or self.own_link == "reliable"):
            return True
        lost = oracles.is_lost(oracles.word(self.seed, packet, src, dst, phase, t), HALF)
        if src != dst:
            self.counts[f"{phase}_offered"] += 1
            self.counts[f"{phase}_lost"] += lost
        return not lost

    def step(self, t: int, gradient: Any) -> list[int]:
        ranks, packets = range(self.N), range(len(self.x))
        payload = [[gradient(t, i, p, self.theta[i, p]) for p in packets] for i in ranks]
        arrived = [[self.arrives(p, i, self.owner[p], "gradients", t) for p in packets] for i in ranks]
        sure = self.own_link == "reliable"
        probability = [[Fraction(1) if sure and i == self.owner[p] else HALF for p in packets] for i in ranks]
        self.estimate, count = oracles.aggregate(
            payload, arrived, **self.how, probability=probability, previous=self.estimate, owner=self.owner
        )
        self.counts["no_survivor"] += count.count(0)
        for p in packets:
            self.x[p] = [x - u for x, u in zip(self.x[p], self.estimate[p], strict=True)]
            for i in ranks:
                if self.arrives(p, self.owner[p], i, "parameters", t):
                    self.theta[i, p] = list(self.x[p])
        return count


class NoChannel:
    ranks = 1


@settings(max_examples=150)
@given(rounds(law=Bernoulli(HALF)))
def test_a_round_is_its_plain_simulation(case: RoundCase) -> None:
    N, unit = case.ranks, lcm(*range(1, case.ranks + 1))

    def gradient(t: int, i: int, p: int, theta: list[Any]) -> list[Any]:
        """Pulls a replica towards zero and elsewhere: whole numbers, and every mean of them is whole."""
        elsewhere = map(int, case.payloads_TNPE[t][i, p].tolist())
        return [other - unit * value for other, value in zip(elsewhere, theta, strict=True)]

    start = [[int(value) for value in packet] for packet in case.start_PE.tolist()]
    how = {"rule": case.rule, "no_survivor": case.no_survivor}
    plain, ours = PlainRound(start, case.owner_P, N, case.seed, case.own_link, **how), case.round()
    for t in range(len(case.payloads_TNPE)):
        payload = torch.tensor(
            [[gradient(t, i, p, ours.replicas_HPE[i, p].tolist()) for p in range(len(start))] for i in range(N)],
            dtype=torch.float64,
        )
        count = ours.step(payload, lambda estimate: ours.fresh_QE.sub_(estimate))
        assert count.tolist() == plain.step(t, gradient)
        assert ours.fresh_QE.tolist() == [[float(x) for x in packet] for packet in plain.x]
        for (i, p), packet in plain.theta.items():
            assert ours.replicas_HPE[i, p].tolist() == [float(x) for x in packet]
        assert asdict(ours.counts) == plain.counts
        assert ours.step_number == t + 1


class NothingArrives(SimulatedChannel):
    """No gradient packet arrives, not even from a rank to itself; all parameter packets do."""

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return payload_HPE, torch.zeros(payload_HPE.shape[:2], dtype=torch.bool)


def test_with_no_survivor_each_packet_moves_by_the_gradient_of_its_own_owner() -> None:
    owner = [2, 0, 1, 1]
    channel = NothingArrives(Arrivals(Bernoulli(0), owner, 3))
    round = Round.in_process(torch.zeros(4, 2), torch.tensor(owner), channel, no_survivor="own")
    payload = torch.arange(24.0).view(3, 4, 2)
    count = round.step(payload, lambda estimate: round.fresh_QE.sub_(estimate))
    assert count.tolist() == [0, 0, 0, 0]
    assert round.counts.no_survivor == 4
    assert round.fresh_QE.tolist() == [(-payload[rank, p]).tolist() for p, rank in enumerate(owner)]


def new_round(no_survivor: Any = "hold", law: Any = None, own_link: Any = "lossy") -> Round:
    owner = torch.tensor([0, 1, 2, 0])
    arrivals = Arrivals(law or GilbertElliott(0.6, burst=3, clock="packet"), owner, 3, seed=8, own_link=own_link)
    return Round.in_process(torch.zeros(4, 2), owner, SimulatedChannel(arrivals), no_survivor=no_survivor)


def advance(round: Round, steps: range) -> list[torch.Tensor]:
    seen = []
    for t in steps:
        payload = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(t)) + round.replicas_HPE
        round.step(payload, lambda estimate: round.fresh_QE.sub_(estimate))
        seen += [round.fresh_QE.clone(), round.replicas_HPE.clone()]
    return seen


def test_a_resumed_round_goes_on_bit_for_bit() -> None:
    through = new_round()
    expected = advance(through, range(12))
    for cut in range(12):  # at every step: what `hold` remembers matters only where nobody survives the next one
        first, second = new_round(), new_round()
        advance(first, range(cut))
        state = first.state_dict()
        advance(first, range(cut, cut + 2))  # goes on; the state that was taken does not
        second.load_state_dict(state)
        resumed = advance(second, range(cut, 12))
        assert all(torch.equal(a, b) for a, b in zip(resumed, expected[2 * cut :], strict=True))
        assert second.counts == through.counts
    assert through.counts.no_survivor > 5


class Recorder:
    """A channel that writes down what is called when, and with which fresh parameters."""

    def __init__(self, channel: SimulatedChannel, diary: list[Any]) -> None:
        self.channel, self.ranks, self.diary = channel, channel.ranks, diary

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.diary.append(("gradients", step))
        return self.channel.gradients(step, payload_HPE)

    def parameters(self, step: int, fresh_QE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.diary.append(("parameters", step, fresh_QE.tolist()))
        return self.channel.parameters(step, fresh_QE)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def test_the_owner_moves_between_the_phases() -> None:
    diary: list[Any] = []
    channel = Recorder(SimulatedChannel(Arrivals(Bernoulli(0), [0], 2)), diary)
    round = Round.in_process(torch.zeros(1, 1), torch.tensor([0]), channel)

    def update(estimate: torch.Tensor) -> None:
        diary.append("update")
        round.fresh_QE.sub_(estimate)

    for value in (1.0, 2.0):
        round.step(torch.full((2, 1, 1), value), update)
    expected = [("gradients", 0), "update", ("parameters", 0, [[-1.0]]), ("gradients", 1), "update"]
    assert diary == [*expected, ("parameters", 1, [[-3.0]])]


def test_the_start_is_copied_and_the_update_may_use_up_the_estimate() -> None:
    start = torch.ones(1, 1)
    arrivals = Arrivals(Bernoulli(0.9), [0], 2, seed=0, own_link="lossy")
    round = Round.in_process(start, torch.tensor([0]), SimulatedChannel(arrivals), no_survivor="hold")
    held, moves = 0.0, []
    for t in range(30):
        gradients = torch.full((2, 1, 1), float(t + 1))
        moves.append(0.0)

        def update(estimate: torch.Tensor) -> None:
            moves[-1] = float(estimate)
            estimate.fill_(1e9)  # an optimizer that works in place, as clipping does

        count = round.step(gradients, update)
        held = t + 1.0 if int(count) else held
        assert moves[-1] == held
    round.fresh_QE.add_(1)
    assert round.fresh_QE == 2
    assert start == 1
    assert round.counts.no_survivor > 5


def test_gradients_that_are_not_finite_change_nothing() -> None:
    round = new_round("zero", Bernoulli(0), "reliable")
    before = round.state_dict()
    with pytest.raises(NonFiniteGradient):
        round.step(torch.full((3, 4, 2), float("nan")), lambda estimate: round.fresh_QE.sub_(estimate))
    after = round.state_dict()
    assert torch.equal(before["fresh"], after["fresh"])
    assert torch.equal(before["replicas"], after["replicas"])
    assert before["step_number"] == after["step_number"] == 0
    assert before["counts"] == after["counts"]


def test_a_round_that_measures_leaves_the_sums_of_its_drift() -> None:
    start, owner_P = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 2])
    round_ = Round.in_process(start, owner_P, SimulatedChannel(Arrivals(Bernoulli(0.5), owner_P, ranks=3)))
    round_.step(torch.ones(3, 3, 2), lambda estimate_PE: round_.fresh_QE.sub_(estimate_PE))
    assert round_.drift is None
    round_.measures = True
    round_.step(torch.ones(3, 3, 2), lambda estimate_PE: round_.fresh_QE.sub_(estimate_PE))
    expected = drift_sums(round_.replicas_HPE, round_.fresh_QE)
    assert torch.equal(round_.drift.square_P, expected.square_P)
    assert torch.equal(round_.drift.square_of_sum_P, expected.square_of_sum_P)
    assert expected.square_P.any()
