"""How large a step training on a quadratic bears when packets are lost: the stability limit in closed form (claim D2).

SGD on one quadratic of curvature h for all ranks, step size eta, s = eta h. The owner moves, x <- x - s * (mean of the
survivors' y), y being the ranks' own copies, the owner's y its x; no survivor, no update. Then each of the N - 1
replicas is refreshed, y <- x, or keeps its y. Both phases lose packets independently with probability p < 1.

Stable means in mean square: the second moments of all copies tend to 0.

The second moments E x^2, E x y, E y^2, E y_i y_j evolve by a linear map M(s) that keeps covariances positive, so its
spectral radius is an eigenvalue, and leaves the unit disk where det(I - M) = 0: at s = 0 and where a s^2 + b s = c.
Hence the stable interval that starts at 0 is (0, s*), s* the least positive root. There is just one, as a, c > 0, and
beyond it an eigenvalue exceeds 1: nothing above s* is stable.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from lossproof.theory import aggregation, survivors
from lossproof.theory.aggregation import divide

OwnLink = Literal["reliable", "lossy"]
LOSSLESS = 2.0
"""The limit without loss: |1 - s| < 1."""


class Shares(NamedTuple):
    """Means of the weights m/K of the K survivors, m_o the owner's mask, m_i and m_j those of two others.

    `owner` = E[m_o/K], `others` = E[sum m_i/K]; `owner_square` = E[m_o/K^2], `with_owner` = E[m_o sum m_i/K^2],
    `squares` = E[sum m_i/K^2], `pairs` = E[sum m_i m_j/K^2] over ordered pairs; all of them 0 where K = 0.
    """

    owner: Any
    others: Any
    owner_square: Any
    with_owner: Any
    squares: Any
    pairs: Any


def lossy_shares(N: Any, kappa: Any, alpha: Any) -> Shares:
    """Own link lossy like the others: every rank alike; kappa = E[1/K; K >= 1], alpha = P(K >= 1)."""
    each, apart = divide(kappa, N), divide(alpha - kappa, N)
    return Shares(divide(alpha, N), divide(alpha * (N - 1), N), each, apart, (N - 1) * each, (N - 2) * apart)


def reliable_shares(w: Any, w2: Any) -> Shares:
    """Own link reliable, w = E[1/K], w2 = E[1/K^2]."""
    return Shares(w, 1 - w, w2, w - w2, w - w2, 1 - 3 * w + 2 * w2)


def shares(N: int, p: Any, own_link: OwnLink = "reliable") -> Shares:
    """The shares of independent links; N >= 2 where the own link is reliable."""
    kappa = survivors.kappa(N, p)
    if own_link == "lossy":
        return lossy_shares(N, kappa, survivors.some_survivor(N, p))
    return reliable_shares(aggregation.owner_weight(N, p), inverse_square(N, p, kappa))


def inverse_square(N: Any, p: Any, kappa: Any) -> Any:
    """E[1/K^2] where the own link is reliable: E[1/K; K >= 1] of N lossy links over N (1-p)."""
    return divide(kappa, N * (1 - p))


def second_moments(N: Any, p: Any, s: Any, of: Shares) -> tuple[tuple[Any, ...], ...]:
    """M(s), N >= 2: E x^2, E x y, E y^2, E y_i y_j after a step from the same four before it."""
    q, other = 1 - p, divide(of.others, N - 1)
    xx = (1 - 2 * s * of.owner + s**2 * of.owner_square, -2 * s * of.others + 2 * s**2 * of.with_owner,
          s**2 * of.squares, s**2 * of.pairs)  # fmt: skip
    xy = (0, 1 - s * of.owner, -s * other, -s * (N - 2) * other)
    yy, yz = (0, 0, 1, 0), (0, 0, 0, 1)
    return (
        xx,
        tuple(q * a + p * b for a, b in zip(xx, xy, strict=True)),
        tuple(q * a + p * b for a, b in zip(xx, yy, strict=True)),
        tuple(q**2 * a + 2 * p * q * b + p**2 * c for a, b, c in zip(xx, xy, yz, strict=True)),
    )


def lossy_coefficients(N: Any, p: Any, kappa: Any, alpha: Any) -> tuple[Any, Any, Any]:
    """det(I - M) = alpha (1-p)^2 / N * s (c - b s - a s^2), own link lossy."""
    a = p * (2 * kappa * (N - 1 + p) - alpha * (1 + p))
    return a, N * (1 - p**2) - 2 * alpha * p * (1 - p) * (N - 2), 2 * N * (1 - p**2)


def reliable_coefficients(N: Any, p: Any, w: Any, w2: Any) -> tuple[Any, Any, Any]:
    """det(I - M) = (1-p)^2 / (N-1) * s (c - b s - a s^2), own link reliable."""
    a = -p * (2 * (N - 1) * (1 - p) * w2 - w * (3 * N - 1 - (N - 1) * p) + 2)
    return a, N * (1 - p) ** 2 - 1 + 6 * p - p**2 - 4 * p * w * ((N - 1) * p + 1), 2 * (N - 1) * (1 - p**2)


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
        return lossy_coefficients(N, p, kappa, survivors.some_survivor(N, p))
    return reliable_coefficients(N, p, aggregation.owner_weight(N, p), inverse_square(N, p, kappa))


def stable_step(N: int, p: Any, own_link: OwnLink = "reliable") -> float:
    """s*, the supremum of the s = eta h that are stable in mean square; p exact or a float.

    Small loss raises it (N to infinity: 2 (1+p)/(1-p)); two ranks with a reliable own link keep the lossless 2.

    >>> stable_step(2, 0.5)
    2.0
    """
    if N == 1:  # no replica, only skipped steps
        return LOSSLESS
    return root(*coefficients(N, p, own_link))


def root(a: Any, b: Any, c: Any) -> float:
    """The positive root of a s^2 + b s = c, a >= 0, c > 0, in the form that does not cancel."""
    square, slope, level = float(a), float(b), float(c)
    both = math.sqrt(slope**2 + 4 * square * level)
    return 2 * level / (slope + both) if slope > 0 else (both - slope) / (2 * square)
