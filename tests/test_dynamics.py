"""C1's second moments: the whole operator on the covariances of all copies, mask by mask, in plain fractions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossproof.theory import coupled, dynamics, stability

MODELS = "reliable", "lossy", "server"
losses = st.fractions(Fraction(1, 100), Fraction(99, 100), max_denominator=100)
F = Fraction


def maps(
    N: int, p_g: F, p: F, model: str, hessian: Sequence[Sequence[F]], packet_D: Sequence[int], owner_D: Sequence[int]
) -> Iterator[tuple[F, Any, Any]]:
    """(probability, A, B) of every pattern of losses: copies z -> A z - B (noise of all copies), rank by rank."""
    D, M = len(hessian), N + (model == "server")
    senders = range(M - N, M)
    owner_of = dict(zip(packet_D, owner_D, strict=True))
    gradients = [(k, i) for k, o in owner_of.items() for i in senders if model != "reliable" or i != o]
    parameters = [(k, i) for k, o in owner_of.items() for i in range(M) if i != o]
    for sent, kept in product(product((0, 1), repeat=len(gradients)), product((0, 1), repeat=len(parameters))):
        chance = prod((1 - p_g if x else p_g for x in sent), start=F(1)) * prod(
            (1 - p if x else p for x in kept), start=F(1)
        )
        got, fresh = dict(zip(gradients, sent, strict=True)), dict(zip(parameters, kept, strict=True))
        A, B = (np.array([[F(0)] * (M * D) for _ in range(M * D)]) for _ in range(2))
        for a, (k, o) in enumerate(zip(packet_D, owner_D, strict=True)):
            survivors = [i for i in senders if got.get((k, i), 1)]
            for i in range(M):
                if fresh.get((k, i), 1):
                    A[i * D + a, o * D + a] += 1
                    for j in survivors:
                        B[i * D + a, j * D + a] += F(1, len(survivors))
                        for b in range(D):
                            A[i * D + a, j * D + b] -= hessian[a][b] * F(1, len(survivors))
                else:
                    A[i * D + a, i * D + a] += 1
        yield chance, A, B


def step(C: Any, noise: Any, *arguments: Any) -> Any:
    """E[z z'] after a step, by all patterns; the noise of a rank has covariance `noise`, ranks apart have none."""
    every = np.kron(
        np.array([[F(i == j) for j in range(len(C) // len(noise))] for i in range(len(C) // len(noise))]), noise
    )
    return sum(chance * (A @ C @ A.T + B @ every @ B.T) for chance, A, B in maps(*arguments))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), losses, losses, st.fractions(0, 3, max_denominator=8), st.sampled_from(MODELS))
def test_four_moments_are_those_of_all_copies(N: int, p_g: F, p: F, s: F, model: Any) -> None:
    N = max(N, 2) if model != "server" else min(N, 2)
    M = dynamics.copies(N, model)
    C, noise = np.array([[F(2)] * M for _ in range(M)]), np.array([[F(3, 7)]])
    for z in dynamics.trajectory(N, p_g, p, s, 2, model, F(2), F(3, 7)):
        found = [C[0, 0], C[0, 1], C[1, 1], *([C[1, 2]] if M > 2 else [])]
        assert found == list(z)[: len(found)]
        C = step(C, noise, N, p_g, p, model, [[s]], [0], [0])


@settings(max_examples=15, deadline=None)
@given(
    st.integers(2, 3), losses, losses, st.sampled_from(MODELS), st.fractions(F(1, 50), F(49, 50), max_denominator=50)
)
def test_the_steady_state_is_given_back_by_all_patterns(N: int, p_g: F, p: F, model: Any, share: F) -> None:
    N = min(N, 2) if model == "server" else N
    M, s = dynamics.copies(N, model), share * F(dynamics.stable_step(N, p_g, p, model)).limit_denominator(1000)
    v = dynamics.noise_share(dynamics.shares(N, p_g, model)) * F(5, 3)
    z = dynamics.steady(N, p_g, p, model).moments(p, s, v)
    C = np.array([[z.yy if i == j else z.yz for j in range(M)] for i in range(M)])
    C[0, :] = C[:, 0] = z.xy
    C[0, 0] = z.xx
    assert (step(C, np.array([[F(5, 3)]]), N, p_g, p, model, [[s]], [0], [0]) == C).all()
    assert z.xx > 0
    assert z.xx == z.yy
    assert z.yy - z.yz == (z.xx - z.xy) * 2 / (1 + p)


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 3), st.floats(0.02, 0.95), st.floats(0.02, 0.95), st.sampled_from(MODELS))
def test_the_whole_operator_is_stable_up_to_the_limit(N: int, p_g: float, p: float, model: Any) -> None:
    """No symmetry: the spectral radius of the sum of A (x) A over all patterns."""
    N = min(N, 2) if model == "server" else N
    limit = dynamics.stable_step(N, p_g, p, model)
    for share, stable in ((0.999, True), (1.001, False)):
        whole = sum(
            float(chance) * np.kron(A.astype(float), A.astype(float))
            for chance, A, _ in maps(N, F(p_g), F(p), model, [[F(share * limit)]], [0], [0])
        )
        assert (np.abs(np.linalg.eigvals(whole)).max() < 1) == stable
    if model != "server":
        assert dynamics.stable_step(N, p, p, model) == stability.stable_step(N, p, model)


HESSIAN, NOISE = [[F(1), F(1, 3)], [F(1, 3), F(1, 2)]], np.array([[F(1, 5), F(1, 7)], [F(1, 7), F(1, 2)]])


@settings(max_examples=6, deadline=None)
@given(losses, losses, st.sampled_from(MODELS), st.sampled_from([((0, 0), (0, 0)), ((0, 1), (0, 0)), ((0, 1), (0, 1))]))
def test_packets_and_owners_are_those_of_all_patterns(p_g: F, p: F, model: Any, cut: Any) -> None:
    packet_D, owner_D = (cut[0], (0, 0)) if model == "server" else cut
    found = coupled.Coupled(2, p_g, p, model, np.array(HESSIAN), NOISE, packet_D, owner_D)
    C = found.start([F(1), F(-2)])
    width = C.shape[0] * 2
    whole = C.reshape(width, width)
    for _ in range(1 if model == "server" else 2):
        C, whole = found.after(C), step(whole, NOISE, 2, p_g, p, model, HESSIAN, packet_D, owner_D)
        assert (C.reshape(width, width) == whole).all()
    x = C[[owner_D[0], owner_D[1]], [0, 1]][:, [owner_D[0], owner_D[1]], [0, 1]]
    assert found.risk(C) == (np.array(HESSIAN) * x).sum() / 2


@given(st.integers(1, 10**6), st.floats(0.01, 1.99), st.sampled_from(MODELS))
def test_without_loss_it_is_plain_sgd(N: int, s: float, model: Any) -> None:
    N = max(N, 2)
    assert dynamics.excess_risk(N, 0.0, 0.0, s, model) == pytest.approx(1 / (2 * N * (2 - s)), rel=1e-9)
    z = dynamics.trajectory(N, 0.0, 0.0, s, 3, model, 1.0, 1.0)[-1]
    assert z.xx == pytest.approx((1 - s) ** 6 + sum((1 - s) ** (2 * k) for k in range(3)) / N, rel=1e-6)
    assert z.yz == pytest.approx(z.xx)
