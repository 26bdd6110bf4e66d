"""C4: the matrix recursion of minibatch SGD by all rows and masks, and C1's prediction, by other means."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossproof.proofs_checks.instruments.regression_data import regression as solved
from lossproof.proofs_checks.instruments.run_moments import risk_moments
from lossproof.theory import dynamics, redundancy, regression

MODELS = "reliable", "lossy", "server"
F = Fraction
ROWS = np.array([[F(x) for x in row] for row in ([1, 1], [1, -1], [0, 2])])
RESIDUAL = np.array([F(x) for x in (1, -1, -1)])
losses = st.fractions(F(1, 20), F(19, 20), max_denominator=20)


def every_risk(N: int, p_g: F, p: F, eta: F, B: int, model: str, steps: int) -> F:
    """The mean risk over all losses and batches, one history at a time, from the solution."""
    n, M = len(ROWS), N + (model == "server")
    H = ROWS.T @ ROWS / n
    senders = range(M - N, M)
    drawn = [i for i in senders if not (model == "reliable" and i == 0)]
    batches = list(product(product(range(n), repeat=B), repeat=N))
    states: list[tuple[F, Any]] = [(F(1), np.array([[F(0)] * 2] * M))]
    for _ in range(steps):
        following = []
        for chance, z in states:
            for rows in batches:
                g = {i: sum(ROWS[r] * (ROWS[r] @ z[i] - RESIDUAL[r]) for r in chosen) / F(B)
                     for i, chosen in zip(senders, rows, strict=True)}  # fmt: skip
                for sent, kept in product(product((0, 1), repeat=len(drawn)), product((0, 1), repeat=M - 1)):
                    arrived = dict(zip(drawn, sent, strict=True))
                    survivors = [i for i in senders if arrived.get(i, 1)]
                    x = z[0] - (eta * sum(g[i] for i in survivors) / len(survivors) if survivors else 0)
                    odds = prod(((1 - p_g) if a else p_g for a in sent), start=F(1)) * prod(
                        ((1 - p) if a else p for a in kept), start=F(1)
                    )
                    copies = np.array([x, *(x if fresh else y for y, fresh in zip(z[1:], kept, strict=True))])
                    following.append((chance * odds / len(batches), copies))
        states = following
    return sum((chance * (z[0] @ H @ z[0]) / 2 for chance, z in states), F(0))


@settings(max_examples=6, deadline=None)
@given(losses, losses, st.fractions(F(1, 10), 2, max_denominator=10),
       st.sampled_from([(1, 2, 1), (2, 2, 1), (1, 1, 2)]),
       st.sampled_from(MODELS))  # fmt: skip
def test_the_recursion_is_the_mean_over_all_batches_and_losses(p_g: F, p: F, eta: F, size: Any, model: Any) -> None:
    B, N, steps = size
    if N == 1 and model != "server":
        N, steps = 2, 1
    of = regression.Minibatches(ROWS, RESIDUAL, B)
    assert regression.excess_risk(N, p_g, p, eta, of, model, steps) == every_risk(N, p_g, p, eta, B, model, steps)


def test_two_steps_of_two_ranks() -> None:
    p_g, p, eta = F(1, 3), F(1, 4), F(1, 2)
    of = regression.Minibatches(ROWS, RESIDUAL, 1)
    assert regression.excess_risk(2, p_g, p, eta, of, "lossy", 2) == every_risk(2, p_g, p, eta, 1, "lossy", 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(0, 0.8), st.floats(0.01, 0.5), st.sampled_from(MODELS))
def test_without_the_growing_part_it_is_c1(seed: int, N: int, p: float, s: float, model: Any) -> None:
    random = np.random.default_rng(seed)
    data = solved(random.normal(size=(12, 3)), random.normal(size=12))
    of, eta = regression.Minibatches(data.features_nD, data.residual_n, 3), s / data.curvature
    assert abs(data.features_nD.T @ data.residual_n).max() < 1e-12
    matrices = regression.excess_risk(N, p, p, eta, of, model, 25, growing=False)
    assert regression.predicted(N, p, eta, of, model, 25) == pytest.approx(matrices, rel=1e-9)
    assert regression.excess_risk(N, p, p, eta, of, model, 25) >= matrices * (1 - 1e-12)


@settings(max_examples=5, deadline=None)
@given(st.integers(2, 6), st.floats(0.05, 0.8), st.floats(0.05, 0.8), st.sampled_from(MODELS), st.integers(1, 4))
def test_one_coordinate_settles_where_the_closed_form_says(N: int, p_g: float, p: float, model: Any, B: int) -> None:
    of = regression.Minibatches(np.array([[1.0], [2.0], [-1.0]]), np.array([1.0, 0.0, 1.0]), B)
    h, f, s = 2.0, 6.0, 0.1
    weights = dynamics.shares(N, p_g, model)
    share = dynamics.noise_share(weights)
    steady = dynamics.steady(N, p_g, p, model)
    factor = regression.steady_factor(steady.moments(p, s, 1.0).xx, s / h, f, h, B, share)
    claimed = h / 2 * steady.moments(p, s, (s / h) ** 2 * share * of.at_solution[0, 0]).xx * factor
    assert regression.excess_risk(N, p_g, p, s / h, of, model, 400) == pytest.approx(claimed, rel=1e-6)
    assert factor == pytest.approx(regression.first_order(s, f, h, B, redundancy.of_shares(weights)), abs=0.2)


@pytest.mark.parametrize(("N", "B", "steps"), [(2, 1, 2), (1, 2, 2), (3, 1, 1)])
def test_moments_of_the_risk_over_all_batches_and_losses(N: int, B: int, steps: int) -> None:
    x, e, eta, loss = [1.0, 2.0, -0.5], [1.0, -0.25, 1.0], 0.6, 0.3
    h = sum(a * a for a in x) / 3
    states = [(1.0, [0.0] * N)]
    for _ in range(steps):
        following = []
        for chance, y in states:
            for rows in product(product(range(3), repeat=B), repeat=N):
                g = [sum(x[r] * (x[r] * at + e[r]) for r in drawn) / B for at, drawn in zip(y, rows, strict=True)]
                for masks in product((0, 1), repeat=2 * N - 1):
                    sent = [k for k, arrived in zip(g, masks[:N], strict=True) if arrived]
                    fresh = y[0] - (eta * sum(sent) / len(sent) if sent else 0)
                    odds = prod(1 - loss if m else loss for m in masks) / 3 ** (N * B)
                    kept = [fresh if m else old for m, old in zip(masks[N:], y[1:], strict=True)]
                    following.append((chance * odds, [fresh, *kept]))
        states = following
    of = regression.Minibatches(np.array(x)[:, None], np.array(e), B)
    found = risk_moments(N, loss, eta, of, steps, 2)
    assert found == pytest.approx([sum(c * (h / 2 * y[0] ** 2) ** k for c, y in states) for k in range(3)])
