"""D6: the estimate around the last message by plain simulation of every history; its floors by every mask and sign."""

from __future__ import annotations

import copy
import json
import math
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lossproof.impl.channel import SimulatedChannel
from lossproof.impl.loss import Arrivals
from lossproof.impl.round import Round
from lossproof.proofs_checks.instruments import memory_rounds
from lossproof.proofs_checks.instruments.memory_rounds import Remembering
from lossproof.theory import memory_corrected, survivors
from lossproof.theory.laws import Bernoulli, PerSender

REPOSITORY = Path(__file__).resolve().parent.parent
losses = st.fractions(Fraction(1, 20), Fraction(9, 10), max_denominator=20)
steps_ = st.fractions(Fraction(1, 20), Fraction(3, 2), max_denominator=20)
sizes = st.fractions(0, 5, max_denominator=4)


def masks(N: int, p: list[Fraction]) -> Any:
    """(pattern of arrivals, probability)."""
    for pattern in product((0, 1), repeat=N):
        yield pattern, math.prod(1 - x if m else x for m, x in zip(pattern, p, strict=True))


def estimate(g: list[Fraction], h: list[Fraction], pattern: Any, p: list[Fraction]) -> Fraction:
    N = len(g)
    return sum((h[i] + pattern[i] / (1 - p[i]) * (g[i] - h[i]) for i in range(N)), Fraction(0)) / N


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2), st.integers(1, 4), st.data())
def test_mean_and_spread_over_all_histories(N, T, data):
    p = data.draw(st.lists(losses, min_size=N, max_size=N))
    g = [[Fraction(x) for x in data.draw(st.lists(st.integers(-4, 4), min_size=N, max_size=N))] for _ in range(T)]
    state = {(Fraction(0),) * N: Fraction(1)}  # what is remembered: its probability
    for t in range(T):
        gbar, mean, spread, after = sum(g[t]) / N, Fraction(0), Fraction(0), {}
        for (h, chance), (pattern, weight) in product(state.items(), masks(N, p)):
            x = estimate(g[t], list(h), pattern, p)
            mean, spread = mean + chance * weight * x, spread + chance * weight * (x - gbar) ** 2
            then = tuple(new if m else old for m, new, old in zip(pattern, g[t], h, strict=True))
            after[then] = after.get(then, 0) + chance * weight
        state = after
        changes = [
            memory_corrected.expected_change(
                [(g[t][i] - g[t - k][i]) ** 2 for k in range(1, t + 1)], g[t][i] ** 2, p[i]
            )
            for i in range(N)
        ]
        assert mean == gbar
        assert spread == memory_corrected.spread(changes, p)


@settings(max_examples=50, deadline=None)
@given(losses, st.fractions(-1, 1, max_denominator=10), sizes, st.integers(0, 5))
def test_the_change_of_a_gradient_whose_noise_lasts(p, rho, m2, t):
    v = Fraction(3)
    ago = [2 * v * (1 - rho**k) for k in range(1, t + 1)]
    assert memory_corrected.change(v, rho, p, m2, t) == memory_corrected.expected_change(ago, m2 + v, p)
    long = float(memory_corrected.expected_change([2 * v * (1 - rho**k) for k in range(1, 400)], m2 + v, p))
    steady = memory_corrected.change(v, rho, p)
    assert long == pytest.approx(float(steady))
    above = memory_corrected.pays_above(v, rho, p)
    assert steady == above + v
    if rho != 1:
        assert (above < 0) == (rho > 1 / (2 - p))


