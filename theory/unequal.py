"""The weights of senders whose links lose unequally (claim A6), by quadrature: floats, for any number of ranks.

Independent links, sender i's loss p_i, q_i = 1 - p_i, f_i(z) = p_i + q_i z, K survivors. E[m_i/K; K >= 1] = q_i times
the integral over 0..1 of the product of f_j, j != i; `lossproof.theory.survivors.weights` is the same in fractions, for
few ranks. A reliable own link replaces the owner's f by z.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lossproof.theory.stability import OwnLink

_NODES = 32


@dataclass(frozen=True)
class Weights:
    """For one sender.

    `weight`: expected weight of its gradient given a survivor, averaged over the owners, every rank owning as much
    (with a lossy own link it is the same for all). For the packets that it owns: `kappa` = E[1/K; K >= 1],
    `inverse_count` = E[1/K | K >= 1], `owner_weight`, that of its own gradient given a survivor, and `no_survivor` =
    P(K = 0).
    """

    weight: float
    kappa: float
    inverse_count: float
    owner_weight: float
    no_survivor: float


def sender_weights(ranks: Mapping[Fraction, int], own_link: OwnLink) -> dict[Fraction, Weights]:
    """The weights by loss; `ranks` counts the senders of each loss in [0, 1).

    >>> found = sender_weights({Fraction(0): 1, Fraction(1, 2): 1}, "lossy")
    >>> [round(w.weight, 12) for w in found.values()]
    [0.75, 0.25]
    """
    N = sum(ranks.values())
    count = np.array(list(ranks.values()), dtype=float)[:, None]
    q = np.array([float(1 - p) for p in ranks])[:, None]
    u, width = _nodes(N)
    z = 1 - u
    log_f = np.log1p(-q * u)  # rows: losses; columns: nodes
    log_all = np.sum(count * log_f, axis=0)
    without = np.exp(log_all - log_f)  # the product of all f but one
    if own_link == "lossy":
        log_none = math.fsum(n * _log(p) for p, n in ranks.items())
        some = -math.expm1(log_none)
        weight = q[:, 0] * (without @ width) / some
        kappa = float((-np.expm1(log_none - log_all) * np.exp(log_all) / z) @ width)
        return {p: Weights(float(w), kappa, kappa / some, float(w), math.exp(log_none))
                for p, w in zip(ranks, weight, strict=True)}  # fmt: skip
    own = without @ width
    share = z / np.exp(log_f)  # a reliable owner's factor is z instead of f
    others = q * (np.sum(count * share, axis=0) - share)
    weight = (without * (1 + others)) @ width / N
    return {p: Weights(float(w), float(o), float(o), float(o), 0.0) for p, w, o in zip(ranks, weight, own, strict=True)}


def _log(p: Fraction) -> float:
    if p == 0:
        return -math.inf
    return math.log1p(-float(1 - p)) if p > 0.5 else math.log(float(p))


def _nodes(N: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre on halving panels of u = 1 - z: the integrand falls like exp(-u sum q_j), however large N is."""
    x, w = np.polynomial.legendre.leggauss(_NODES)
    edges = np.append(0.0, 0.5 ** np.arange(N.bit_length() + 1, -1, -1.0))
    width = np.diff(edges)[:, None]
    return (edges[:-1, None] + width * (x + 1) / 2).ravel(), (width * w / 2).ravel()
