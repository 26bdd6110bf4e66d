"""Other designs (B10, B11, B12): closed forms against plain simulations of every loss pattern in fractions."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from lossproof.theory import contrast, correlated, drift, rps

losses = st.fractions(0, Fraction(19, 20), max_denominator=20)
paths = st.lists(st.integers(-3, 3), min_size=0, max_size=3)


def patterns(bits, p):
    """All (arrived, probability)."""
    for arrived in product((False, True), repeat=bits):
        weight = Fraction(1)
        for bit in arrived:
            weight *= 1 - p if bit else p
        yield arrived, weight


@given(losses, paths)
def test_sharing_updates_by_adding_what_arrives(p, path):
    pair = owner = Fraction(0)
    for arrived, weight in patterns(2 * len(path), p):
        i = sum(u for u, bit in zip(path, arrived[::2], strict=True) if bit)
        j = sum(u for u, bit in zip(path, arrived[1::2], strict=True) if bit)
        pair += weight * (i - j) ** 2
        owner += weight * (sum(path) - i) ** 2
    squares = sum(u * u for u in path)
    assert contrast.updates_pair(p, squares) == pair
    assert contrast.updates_owner(p, squares, sum(path) ** 2) == owner


@given(losses.filter(bool))
def test_when_sharing_updates_overtakes(p):
    for steps, bound in (
        (contrast.updates_overtake(p), drift.pair(p)),
        (contrast.updates_overtake_worst(p), correlated.pair_worst(p)),
    ):
        assert contrast.updates_pair(p, steps - Fraction(1, 100)) < bound < contrast.updates_pair(p, steps + 1)


@given(losses, st.integers(1, 9), st.integers(1, 4))
def test_a_reliable_phase_every_period_by_averaging(p, R, sigma2):
    pairs, owners = ([form(p, r, sigma2) for r in range(R)] for form in (drift.pair, drift.owner))
    assert contrast.resync_pair_average(p, R, sigma2) == sum(pairs) / R
    assert contrast.resync_owner_average(p, R, sigma2) == sum(owners) / R
    assert contrast.resync_pair_peak(p, R, sigma2) == max(pairs)
    if p:
        assert contrast.resync_pair_saved(p, R) == sum(1 - d / drift.pair(p, None, sigma2) for d in pairs)
        assert contrast.resync_owner_saved(p, R) == sum(1 - v / drift.owner(p, None, sigma2) for v in owners)
        share = 1 - contrast.resync_pair_average(p, R) / drift.pair(p)
        assert (
            1 - ((1 - p) * R) ** 2 / 3 <= share <= contrast.resync_pair_saved(p) / R <= Fraction(3, 2) / ((1 - p) * R)
        )


@given(losses)
def test_what_a_period_saves_has_a_limit(p):
    for form in (contrast.resync_pair_saved, contrast.resync_owner_saved):
        assert float(form(float(p), 5000)) == pytest.approx(float(form(p)))


def rounds(n, p_g, p_p, owner):
    """(W, probability) of one round of RPS, W as a list of columns, from the definition."""
    others = [k for k in range(n) if k != owner]
    for up, chance_up in patterns(n - 1, p_g):
        senders = {owner} | {k for k, bit in zip(others, up, strict=True) if bit}
        average = [Fraction(int(m in senders), len(senders)) for m in range(n)]
        for down, chance_down in patterns(n - 1, p_p):
            receivers = {owner} | {k for k, bit in zip(others, down, strict=True) if bit}
            own = [[Fraction(int(m == k)) for m in range(n)] for k in range(n)]
            yield [average if k in receivers else own[k] for k in range(n)], chance_up * chance_down


def distance(models):
    mean = sum(models) / len(models)
    return sum((x - mean) ** 2 for x in models)


@settings(max_examples=20)
@given(st.integers(2, 4), losses, losses, st.lists(st.integers(-4, 4), min_size=4, max_size=4))
def test_a_round_of_rps_contracts_any_models_as_claimed(n, p_g, p_p, values):
    models = [Fraction(x) for x in values[:n]]
    mean = sum(models) / n
    after = moved = weight_squares = Fraction(0)
    for owner in range(n):
        for columns, chance in rounds(n, p_g, p_p, owner):
            new = [sum(w * x for w, x in zip(column, models, strict=True)) for column in columns]
            after += chance / n * distance(new)
            moved += chance / n * (sum(new) / n - mean) ** 2
            weight_squares += chance / n * sum(w * w for column in columns for w in column)
    assert after == rps.contraction(n, p_g, p_p) * distance(models)
    assert moved == rps.shift(n, p_g, p_p) / n * distance(models)
    assert weight_squares == 1 + (n - 1) * rps.spread(n, p_g, p_p)


@settings(max_examples=20)
@given(st.integers(2, 4), losses, losses)
def test_a_fixed_owner_contracts_its_own_direction_and_the_others_differently(n, p_g, p_p):
    directions = [([Fraction(n - 1)] + [Fraction(-1)] * (n - 1), rps.owner_to_others)]
    if n > 2:
        directions.append(([Fraction(0), Fraction(1), Fraction(-1)] + [Fraction(0)] * (n - 3), rps.among_others))
    for models, form in directions:
        after = Fraction(0)
        for columns, chance in rounds(n, p_g, p_p, owner=0):
            after += chance * distance([sum(w * x for w, x in zip(column, models, strict=True)) for column in columns])
        assert after == form(n, p_g, p_p) * distance(models)


@given(st.integers(2, 9), losses, losses)
def test_moments_of_rps(n, p_g, p_p):
    receivers = {1: Fraction(1)}
    survivors = {1: Fraction(1)}
    for _ in range(n - 1):
        receivers = _one_more(receivers, p_p)
        survivors = _one_more(survivors, p_g)
    assert rps.received(n, p_p) == sum(m * c for m, c in receivers.items())
    assert rps.received_square(n, p_p) == sum(m * m * c for m, c in receivers.items())
    assert rps.inverse_square(n, p_g) == sum(c / k**2 for k, c in survivors.items())
    assert 0 <= rps.shift(n, p_g, p_p) <= rps.spread(n, p_g, p_p) <= 1


def _one_more(law, p):
    counts = range(min(law), max(law) + 2)
    return {k: p * law.get(k, 0) + (1 - p) * law.get(k - 1, 0) for k in counts}


def test_closed_forms_answer_in_kind():
    third, p = Fraction(1, 3), sp.Symbol("p", positive=True)
    for form in (
        lambda x: contrast.updates_pair(x, 2),
        lambda x: contrast.updates_owner(x, 2, 3),
        contrast.updates_overtake,
        contrast.updates_overtake_worst,
        lambda x: contrast.resync_pair_average(x, 3),
        lambda x: contrast.resync_owner_average(x, 3),
        lambda x: contrast.resync_pair_peak(x, 3),
        lambda x: rps.spread(4, x, x),
        lambda x: rps.shift(4, x, x),
        lambda x: rps.contraction(4, x, x),
        lambda x: rps.among_others(4, x, x),
        lambda x: rps.owner_to_others(4, x, x),
    ):
        assert isinstance(form(third), Fraction)
        assert form(1 / 3) == pytest.approx(float(form(third)))
        assert sp.simplify(form(p).subs(p, sp.Rational(1, 3)) - sp.Rational(form(third))) == 0