@settings(max_examples=50, deadline=None)
@given(losses, st.fractions(-1, 1, max_denominator=10), sizes, st.fractions(-1, 2, max_denominator=7))
def test_no_other_share_of_the_memory_is_better(p, rho, m2, beta):
    v = Fraction(2)
    # E|g - beta h|^2 term by term, from |g|^2, |h|^2 and g.h of a message k steps old
    product_of_both = sum((1 - p) * p ** (k - 1) * (m2 + v * rho**k) for k in range(1, 400))
    direct = float((m2 + v) * (1 + beta**2) - 2 * beta * product_of_both)
    assert float(memory_corrected.shrunk_change(m2, v, rho, p, beta)) == pytest.approx(direct, abs=1e-9)
    best = memory_corrected.shrink(m2, v, rho, p)
    least = memory_corrected.shrunk_change(m2, v, rho, p, best)
    assert least <= memory_corrected.shrunk_change(m2, v, rho, p, beta)
    assert least <= min(m2 + v, memory_corrected.change(v, rho, p))


def step_of_squares(rule: str, x: Fraction, c: list[Fraction], p: Fraction, s: Fraction, noise: Fraction) -> Fraction:
    """E x'^2 over all masks and signs of the noise, from x; for the survivor mean, given a survivor."""
    N, total, some = len(c), Fraction(0), Fraction(0)
    for (pattern, weight), signs in product(masks(N, [p] * N), product((-1, 1), repeat=N)):
        g = [x - a + sign * noise for a, sign in zip(c, signs, strict=True)]
        if rule == "survivor_mean":
            if not any(pattern):
                continue
            moved = sum(a for a, m in zip(g, pattern, strict=True) if m) / sum(pattern)
        else:
            moved = estimate(g, [Fraction(0)] * N, pattern, [p] * N)
        some += weight / 2**N
        total += weight / 2**N * (x - s * moved) ** 2
    return total / some


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 3), losses, st.fractions(Fraction(1, 20), Fraction(1, 2), max_denominator=20), sizes)
@pytest.mark.parametrize("rule", ["plain", "survivor_mean"])
def test_floors_of_the_other_rules_by_all_masks_and_signs(rule, N, p, s, noise):
    """E x'^2 is quadratic in x, without a linear term on average over the stationary x of mean 0."""
    c = [Fraction(3), Fraction(-1), Fraction(-2)] if N == 3 else [Fraction(2), Fraction(-2)]
    at = [step_of_squares(rule, Fraction(x), c, p, s, noise) for x in (-1, 0, 1)]
    slope, added = (at[0] + at[2]) / 2 - at[1], at[1]
    d2 = sum(a * a for a in c) / N
    claimed = getattr(memory_corrected, rule)(N, p, s, noise**2, d2)
    if slope < 1:
        assert claimed == added / (1 - slope)


@pytest.mark.parametrize("N", [2, 3, 7])
@pytest.mark.parametrize("p", [Fraction(1, 10), Fraction(2, 5), Fraction(3, 5)])
@pytest.mark.parametrize("share", [Fraction(1, 4), Fraction(7, 10)])
def test_the_floor_is_where_the_moments_settle(N, p, share):
    s = share * Fraction(memory_corrected.stable_step(N, float(p))).limit_denominator(50)
    now = memory_corrected.Moments(4.0, tuple(float(i) for i in range(N)), tuple(float(i * i) for i in range(N)))
    for _ in range(600):
        now = memory_corrected.follow(now, [float(p)] * N, float(s), 1.0)
    claimed = memory_corrected.steady(N, p, s, 1)
    assert [now.xx, now.xu[-1], now.uu[0]] == pytest.approx([float(x) for x in claimed], rel=1e-9)
    for floor, beyond in ((memory_corrected.plain, memory_corrected.pays_beyond),
                          (memory_corrected.survivor_mean, memory_corrected.pays_beyond_survivors)):  # fmt: skip
        d2 = beyond(N, p, s)
        assert floor(N, p, s, 1, d2) == claimed[0]
        assert floor(N, p, s, 1, d2 + 1) > claimed[0]
    assert memory_corrected.pays_beyond(N, p, s) > 1


