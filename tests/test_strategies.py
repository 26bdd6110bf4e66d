"""What is offered to other people's test suites: the strategies draw what they promise, `check_law` catches wrong laws.

Legend: N ranks, P packets, E elements of a packet.
"""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from math import lcm
from random import Random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st

import lossproof.proofs_checks as offered
from lossproof.impl.loss import Arrivals
from lossproof.proofs_checks import RoundCase, arrivals, check_law, laws, payloads, rounds
from lossproof.proofs_checks.law_checks import _mathematics, _structure
from lossproof.theory.laws import Bernoulli, CommonOutage, GilbertElliott, HeavyTailed, Law, PerSender, Renewal, Trace

# -- the package


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = (
        "import sys, lossproof.proofs_checks as r; print({'torch', 'sympy', 'scipy', 'hypothesis'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_everything_that_is_offered_is_there() -> None:
    for name in offered.__all__:
        assert getattr(offered, name).__name__.lower() in (name.lower(), "mutant")  # `plant` is the class Mutant
    with pytest.raises(AttributeError):
        _ = offered.nothing
    assert callable(offered.check_law)  # also once its module is loaded


@pytest.mark.parametrize("name", ["strategies", "law_checks", "refutation", "enumeration"])
def test_the_examples_of_the_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"lossproof.proofs_checks.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


# -- strategies


@given(laws(ranks=3))
def test_laws_are_laws(law: Law) -> None:
    """Every law that can be drawn states what a law must state, and draws as the protocol needs it."""
    assert isinstance(law, Law)
    _mathematics(law, 0, 2)


@settings(max_examples=15)
@given(laws(ranks=2))
def test_laws_draw_as_laws(law: Law) -> None:
    _structure(law, 2, 0)


KINDS = (Bernoulli, GilbertElliott, Trace, Renewal, HeavyTailed, PerSender, CommonOutage)


@pytest.mark.parametrize("kind", KINDS)
def test_laws_of_every_kind_are_drawn(kind: type) -> None:
    assert isinstance(find(laws(ranks=2), lambda law: isinstance(law, kind)), kind)


def test_both_clocks_and_logs_by_link_are_drawn() -> None:
    for clock in ("step", "packet"):
        find(laws(), lambda law: isinstance(law, GilbertElliott) and law.clock == clock)
        find(laws(ranks=2), lambda law: isinstance(law, Trace) and law.clock == clock and law.recorded[0] != "0")
    find(laws(ranks=2), lambda law: isinstance(law, Trace) and not isinstance(law.recorded, str))


@given(laws(independent_links=True))
def test_laws_for_any_number_of_ranks_and_of_independent_links(law: Law) -> None:
    assert getattr(law, "independent_links", True)
    assert Arrivals(law, [0, 6], 7).gradients(0).shape == (7, 2)


@given(st.data(), st.integers(1, 5), st.integers(0, 4))
def test_arrivals_have_their_shape_and_survivors(data: st.DataObject, N: int, P: int) -> None:
    least = data.draw(st.integers(0, N))
    mask = data.draw(arrivals(N, P, survivors=least))
    assert mask.shape == (N, P)
    assert mask.dtype == torch.bool
    assert (mask.sum(0) >= least).all()


@pytest.mark.parametrize("pattern", [[False, False], [True, False], [False, True], [True, True]])
def test_every_pattern_of_arrivals_is_drawn(pattern: list[bool]) -> None:
    assert find(arrivals(2, 1), lambda mask: mask[:, 0].tolist() == pattern).shape == (2, 1)


def test_examples_shrink_to_nothing_lost_and_zeros() -> None:
    for seed in range(10):
        assert find(arrivals(ranks=3, packets=2), lambda mask: True, random=Random(seed)).all()
    assert not find(payloads(), lambda payload: payload.shape[1] > 0).any()


@given(st.data(), st.integers(1, 9), st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_means_of_payloads_are_whole(data: st.DataObject, N: int, dtype: torch.dtype) -> None:
    payload = data.draw(payloads(N, dtype=dtype))
    assert payload.dtype == dtype
    assert payload.shape[0] == N
    assert (payload.double() % lcm(*range(1, N + 1)) == 0).all()


@settings(max_examples=30)
@given(rounds())
def test_rounds_run(case: RoundCase) -> None:
    whole = case.arrivals()
    round_ = case.round()
    for step, payload in enumerate(case.payloads_TNPE):
        assert payload.shape == (case.ranks, *case.start_PE.shape)
        count_P = round_.step(payload, lambda estimate: round_.fresh_QE.sub_(estimate))
        assert torch.equal(count_P, whole.gradients(step).sum(0))
        whole.parameters(step)
    assert round_.step_number == len(case.payloads_TNPE)


# -- check_law


@pytest.mark.parametrize(
    "law",
    [
        Bernoulli(0.3),
        PerSender((0.1, 0.25, 0.5)),
        GilbertElliott(0.2, burst=3),
        GilbertElliott(0.2, burst=3, clock="packet"),
        Trace("0010110"),
        HeavyTailed(0.3),
        CommonOutage(0.3, outage=0.2),
    ],
    ids=lambda law: type(law).__name__,
)
def test_a_shipped_law_passes(law: Law) -> None:
    found = check_law(law, ranks=3, trials=3000)
    assert found.alpha is not None
    assert 0 < found.alpha < 1e-6


@pytest.mark.parametrize("wrong", [Bernoulli, 0.1, object()])
def test_what_is_no_law_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^law must (be an instance, got the class Bernoulli|offer marginal)"):
        check_law(wrong)


class OfTenth(Bernoulli):
    """What the wrong laws below have in common: without a mistake it passes."""

    def __init__(self) -> None:
        super().__init__(Fraction(1, 10))


class MarginalOff(OfTenth):
    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        return Fraction(1, 8)

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return Fraction(1, 8) ** k


class Float(OfTenth):
    def marginal(self, src: int = 0, dst: int = 1) -> Any:
        return 0.1


class TailOffByOne(OfTenth):
    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return Fraction(1, 10) ** (k + 1)


class TailOfBursts(OfTenth):
    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return Fraction(1, 5) * Fraction(1, 2) ** k if k else Fraction(1)


class TailRises(OfTenth):
    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return Fraction(1, 10) if k == 1 else Fraction(1, 5) if k == 2 else super().age_tail(k)


class TailFallsLate(OfTenth):
    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return Fraction(1) if k == 0 else Fraction(k < 4, 10)


class AboveOne(OfTenth):
    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return Fraction(2)


class OtherDefaults(OfTenth):
    def marginal(self, src: int = 1, dst: int = 0) -> Fraction:
        return Fraction(1, 10) * (1 + src)

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return self.marginal(src, dst) ** k


class GlobalGenerator(OfTenth):
    def sample(self, draw: Any, memory: Any) -> Any:
        return np.random.random(draw.words().shape) < 0.1, memory  # noqa: NPY002


class TorchGenerator(OfTenth):
    def sample(self, draw: Any, memory: Any) -> Any:
        return (torch.rand(draw.words().shape) < 0.1).numpy(), memory


class OwnGenerator(OfTenth):
    def sample(self, draw: Any, memory: Any) -> Any:
        return np.random.default_rng().random(draw.words().shape) < 0.1, memory


class Inverted(OfTenth):
    def sample(self, draw: Any, memory: Any) -> Any:
        return ~super().sample(draw, memory)[0], memory


class ByRow(OfTenth):
    def sample(self, draw: Any, memory: Any) -> Any:
        lost, memory = super().sample(draw, memory)
        return lost & (np.arange(len(lost))[:, None] % 2 == 0), memory


class ByColumn(OfTenth):
    def sample(self, draw: Any, memory: Any) -> Any:
        lost, memory = super().sample(draw, memory)
        return lost & (np.arange(lost.shape[1]) % 2 == 0), memory


class NotBool(OfTenth):
    def sample(self, draw: Any, memory: Any) -> Any:
        return super().sample(draw, memory)[0].astype(np.int64), memory


class MaskOnly(OfTenth):
    def sample(self, draw: Any, memory: Any) -> Any:
        return super().sample(draw, memory)[0]


class OneRow(OfTenth):
    def sample(self, draw: Any, memory: Any) -> Any:
        return super().sample(draw, memory)[0][:1], memory


class LooksAtTheStep(OfTenth):
    def sample(self, draw: Any, memory: Any) -> Any:
        return super().sample(draw, memory)[0] & (draw.step >= 0), memory


class GradientsOnly(OfTenth):
    def sample(self, draw: Any, memory: Any) -> Any:
        return super().sample(draw, memory)[0] & (draw.phase == "gradients"), memory


class FloatMemory(OfTenth):
    def sample(self, draw: Any, memory: Any) -> Any:
        return super().sample(draw, memory)[0], {"seen": np.ones(3)}


class Bursty(GilbertElliott):
    def __init__(self) -> None:
        super().__init__(Fraction(1, 5), Fraction(3))


class Forgets(Bursty):
    def sample(self, draw: Any, memory: Any) -> Any:
        return super().sample(draw, {})[0], {}


class KeepsToItself(Bursty):
    def sample(self, draw: Any, memory: Any) -> Any:
        lost, kept = super().sample(draw, self.__dict__.get("kept", {}))
        self.__dict__["kept"] = dict(kept)
        return lost, {}


class ChangesMemory(Bursty):
    def sample(self, draw: Any, memory: Any) -> Any:
        lost, new = super().sample(draw, memory)
        for name, array in memory.items():
            array[:] = new[name]
        return lost, new


class StartsGood(Bursty):
    def sample(self, draw: Any, memory: Any) -> Any:
        if draw.phase in memory:
            return super().sample(draw, memory)
        good = np.zeros(draw.words().shape, dtype=np.int64)
        return super().sample(draw, {**memory, draw.phase: good})


class SharesTheWord(Bursty):
    """One memory for both phases, whose packets are not the same; a rank that draws only its own cannot go on."""

    def sample(self, draw: Any, memory: Any) -> Any:
        one = {draw.phase: memory["both"]} if "both" in memory else {}
        lost, new = super().sample(draw, one)
        return lost, {"both": new[draw.phase]}


class SlowClock(GilbertElliott):
    """Its clock ticks with every packet, its tail is that of one tick a step."""

    def __init__(self) -> None:
        super().__init__(Fraction(1, 5), Fraction(3), "packet")

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return super().age_tail(k, src, dst)


class SaysIndependent(CommonOutage):
    independent_links: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__(Fraction(3, 10), Fraction(1, 5))


CAUGHT = {
    MarginalOff: "a loss in step 0: happened",
    Float: "must be exact, a Fraction, got float 0.1",
    TailOffByOne: "must be 1, got 1/10",
    TailOfBursts: "2 losses in a row from step 0 on: happened",
    TailRises: "must not increase",
    TailFallsLate: "must fall ever more slowly",
    AboveOne: r"must be a probability in \[0, 1\], got 2",
    OtherDefaults: r"marginal\(\) must be marginal\(0, 1\)",
    GlobalGenerator: "advances a global generator",
    TorchGenerator: "advances a global generator",
    OwnGenerator: "a generator of its own",
    Inverted: "a loss in step 0: happened",
    ByRow: "draws only what it receives",
    ByColumn: "in another order",
    NotBool: "bool mask",
    MaskOnly: "must return",
    OneRow: "bool mask of shape",
    LooksAtTheStep: "has no attribute 'step'",
    GradientsOnly: "parameters: a loss in step 0: happened",
    FloatMemory: "must be a plain int64 array",
    Forgets: "2 losses in a row from step 0 on: happened",
    KeepsToItself: "something kept in the law",
    ChangesMemory: "must not change the memory",
    StartsGood: "a loss in step 0: happened",
    SlowClock: "two ticks a step: happened",
    SharesTheWord: "drawn: the law raised ValueError",
    SaysIndependent: "links are independent unless the law says independent_links = False",
}


def test_the_laws_that_the_wrong_ones_are_made_of_pass() -> None:
    for law in (OfTenth(), Bursty()):
        check_law(law, ranks=3, trials=4000)


@pytest.mark.parametrize("wrong", CAUGHT, ids=lambda wrong: wrong.__name__)
def test_a_wrong_law_is_caught(wrong: type) -> None:
    with pytest.raises(AssertionError, match=CAUGHT[wrong]):
        check_law(wrong(), ranks=4, trials=8000)


def test_a_law_that_names_other_ranks_says_so() -> None:
    with pytest.raises(AssertionError, match=r"losses must .*pass ranks="):
        check_law(PerSender((0.1, 0.2, 0.3)), ranks=2)


def test_a_law_and_the_global_generators_are_left_as_they_were() -> None:
    law = Bursty()
    torch.manual_seed(1)
    before, numpy = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    check_law(law, ranks=2, trials=200)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy  # noqa: NPY002
    assert law == Bursty()


def test_tails_of_drawn_laws_are_tails() -> None:
    """What `_mathematics` holds laws to, said once more without it."""

    @given(laws(ranks=2), st.integers(1, 3))
    def check(law: Law, ticks: int) -> None:
        tail = [law.age_tail(k, 0, 1, ticks) for k in range(6)]
        assert tail[:2] == [1, law.marginal(0, 1)]
        assert all(0 <= b <= a <= 1 for a, b in pairwise(tail))

    check()
