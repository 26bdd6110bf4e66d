"""Moments of any order of minibatch SGD on one feature, own link lossy: how far a run's risk spreads around its mean.

Polynomials in the N copies, rank 0's the owner's x, all measured from the solution: their coefficients by exponents.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from math import comb, prod

import numpy as np

from lossproof.theory.regression import Minibatches

Exponents = tuple[int, ...]
Polynomial = dict[Exponents, float]


def risk_moments(N: int, loss: float, eta: float, of: Minibatches, steps: int, order: int) -> list[float]:
    """E[R^k], k = 0, ..., `order`, R = h x^2/2 after some steps from the solution.

    Monomials of the copies are averaged over all that a step draws, given the copies before it: every batch, then
    every set of survivors, then every set of replicas that get x'.
    """
    degree = 2 * order
    monomials = [a for a in product(range(degree + 1), repeat=N) if sum(a) <= degree]
    place = {a: k for k, a in enumerate(monomials)}
    powers = _powers(N, loss, eta, _batch(of, degree), degree)
    M = np.zeros((len(monomials), len(monomials)))
    for a, fresh in product(monomials, product((0, 1), repeat=N - 1)):
        chance = prod(1 - loss if got else loss for got in fresh)
        kept = (0, *(0 if got else k for k, got in zip(a[1:], fresh, strict=True)))
        for b, c in powers[sum(a) - sum(kept)].items():
            M[place[a], place[_plus(kept, b)]] += chance * c
    z = np.array([0.0 if any(a) else 1.0 for a in monomials])
    for _ in range(steps):
        z = M @ z
    h = float(of.hessian[0, 0])
    return [(h / 2) ** k * float(z[place[(2 * k, *[0] * (N - 1))]]) for k in range(order + 1)]


def _batch(of: Minibatches, degree: int) -> list[list[float]]:
    """E[g^l | y] by powers of y, l = 0, ..., `degree`: g the mean over B rows of x^2 y + x e."""
    x_n, e_n = of.features_nD[:, 0], of.residual_n
    row: list[Polynomial] = [
        {(k,): comb(l, k) * float((x_n ** (k + l) * e_n ** (l - k)).mean()) for k in range(l + 1)}
        for l in range(degree + 1)
    ]
    total = row
    for _ in range(of.B - 1):
        total = _added(total, row)
    return [[g.get((k,), 0.0) / of.B**l for k in range(l + 1)] for l, g in enumerate(total)]


def _powers(N: int, loss: float, eta: float, batch: list[list[float]], degree: int) -> list[Polynomial]:
    """E[x'^l | copies], l = 0, ..., `degree`."""
    units = [tuple(int(i == j) for j in range(N)) for i in range(N)]
    mean: list[Polynomial] = [defaultdict(float) for _ in range(degree + 1)]
    for arrived in product((0, 1), repeat=N):
        K = sum(arrived)
        moved: list[Polynomial] = [{tuple(l * u for u in units[0]): 1.0} for l in range(degree + 1)]
        for unit, sent in zip(units, arrived, strict=True):
            if sent:
                steps: list[Polynomial] = [
                    {tuple(k * u for u in unit): (-eta / K) ** l * c for k, c in enumerate(g)}
                    for l, g in enumerate(batch)
                ]
                moved = _added(moved, steps)
        for l, power in enumerate(moved):
            for a, c in power.items():
                mean[l][a] += prod(1 - loss if sent else loss for sent in arrived) * c
    return mean


def _added(one: list[Polynomial], other: list[Polynomial]) -> list[Polynomial]:
    """Moments of a sum of two numbers that are independent given the copies."""
    total: list[Polynomial] = [defaultdict(float) for _ in one]
    for l, power in enumerate(total):
        for j in range(l + 1):
            for (a, c), (b, d) in product(one[j].items(), other[l - j].items()):
                power[_plus(a, b)] += comb(l, j) * c * d
    return total


def _plus(a: Exponents, b: Exponents) -> Exponents:
    return tuple(i + j for i, j in zip(a, b, strict=True))
