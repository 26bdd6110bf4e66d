"""All loss patterns at once: the exact sums, expectations and comparisons of the enumerated rungs, each by other means.

Legend: N ranks, P packets, E elements, T steps.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossproof.impl.round import Round
from lossproof.proofs_checks.claim import Refuted
from lossproof.proofs_checks.instruments.patterns import (
    Scripted,
    all_patterns,
    exact_sum,
    expectation,
    play,
    require_identical,
)

TENTH = Fraction(3602879701896397, 2**55)  # what the float64 0.1 is


def square(p: Fraction) -> Fraction:
    return p * p


def looked_at(degree: int) -> list[Fraction]:
    """The points at which `require_identical` compares."""
    points: list[Fraction] = []

    def watched(p: Fraction) -> Fraction:
        points.append(p)
        return p

    require_identical("the identity", watched, lambda p: p, degree)
    return points


@pytest.mark.parametrize("degree", range(6))
def test_functions_are_compared_at_enough_points_exactly(degree: int) -> None:
    points = looked_at(degree)
    assert all(isinstance(p, Fraction) and 0 < p < 1 for p in points)
    assert len(set(points)) == len(points) == 2 * degree + 1


@pytest.mark.parametrize("degree", range(1, 6))
def test_agreement_at_all_points_but_one_is_not_enough(degree: int) -> None:
    points = [Fraction(k, 2 * degree + 2) for k in range(1, 2 * degree + 2)]
    for odd in points:
        rest = [point for point in points if point != odd]

        def apart(p: Fraction, rest: list[Fraction] = rest) -> Fraction:
            return square(p) + prod((p - point for point in rest), start=Fraction(1))

        assert sum(apart(p) == square(p) for p in points) == 2 * degree
        with pytest.raises(Refuted, match=f"squares: at p = {odd} the implementation"):
            require_identical("squares", apart, square, degree)
        with pytest.raises(Refuted, match=f"squares: at p = {odd} the implementation"):
            require_identical("squares", square, apart, degree)


@pytest.mark.parametrize("gap", [Fraction(1, 10**12), Fraction(-1, 10**12), Fraction(1, 10**40)])
def test_a_small_difference_is_a_difference(gap: Fraction) -> None:
    require_identical("squares", square, lambda p: p**2, 2)
    with pytest.raises(Refuted):
        require_identical("squares", lambda p: p**2 + gap, square, 2)


def test_a_sum_is_exact() -> None:
    assert exact_sum(torch.tensor([0.5, 0.1], dtype=torch.float64)) == Fraction(1, 2) + TENTH
    assert exact_sum(torch.full((2, 5), 0.1, dtype=torch.float64)) == 10 * TENTH != Fraction(sum([0.1] * 10))
    assert exact_sum(torch.tensor([2.0**60, 2.0**-60, -(2.0**60)], dtype=torch.float64)) == Fraction(1, 2**60)
    assert exact_sum(torch.zeros(0)) == 0


@pytest.mark.parametrize("bits", range(1, 6))
def test_all_patterns_are_there_once(bits: int) -> None:
    columns = [tuple(column) for column in all_patterns(bits).T.tolist()]
    assert set(columns) == set(product([False, True], repeat=bits))
    assert len(columns) == 2**bits


@given(st.integers(1, 4), st.integers(0, 2**32), st.fractions(0, 1, max_denominator=50))
def test_an_expectation_is_the_sum_over_the_patterns(links: int, seed: int, p: Fraction) -> None:
    arrived = all_patterns(links)
    values = torch.randn(2**links, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    direct = Fraction(0)
    for column, value in zip(arrived.T.tolist(), values.tolist(), strict=True):
        direct += Fraction(value) * prod((1 - p if arrives else p for arrives in column), start=Fraction(1))
    assert expectation(values, arrived)(p) == direct


def test_an_expectation_by_example() -> None:
    """Probability 1/4 of a loss: values 0.5 where nothing arrives, 0.1 where the first of two links alone delivers."""
    values = torch.tensor([0.5, 0.1, 0.0, 0.0], dtype=torch.float64)
    assert all_patterns(2)[:, 1].tolist() == [True, False]
    assert expectation(values, all_patterns(2))(Fraction(1, 4)) == Fraction(1, 32) + TENTH * 3 / 16


def test_a_script_gives_each_phase_of_each_step_its_own_mask() -> None:
    gradients, parameters = (all_patterns(12).T[[a, a + 1, a + 5]].view(3, 4, 3) for a in (1234, 2345))
    channel = Scripted(4, gradients, parameters)
    payload, fresh = torch.randn(4, 3, 2), torch.randn(3, 2)
    for step in (0, 2, 1, 0):
        received, mask = channel.gradients(step, payload)
        assert received is payload
        assert torch.equal(mask, gradients[step])
        received, mask = channel.parameters(step, fresh)
        assert received is fresh
        assert torch.equal(mask, parameters[step])
    with pytest.raises(IndexError):
        channel.gradients(3, payload)


def test_without_a_script_everything_arrives() -> None:
    one, other = torch.zeros(1, 4, 3, dtype=torch.bool), torch.ones(4, 3, dtype=torch.bool)
    payload, fresh = torch.zeros(4, 3, 2), torch.zeros(3, 2)
    assert torch.equal(Scripted(4, None, one).gradients(0, payload)[1], other)
    assert torch.equal(Scripted(4, None, one).parameters(0, fresh)[1], one[0])
    assert torch.equal(Scripted(4, one, None).gradients(0, payload)[1], one[0])
    assert torch.equal(Scripted(4, one, None).parameters(0, fresh)[1], other)


def test_play_moves_the_owners_by_the_steps_and_replicas_by_what_arrives() -> None:
    """Rank 0 owns both packets; rank 1 misses packet 0 in the second step and packet 1 in both."""
    parameters = torch.tensor([[[True, True], [True, False]], [[True, True], [False, False]]])
    start = torch.tensor([[10.0], [20.0]], dtype=torch.float64)
    round_ = Round.in_process(start, torch.tensor([0, 0]), Scripted(2, None, parameters))
    steps = [torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.tensor(5.0, dtype=torch.float64)]
    assert play(round_, steps) is round_
    assert round_.fresh_QE.tolist() == [[16.0], [27.0]]
    assert round_.replicas_HPE.tolist() == [[[16.0], [27.0]], [[11.0], [20.0]]]
    assert round_.step_number == 2
