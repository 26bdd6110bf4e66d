"""D5: where bursts lead, by plain simulation of every history and by hidden chains; what the rules' weights cost."""

from __future__ import annotations

from fractions import Fraction
from itertools import islice, pairwise, product
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lossproof.impl.loss import Arrivals
from lossproof.proofs_checks.instruments import bursty_runs
from lossproof.proofs_checks.instruments.statistics import require_probability
from lossproof.theory import burst_bias
from lossproof.theory.laws import Bernoulli, GilbertElliott

losses = st.fractions(Fraction(1, 20), Fraction(19, 20), max_denominator=20)
memories = st.fractions(0, Fraction(19, 20), max_denominator=20)
steps_ = st.fractions(Fraction(1, 20), Fraction(1, 2), max_denominator=20)
curvatures = st.fractions(Fraction(1, 4), 3, max_denominator=4)
RULES = "survivor_mean", "inverse_probability", "conditional"


def histories(N: int, T: int, p: Fraction, mu: Fraction) -> Any:
    """(masks by step, probability), from a stationary start; written with the transitions of the chain."""
    enter, leave = p * (1 - mu), (1 - p) * (1 - mu)
    for masks in product(product((0, 1), repeat=N), repeat=T):
        weight = Fraction(1)
        for link in zip(*masks, strict=True):
            weight *= 1 - p if link[0] else p
            for last, now in pairwise(link):
                weight *= (enter, 1 - enter)[now] if last else (1 - leave, leave)[now]
        yield masks, weight


def estimate(rule: str, g: list[Fraction], now: Any, last: Any, p: Fraction, mu: Fraction) -> Fraction:
    if rule == "survivor_mean":
        return sum((x for x, m in zip(g, now, strict=True) if m), Fraction(0)) / max(sum(now), 1)
    q = [1 - p] * len(g)
    if rule == "conditional" and last is not None:
        q = [1 - p * (1 - mu) if m else (1 - p) * (1 - mu) for m in last]
    return sum((x * m / a for x, m, a in zip(g, now, q, strict=True)), Fraction(0)) / len(g)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 2), st.integers(1, 3), losses, memories, steps_, st.data())
@pytest.mark.parametrize("rule", RULES)
def test_the_mean_path_sums_over_all_histories(rule, N, T, p, mu, eta, data):
    h = data.draw(st.lists(curvatures, min_size=N, max_size=N))
    c = data.draw(st.lists(st.integers(-3, 3), min_size=N, max_size=N))
    mean = Fraction(0)
    for masks, weight in histories(N, T, p, mu):
        x, last = Fraction(1), None
        for now in masks:
            x -= eta * estimate(rule, [a * (x - b) for a, b in zip(h, c, strict=True)], now, last, p, mu)
            last = now
        mean += weight * x
    assert list(islice(burst_bias.means(h, c, p, mu, eta, rule, Fraction(1)), T))[-1] == mean
    if rule == "conditional":
        best = burst_bias.optimum(h, c)
        assert mean == best + (1 - best) * (1 - eta * sum(h) / N) ** T


@settings(max_examples=12, deadline=None)
@given(losses, memories, steps_, curvatures, curvatures, st.integers(-3, 3), st.integers(-3, 3))
@pytest.mark.parametrize("rule", RULES[:2])
def test_two_ranks_settle_where_the_closed_form_says(rule, p, mu, eta, h1, h2, c1, c2):
    """The four means of x by state, iterated in floats from far away."""
    assume(
        eta * (h1 + h2) < (1 - p) * 2 and eta * (h1 + h2) * (1 - p) > Fraction(1, 10) and mu <= Fraction(4, 5)
    )  # fast enough
    h, c, best = (h1, h2), (c1, c2), burst_bias.optimum((h1, h2), (c1, c2))
    claimed = burst_bias.displacement(h, c, p, mu, eta, burst_bias.pair_weights(rule, p))
    floats = [[float(v) for v in values] for values in (h, c)]
    path = burst_bias.means(*floats, float(p), float(mu), float(eta), rule, 3.0)
    x = next(islice(path, 600, None))
    assert x == pytest.approx(float(best + claimed), abs=1e-6)
    assert (claimed == 0) == (mu == 0 or h1 == h2 or c1 == c2)
    if claimed:
        assert (claimed > 0) == ((h1 - h2) * (c1 - c2) < 0)  # towards the rank of the lesser curvature


@given(losses, memories, st.integers(2, 4), st.data())
def test_chances_are_those_of_independent_chains(p, mu, N, data):
    before = data.draw(st.tuples(*[st.integers(0, 1)] * N))
    total = marginal = Fraction(0)
    for now in product((0, 1), repeat=N):
        chance = burst_bias.chance(now, before, p, mu)
        total, marginal = total + chance, marginal + chance * now[0]
    assert total == 1
    assert marginal == burst_bias.foretold(before[0], p, mu) == (1 - p) + mu * (before[0] - (1 - p))
    assert sum(burst_bias.chance(now, None, p, mu) for now in product((0, 1), repeat=N)) == 1