@pytest.mark.parametrize("p", [Fraction(1, 10), Fraction(1, 2)])
def test_where_it_spreads_as_the_survivor_mean(p):
    """Three ranks whose means differ, white noise: the spreads by all masks and signs."""
    noise, c = Fraction(1), [Fraction(1), Fraction(-1), Fraction(0)]
    apart = sum(a * a for a in c) / 2
    spread = some = Fraction(0)
    for (pattern, weight), signs in product(masks(3, [p] * 3), product((-1, 1), repeat=3)):
        if any(pattern):
            g = [a + sign * noise for a, sign in zip(c, signs, strict=True)]
            mean = sum(a for a, m in zip(g, pattern, strict=True) if m) / sum(pattern)
            some, spread = some + weight, spread + weight * (mean - sum(g) / 3) ** 2
    slope = spread / some / (apart + noise)  # per unit of what gradients of one step differ
    around = memory_corrected.spread([2 * noise] * 3, [p] * 3)
    assert (memory_corrected.survivor_crossing(3, p) + noise) * slope == around


@pytest.mark.parametrize(("N", "p"), [(2, 0.1), (2, 0.6), (5, 0.3), (16, 0.9)])
@pytest.mark.parametrize("share", [0.97, 1.03])
def test_the_stability_limit(N, p, share):
    s = share * memory_corrected.stable_step(N, p)
    start = now = memory_corrected.Moments(1.0, (0.0,) * N, (1.0,) * N)
    for _ in range(1500):
        now = memory_corrected.follow(now, [p] * N, s, 0.0)
    assert (now.xx < start.xx) == (share < 1)


def test_limits():
    assert memory_corrected.stable_step(4, 0) == 2
    assert memory_corrected.stable_step(10**9, 0.5) == pytest.approx(2, abs=1e-6)
    tiny = Fraction(1, 10**9)
    for N in (2, 3, 10):
        assert float(memory_corrected.survivor_crossing(N, tiny)) == pytest.approx((N - 2) / N, abs=1e-6)
        small = memory_corrected.steady(N, Fraction(1, 4), tiny, 1)[0] / tiny
        assert float(small) == pytest.approx(1.25 / (2 * N * 0.75), rel=1e-6)  # (1 + p) / (2 N q)
        assert float(memory_corrected.pays_beyond(N, Fraction(1, 4), tiny)) == pytest.approx(1, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(losses, min_size=2, max_size=3), steps_)
def test_unequal_loss_leaves_only_the_survivor_mean_off_the_optimum(p, s):
    """Where the mean of x stays, whatever the step size, for the mean of x - c_i by rule."""
    N = len(p)
    c = [Fraction((-2) ** i) for i in range(N)]
    bias = survivors.unequal_bias(c, p)
    x = sum(c) / N + bias
    some = sum(w for pattern, w in masks(N, p) if any(pattern))
    drift = sum(
        w * sum(x - a for a, m in zip(c, pattern, strict=True) if m) / sum(pattern)
        for pattern, w in masks(N, p) if any(pattern)
    )  # fmt: skip
    assert drift / some * s == 0
    best, h = sum(c) / N, [Fraction(i + 1) for i in range(N)]
    assert sum(w * estimate([best - a for a in c], h, pattern, p) for pattern, w in masks(N, p)) == 0


# -- the round


def remembering(law: Any, N: int, P: int, seed: int = 0) -> Remembering:
    arrivals = Arrivals(law, [0] * P, N, seed)
    made = Remembering.in_process(
        torch.zeros(P, 2, dtype=torch.float64), torch.zeros(P, dtype=torch.long), SimulatedChannel(arrivals),
        rule="inverse_probability", arrival_probability_NQ=arrivals.gradient_probability(),
    )  # fmt: skip
    assert isinstance(made, Remembering)
    return made


def payloads(T: int, N: int, P: int) -> torch.Tensor:
    return torch.randint(-8, 8, (T, N, P, 2), generator=torch.Generator().manual_seed(3)).double()


