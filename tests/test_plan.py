"""The numbers of `lossproof plan` by other means, at sizes that can be enumerated and at 10^6."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lossproof.theory import burst_ages, correlated, drift, stability, survivors, unequal, worst
from lossproof.theory.plan import plan

KEYS = ("kappa", "variance_inflation", "p_no_survivor", "owner_weight", "age_mean", "age_q999", "age_max_mean",
        "drift_pair", "drift_owner", "drift_pair_worst", "stable_step", "stable_step_lossless")  # fmt: skip
OWN_LINKS = ("reliable", "lossy")

losses_below_one = st.fractions(0, Fraction(49, 50), max_denominator=1000)


# -- by enumeration


def masks(losses: Sequence[Fraction]) -> Iterator[tuple[Fraction, tuple[int, ...]]]:
    """Every pattern of arrivals of independent links, with its probability."""
    for arrived in product((0, 1), repeat=len(losses)):
        yield math.prod((1 - p if m else p for p, m in zip(losses, arrived, strict=True)), start=Fraction(1)), arrived


def stage_1(losses: Sequence[Fraction], owner: int, own_link: str) -> dict[str, Any]:
    """E[1/K; K >= 1], E[1/K | K >= 1], P(K = 0) and every sender's weight given a survivor, for one owner's packets."""
    links = [Fraction(0) if own_link == "reliable" and i == owner else p for i, p in enumerate(losses)]
    none, kappa, weights = Fraction(0), Fraction(0), [Fraction(0)] * len(links)
    for chance, arrived in masks(links):
        if not any(arrived):
            none += chance
            continue
        kappa += chance / sum(arrived)
        weights = [w + chance * m / sum(arrived) for w, m in zip(weights, arrived, strict=True)]
    return {"kappa": kappa, "inverse": kappa / (1 - none), "none": none, "weights": [w / (1 - none) for w in weights]}


@given(st.integers(2, 6), losses_below_one, st.sampled_from(OWN_LINKS))
def test_weights_of_equal_links_are_those_of_all_patterns(N: int, p: Fraction, own_link: Any) -> None:
    found, expected = plan(N, p, own_link=own_link), stage_1([p] * N, N - 1, own_link)
    assert found.kappa == float(expected["kappa"])
    assert found.variance_inflation == float(N * expected["inverse"])
    assert found.p_no_survivor == float(expected["none"])
    assert found.owner_weight == float(expected["weights"][N - 1])


@given(st.lists(losses_below_one, min_size=2, max_size=5), st.sampled_from(OWN_LINKS))
@example([Fraction(0), Fraction(1, 2)], "lossy")
@example([Fraction(0), Fraction(0), Fraction(999_999, 10**6)], "reliable")
@example([Fraction(1, 10**6), Fraction(999_999, 10**6)], "lossy")
def test_unequal_links_are_the_sums_over_all_patterns(losses: list[Fraction], own_link: Any) -> None:
    N, found = len(losses), plan(losses=losses, own_link=own_link)
    assert found.senders is not None
    owners = [stage_1(losses, owner, own_link) for owner in range(N)]
    for rank, row in enumerate(found.senders):
        weight = sum(owner["weights"][rank] for owner in owners) / N
        assert row.loss == float(losses[rank])
        assert row.weight == pytest.approx(float(weight), rel=1e-12, abs=0)
        assert row.bias == pytest.approx(float(weight - Fraction(1, N)), abs=1e-14)
        assert row.kappa == pytest.approx(float(owners[rank]["kappa"]), rel=1e-12, abs=0)
        assert row.variance_inflation == pytest.approx(float(N * owners[rank]["inverse"]), rel=1e-12, abs=0)
        assert row.p_no_survivor == pytest.approx(float(owners[rank]["none"]), rel=1e-12, abs=0)
        assert row.owner_weight == pytest.approx(float(owners[rank]["weights"][rank]), rel=1e-12, abs=0)
        alone = plan(N, losses[rank])
        for name in ("age_mean", "age_q999", "age_max_mean", "drift_pair", "drift_owner", "drift_pair_worst"):
            assert getattr(row, name) == getattr(alone, name)
    if len(set(losses)) > 1:
        assert found.stable_step is None
        assert found.loss is None
        for name in (name for name in KEYS if not name.startswith("stable")):
            values = {getattr(row, name) for row in found.senders}
            assert getattr(found, name) == (values.pop() if len(values) == 1 else None)
            assert (name in found.reasons) == (getattr(found, name) is None)


def test_bias_is_what_one_odd_sender_does_to_the_survivor_mean() -> None:
    losses = [Fraction(1, 10), Fraction(1, 2), Fraction(0), Fraction(1, 3)]
    rows = plan(losses=losses, own_link="lossy").senders or ()
    for odd, row in enumerate(rows):
        gradients = [int(rank == odd) for rank in range(4)]
        assert row.bias == pytest.approx(float(survivors.unequal_bias(gradients, losses)), rel=1e-12)


@pytest.mark.parametrize("own_link", OWN_LINKS)
def test_equal_losses_in_a_list_are_the_plan_of_one_loss(own_link: Any) -> None:
    one, many = plan(3, 0.2, own_link=own_link), plan(losses=[0.2] * 3, own_link=own_link)
    assert {name: getattr(many, name) for name in KEYS} == {name: getattr(one, name) for name in KEYS}
    assert many.senders is not None
    assert [row.bias for row in many.senders] == [0, 0, 0]


@pytest.mark.parametrize("own_link", OWN_LINKS)
@pytest.mark.parametrize("few", [Fraction(1, 10**6), Fraction(1, 10), Fraction(9, 10)])
def test_many_unequal_links_against_the_law_of_their_count(few: Fraction, own_link: Any) -> None:
    """Two groups of 130 and 70 ranks: K is the sum of two binomials."""
    groups, many = {few: 130, Fraction(1, 2): 70}, Fraction(1, 2)

    def law_of_count(left: dict[Fraction, int]) -> list[float]:
        law = np.ones(1)
        for p, n in left.items():
            law = np.convolve(law, [math.comb(n, k) * float(1 - p) ** k * float(p) ** (n - k) for k in range(n + 1)])
        return list(law)

    found = unequal.sender_weights(groups, own_link)
    for p in groups:
        others = law_of_count({loss: n - (loss == p) for loss, n in groups.items()})
        alone = math.fsum(
            chance / (k + 1) for k, chance in enumerate(others)
        )  # the owner, or this sender, and k others
        if own_link == "lossy":  # P(K = 0) is below 1e-27
            assert found[p].weight == pytest.approx(float(1 - p) * alone, rel=1e-11)
        else:
            assert found[p].owner_weight == pytest.approx(alone, rel=1e-11)
    total = 130 * found[few].weight + 70 * found[many].weight
    assert total == pytest.approx(1, rel=1e-12)


# -- the ages, by sums over the states of a link


def tails(p: Fraction, burst: Fraction | None, least: Fraction) -> Iterator[Any]:
    """P(A >= 1), P(A >= 2), ...: a stationary two-state chain, lost in the bad state, followed packet by packet.

    Exact as far as 1/1000, then to the precision of the decimal context.
    """
    stay = p if burst is None else 1 - 1 / burst
    bad: Any = p
    while bad > Fraction(1, 1000):
        yield bad
        bad *= stay
    yield bad
    small, factor = (Decimal(x.numerator) / x.denominator for x in (bad, stay))
    while small > least:
        small *= factor
        yield small


@st.composite
def bursty(draw: st.DrawFn) -> tuple[Fraction, Fraction | None]:
    p = draw(st.fractions(Fraction(1, 500), Fraction(9, 10), max_denominator=500))
    if draw(st.booleans()):
        return p, None
    return p, max(Fraction(1), p / (1 - p)) + draw(st.fractions(0, 20, max_denominator=10))


@settings(max_examples=60)
@given(st.integers(2, 40), bursty())
@example(2, (Fraction(1, 2), Fraction(1)))
@example(3, (Fraction(1, 125), Fraction(2)))
def test_ages_are_the_sums_of_the_tail(N: int, law: tuple[Fraction, Fraction | None]) -> None:
    p, burst = law
    found, terms = plan(N, p, burst), list(tails(p, burst, Fraction(1, 10**20)))
    a = [Decimal(tail.numerator) / tail.denominator if isinstance(tail, Fraction) else tail for tail in terms]
    mean, square = sum(a), sum((2 * k - 1) * tail for k, tail in enumerate(a, 1))
    assert found.age_mean == found.drift_owner == pytest.approx(float(mean), rel=1e-12)
    assert found.drift_pair == pytest.approx(float(2 * sum(t * (1 - t) for t in a)), rel=1e-12)
    assert found.drift_pair_worst == pytest.approx(float(2 * (square - mean**2)), rel=1e-12)
    assert found.age_max_mean == pytest.approx(float(sum(1 - (1 - t) ** N for t in a)), rel=1e-12)
    assert found.age_q999 == next(age for age, tail in enumerate(terms) if tail <= Fraction(1, 1000))


@pytest.mark.parametrize(
    ("p", "burst", "age"),
    [(0, None, 0), (0.001, None, 0), (0.1, None, 2), (0.0011, None, 1), (0.008, 2.0, 3), (0.512, 5.0, 28), (0.5, 1, 1)],
)
def test_decimals_are_read_exactly_for_the_quantile(p: float, burst: float | None, age: int) -> None:
    """0.1^3 is 0.001, though not in floats; 0.008 / 2^3 is 0.001."""
    assert plan(4, p, burst).age_q999 == age


@settings(max_examples=60)
@given(st.integers(2, 10**6 - 1))
def test_quantile_of_losses_close_to_one(million: int) -> None:
    p = Fraction(million, 10**6)
    found = plan(2, p).age_q999 or 0
    with localcontext() as context:
        context.prec = 50
        chance = Decimal(million) / 10**6
        assert chance ** (found + 1) <= Decimal("0.001")
        assert found == 0 or chance**found > Decimal("0.001")


def test_independent_loss_is_a_burst_of_its_own_length_and_what_the_claims_say() -> None:
    for p in (Fraction(1, 10), Fraction(7, 10)):
        found, bursty = plan(9, p), plan(9, p, 1 / (1 - p))
        assert {name: getattr(found, name) for name in KEYS} == {name: getattr(bursty, name) for name in KEYS}
        assert found.drift_pair == float(drift.pair(p))
        assert found.drift_owner == float(drift.owner(p))
        assert found.drift_pair_worst == float(correlated.pair_worst(p))
        assert found.age_max_mean == pytest.approx(float(worst.age_max_mean(9, p)), rel=1e-14)


@pytest.mark.parametrize("N", [1, 7, 10**6])
@pytest.mark.parametrize("p", [Fraction(1, 10**7), Fraction(3, 10), Fraction(99, 100)])
@pytest.mark.parametrize("length", [990, 1010, 20000])
def test_the_oldest_under_long_bursts_is_the_sum_itself(N: int, p: Fraction, length: int) -> None:
    """On both sides of where the sum gives way to its expansion."""
    terms = float(p) * np.exp(math.log1p(-1 / length) * np.arange(60 * length))
    expected = math.fsum(-np.expm1(N * np.log1p(-terms)))
    assert burst_ages.worst_mean(N, p, Fraction(length)) == pytest.approx(expected, rel=1e-11)


# -- the stability limit, by the whole second-moment operator


def second_moments(N: int, p: float, own_link: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The powers s^0, s^1, s^2 of E[T x T], T the step of (x, y_1, ..., y_(N-1)), over all patterns of both phases."""
    powers = tuple(np.zeros((N * N, N * N)) for _ in range(3))
    for gradients in product((0, 1), repeat=N):
        if own_link == "reliable" and not gradients[0]:
            continue
        drawn = gradients[own_link == "reliable" :]
        for parameters in product((0, 1), repeat=N - 1):
            chance = math.prod(1 - p if m else p for m in (*drawn, *parameters))
            still, moved = np.eye(N), np.zeros((N, N))
            if any(gradients):
                moved[0] = -np.array(gradients) / sum(gradients)
            for replica, arrived in enumerate(parameters, 1):
                if arrived:
                    still[replica], moved[replica] = still[0], moved[0]
            powers[0][:] += chance * np.kron(still, still)
            powers[1][:] += chance * (np.kron(still, moved) + np.kron(moved, still))
            powers[2][:] += chance * np.kron(moved, moved)
    return powers[0], powers[1], powers[2]


