"""The stability limit: its recursion against all masks in plain Python; its root and bounds at unseen parameters."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import permutations, product
from math import factorial, prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossproof.theory import stability

OWN_LINKS = "reliable", "lossy"
losses = st.fractions(Fraction(1, 1000), Fraction(999, 1000), max_denominator=1000)


def outcomes(z: tuple[int, ...], p: Fraction, s: Fraction, own_link: Any) -> Iterator[tuple[Fraction, list[Fraction]]]:
    """(probability, copies after one step) over all masks of both phases; copy 0 is the owner's."""
    N = len(z)
    for sent, kept in product(product((0, 1), repeat=N), product((0, 1), repeat=N - 1)):
        if own_link == "reliable" and not sent[0]:
            continue
        drawn = (*sent[own_link == "reliable" :], *kept)
        survivors = [y for y, arrived in zip(z, sent, strict=True) if arrived]
        x = z[0] - (s * sum(survivors) / len(survivors) if survivors else 0)
        chance = prod((1 - p if arrived else p for arrived in drawn), start=Fraction(1))
        yield chance, [x, *(x if fresh else Fraction(y) for y, fresh in zip(z[1:], kept, strict=True))]


def moments(z: Any) -> list[Fraction]:
    """x^2 and the means of x y, y^2 and y_i y_j over the replicas."""
    x, *y = z
    R = len(y)
    pairs = sum(a * b for a, b in permutations(y, 2)) / Fraction(max(R * (R - 1), 1))
    return [Fraction(x * x), x * sum(y) / Fraction(R), sum(a * a for a in y) / Fraction(R), pairs]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(-5, 5), min_size=2, max_size=4),
    losses,
    st.fractions(0, 4, max_denominator=8),
    st.sampled_from(OWN_LINKS),
)
def test_the_recursion_is_the_mean_over_all_masks(z: list[int], p: Fraction, s: Fraction, own_link: Any) -> None:
    N = len(z)
    M = stability.second_moments(N, p, s, stability.shares(N, p, own_link))
    orders = [(z[0], *rest) for rest in permutations(z[1:])]  # the recursion is that of an average over replicas
    found = [Fraction(0)] * 4
    for order in orders:
        for chance, after in outcomes(order, p, s, own_link):
            found = [f + chance * m / factorial(N - 1) for f, m in zip(found, moments(after), strict=True)]
    claimed = [sum(c * m for c, m in zip(row, moments(z), strict=True)) for row in M]
    assert found[: min(N + 1, 4)] == claimed[: min(N + 1, 4)]


@given(st.integers(2, 40), losses)
def test_a_reliable_own_link_never_lowers_the_limit(N: int, p: Fraction) -> None:
    a, b, c = stability.coefficients(N, p)
    assert 4 * a + 2 * b <= c
    assert (4 * a + 2 * b == c) == (N == 2)
    assert stability.stable_step(N, p) >= 2 * (1 - 1e-12)


@given(st.integers(2, 40), losses, st.sampled_from(OWN_LINKS))
def test_there_is_one_positive_root(N: int, p: Fraction, own_link: Any) -> None:
    a, b, c = stability.coefficients(N, p, own_link)
    assert a > 0
    assert c > 0
    step = Fraction(stability.stable_step(N, p, own_link))
    low, high = step * (1 - Fraction(1, 10**12)), step * (1 + Fraction(1, 10**12))
    assert a * low**2 + b * low < c < a * high**2 + b * high


def test_a_lossy_own_link_lowers_it_where_ranks_are_few_and_loss_is_high() -> None:
    assert stability.stable_step(2, 0.5, "lossy") == pytest.approx(2 * (3**0.5 - 1))
    assert stability.stable_step(16, 0.9, "lossy") < 0.7
    assert stability.stable_step(2, 1 - 1e-12, "lossy") == pytest.approx(1)
