"""Closed forms of the drift between replicas (claims B2 to B4), per packet.

Steps are zero-mean (a martingale difference) with E|u|^2 = sigma2; parameter packets are lost independently with
probability p; all copies are equal at t = 0; t = None means the steady state, p < 1. A *pair* is two non-owners.
"""

from __future__ import annotations

from typing import Any

from lossproof.theory.aggregation import divide


def owner(p: Any, t: Any = None, sigma2: Any = 1) -> Any:
    """B3: E|x_t - theta_t|^2 = p (1 - p^t) / (1 - p) sigma2, to p / (1 - p) sigma2."""
    return sigma2 * (divide(p, 1 - p) if t is None else divide(p * (1 - p**t), 1 - p))


def pair(p: Any, t: Any = None, sigma2: Any = 1) -> Any:
    """B2: E|theta_i - theta_j|^2 = 2 sigma2 [p (1-p^t)/(1-p) - p^2 (1-p^(2t))/(1-p^2)], to 2p/(1-p^2) sigma2.

    >>> pair(0.5)
    1.3333333333333333
    """
    if t is None:
        return sigma2 * divide(2 * p, 1 - p**2)
    return 2 * sigma2 * (divide(p * (1 - p**t), 1 - p) - divide(p**2 * (1 - p ** (2 * t)), 1 - p**2))


def model_pair(p: Any, N: Any, t: Any = None, sigma2: Any = 1) -> Any:
    """B2: two ranks' whole models in N >= 2 equal shards: to 2p/(1-p^2) sigma2 [1-(1-p)/N].

    Each of the two owns one shard, where the drift is that of a replica to its owner. `sigma2` is the whole model's.
    """
    if t is None:
        return pair(p, sigma2=sigma2) * (1 - divide(1 - p, N))
    return (1 - divide(2, N)) * pair(p, t, sigma2) + divide(2, N) * owner(p, t, sigma2)


def stale_gap(p: Any, t: Any = None, sigma2: Any = 1) -> Any:
    """B4: E|x_t - theta_(t-1)|^2, the gap between the fresh copy and a stale one: sigma2 (1 - p^t) / (1 - p)."""
    return sigma2 * (divide(1, 1 - p) if t is None else divide(1 - p**t, 1 - p))


def reported_constant(p: Any) -> Any:
    """B4: 2p / (1 + p), the steady-state constant as reported (second-hand) for arXiv 2507.07114.

    Exact if sigma^2 is read as `stale_gap`; too small by the factor 1/(1-p) if it is read as E|u|^2 of one step.
    """
    return divide(2 * p, 1 + p)
