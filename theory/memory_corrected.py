r"""Inverse probability around the last message received (claim D6).

The owner remembers h_i, the gradient packet last received from sender i (0 before the first), and estimates

.. math:: \hat{g} = \frac1N \sum_i h_i + \frac1N \sum_i \frac{m_i}{q_i} (g_i - h_i)

unbiased whatever h is, with the spread of inverse probability but in the changes g_i - h_i. Losses are independent
over time; own link lossy like the others. Gradients are a mean, of size m2 = |mean|^2, and noise of variance v (summed
over elements) that is independent between ranks and keeps the share rho of itself in a step. On parabolas
(x - c_i)^2/2, all ranks at the same x, s is the step size times the curvature and v the noise of x - c_i;
d2 = mean (c_i - mean c)^2 is how far the ranks' data differ.
Other arguments as in `lossproof.theory.aggregation`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from lossproof.theory import variance
from lossproof.theory.aggregation import divide
from lossproof.theory.survivors import inverse_count


def spread(changes: Sequence[Any], losses: Sequence[Any]) -> Any:
    """E|estimate - gbar|^2 given the past, independent links: (1/N^2) sum |g_i - h_i|^2 p_i/q_i."""
    return variance.inverse_probability(changes, losses)


def expected_change(ago: Sequence[Any], size: Any, p: Any) -> Any:
    """E|g_t - h_t|^2 over the losses before t: `ago` is |g_t - g_(t-k)|^2 for k = 1, ..., all earlier; `size` |g_t|^2.

    >>> expected_change([4, 0], 9, divide(1, 2))
    Fraction(17, 4)
    """
    return sum((1 - p) * p**k * change for k, change in enumerate(ago)) + p ** len(ago) * size


def overlap(rho: Any, p: Any) -> Any:
    """What a gradient's noise has in common with that of the last message, E rho^age: q rho/(1 - p rho)."""
    return divide((1 - p) * rho, 1 - p * rho)


def change(v: Any, rho: Any, p: Any, m2: Any = 0, t: Any = None) -> Any:
    """E|g - h|^2 after t earlier steps; None, the steady state: 2v (1 - rho)/(1 - p rho). White noise is paid twice.

    >>> change(1, 0, divide(1, 2))
    Fraction(2, 1)
    """
    steady = divide(2 * v * (1 - rho), 1 - p * rho)
    if t is None:
        return steady
    return steady + p**t * (m2 - v) + 2 * v * overlap(rho, p) * p**t * rho**t


def pays_above(v: Any, rho: Any, p: Any) -> Any:
    """The m2 above which the memory spreads less than plain inverse probability: v (1 - (2 - p) rho)/(1 - p rho).

    For white noise v: a gradient's mean must be larger than its noise. Negative where rho > 1/(2 - p): it always pays.
    """
    return divide(v * (1 - (2 - p) * rho), 1 - p * rho)


def shrink(m2: Any, v: Any, rho: Any, p: Any) -> Any:
    """The best factor on the memory, beta h instead of h: the correlation of a gradient with the last message."""
    return divide(m2 + v * overlap(rho, p), m2 + v)


def shrunk_change(m2: Any, v: Any, rho: Any, p: Any, beta: Any) -> Any:
    """E|g - beta h|^2 in steady state: m2 + v for beta = 0, `change` for 1, least for `shrink`."""
    return (m2 + v) * (1 + beta**2) - 2 * beta * (m2 + v * overlap(rho, p))


def survivor_crossing(N: Any, p: Any, v: Any = 1, rho: Any = 0, inverse: Any = None) -> Any:
    """The sum |mean_i - mean|^2/(N-1) between ranks above which it spreads less than the survivor mean with a survivor.

    `inverse` is E[1/K | K >= 1]. For white noise and little loss v (N-2)/N.

    >>> survivor_crossing(2, divide(1, 2))
    Fraction(2, 1)
    """
    inverse = inverse_count(N, p) if inverse is None else inverse
    return divide(change(v, rho, p) * p, N * (1 - p) * (inverse - divide(1, N))) - v


# -- descent on parabolas


