"""Closed forms of the drift when steps are not white noise: the worst case (B5), correlated steps (B6); per packet.

Parameter packets are lost independently with probability p < 1; all copies are equal at t = 0; t = None means the
steady state. A *pair* is two distinct non-owners. Arguments as in `lossproof.theory.aggregation`.
"""

from __future__ import annotations

from typing import Any

from lossproof.theory import drift, staleness
from lossproof.theory.aggregation import divide


def owner_worst(p: Any, t: Any = None, G2: Any = 1) -> Any:
    """B5: the largest E|x_t - theta_t|^2 if |u|^2 <= G2 on every path, G2 E A_t^2; increasing to p (1+p) / (1-p)^2 G2.

    Constant steps attain it.
    """
    if t is None:
        return G2 * divide(p * (1 + p), (1 - p) ** 2)
    return G2 * divide(p * (1 + p - (2 * t + 1) * p**t + (2 * t - 1) * p ** (t + 1)), (1 - p) ** 2)


def pair_worst(p: Any, t: Any = None, G2: Any = 1) -> Any:
    """B5: the largest E|theta_i - theta_j|^2 if |u|^2 <= G2 on every path, G2 E(A_i-A_j)^2; to 2p/(1-p)^2 G2.

    >>> pair_worst(0.5)
    4.0
    """
    if t is None:
        return G2 * divide(2 * p, (1 - p) ** 2)
    return 2 * (owner_worst(p, t, G2) - G2 * staleness.age_mean(p, t) ** 2)


def owner_biased(p: Any, t: Any = None, mu2: Any = 0, sigma2: Any = 1) -> Any:
    """B5: E|x_t - theta_t|^2 for u = mu + a martingale difference of variance sigma2; mu2 = |mu|^2."""
    return drift.owner(p, t, sigma2) + owner_worst(p, t, mu2)


def pair_biased(p: Any, t: Any = None, mu2: Any = 0, sigma2: Any = 1) -> Any:
    """B5: E|theta_i - theta_j|^2 for u = mu + a martingale difference: to 2p/(1-p^2) sigma2 + 2p/(1-p)^2 mu2."""
    return drift.pair(p, t, sigma2) + pair_worst(p, t, mu2)


def power_sum(a: Any, b: Any, t: Any) -> Any:
    """a^(t-1) + a^(t-2) b + ... + b^(t-1), which is (a^t - b^t) / (a - b) unless a = b."""
    if a == b:
        return t * a ** (t - 1) if t else 0
    return divide(a**t - b**t, a - b)


def overlap(p: Any, rho: Any, t: Any = None, sigma2: Any = 1) -> Any:
    """B6: E<x_t - theta_t, u_(t+1)>, lag times next step: sigma2 p rho (1 - (p rho)^t) / (1 - p rho)."""
    return sigma2 * divide(p * rho * (1 if t is None else 1 - (p * rho) ** t), 1 - p * rho)


def owner(p: Any, rho: Any, t: Any = None, sigma2: Any = 1) -> Any:
    """B6: E|x_t - theta_t|^2 for E<u_k, u_l> = sigma2 rho^|k-l|, |rho| <= 1, to p/(1-p) (1+p rho)/(1-p rho) sigma2.

    Before the steady state it is that factor times B3, less 2 p rho/(1-p rho) p^t (1-rho^t)/(1-rho) sigma2.
    """
    gain = divide(1 + p * rho, 1 - p * rho)
    if t is None:
        return gain * drift.owner(p, None, sigma2)
    return gain * drift.owner(p, t, sigma2) - 2 * overlap(p, rho, None, sigma2) * p**t * power_sum(1, rho, t)


def pair(p: Any, rho: Any, t: Any = None, sigma2: Any = 1) -> Any:
    """B6: E|theta_i - theta_j|^2 for E<u_k, u_l> = sigma2 rho^|k-l|, |rho| <= 1.

    To 2p/(1-p^2) (1 + p rho)/(1 - p rho) sigma2.

    >>> pair(0.5, 0.5)
    2.2222222222222223
    """
    gain = divide(1 + p * rho, 1 - p * rho)
    if t is None:
        return gain * drift.pair(p, None, sigma2)
    start = p**t * (power_sum(1, rho, t) - p * power_sum(p, rho, t))
    return gain * drift.pair(p, t, sigma2) - 4 * overlap(p, rho, None, sigma2) * start


def heavy_ball(rate: Any, momentum: Any, noise2: Any) -> Any:
    """B6: E|u|^2 of stationary heavy-ball steps u_t = momentum u_(t-1) - rate g_t with white g, E|g|^2 = noise2.

    Their autocorrelation is momentum^k, so the drift is `pair(p, momentum, t, heavy_ball(rate, momentum, noise2))`.
    """
    return divide(rate**2 * noise2, 1 - momentum**2)
