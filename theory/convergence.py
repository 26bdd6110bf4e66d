r"""How fast SGD converges when packets are lost: a theorem for every smooth function (claim C2).

f is L-smooth, the same on all N ranks, and f >= f*. Step t: rank i draws a gradient at its own copy y_i of the owner's
x_t, unbiased, of variance at most sigma^2 and uncorrelated with the others'; the owner moves by -eta times the mean of
those that arrived, 0 if none did; each replica then becomes x_(t+1), or, with probability at most p_p, stays as it is.
All copies are equal at t = 0. With alpha, kappa, theta of `Weights`, s = L eta, and any rate, p_p < rate < 1, of which
the step size leaves `slack` >= 0,

.. math:: \frac1T\sum_{t<T} E|\nabla f(x_t)|^2 \le \frac{2(f(x_0)-f^*)}{\eta\alpha T}
    + \kappa\sigma^2\left[\frac{L\eta}{\alpha} + L^2\eta^2\frac{\theta}{\alpha}\,\frac{p_p}{1-\text{rate}}\right].

There is such a rate iff s <= `largest_step`; s <= `simple_step` suffices. Where theta <= 1 that is at least
1 - sqrt(p_p), and up to there the second term in the bracket is at most theta p_p times the first. Without parameter
loss a quadratic attains the bound at s = 1. Arguments as in `lossproof.theory.aggregation`, but p is p_p.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lossproof.theory import aggregation, survivors
from lossproof.theory.aggregation import divide
from lossproof.theory.stability import OwnLink


class Weights(NamedTuple):
    """What the theorem needs to know of the gradient phase.

    `alpha` = P(K >= 1), the sum of the senders' mean weights; `kappa` = E[1/K; K >= 1], that of their mean squares;
    `theta`: sum_i E[m_i/K] |y_i - x|^2 is at most theta times the mean of |y_i - x|^2 over the N - 1 replicas.
    """

    alpha: Any
    kappa: Any
    theta: Any


def lossy_stale(N: Any, alpha: Any) -> Any:
    """theta, own link lossy: N - 1 stale senders of weight alpha/N each."""
    return divide(alpha * (N - 1), N)


def reliable_stale(N: Any, w: Any, owners: int) -> Any:
    """theta, own link reliable, w = E[1/K], the owner's weight.

    With one owner of all packets the N - 1 others share 1 - w. With several each rank owns a part of what it sends and
    its stale copy moves that part too: no weight above w, N - 1 times.
    """
    return 1 - w if owners == 1 else (N - 1) * w


def weights(N: int, p: Any, own_link: OwnLink = "reliable", owners: int = 2) -> Weights:
    """The weights of independent gradient links of loss p; `owners`: how many ranks own packets.

    >>> weights(2, divide(1, 2), "lossy")
    Weights(alpha=Fraction(3, 4), kappa=Fraction(5, 8), theta=Fraction(3, 8))
    """
    if own_link == "lossy":
        alpha = survivors.some_survivor(N, p)
        return Weights(alpha, survivors.kappa(N, p), lossy_stale(N, alpha))
    w = aggregation.owner_weight(N, p)
    return Weights(1, w, reliable_stale(N, w, owners))


# -- one step: the mean gap D between replicas and owner, and f(x) - f* + price * D, which falls on average


def stretch(p: Any, rate: Any) -> Any:
    """|d - u|^2 <= (rate/p) |d|^2 + stretch |u|^2: a gap d that a lost packet lets grow by a step u."""
    return 1 if p == 0 else divide(rate, rate - p)


def gap(p: Any, rate: Any, D: Any, drive: Any, noise: Any) -> Any:
    """E D after a step is at most rate D + p stretch drive + p noise, `drive` and `noise` the parts of E|step|^2."""
    return rate * D + p * stretch(p, rate) * drive + p * noise


def price(eta: Any, L: Any, theta: Any, rate: Any) -> Any:
    """What a unit of D costs in f: eta L^2 theta / 2 at each step, and the share `rate` of it is there at the next."""
    return divide(eta * L**2 * theta, 2 * (1 - rate))


def slack(s: Any, theta: Any, p: Any, rate: Any) -> Any:
    """1 - s - s^2 theta p rate / ((rate - p)(1 - rate)): the step size is allowed where it is >= 0."""
    return 1 - s - divide(s**2 * theta * p * stretch(p, rate), 1 - rate)


def stale_noise(p: Any, rate: Any) -> Any:
    """p / (1 - rate), the mean gap that white steps of mean square 1 keep up: above p / (1 - p) (B3)."""
    return divide(p, 1 - rate)


def floor(s: Any, of: Weights, p: Any, rate: Any) -> Any:
    """s/alpha + s^2 theta/alpha p/(1-rate): times kappa sigma^2, what the mean of |grad f|^2 may stay at."""
    return divide(s, of.alpha) + divide(s**2 * of.theta, of.alpha) * stale_noise(p, rate)


def start(distance: Any, steps: Any, eta: Any, alpha: Any) -> Any:
    """2 (f(x_0) - f*) / (eta alpha T), which falls with the number of steps."""
    return divide(2 * distance, eta * alpha * steps)


def bound(distance: Any, steps: Any, eta: Any, L: Any, sigma2: Any, of: Weights, p: Any, rate: Any = None) -> Any:
    """The theorem: at least the mean of E|grad f(x_t)|^2 over t < steps; `distance` = f(x_0) - f*.

    Args:
        eta: step size. L: smoothness. sigma2: variance of one rank's gradient, summed over elements; per packet the
            largest over ranks.
        of: see `weights`. p: loss of parameters. rate: see above; None for the best, in floats.

    Raises:
        ValueError: the step size is too large, or the rate not one that allows it.

    >>> bound(1, 10, divide(1, 2), 1, 4, weights(2, divide(1, 2), "lossy"), divide(1, 9), divide(1, 3))
    Fraction(1081, 480)
    """
    s = L * eta
    if rate is None:
        rate = best_rate(s, of.theta, p)
    elif not (p < rate < 1 or p == rate == 0) or slack(s, of.theta, p, rate) < -1e-12:
        raise ValueError(f"rate must lie in ({p}, 1) and allow L eta = {s}, got {rate}")
    return start(distance, steps, eta, of.alpha) + of.kappa * sigma2 * floor(s, of, p, rate)


# -- the step size


def simple_rate(root: Any) -> Any:
    """sqrt(p), the rate that allows the largest step; here and below `root` = sqrt(p)."""
    return root


def simple_step(root: Any, tau: Any) -> Any:
    """(1 - root) / (1 - root + tau root), tau = sqrt(theta): s up to here is allowed, at the rate `root`.

    >>> simple_step(divide(1, 2), 1)  # p = 1/4, theta = 1: 1 - sqrt(p)
    Fraction(1, 2)
    """
    return divide(1 - root, 1 - root + tau * root)


def largest_step(theta: float, p: float) -> float:
    """The largest s that any rate allows: s + s^2 theta p / (1 - sqrt(p))^2 = 1.

    >>> round(largest_step(1, 0.25), 12)
    0.61803398875
    """
    return 2 / (1 + math.sqrt(1 + 4 * theta * p / (1 - math.sqrt(p)) ** 2))


def best_rate(s: Any, theta: Any, p: Any) -> float:
    """The least rate that allows s, so the one of the least floor: a root of rate^2 - b rate + p, b = 1 + p - k p,
    k = s^2 theta / (1 - s). For small s it is p + O(s^2).

    Raises:
        ValueError: no rate allows s.
    """
    s, theta, p = float(s), float(theta), float(p)
    largest = largest_step(theta, p)
    if not 0 < s <= largest * (1 + 1e-15):
        raise ValueError(f"L eta must lie in (0, {largest:.6g}] for p = {p:g}, theta = {theta:g}, got {s:g}")
    if theta * p == 0:  # no gap, or none that matters
        return math.sqrt(p)
    b = 1 + p - s**2 * theta / (1 - s) * p
    return float(2 * p / (b + math.sqrt(max(b * b - 4 * p, 0))))
