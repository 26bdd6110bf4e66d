"""How large a step training on a quadratic bears when packets are lost: the stability limit in closed form.

SGD on one quadratic of curvature h for all ranks, step size eta, s = eta h. The owner moves, x <- x - s * (mean of the
survivors' y), y being the ranks' own copies, the owner's y its x; no survivor, no update. Then each of the N - 1
replicas is refreshed, y <- x, or keeps its y. Both phases lose packets independently with probability p < 1.

The second moments E x^2, E x y, E y^2, E y_i y_j evolve by a linear map M(s) that keeps covariances positive, so its
spectral radius is an eigenvalue, and leaves the unit disk where det(I - M) = 0: at s = 0 and where a s^2 + b s = c.
Hence the stable interval that starts at 0 is (0, s*), s* the least positive root. There always is one: c > 0, and
the squared step alone makes large s diverge.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from lossproof.theory import aggregation, survivors
from lossproof.theory.aggregation import divide

OwnLink = Literal["reliable", "lossy"]
LOSSLESS = 2.0
"""The limit without loss: |1 - s| < 1."""


def coefficients(N: int, p: Any, own_link: OwnLink = "reliable") -> tuple[Any, Any, Any]:
    """a, b, c of a s^2 + b s = c; N >= 2 where the own link is reliable.

    Own link lossy, kappa = E[1/K; K >= 1], alpha = 1 - p^N:
    a = p [2 kappa (N-1+p) - alpha (1+p)], b = N (1-p^2) - 2 alpha p (1-p) (N-2), c = 2 N (1-p^2).

    Own link reliable, K = 1 + binomial(N-1, 1-p), w = E[1/K], w2 = E[1/K^2] = kappa / (N (1-p)):
    a = -p [2 (N-1) (1-p) w2 - w (3N-1-(N-1)p) + 2], b = N (1-p)^2 - 1 + 6p - p^2 - 4 p w ((N-1) p + 1),
    c = 2 (N-1) (1-p^2).

    >>> coefficients(2, divide(1, 2))
    (Fraction(3, 8), Fraction(0, 1), Fraction(3, 2))
    """
    kappa = survivors.kappa(N, p)
    if own_link == "lossy":
        alpha = survivors.some_survivor(N, p)
        a = p * (2 * kappa * (N - 1 + p) - alpha * (1 + p))
        return a, N * (1 - p**2) - 2 * alpha * p * (1 - p) * (N - 2), 2 * N * (1 - p**2)
    w = aggregation.owner_weight(N, p)
    a = -p * (divide(2 * (N - 1), N) * kappa - w * (3 * N - 1 - (N - 1) * p) + 2)
    return a, N * (1 - p) ** 2 - 1 + 6 * p - p**2 - 4 * p * w * ((N - 1) * p + 1), 2 * (N - 1) * (1 - p**2)


def stable_step(N: int, p: Any, own_link: OwnLink = "reliable") -> float:
    """s*, the supremum of the stable interval of s = eta h that starts at 0; p exact or a float.

    Small loss raises it (N to infinity: 2 (1+p)/(1-p)); two ranks with a reliable own link keep the lossless 2.

    >>> stable_step(2, 0.5)
    2.0
    """
    if N == 1 or p == 0:  # one rank: no replica, only skipped steps
        return LOSSLESS
    a, b, c = (float(x) for x in coefficients(N, p, own_link))
    root = math.sqrt(b * b + 4 * a * c)
    return 2 * c / (b + root) if b > 0 else (root - b) / (2 * a)  # the form that does not cancel
