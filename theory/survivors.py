"""Closed forms of how many senders survive and how much each then weighs (claims A4, A6 to A8).

Arguments and answers as in `lossproof.theory.aggregation`: K of the N senders survive, p is their loss, q = 1 - p;
where losses are unequal, sender i's is losses[i] and its arrival probability q_i. Sums over senders want N as an int.
Floats are accurate to rounding also where p is close to 1; kappa takes a fraction of a second at N = 10^6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lossproof.theory.aggregation import divide, no_survivor


def some_survivor(N: Any, p: Any) -> Any:
    """P(K >= 1) = 1 - p^N; floats without cancellation. N may be an array if p is a float."""
    if isinstance(p, float):
        return -np.expm1(N * np.log(p)) if p > 0 else 1.0
    return 1 - no_survivor(N, p)


def kappa_term(k: Any, N: Any, p: Any) -> Any:
    """A7: p^(N-k) (1 - p^k) / k; all terms are positive, and kappa is their sum over k = 1..N."""
    return divide(p ** (N - k) * some_survivor(k, p), k)


def kappa(N: int, p: Any) -> Any:
    """A7: E[1/K; K >= 1] = integral_0^1 ((p + qz)^N - p^N) / z dz = sum_(k=1)^N p^(N-k) (1 - p^k) / k.

    >>> kappa(2, Fraction(1, 2))
    Fraction(5, 8)
    """
    if isinstance(p, float):
        first = max(1, N - int(746 / -math.log(p))) if 0 < p < 1 else 1  # p^(N-k) is 0 in floats before
        return float(np.sum(kappa_term(np.arange(first, N + 1), N, p)))
    return sum(kappa_term(k, N, p) for k in range(1, N + 1))


def kappa_lower(N: Any, p: Any) -> Any:
    """A7: (1 - p^N)^2 / (Nq) <= kappa, for all N and 0 <= p < 1; tight for p -> 0 and p -> 1."""
    return divide(some_survivor(N, p) ** 2, N * (1 - p))


def kappa_upper(N: Any, p: Any) -> Any:
    """A7: kappa <= (1 - p^N) / (Nq - 2p) where Nq > 2p. Tight for p -> 0; no constant below 2 will do (N = 2)."""
    return divide(some_survivor(N, p), N * (1 - p) - 2 * p)


def inverse_count(N: int, p: Any) -> Any:
    """E[1/K | K >= 1] = kappa / (1 - p^N), p < 1.

    >>> inverse_count(2, Fraction(1, 2))
    Fraction(5, 6)
    """
    return divide(kappa(N, p), some_survivor(N, p))


def counts(losses: Sequence[Any]) -> list[Any]:
    """P(K = k) for k = 0..N, independent links of unequal loss: the coefficients of prod_j (p_j + q_j z).

    >>> counts([0, Fraction(1, 4)])
    [Fraction(0, 1), Fraction(1, 4), Fraction(3, 4)]
    """
    law: list[Any] = [1]
    for p in losses:
        law = [p * stays + (1 - p) * grows for stays, grows in zip([*law, 0], [0, *law], strict=True)]
    return law


def weights(losses: Sequence[Any]) -> list[Any]:
    """A6: E[m_i/K; K >= 1] = q_i integral_0^1 prod_(j != i) (p_j + q_j z) dz for every sender, 0 <= p_j <= 1.

    They sum to 1 - prod p_j. Each increases strictly in its own q_i and does not increase in the others.

    >>> weights([0, Fraction(1, 2)])
    [Fraction(3, 4), Fraction(1, 4)]
    """
    result = []
    for i, p in enumerate(losses):
        others = counts([*losses[:i], *losses[i + 1 :]])
        result.append((1 - p) * sum(divide(chance, k + 1) for k, chance in enumerate(others)))
    return result


def unequal_bias(gradients: Sequence[Any], losses: Sequence[Any]) -> Any:
    """A6: E[survivor mean | K >= 1] - gbar under independent links of unequal loss, not all 1.

    >>> unequal_bias([1, 0], [0, Fraction(1, 2)])
    Fraction(1, 4)
    """
    some = 1 - counts(losses)[0]
    return sum((divide(w, some) - divide(1, len(losses))) * g for w, g in zip(weights(losses), gradients, strict=True))


def inverse_probability(gradients: Sequence[Any], arrival: Sequence[Any], assumed: Sequence[Any] | None = None) -> Any:
    """A4: E[(1/N) sum m_i g_i / a_i] = (1/N) sum g_i q_i / a_i: gbar if the probabilities a_i assumed are the q_i.

    Any dependence between the links; `arrival` are the q_i > 0 given all that g depends on, `assumed` the a_i.

    >>> inverse_probability([1, 2], [Fraction(1, 2), Fraction(1, 4)])
    Fraction(3, 2)
    """
    terms = zip(gradients, arrival, arrival if assumed is None else assumed, strict=True)
    return divide(sum(divide(g * q, a) for g, q, a in terms), len(gradients))


def cut_bias(g_cut: Any, gbar: Any, N: Any) -> Any:
    """A8: E[survivor mean | K >= 1] - gbar if one sender never arrives and the N - 1 others are exchangeable, N >= 2.

    The same if which packet is lost depends on the gradients; `g_cut` is then the gradient that is lost.

    >>> cut_bias(1, Fraction(1, 2), 2)
    Fraction(-1, 2)
    """
    return divide(gbar - g_cut, N - 1)


def cut_floor(change: Any, N: Any) -> Any:
    """A8: |change| / (2N), the least worst-case bias of any rule if a cut sender's gradient may vary by `change`."""
    return divide(abs(change), 2 * N)
