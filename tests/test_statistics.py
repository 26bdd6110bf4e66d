"""The statistical tests keep their promised false-alarm probability, and have power."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import binom

from lossproof.proofs_checks.claim import Refuted
from lossproof.proofs_checks.instruments.statistics import (
    binomial_p_value,
    evidence_against_mean,
    require_at_least,
    require_mean,
    require_probability,
    resolution,
)


@pytest.mark.parametrize(("values", "chances"), [((0.0, 1.0), (0.7, 0.3)), ((0.0, 0.25, 2.0), (0.2, 0.5, 0.3))])
def test_the_e_value_has_mean_one_exactly(values, chances):
    """All sequences of 5 draws, weighted: E e = 1, so P(e >= 1/alpha) <= alpha by Markov's inequality."""
    mean = sum(v * c for v, c in zip(values, chances, strict=True))
    total = 0.0
    for draws in product(range(len(values)), repeat=5):
        weight = np.prod([chances[d] for d in draws])
        total += weight * np.exp(evidence_against_mean(np.array([values[d] for d in draws]), mean, 0, 2))
    assert total == pytest.approx(1, abs=1e-12)


def test_false_alarms_at_a_level_that_can_be_seen():
    """1000 true hypotheses tested at 5 %: the number of false alarms is at most binomial(1000, 5 %)."""
    rng = np.random.default_rng(0)
    alarms = sum(
        evidence_against_mean((rng.random(300) < 0.2).astype(float), 0.2, 0, 1) >= np.log(1 / 0.05) for _ in range(1000)
    )
    assert binom.sf(alarms - 1, 1000, 0.05) > 1e-9


@pytest.mark.parametrize("wrong", [0.19, 0.21])
def test_a_mean_five_percent_off_is_refuted(wrong):
    samples = (np.random.default_rng(1).random(200_000) < 0.2).astype(float)
    require_mean("right", samples, 0.2, 0, 1)
    with pytest.raises(Refuted, match="wrong"):
        require_mean("wrong", samples, wrong, 0, 1)


@pytest.mark.parametrize(("values", "chances"), [((0.0, 1.0), (0.7, 0.3)), ((0.0, 0.5, 4.0), (0.3, 0.6, 0.1))])
@pytest.mark.parametrize("alpha", [0.5, 0.1, 0.02])
def test_a_low_mean_is_a_false_alarm_as_rarely_as_promised(values, chances, alpha):
    """All sequences of 7 draws >= 0, weighted: no upper limit is known to the test."""
    mean, square = (sum(v**k * c for v, c in zip(values, chances, strict=True)) for k in (1, 2))
    alarms = 0.0
    for draws in product(range(len(values)), repeat=7):
        try:
            require_at_least("true", np.array([values[d] for d in draws]), mean, square, alpha)
        except Refuted:
            alarms += np.prod([chances[d] for d in draws])
    assert alarms <= alpha


def test_a_mean_that_is_too_low_is_refuted():
    samples = np.random.default_rng(2).exponential(1.0, 20_000)
    require_at_least("right", samples, 1.0, 2.0, 1e-9)
    share = resolution(20_000, 1.0, 2.0, 1e-9)
    assert share == pytest.approx((2 * 2 * 9 * np.log(10) / 20_000) ** 0.5)
    with pytest.raises(Refuted, match="wrong"):
        require_at_least("wrong", samples, 1.1, 2 * 1.1**2, 1e-9)
    with pytest.raises(Refuted, match="negative"):
        require_at_least("signed", -samples, 1.0, 2.0, 1e-9)


def test_samples_outside_the_stated_range_refute_it():
    assert evidence_against_mean(np.array([0.5, 1.5]), 0.5, 0, 1) == np.inf
    assert evidence_against_mean(np.array([0.5]), 1.5, 0, 1) == np.inf
    assert evidence_against_mean(np.array([np.nan]), 0.5, 0, 1) == np.inf


def test_a_mean_at_the_edge_of_the_range():
    assert evidence_against_mean(np.zeros(10), 0.0, 0, 1) <= 0
    assert evidence_against_mean(np.array([0.0, 0.1]), 0.0, 0, 1) == np.inf
    assert evidence_against_mean(np.array([1.0, 0.9]), 1.0, 0, 1) == np.inf


@pytest.mark.parametrize("n", [1, 7, 40])
@pytest.mark.parametrize("p", [0.0, 0.03, 0.5, 0.9])
@pytest.mark.parametrize("alpha", [1e-6, 0.01, 0.2])
def test_the_binomial_test_is_exact(n, p, alpha):
    rejected = [k for k in range(n + 1) if binomial_p_value(k, n, p) <= alpha]
    assert sum(binom.pmf(k, n, p) for k in rejected) <= alpha * (1 + 1e-9)


def test_the_binomial_test_has_power():
    require_probability("right", 3000, 10_000, 0.3)
    for successes in (2700, 3300):
        with pytest.raises(Refuted):
            require_probability("wrong", successes, 10_000, 0.3)
    with pytest.raises(Refuted):
        require_probability("impossible", 1, 10, 1.2)
