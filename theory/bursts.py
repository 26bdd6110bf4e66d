r"""Closed forms of the drift under losses that come in bursts (claim B8).

a_k = P(A >= k), the probability that a link lost the last k parameter packets; b_k the same for another link; c_k that
both lost them. The steps are uncorrelated, E|u|^2 = sigma2, and independent of the losses, which are stationary and
otherwise any. A common start at t = 0 ends every sum at k = t; t = None means the steady state.
L is the mean burst in ticks, one tick per step, packet and link; arguments as in `lossproof.theory.aggregation`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lossproof.theory.aggregation import divide


def owner(a: Iterable[Any], sigma2: Any = 1) -> Any:
    """E|x - theta_i|^2 = sigma2 sum_k a_k, for the tail a_1, a_2, ...: bounded iff the mean age is finite."""
    return sigma2 * sum(a)


def pair(a: Iterable[Any], b: Iterable[Any], c: Iterable[Any], sigma2: Any = 1) -> Any:
    """E|theta_i - theta_j|^2 = sigma2 sum_k (a_k + b_k - 2 c_k)."""
    return sigma2 * sum(one + other - 2 * both for one, other, both in zip(a, b, c, strict=True))


def pair_independent(a: Iterable[Any], sigma2: Any = 1) -> Any:
    """Independent links of the same law: 2 sigma2 sum_k a_k (1 - a_k).

    >>> pair_independent([divide(1, 2)])
    Fraction(1, 2)
    """
    a = list(a)
    return pair(a, a, [one * one for one in a], sigma2)


# -- Gilbert-Elliott with two parameters: every packet is lost in the bad state, none in the good one


def gilbert_tail(k: Any, p: Any, L: Any) -> Any:
    """a_k = p (1 - 1/L)^(k-1) for k >= 1; L = 1/(1-p) is independent loss."""
    return p * (1 - divide(1, L)) ** (k - 1)


def gilbert_owner(p: Any, L: Any, t: Any = None, sigma2: Any = 1) -> Any:
    """pL (1 - (1-1/L)^t) sigma2, to pL sigma2."""
    return sigma2 * p * L * (1 if t is None else 1 - (1 - divide(1, L)) ** t)


def gilbert_pair(p: Any, L: Any, t: Any = None, sigma2: Any = 1) -> Any:
    """2 sigma2 [pL (1 - r^t) - (pL)^2 (1 - r^(2t)) / (2L-1)] with r = 1 - 1/L, to 2pL (1 - pL/(2L-1)) sigma2.

    >>> gilbert_pair(divide(1, 2), 2)  # independent loss: 2p/(1-p^2)
    Fraction(4, 3)
    """
    squares = divide(p * p * L * L, 2 * L - 1)
    left = 1 if t is None else 1 - (1 - divide(1, L)) ** (2 * t)
    return 2 * gilbert_owner(p, L, t, sigma2) - 2 * sigma2 * squares * left


def effective_burst(p: Any, L: Any, ticks: Any) -> Any:
    """The mean burst in steps if the channel ticks several times a step: 1/((1-p)(1-m^ticks)), m = 1 - 1/(L(1-p)).

    >>> effective_burst(divide(1, 2), 4, 1)
    Fraction(4, 1)
    """
    memory = 1 - divide(1, L * (1 - p))
    return divide(1, (1 - p) * (1 - memory**ticks))


# -- Gilbert-Elliott with four parameters: transitions good -> bad and bad -> good, loss in either state


def chain_recurrence(enter: Any, leave: Any, good: Any, bad: Any) -> tuple[Any, Any, Any, Any]:
    """a_1, a_2, and the trace and determinant of M = [[(1-enter) good, enter bad], [leave good, (1-leave) bad]].

    Row vectors of P(state, all lost so far) go from packet to packet by M, so a_(k+2) = trace a_(k+1) - det a_k.
    """
    share = divide(enter, enter + leave)
    in_good, in_bad = (1 - share) * good, share * bad
    second = in_good * ((1 - enter) * good + enter * bad) + in_bad * (leave * good + (1 - leave) * bad)
    determinant = good * bad * (1 - enter - leave)
    return in_good + in_bad, second, (1 - enter) * good + (1 - leave) * bad, determinant


def recurrent_terms(a1: Any, a2: Any, trace: Any, determinant: Any, t: int) -> list[Any]:
    """a_1, ..., a_t of a_(k+2) = trace a_(k+1) - determinant a_k."""
    terms = []
    for _ in range(t):
        terms.append(a1)
        a1, a2 = a2, trace * a2 - determinant * a1
    return terms


def recurrent_sum(a1: Any, a2: Any, trace: Any, determinant: Any) -> Any:
    """sum_k a_k for such a recurrence, if a_k -> 0."""
    return divide(a2 + (1 - trace) * a1, 1 - trace + determinant)


def recurrent_square_sum(a1: Any, a2: Any, trace: Any, determinant: Any) -> Any:
    """sum_k a_k^2 for such a recurrence, if a_k -> 0."""
    above = (1 + determinant) * ((1 - trace**2) * a1**2 + a2**2) - 2 * trace * determinant * a1 * (a2 - trace * a1)
    return divide(above, (1 - determinant) * ((1 + determinant) ** 2 - trace**2))


def chain_owner(enter: Any, leave: Any, good: Any, bad: Any, t: int | None = None, sigma2: Any = 1) -> Any:
    """Drift to the owner of a four-parameter chain that ticks once a step."""
    parts = chain_recurrence(enter, leave, good, bad)
    return sigma2 * recurrent_sum(*parts) if t is None else owner(recurrent_terms(*parts, t), sigma2)


def chain_pair(enter: Any, leave: Any, good: Any, bad: Any, t: int | None = None, sigma2: Any = 1) -> Any:
    """Pairwise drift of two independent four-parameter chains that tick once a step.

    >>> chain_pair(divide(1, 2), divide(1, 2), 0, 1)  # no memory: independent loss with p = 1/2
    Fraction(4, 3)
    """
    parts = chain_recurrence(enter, leave, good, bad)
    if t is not None:
        return pair_independent(recurrent_terms(*parts, t), sigma2)
    return 2 * sigma2 * (recurrent_sum(*parts) - recurrent_square_sum(*parts))


# -- renewal bursts: any law of the burst's length T, runs of arrivals in between


def renewal_tail(k: int, p: Any, tail: list[Any]) -> Any:
    """a_k = (p / E T) sum of P(T >= j) over j >= k, for k >= 1; `tail` is P(T >= 1), P(T >= 2), ..."""
    return divide(p * sum(tail[k - 1 :]), sum(tail))


def renewal_owner(p: Any, mean: Any, variance: Any, sigma2: Any = 1) -> Any:
    """Drift to the owner (p/2) (L + 1 + Var T / L) sigma2 with L = E T: a finite mean burst is not enough."""
    return sigma2 * divide(p * (mean * mean + mean + variance), 2 * mean)


def heavy_length_tail(j: Any) -> Any:
    """P(T >= j) = 2 / (j (j+1)) for j >= 1: bursts of mean 2 and infinite variance."""
    return divide(2, j * (j + 1))


def heavy_tail(k: Any, p: Any) -> Any:
    """a_k = p/k under such bursts: to the owner p (1 + 1/2 + ... + 1/t) sigma2, which has no bound."""
    return divide(p, k)
