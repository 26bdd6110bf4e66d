"""C2: the theorem at unseen parameters, by plain sums over all masks and signs; its step sizes; its instruments."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lossproof.proofs_checks.claim import Refuted
from lossproof.proofs_checks.instruments import descent
from lossproof.theory import convergence

OWN_LINKS = st.sampled_from(["reliable", "lossy"])
losses = st.fractions(Fraction(1, 50), Fraction(49, 50), max_denominator=50)
shares = st.fractions(Fraction(1, 20), Fraction(19, 20), max_denominator=20)
small = st.integers(-6, 6)


def sent(N: int, p: Fraction, own_link: str) -> Any:
    """(survivors, probability) of one packet; rank 0 owns it."""
    for mask in product((0, 1), repeat=N):
        if own_link == "lossy" or mask[0]:
            drawn = mask if own_link == "lossy" else mask[1:]
            yield [i for i in range(N) if mask[i]], math.prod((1 - p if m else p for m in drawn), start=Fraction(1))


@given(st.integers(1, 5), losses, OWN_LINKS)
def test_the_weights_are_sums_over_all_masks(N, p, own_link):
    each = [Fraction(0)] * N
    alpha = kappa = Fraction(0)
    for survivors, chance in sent(N, p, own_link):
        if survivors:
            alpha, kappa = alpha + chance, kappa + chance / len(survivors)
            for i in survivors:
                each[i] += chance / len(survivors)
    for owners, theta in ((1, sum(each[1:])), (3, (N - 1) * max(each) if own_link == "reliable" else sum(each[1:]))):
        assert convergence.weights(N, p, own_link, owners) == (alpha, kappa, theta)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 3), losses, losses, OWN_LINKS, small, st.lists(small, min_size=2, max_size=2), st.data())
def test_one_step_from_any_state_on_any_parabola(N, p_g, p_p, own_link, x, stale, data):
    """x'' in [-L, L]; eta at will; noise of sign +-1 on each rank."""
    L, h = Fraction(3), data.draw(st.fractions(-3, 3, max_denominator=4))
    eta, rate = data.draw(st.fractions(Fraction(1, 20), 1, max_denominator=20)), p_p + (1 - p_p) * data.draw(shares)
    y = [x, *stale[: N - 1]]
    of = convergence.weights(N, p_g, own_link, 1)
    worth = convergence.price(eta, L, of.theta, rate)
    after, G = Fraction(0), Fraction(0)
    for survivors, chance in sent(N, p_g, own_link):
        for signs in product((1, -1), repeat=N):
            e = Fraction(sum(h * y[i] + signs[i] for i in survivors), max(len(survivors), 1))
            moved, weight = x - eta * e, chance / 2**N
            gap = sum((moved - v) ** 2 for v in y[1:]) / Fraction(N - 1)
            after += weight * (h * moved**2 / 2 + worth * p_p * gap)  # a replica that received has no gap
            G += weight * Fraction(sum((h * y[i]) ** 2 for i in survivors), max(len(survivors), 1))
    s, D = L * eta, sum(Fraction((x - v) ** 2) for v in y[1:]) / (N - 1)
    allowed = h * x**2 / 2 + worth * D - eta * of.alpha / 2 * (h * x) ** 2
    allowed += eta * of.alpha / 2 * of.kappa * convergence.floor(s, of, p_p, rate)
    assert after <= allowed - eta / 2 * G * convergence.slack(s, of.theta, p_p, rate)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 3), losses, losses, OWN_LINKS, st.data())
def test_runs_on_parabolas_stay_below_the_bound(N, p_g, p_p, own_link, data):
    """Second moments of owner and replicas, all of them, over all masks: T steps, from the optimum or away from it."""
    L, sigma2, x0, T = 2, 5, data.draw(small), data.draw(st.integers(1, 6))
    of = convergence.weights(N, p_g, own_link, data.draw(st.sampled_from([1, N])))
    share = data.draw(shares)
    s = share * Fraction(convergence.largest_step(float(of.theta), float(p_p)))
    h = data.draw(st.sampled_from([Fraction(2), Fraction(1), Fraction(1, 10)]))
    eta = s / L
    moves = []
    for survivors, chance in sent(N, p_g, own_link):
        for kept in product((0, 1), repeat=N - 1):
            K = max(len(survivors), 1)
            new = [Fraction(i == 0) - (eta * h / K if i in survivors else 0) for i in range(N)]
            rows = [new] + [new if k else [Fraction(i == j + 1) for i in range(N)] for j, k in enumerate(kept)]
            noise = eta**2 * Fraction(sigma2, K) * bool(survivors)
            hit = [1, *kept]
            moves.append((chance * math.prod(1 - p_p if k else p_p for k in kept), rows, noise, hit))
    C, total = np.full((N, N), float(x0) ** 2), 0.0
    for _ in range(T):
        total += float(h) ** 2 * C[0, 0]
        C = sum(
            float(w) * (np.array(A, float) @ C @ np.array(A, float).T + float(n) * np.outer(hit, hit))
            for w, A, n, hit in moves
        )
    bound = convergence.bound(h * x0**2 / 2, T, eta, L, sigma2, of, p_p)
    assert total / T <= bound * (1 + 1e-9)


@given(losses, st.fractions(Fraction(1, 10), 4, max_denominator=10), shares, shares)
def test_the_best_rate_is_the_least_that_is_allowed(p, theta, share, other):
    top = convergence.largest_step(float(theta), float(p))
    s = float(share) * top
    best = convergence.best_rate(s, theta, p)
    assert float(p) < best <= math.sqrt(p) * (1 + 1e-12)
    rate = float(p) + (1 - float(p)) * float(other)
    if rate < best * (1 - 1e-9):
        assert convergence.slack(s, float(theta), float(p), rate) < 0
    assert convergence.slack(top * 1.000001, float(theta), float(p), rate) < 0
    assert convergence.simple_step(math.sqrt(p), math.sqrt(theta)) <= top * (1 + 1e-12)
    if theta <= 1:
        assert 1 - math.sqrt(p) <= top * (1 + 1e-12)


def test_the_small_step_limits():
    of = convergence.weights(16, Fraction(1, 10), "lossy")
    near = convergence.best_rate(1e-4, of.theta, 0.1)
    assert convergence.stale_noise(0.1, near) == pytest.approx(0.1 / 0.9, rel=1e-6)  # B3
    assert convergence.best_rate(0.5, 0.0, 0.25) == 0.5
    assert convergence.bound(1, 10, 0.5, 1, 4, of, 0) == pytest.approx(
        2 / (0.5 * float(of.alpha) * 10) + float(of.kappa) * 4 * 0.5 / float(of.alpha)
    )
    assert convergence.stretch(0, Fraction(1, 2)) == 1


def test_steps_that_are_too_large_are_refused():
    of = convergence.weights(4, Fraction(1, 4), "lossy")
    with pytest.raises(ValueError, match=r"L eta must lie in \(0, 0\.6"):
        convergence.bound(1, 10, 0.9, 1, 1, of, 0.25)
    for rate in (0.2, 1.0, 1.5, 0.2500001, 0.999999):
        with pytest.raises(ValueError, match="rate must lie in"):
            convergence.bound(1, 10, 0.5, 1, 1, of, 0.25, rate)


@settings(max_examples=15, deadline=None)
@given(OWN_LINKS, st.lists(small, min_size=2, max_size=2), st.lists(small, min_size=4, max_size=4), losses, losses)
def test_the_steps_instrument_against_a_loop(own_link, x, y, p_g, p_p):
    """Two packets owned by ranks 0 and 1 of 2, a full Hessian."""
    H, eta = [[2, 1], [1, 2]], Fraction(1, 4)
    y_NQ = [y[:2], y[2:]]
    taken = descent.Steps(descent.quadratic(H), x, y_NQ, (0, 1), 2, own_link, float(eta), 2.0)
    copies = [[x[0], y[1]], [y[2], x[1]]]
    gradients = [[sum(h * v for h, v in zip(row, copy, strict=True)) for row in H] for copy in copies]
    f = gap = Fraction(0)
    for masks in product(list(sent(2, p_g, own_link)), list(sent(2, p_g, own_link)), (0, 1), (0, 1)):
        (first, chance), (second, other), *kept = masks
        second = [1 - i for i in second]  # packet 1: rank 1 is the owner
        weight = chance * other * math.prod(1 - p_p if k else p_p for k in kept)
        for signs in product((2, -2), repeat=4):
            moved = []
            for q, survivors in enumerate((first, second)):
                values = [gradients[i][q] + signs[2 * i + q] for i in survivors]
                moved.append(x[q] - eta * Fraction(sum(values), max(len(values), 1)))
            far = [0 if kept[q] else (moved[q] - copies[1 - q][q]) ** 2 for q in range(2)]
            square = sum(H[a][b] * moved[a] * moved[b] for a in range(2) for b in range(2))
            f, gap = f + weight * square / 32, gap + weight * sum(far) / 16
    assert taken.mean(descent.quadratic(H)[0](taken.x_TPQ[-1]))(p_g, p_p) == f
    assert taken.mean(taken.gap_P())(p_g, p_p) == gap


def test_the_double_well_is_smooth_and_its_gradient_is_right():
    f, gradient = descent.double_well()
    x = torch.linspace(-4, 4, 801, dtype=torch.float64)[:, None].requires_grad_()
    (slope,) = torch.autograd.grad(f(x).sum(), x)
    assert torch.allclose(slope, gradient(x))
    assert float((slope.diff(dim=0) / x.detach().diff(dim=0)).abs().max()) <= 1 + 1e-9
    assert float(f(x).detach().min()) == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_constants_of_the_network_bound_what_they_say(seed):
    model = descent.Committee(4, 3, 16, seed)
    L, sigma2 = model.constants(batch=1)
    chance = torch.Generator().manual_seed(seed)
    everything = torch.arange(16)
    largest = 0.0
    for scale in (0.1, 0.5, 1.0, 3.0):
        with torch.no_grad():
            model.units.copy_(torch.randn(4, 3, generator=chance, dtype=torch.float64) * scale)

        def mean(w, chosen=everything):
            out = (model.inputs[chosen] @ w.view(4, 3).T).tanh() @ model.signs
            return (out - model.targets[chosen]).square().mean() / 2

        hessian = torch.autograd.functional.hessian(mean, model.units.detach().flatten())
        largest = max(largest, float(torch.linalg.eigvalsh(hessian).abs().max()))
        single = [torch.autograd.grad(model(torch.tensor([i])), model.units)[0].flatten() for i in range(16)]
        spread = torch.stack(single)
        assert float((spread - spread.mean(0)).square().sum(1).mean()) <= sigma2
    assert 0.05 * L < largest <= L


def test_the_one_sided_test_keeps_its_level_and_has_power():
    chance = np.random.default_rng(5)
    samples = chance.exponential(1.0, 2000)
    assert descent.require_at_most("exponential", samples, 1.1, 1e-9) == pytest.approx(samples.mean() / 1.1)
    with pytest.raises(Refuted, match="above the bound"):
        descent.require_at_most("exponential", samples, 0.8, 1e-9)
    with pytest.raises(Refuted, match="positive"):
        descent.require_at_most("negative", np.array([-1.0]), 1.0, 1e-9)
    alarms = 0
    for _ in range(2000):  # at the level 1/10, a true bound that is attained
        try:
            descent.require_at_most("coin", chance.integers(0, 2, 30) * 2.0, 1.0, 0.1)
        except Refuted:
            alarms += 1
    assert alarms <= 2000 * 0.1


@given(st.lists(st.lists(st.fractions(-1, 1, max_denominator=5), min_size=3, max_size=3), min_size=3, max_size=3))
def test_the_fixed_point_is_one(rows):
    M = [[x / 4 for x in row] for row in rows]
    added = [Fraction(1), Fraction(-2), Fraction(3)]
    assume(all(sum(abs(x) for x in row) < 1 for row in M))
    z = descent.stationary(M, added)
    assert [sum(a * b for a, b in zip(row, z, strict=True)) + c for row, c in zip(M, added, strict=True)] == z
