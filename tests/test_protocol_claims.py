"""What P1 to P3 and C3 rest on: the closed forms against brute force, the scalar instruments against other oracles."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossproof.proofs_checks.instruments import laws_by_definition, scalar_layouts, scalar_masks
from lossproof.proofs_checks.instruments.scalar_masks import Masks
from lossproof.proofs_checks.instruments.scalar_round import ScalarRound
from lossproof.theory import laws, protocol

UINT32 = st.integers(0, 2**32 - 1)
probabilities = st.fractions(0, 1, max_denominator=10**6)


@given(st.tuples(UINT32, UINT32, UINT32, UINT32), st.tuples(UINT32, UINT32))
def test_two_plain_philoxes_agree(counter: tuple[int, ...], key: tuple[int, int]) -> None:
    assert scalar_masks.philox(counter, key) == oracles.philox(counter, key)


@given(probabilities)
def test_what_is_sampled_is_the_share_of_words_below_the_threshold(p: Fraction) -> None:
    below = protocol.threshold(p)
    assert below == int(p * 2**32)
    assert 0 <= p - protocol.sampled_loss(p) < Fraction(1, 2**32)


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1))
def test_a_link_can_be_read_back(src: int, dst: int) -> None:
    assert divmod(protocol.link(src, dst), 2**16) == (src, dst)


@given(st.integers(1, 400), st.integers(1, 9), st.integers(1, 9))
def test_packets_and_slices_are_the_fewest(total: int, ranks: int, E: int) -> None:
    assert protocol.packets(total, E) == sum(1 for _ in range(0, total, E))
    assert protocol.slice_elements(total, ranks, E) == E * scalar_layouts.flat_packets(total, ranks, E)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 5))
def test_the_heaviest_owner_is_within_its_bound(sizes: list[int], ranks: int) -> None:
    owners = scalar_layouts.tensor_owners([(size,) for size in sizes], ranks)
    loads = [sum(s for s, o in zip(sizes, owners, strict=True) if o == rank) for rank in range(ranks)]
    assert max(loads) <= protocol.heaviest_owner(sum(sizes), max(sizes), ranks)
    assert protocol.heaviest_owner(sum(sizes), max(sizes), 1) == sum(sizes)


@given(st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4), st.integers(1, 4))
def test_scalar_layouts_give_every_element_one_place(shapes: list[tuple[int, ...]], ranks: int) -> None:
    for kind, E in product(scalar_layouts.KINDS, (1, 3)):
        places = scalar_layouts.places(kind, shapes, ranks, E)
        assert [(p.parameter, p.element) for p in places] == [
            (number, element) for number, shape in enumerate(shapes) for element in range(prod(shape))
        ]
        assert len({(p.packet, p.offset) for p in places}) == len(places)
        owners = scalar_layouts.packet_owners(kind, shapes, ranks, E)
        assert all(owners[p.packet] == p.owner < ranks and p.offset < E for p in places)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40))
def test_a_float32_mean_is_within_its_rounding(numbers: list[float]) -> None:
    total = np.float32(0)
    for number in numbers:
        total += np.float32(number)
    mean = Fraction(float(total / np.float32(len(numbers))))
    exact = [Fraction(float(np.float32(number))) for number in numbers]
    size = sum(map(abs, exact), Fraction(0)) / len(numbers)
    tiny = Fraction(1, 2**149)  # below the smallest normal number an error is absolute
    assert (
        abs(mean - sum(exact) / len(numbers)) <= protocol.mean_rounding(len(numbers), Fraction(1, 2**24)) * size + tiny
    )


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(laws_by_definition.shipped_laws(3))), st.integers(0, 2**64 - 1))
def test_the_scalar_laws_lose_their_marginal(name: str, seed: int) -> None:
    """At the first step; eight standard deviations."""
    law, packets = laws_by_definition.shipped_laws(3)[name], 400
    if getattr(law, "clock", "step") == "packet":
        return
    mask = Masks(law, [2] * packets, 3, seed, "lossy").arrived("gradients", 0)
    p = float(laws_by_definition.marginal(law, 1, 2))
    assert abs(packets - sum(mask[1]) - packets * p) <= 8 * (packets * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("clock", ["step", "packet"])
@pytest.mark.parametrize(("k", "ticks"), [(0, 1), (1, 1), (2, 1), (3, 2)])
def test_age_tails_by_definition_agree_with_sums_over_paths(clock: Any, k: int, ticks: int) -> None:
    law = laws.GilbertElliott.from_transitions(0.3, 0.6, 0.1, 0.9, clock)
    chain = oracles.Chain(Fraction(3, 10), Fraction(6, 10), Fraction(1, 10), Fraction(9, 10), clock)
    tail = laws_by_definition.age_tail(law, k, 0, 1, ticks)
    assert tail == chain.age_tail(k, ticks if clock == "packet" else 1)


def test_a_scalar_round_by_hand() -> None:
    round_ = ScalarRound([[0]], [1], 2, no_survivor="hold")

    def update(x: Any, estimate: Any) -> None:
        x[0][0] -= estimate[0][0]

    assert round_.step([[[4]], [[8]]], [[True], [True]], [[False], [True]], update) == [2]
    assert (round_.x, round_.theta) == ([[-6]], [[[0]], [[-6]]])
    assert round_.step([[[1]], [[1]]], [[False], [False]], [[True], [True]], update) == [0]
    assert (round_.x, round_.theta) == ([[-12]], [[[-12]], [[-12]]])
    assert list(round_.counts.values()) == [2, 1, 2, 1, 1]