def run(round_: Round, gradients: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    for payload_NPE in gradients:
        round_.step(payload_NPE.clone(), lambda estimate_PE: found.append(estimate_PE.clone()))
    return torch.stack(found)


def test_the_round_is_the_formula():
    """Unequal loss and a reliable own link, against a loop over every packet."""
    N, P, T = 4, 6, 7
    law, g = PerSender((0.5, 0.25, 0.0, 0.75)), payloads(T, N, P)
    found_TPE = run(remembering(law, N, P, seed=5), g)
    arrivals = Arrivals(law, [0] * P, N, 5)
    q_NP, h = arrivals.gradient_probability(), torch.zeros(N, P, 2, dtype=torch.float64)
    assert q_NP[0].eq(1).all()
    lost = 0
    for t in range(T):
        arrived_NP = arrivals.gradients(t)
        expected = torch.zeros(P, 2, dtype=torch.float64)
        for i, k in product(range(N), range(P)):
            expected[k] += h[i, k] / N
            if arrived_NP[i, k]:
                expected[k] += (g[t, i, k] - h[i, k]) / q_NP[i, k] / N
                h[i, k] = g[t, i, k]
            else:
                lost += 1
        torch.testing.assert_close(found_TPE[t], expected)
    assert lost > 10


def test_nothing_of_a_lost_packet_is_read_and_without_loss_it_is_the_mean():
    N, P, T = 4, 5, 6
    g = payloads(T, N, P)
    torch.testing.assert_close(run(remembering(Bernoulli(0), N, P), g), g.mean(1), rtol=0, atol=0)
    spoilt, arrivals = g.clone(), Arrivals(Bernoulli(0.5), [0] * P, N)
    for t in range(T):
        spoilt[t][~arrivals.gradients(t)] = math.nan
    assert spoilt.isnan().any()
    assert torch.equal(run(remembering(Bernoulli(0.5), N, P), spoilt), run(remembering(Bernoulli(0.5), N, P), g))


def test_a_resumed_round_has_the_same_digits():
    N, P, T = 3, 4, 8
    g, law = payloads(T, N, P), Bernoulli(0.5)
    whole = run(remembering(law, N, P), g)
    first = remembering(law, N, P)
    run(first, g[:3])
    saved = copy.deepcopy(first.state_dict())
    run(first, g[3:4])  # what goes on after saving does not reach into what was saved
    second = remembering(law, N, P)
    second.load_state_dict(saved)
    assert torch.equal(run(second, g[3:]), whole[3:])
    empty = remembering(law, N, P)
    empty.load_state_dict(remembering(law, N, P).state_dict())
    assert torch.equal(run(empty, g), whole)
    assert memory_rounds.remembered(g[0], g[1], torch.zeros(N, P, dtype=torch.bool)).equal(g[0])


# -- the experiment


def test_what_is_recorded_of_the_llama():
    """The intervals follow from the recorded runs, and are what paper_figures/README.md says of them."""
    recorded = json.loads((REPOSITORY / "paper_figures" / "memory_llama.json").read_text(encoding="utf-8"))
    excluding, around = [], 0
    for name, of in recorded["compared"].items():
        setting, rules = name.split(": ")
        one, other = (recorded["log_perplexity"][setting][rule] for rule in rules.split(" - "))
        differences = np.subtract(one, other)
        low, high = stats.t.interval(0.95, len(one) - 1, differences.mean(), stats.sem(differences))
        assert [of["low"], of["high"]] == pytest.approx([low, high])
        around += "around" in rules
        excluding += [name] if low > 0 or high < 0 else []
    assert (len(recorded["compared"]), around) == (12, 8)
    assert excluding == ["same data, equal loss: inverse probability - survivor mean"]
    spreads = [np.mean(of) for of in recorded["spread_over_plain"].values()]
    assert [f"{x:.2f}" for x in (min(spreads), max(spreads))] == ["1.45", "2.00"]
