"""Closed forms for RPS, averaging of models over lossy links (claim B11); Yu et al., ICML 2019, arXiv 1810.07766.

A round maps the models X = (x_1, ..., x_N) of one block to X W: the block's owner averages the S models that reached
it, its own among them, and sends the average to all; a receiver that misses it keeps its own model. Column k of W is
that of receiver k: W_mk = s_m / S if received, else 1{m = k}. p_g: a model is lost on its way to the owner; p_p: the
average is lost on its way back; all links independent, the owner's own reliable. A = 11'/N. Arguments as in
`lossproof.theory.aggregation`.
"""

from __future__ import annotations

from typing import Any

from lossproof.theory import aggregation
from lossproof.theory.aggregation import divide


def received(N: Any, p_p: Any) -> Any:
    """E[M], the mean number of receivers of the average, the owner among them."""
    return 1 + (N - 1) * (1 - p_p)


def received_square(N: Any, p_p: Any) -> Any:
    """E[M^2], M = 1 + binomial(N - 1, 1 - p_p)."""
    return received(N, p_p) ** 2 + (N - 1) * p_p * (1 - p_p)


def spread(N: Any, p_g: Any, p_p: Any) -> Any:
    """a1 of E[WW'] = a1 I + (1 - a1) A, owner uniformly random, N >= 2: 1 - E[M] (1 - E[1/S]) / (N - 1)."""
    return 1 - divide(received(N, p_p) * (1 - aggregation.owner_weight(N, p_g)), N - 1)


def shift(N: Any, p_g: Any, p_p: Any) -> Any:
    """a2 of E[WAW'] = a2 I + (1 - a2) A, owner uniformly random; E|new mean - old mean|^2 = a2 / N sum |x_k - mean|^2.

    a2 = [E[M^2] E[1/S] + 2 (1 - E[1/S]) p_p (1 + (N-2)(1-p_p)) + (N-1) p_p - N] / (N (N-1)).
    """
    w = aggregation.owner_weight(N, p_g)
    kept = 2 * (1 - w) * p_p * received(N - 1, p_p)
    return divide(received_square(N, p_p) * w + kept + (N - 1) * p_p - N, N * (N - 1))


def contraction(N: Any, p_g: Any, p_p: Any) -> Any:
    """a1 - a2, by which a round with a uniformly random owner multiplies E sum |x_k - mean|^2.

    >>> from fractions import Fraction
    >>> contraction(2, Fraction(1, 2), Fraction(1, 2))
    Fraction(5, 16)
    """
    return spread(N, p_g, p_p) - shift(N, p_g, p_p)


def inverse_square(N: int, p_g: Any) -> Any:
    """E[1/S^2], S = 1 + binomial(N - 1, 1 - p_g): sum over k <= N of p_g^(N-k) (1 - p_g^k) / (k N (1 - p_g))."""
    return sum(divide(p_g ** (N - k) * (1 - p_g**k), k * N * (1 - p_g)) for k in range(1, N + 1))


def among_others(N: Any, p_g: Any, p_p: Any, w2: Any = None) -> Any:
    """The contraction with a fixed owner, N >= 3, of differences among the other ranks (N - 2 directions).

    w2 is E[1/S^2], `inverse_square(N, p_g)` if not given.
    """
    w2 = inverse_square(N, p_g) if w2 is None else w2
    apart = divide((N + 1) * aggregation.owner_weight(N, p_g) - N * w2 - 1, (N - 1) * (N - 2))
    return p_p - divide(p_p * (1 - p_p), N) + apart * (received(N, p_p) - divide(received_square(N, p_p), N))


def owner_to_others(N: Any, p_g: Any, p_p: Any, w2: Any = None) -> Any:
    """The contraction with a fixed owner of the one remaining direction, the owner against the mean of the others.

    All N - 1 directions together contract as with a random owner.
    """
    if N == 2:
        return contraction(N, p_g, p_p)
    return (N - 1) * contraction(N, p_g, p_p) - (N - 2) * among_others(N, p_g, p_p, w2)