class Moments(NamedTuple):
    """E x^2, and for each rank E x u_i and E u_i^2: x from the optimum, u_i what is remembered of rank i from its
    gradient at the optimum."""

    xx: Any
    xu: tuple[Any, ...]
    uu: tuple[Any, ...]


def term(p: Any, v: Any, apart: Any) -> Any:
    """E of the square of what one rank's term is off, h_i + m_i (g_i - h_i)/q_i - x: (v + p E(x - u_i)^2)/q."""
    return divide(v + p * apart, 1 - p)


def follow(now: Moments, losses: Sequence[Any], s: Any, v: Any) -> Moments:
    """The moments one step later, for any losses. How far the ranks' data differ does not occur."""
    N, V = len(losses), now.xx
    off = [term(p, v, V - 2 * a + b) for p, a, b in zip(losses, now.xu, now.uu, strict=True)]
    return Moments(
        (1 - s) ** 2 * V + divide(s**2 * sum(off), N**2),
        tuple((1 - s) * ((1 - p) * V + p * a) - divide(s * (1 - p) * e, N)
              for p, a, e in zip(losses, now.xu, off, strict=True)),
        tuple((1 - p) * (V + v) + p * b for p, b in zip(losses, now.uu, strict=True)),
    )  # fmt: skip


def slack(N: Any, p: Any, s: Any) -> Any:
    """2Nq^2 - b s - a s^2: positive for s below `stable_step`, where the steady state exists (equal losses)."""
    q = 1 - p
    return (2 - s) * q * (N * q + s * p * (N - 2)) - 2 * p * s**2


def stable_step(N: Any, p: Any) -> Any:
    """The supremum of the stable s, equal losses: 2 without loss, 2 for N -> infinity, and less for any other.

    >>> round(stable_step(8, 0.3), 3)
    1.711
    """
    q = 1 - p
    a, b = p * (q * (N - 2) + 2), q * (N * q - 2 * p * (N - 2))
    return (-b + math.sqrt(b * b + 8 * a * N * q * q)) / (2 * a) if p else 2


def steady(N: Any, p: Any, s: Any, v: Any) -> tuple[Any, Any, Any]:
    """E x^2, E x u and E u^2 in steady state, equal losses: E x^2 is about s v (1 + p)/(2Nq), 1 + p for noise twice."""
    q = 1 - p
    xx = divide(s * v * (1 + p) * (q + s * p), slack(N, p, s))
    return xx, crossed(xx, N, p, s, v), xx + v


def crossed(xx: Any, N: Any, p: Any, s: Any, v: Any) -> Any:
    """E x u where neither it nor E u^2 = E x^2 + v changes any more."""
    return xx - divide(s * (N * xx + v * (1 + p)), N * (1 - p) + s * p * (N - 2))


def plain(N: Any, p: Any, s: Any, v: Any, d2: Any) -> Any:
    """E x^2 in steady state for plain inverse probability: what the ranks' data differ by is noise, even if v = 0."""
    return divide(s * (v + p * d2), N * (1 - p) * (2 - s) - s * p)


def survivor_mean(N: Any, p: Any, s: Any, v: Any, d2: Any, inverse: Any = None) -> Any:
    """The same for the survivor mean under equal losses, no survivor no update."""
    inverse = inverse_count(N, p) if inverse is None else inverse
    return divide(s * (inverse * v + divide(N, N - 1) * d2 * (inverse - divide(1, N))), 2 - s)


def pays_beyond(N: Any, p: Any, s: Any) -> Any:
    """The d2/v above which `steady` is below `plain`: 1 + s (1 + p)(3q + s p)/slack, never less than 1."""
    return 1 + divide(s * (1 + p) * (3 * (1 - p) + s * p), slack(N, p, s))


def pays_beyond_survivors(N: Any, p: Any, s: Any, inverse: Any = None) -> Any:
    """The d2/v above which `steady` is below `survivor_mean`. For unequal losses see `survivors.unequal_bias`: the
    survivor mean settles that far from the optimum at any step size, with x - c_i for gradients."""
    inverse = inverse_count(N, p) if inverse is None else inverse
    noise = divide((2 - s) * (1 + p) * (1 - p + s * p), slack(N, p, s))
    return divide((noise - inverse) * (N - 1), (inverse - divide(1, N)) * N)