@given(losses, st.fractions(1, 20, max_denominator=4))
def test_memory_and_price_are_those_of_the_law(p, L):
    assume(max(1, p / (1 - p)) <= L)
    law, mu = GilbertElliott(p, L), burst_bias.memory(p, L)
    enter, leave = law.transitions
    assert mu == 1 - enter - leave
    assert [burst_bias.foretold(m, p, mu) for m in (0, 1)] == [leave, 1 - enter]
    assume(enter < 1)
    assert burst_bias.price(p, mu) == (1 - p) / (1 - enter) + p / leave
    assert burst_bias.price(p, mu) >= 1 / (1 - p)
    assert law.age_tail(1) == p
    assert law.age_tail(2) == p * (1 - burst_bias.foretold(0, p, mu))


@settings(max_examples=30, deadline=None)
@given(losses, losses, losses, losses, st.lists(st.booleans(), max_size=5))
def test_the_filter_sums_over_hidden_paths(into, out, good, bad, seen):
    assume(good < bad)
    law = GilbertElliott.from_transitions(into, out, good, bad, clock="step")

    def chance(masks):
        total = Fraction(0)
        for path in product((0, 1), repeat=len(masks)):
            weight = Fraction(1)
            for k, (state, arrived) in enumerate(zip(path, masks, strict=True)):
                turn = into / (into + out) if k == 0 else (1 - out if path[k - 1] else into)
                lost = bad if state else good
                weight *= (turn if state else 1 - turn) * (1 - lost if arrived else lost)
            total += weight
        return total

    assert burst_bias.arrival_probability(law, seen) == chance([*seen, True]) / chance(seen)


def test_the_filter_of_a_chain_that_loses_all_or_nothing_knows_the_state():
    law = GilbertElliott(0.1, burst=4)
    enter, leave = law.transitions
    assert burst_bias.arrival_probability(law, []) == Fraction(9, 10)
    for past in ([], [True], [False, True, False]):
        assert burst_bias.arrival_probability(law, [*past, True]) == 1 - enter
        assert burst_bias.arrival_probability(law, [*past, False]) == leave


def test_small_steps_for_many_ranks():
    h, c, p, L = [1.0, 0.25, 2.0], [0.0, 1.0, -1.0], 0.25, 6
    x, mu = burst_bias.optimum(h, c), burst_bias.memory(0.25, 6)
    for eta in (0.04, 0.02):
        settled = next(islice(burst_bias.means(h, c, p, mu, eta, "inverse_probability", x), int(12 / eta), None))
        assert settled - x == pytest.approx(burst_bias.small_step(h, c, p, L, eta), rel=8 * eta)


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="rule must be survivor_mean or inverse_probability, got 'conditional'"):
        burst_bias.pair_weights("conditional", 0.5)


def test_the_instruments_against_the_recursion():
    p, mu = bursty_runs.EXACT[0]
    for rule in RULES:
        means = list(islice(burst_bias.means((1, 3), (18, -9), p, mu, Fraction(1, 4), rule), 2))
        assert bursty_runs.history_means((1, 3), (18, -9), p, mu, Fraction(1, 4), rule, 2) == means
    with pytest.raises(ValueError, match="inverses that floats hold"):
        bursty_runs.inverse_of([[Fraction(3, 7)]])


def test_the_cluster_loses_gradients_only():
    law = bursty_runs.GradientsOnly(Bernoulli(0.5))
    assert law.marginal() == Fraction(1, 2)
    assert law.age_tail(0) == 1
    assert law.age_tail(1) == 0
    x_P = bursty_runs.trained(Bernoulli(0.5), (1.0, 1.0), (1.0, 1.0), 1.0, "survivor_mean", 1000, 1, 3)
    assert set(x_P.tolist()) == {0.0, 1.0}
    require_probability("reached c: not both lost", int(x_P.sum()), 1000, 0.75)


@pytest.mark.parametrize(("burst", "after_loss"), [(2, 0.5), (5, 0.2)])
def test_foresight_reads_the_last_mask_of_each_link(burst, after_loss):
    """Against a loop over the same masks; p = 1/2, so P(arrives | lost) = 1/L and P(arrives | arrived) = 1 - 1/L."""
    law, h, c, eta, packets, steps = GilbertElliott(0.5, burst), (1.0, 0.25), (0.0, 1.0), 0.25, 50, 6
    arrivals = Arrivals(law, [0] * packets, 2, 1, "lossy")
    masks = [arrivals.gradients(t).tolist() for t in range(steps)]
    expected = []
    for k in range(packets):
        x, q = 0.0, [0.5, 0.5]
        for mask in masks:
            x -= eta * sum(h[i] * (x - c[i]) / q[i] / 2 for i in range(2) if mask[i][k])
            q = [1 - after_loss if mask[i][k] else after_loss for i in range(2)]
        expected.append(x)
    found = bursty_runs.trained_with_foresight(law, h, c, eta, packets, steps, 1)
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