def first_unstable(powers: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    """The step where the spectral radius first exceeds 1: a walk of 0.02 from 0, then halving."""

    def stable(s: float) -> bool:
        return bool(np.abs(np.linalg.eigvals(powers[0] + s * powers[1] + s * s * powers[2])).max() < 1)

    high = 0.02
    while stable(high):
        high += 0.02
    low = high - 0.02
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if stable(middle) else (low, middle)
    return low


@pytest.mark.parametrize("own_link", OWN_LINKS)
@pytest.mark.parametrize(("N", "p"), [(1, 0.3), (2, 0.07), (3, 0.61), (4, 0.33), (5, 0.18), (5, 0.77)])
def test_stable_step_is_where_the_operator_leaves_the_unit_disk(N: int, p: float, own_link: Any) -> None:
    if (N, own_link) == (1, "reliable"):
        assert stability.stable_step(1, p) == 2
        return
    assert stability.stable_step(N, p, own_link) == pytest.approx(first_unstable(second_moments(N, p, own_link)))


@settings(max_examples=30)
@given(st.integers(2, 4), st.integers(5, 95), st.sampled_from(OWN_LINKS))
def test_stable_step_at_any_loss(N: int, percent: int, own_link: Any) -> None:
    found = plan(N, Fraction(percent, 100), own_link=own_link).stable_step
    assert found == pytest.approx(first_unstable(second_moments(N, percent / 100, own_link)), rel=1e-9)


@pytest.mark.parametrize("own_link", OWN_LINKS)
def test_stable_step_of_many_ranks(own_link: Any) -> None:
    """To 2 (1+p)/(1-p); small loss raises it; a float says the same as the fraction; a is positive for N >= 2."""
    for p in (0.01, 0.1, 0.5):
        limit = plan(10**6, p, own_link=own_link).stable_step
        assert limit == pytest.approx(2 * (1 + p) / (1 - p), rel=1e-4)
        assert limit is not None
        assert limit > 2
    for N, p in product((2, 3, 17, 60), (0.001, 0.2, 0.97)):
        exact_p = Fraction(repr(p))
        assert stability.stable_step(N, p, own_link) == pytest.approx(stability.stable_step(N, exact_p, own_link))
        assert stability.coefficients(N, exact_p, own_link)[0] > 0


@given(st.integers(2, 30), st.integers(1, 12), st.sampled_from(OWN_LINKS))
def test_stable_step_is_the_root_without_cancellation(N: int, nines: int, own_link: Any) -> None:
    p = 1 - Fraction(1, 10**nines)
    with localcontext() as context:
        context.prec = 60
        a, b, c = (Decimal(x.numerator) / x.denominator for x in stability.coefficients(N, p, own_link))
        root = float((-b + (b * b + 4 * a * c).sqrt()) / (2 * a))
    assert stability.stable_step(N, p, own_link) == pytest.approx(root, rel=1e-12)


def test_two_ranks_with_a_reliable_own_link_keep_the_lossless_limit() -> None:
    assert [plan(2, p).stable_step for p in (0.1, 0.5, 0.9)] == pytest.approx([2, 2, 2])


# -- a million ranks


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.999, 0.999_999])
def test_a_million_ranks_lie_between_the_bounds(p: float) -> None:
    N, q = 10**6, 1 - p
    lossy, reliable = plan(N, p, own_link="lossy"), plan(N, p)
    some = -math.expm1(N * math.log(p))
    assert lossy.kappa is not None
    assert survivors.kappa_lower(N, p) * (1 - 1e-9) <= lossy.kappa
    assert N * q < 2 * p + 1 or lossy.kappa <= survivors.kappa_upper(N, p) * (1 + 1e-9)
    assert reliable.kappa == pytest.approx(some / (N * q), rel=1e-9)
    assert lossy.variance_inflation == pytest.approx(N * lossy.kappa / some, rel=1e-9)
    assert reliable.variance_inflation == pytest.approx(some / q, rel=1e-9)
    assert lossy.p_no_survivor == pytest.approx(p**N, rel=1e-9)
    low, high = worst.age_max_bounds(worst.harmonic(N, 1.0), -math.log(p))
    assert lossy.age_max_mean is not None
    assert max(low * (1 - 1e-9), 0) < lossy.age_max_mean < high * (1 + 1e-9)
    assert None not in [getattr(found, name) for name in KEYS for found in (lossy, reliable)]


def test_many_ranks_in_floats_are_those_in_fractions() -> None:
    """At 600 ranks the sums are in floats."""
    p = Fraction(37, 100)
    found = plan(600, p, own_link="lossy")
    kappa = survivors.kappa(600, p)
    assert found.kappa == pytest.approx(float(kappa), rel=1e-13)
    assert found.variance_inflation == pytest.approx(float(600 * kappa / (1 - p**600)), rel=1e-13)
