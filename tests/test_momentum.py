"""D1: the mean of lossy SGD by walking through every mask in plain Python; its limit, its bursts and its corrections.

Legend: N ranks; a state holds the owner's copy, the optimizer's buffer and the ranks' copies.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossproof.proofs_checks.instruments import mean_paths
from lossproof.theory import momentum, stability
from lossproof.theory.laws import GilbertElliott

losses = st.fractions(Fraction(1, 50), Fraction(49, 50), max_denominator=50)
momenta = st.fractions(0, Fraction(19, 20), max_denominator=20)
steps_of = st.fractions(Fraction(1, 8), 3, max_denominator=8)
MODELS = "server", "lossy", "reliable"


def walk(model: str, N: int, p_gradients: Fraction, p: Fraction, s: Fraction, own: Fraction, T: int) -> list[Fraction]:
    """E x_0, ..., E x_T over all masks of both phases, copies and buffers kept apart."""
    states = {(Fraction(1), Fraction(0), (Fraction(1),) * N): Fraction(1)}
    means = [Fraction(1)]
    for _ in range(T):
        after: dict[Any, Fraction] = {}
        for (x, v, y), weight in states.items():
            for sent in product((True, False), repeat=N):
                if model == "reliable" and not sent[0]:
                    continue
                surely = model == "reliable"
                chance = weight * math.prod((1 - p_gradients if a else p_gradients for a in sent[surely:]), start=1)
                survivors = [copy for copy, arrived in zip(y, sent, strict=True) if arrived]
                buffer = own * v + (sum(survivors) / len(survivors) if survivors else 0)
                moved = x - s * buffer
                for kept in product((True, False), repeat=N - (model != "server")):
                    fresh = kept if model == "server" else (True, *kept)
                    copies = tuple(moved if new else old for new, old in zip(fresh, y, strict=True))
                    state = moved, buffer, copies
                    more = chance * math.prod((1 - p if a else p for a in kept), start=1)
                    after[state] = after.get(state, Fraction(0)) + more
        states = after
        means.append(sum((x * weight for (x, _, _), weight in states.items()), Fraction(0)))
    return means


def of_model(model: Any, N: int, p_gradients: Fraction, p: Fraction) -> momentum.QuasiHyperbolic:
    if model == "server":
        return momentum.server(1 - p_gradients**N, p)
    return momentum.cluster(N, p_gradients, p, model)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(MODELS), losses, losses, steps_of, momenta, st.sampled_from([(2, 3), (3, 2), (2, 4)]))
def test_the_mean_is_quasi_hyperbolic_momentum(model, p_gradients, p, s, own, size):
    N, T = size
    if T == 4 and model != "reliable":  # too many states
        T = 3
    of = of_model(model, N, p_gradients, p)
    means = walk(model, N, p_gradients, p, s, own, T)
    assert momentum.trajectory(of, lambda x: s * x, T, Fraction(1), own) == means
    for t in range(2, T):
        past = means[t], means[t - 1], means[t - 2]
        assert momentum.mean_step(of, past, [s * x for x in past], own) == means[t + 1]


@given(losses, losses, steps_of, st.integers(2, 9))
def test_a_parameter_server_is_heavy_ball(p_gradients, p, s, N):
    alpha = 1 - p_gradients**N
    x = momentum.trajectory(momentum.server(alpha, p), lambda at: s * at, 6, Fraction(1))
    assert x[1] == 1 - s * alpha
    for t in range(1, 6):
        assert x[t + 1] == x[t] + p * (x[t] - x[t - 1]) - s * alpha * (1 - p) * x[t]


@given(losses, losses, st.integers(2, 9), st.sampled_from(["reliable", "lossy"]))
def test_the_share_is_that_of_the_stale_weights(p_gradients, p, N, own_link):
    of, weights = momentum.cluster(N, p_gradients, p, own_link), stability.shares(N, p_gradients, own_link)
    assert of.rate == weights.owner + weights.others
    assert of.share * of.rate == weights.others
    assert of.momentum == p


@given(losses, losses, st.integers(2, 6), momenta, steps_of)
def test_a_zero_of_the_mean_recursion_is_a_fixed_point(p_gradients, p, N, own, s):
    of = momentum.cluster(N, p_gradients, p)
    assert momentum.mean_step(of, (0, 0, 0), (0, 0), own) == 0
    assert momentum.mean_step(of, (1, 1, 1), (s, s), own) == 1 - of.rate * s * (1 - p)  # at rest only the rate counts


# -- many ranks


@given(
    losses, st.fractions(Fraction(3, 2), 12, max_denominator=6), st.integers(1, 7), st.randoms(use_true_random=False)
)
def test_bursts_are_a_mean_over_the_ages_of_the_law(p, L, T, chance):
    """Any smooth f: whatever the gradients turn out to be."""
    if p / (1 - p) > L or L <= 1:
        return
    law = GilbertElliott(p, L)
    g = [Fraction(chance.randint(-9, 9)) for _ in range(T)]
    asked = iter([g[0], *g])
    x = momentum.trajectory(momentum.bursty(p, L), lambda _: next(asked), T, Fraction(0))
    for t in range(T):
        ages = [law.age_tail(a) - law.age_tail(a + 1) for a in range(t)] + [law.age_tail(t)]
        assert x[t] - x[t + 1] == sum(c * g[t - a] for a, c in enumerate(ages))


@given(losses, st.fractions(Fraction(3, 2), 12, max_denominator=6))
def test_the_delay_is_the_mean_age(p, L):
    if p / (1 - p) > L:
        return
    ages = [float(GilbertElliott(p, L).age_tail(k)) for k in (1, 2)]
    far = sum(ages[0] * (ages[1] / ages[0]) ** k for k in range(400))
    assert float(momentum.lag(momentum.bursty(p, L))) == pytest.approx(far, rel=1e-6)
    assert momentum.lag(momentum.server(1, p)) == p / (1 - p)
    assert momentum.bursty(p, 1 / (1 - p)) == momentum.server(1, p)


def huber(x: Fraction) -> Fraction:
    return max(min(x, Fraction(1, 2)), -Fraction(1, 2))


@settings(max_examples=20, deadline=None)
@given(losses, losses, st.fractions(Fraction(1, 4), 2, max_denominator=4), st.sampled_from([1, 2, 3]))
def test_no_run_is_expected_further_off_its_limit_than_stated(p_gradients, p, rate, N):
    """f not quadratic, all masks: E max |x - X|^2 against the bound, exactly; the gradient has Lipschitz constant 1."""
    T = 3 if N < 3 else 2
    of = momentum.server(1, p)
    X = momentum.trajectory(of, lambda x: rate * huber(x), T, Fraction(1))
    largest = Fraction(0)
    kappa = sum(math.comb(N, k) * (1 - p_gradients) ** k * p_gradients ** (N - k) / k for k in range(1, N + 1))
    for t in range(T):
        ages = [(1 - p) * p**a for a in range(t)] + [p**t]
        values = [huber(X[t - a]) for a in range(t + 1)]
        mean = sum(c * v for c, v in zip(ages, values, strict=True))
        variance = sum(c * (v - mean) ** 2 for c, v in zip(ages, values, strict=True))
        largest = max(largest, momentum.spread(kappa, variance, p_gradients**N, mean**2))
    states = {(Fraction(1), Fraction(0), (Fraction(1),) * N): Fraction(1)}
    for t in range(T):
        after: dict[Any, Fraction] = {}
        for (x, worst, y), weight in states.items():
            for sent, fresh in product(product((True, False), repeat=N), repeat=2):
                survivors = [huber(copy) for copy, arrived in zip(y, sent, strict=True) if arrived]
                moved = x - rate * (sum(survivors) / len(survivors) if survivors else 0)
                copies = tuple(sorted(moved if new else old for new, old in zip(fresh, y, strict=True)))
                state = moved, max(worst, abs(moved - X[t + 1])), copies
                chance = math.prod((1 - p_gradients if a else p_gradients for a in sent), start=weight)
                chance *= math.prod((1 - p if a else p for a in fresh), start=Fraction(1))
                after[state] = after.get(state, Fraction(0)) + chance
        states = after
    found = sum(weight * worst**2 for (_, worst, _), weight in states.items())
    assert found <= momentum.distance(T, rate, Fraction(1)) ** 2 * largest
    if T == 1:
        assert found == momentum.distance(T, rate, Fraction(1)) ** 2 * largest


def test_one_step_is_off_by_exactly_that():
    """Without parameter loss in the first step only the lack of a survivor counts: the bound is then attained."""
    rate, p_gradients, N = Fraction(3, 4), Fraction(1, 3), 2
    spread = momentum.spread(Fraction(1), 0, p_gradients**N, 1)
    assert momentum.distance(1, rate, Fraction(1)) ** 2 * spread == rate**2 * p_gradients**N


# -- corrections


def slow_mode(of: momentum.QuasiHyperbolic, s: float, own: float) -> float:
    """The root of the recursion nearest 1, from its companion matrix."""
    row = [momentum.mean_step(of, unit, (s * unit[0], s * unit[1]), own) for unit in np.eye(3)]
    roots = np.linalg.eigvals(np.array([row, [1, 0, 0], [0, 1, 0]], dtype=float))
    return float(roots[np.abs(roots - 1).argmin()].real)


@given(st.floats(0.01, 0.6), st.floats(0.3, 0.95), st.floats(0.3, 1), st.floats(0.3, 1), st.sampled_from([1e-3, 5e-4]))
def test_the_corrected_momentum_leaves_the_slow_mode_as_it_is(p, wanted, rate, share, gain):
    of = momentum.QuasiHyperbolic(rate, p, share)
    lag, s = momentum.lag(of), gain * (1 - wanted) ** 2  # small against every delay
    if lag > wanted / (1 - wanted):
        return
    own, factor = momentum.corrected(wanted, lag), momentum.corrected_step(wanted, lag, rate)
    aim = slow_mode(momentum.NO_LOSS, s, wanted)
    off = abs(slow_mode(of, s * factor, own) - aim)
    g = s / (1 - wanted)
    third = g**3 * 40 / (1 - wanted) ** 2 / (1 - p) ** 2
    assert off <= third + 1e-12
    subtracted = max(wanted - p, 0.0)
    naive = abs(slow_mode(of, s * (1 - subtracted) / ((1 - wanted) * rate), subtracted) - aim)
    second = abs(subtracted / (1 - subtracted) + lag - wanted / (1 - wanted)) * g**2
    assert naive >= second - 2 * third - 1e-12  # the delay of p is not the delay of loss


@given(losses, st.fractions(Fraction(1, 50), Fraction(49, 50), max_denominator=50))
def test_the_correction_lies_between_subtracting_all_of_p_and_nothing(p, wanted):
    lag = p / (1 - p)
    own = momentum.corrected(wanted, lag)
    if p > wanted:
        return
    assert own == (wanted - p) / (1 - p * (2 - wanted))
    assert max(Fraction(0), wanted - p) <= own <= wanted
    assert own / (1 - own) == wanted / (1 - wanted) - lag
    small = Fraction(1, 10**9)
    less = wanted - momentum.corrected(wanted, small / (1 - small))
    assert float(less / small) == pytest.approx(float((1 - wanted) ** 2), rel=1e-6)


@given(losses, losses, steps_of, st.integers(1, 9))
def test_momentum_p_is_met_exactly_by_loss_alone(p_gradients, p, s, N):
    """beta_0 = p: no momentum of its own and the corrected step; from the second step on, whatever came before."""
    alpha = 1 - p_gradients**N
    server = momentum.server(alpha, p)
    lag = momentum.lag(server)
    assert momentum.corrected(p, lag) == 0
    step = s * momentum.corrected_step(p, lag, alpha)
    for x in ((Fraction(3), Fraction(-1), Fraction(2)), (Fraction(0), Fraction(1), Fraction(7))):
        lossy = momentum.mean_step(server, x, (step * x[0], step * x[1]))
        assert lossy == x[0] + p * (x[0] - x[1]) - s * x[0]
        assert lossy == momentum.mean_step(momentum.NO_LOSS, x, (s * x[0], s * x[1]), p)


@given(losses, momenta, st.fractions(Fraction(1, 8), 2, max_denominator=8))
def test_no_momentum_is_that_of_two_lags_together(p, own, s):
    """Third order: with p and beta both positive no heavy ball agrees, beta + p least of all."""
    x = momentum.trajectory(momentum.server(1, p), lambda at: s * at, 3, Fraction(1), own)
    moved = [b - a for a, b in pairwise(x)]
    assert moved[2] == (own + p) * moved[1] - own * p * moved[0] - s * (1 - p) * x[2]


# -- instruments


@given(losses, losses, st.sampled_from(MODELS))
@settings(max_examples=10, deadline=None)
def test_all_histories_through_the_implementation_are_a_walk(p_gradients, p, model):
    means = mean_paths.means(model, 2, 3, 2, 0.5)
    found = [x for (x,) in means(p_gradients, p)]
    assert found == walk(model, 2, p_gradients, p, Fraction(2), Fraction(1, 2), 3)


def test_the_limit_of_many_ranks_by_extrapolation_is_that_of_a_mean_field():
    """Independent losses, exact for every N: the extrapolation must give the same at once."""
    p = Fraction(2, 7)

    def weight(lost: Any) -> Fraction:
        return math.prod((p if one else 1 - p for one in lost), start=Fraction(1))

    expected = momentum.trajectory(momentum.server(1, p), lambda x: 2 * x, 4, Fraction(1))[-1]
    assert mean_paths.many_ranks([1, 2, 3, 4], 4, 2, weight) == expected


def test_the_extrapolation_follows_what_depends_on_n():
    """All links of a step lost for good or none: senders agree with chance 1 - 1/N, so E x is no constant in 1/N."""

    def weight(lost: Any) -> Fraction:
        return Fraction(1, 2) if len(set(lost)) == 1 else Fraction(0)

    # Half of the senders stay at 1 for ever, half are fresh: at every step the mean over many is (1 + x)/2.
    x = [Fraction(1)]
    for _ in range(4):
        x.append(x[-1] - 2 * (1 + x[-1]) / 2)
    assert mean_paths.many_ranks([1, 2, 3, 4], 4, 2, weight) == x[-1]
