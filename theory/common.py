"""Closed forms of the drift when the links share an environment (claim B9).

Given the environment the links lose independently and alike: X_k = P(a link lost the last k packets | environment).
Then a_k = E X_k as for links by themselves, and c_k = P(two links both lost them) = E X_k^2. Notation of
`lossproof.theory.bursts`; t = None means the steady state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lossproof.theory.aggregation import divide


def moments(weights: Sequence[Any], losses: Sequence[Any]) -> tuple[Any, Any]:
    """a and c of one step: E X and E X^2 for an environment with these probabilities and a link's loss in each.

    >>> moments([divide(1, 2), divide(1, 2)], [0, 1])
    (Fraction(1, 2), Fraction(1, 2))
    """
    weighted = list(zip(weights, losses, strict=True))
    return sum(w * x for w, x in weighted), sum(w * x * x for w, x in weighted)


def variance(weights: Sequence[Any], losses: Sequence[Any]) -> Any:
    """E X^2 - (E X)^2 as a sum of squares, over pairs of environments: w_e w_f (x_e - x_f)^2."""
    numbered = list(zip(weights, losses, strict=True))
    return sum(w * v * (x - y) ** 2 for i, (w, x) in enumerate(numbered) for v, y in numbered[:i])


def outage_environment(loss: Any, outage: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Weights and losses of an environment that is out with probability `outage`, so that a link's loss is `loss`."""
    return (outage, 1 - outage), (1, divide(loss - outage, 1 - outage))


def pair(p: Any, c: Any, t: Any = None, sigma2: Any = 1) -> Any:
    """Environments drawn anew each step, a link's loss p, c that of two at once: a_k = p^k, c_k = c^k, so
    E|theta_i - theta_j|^2 = 2 sigma2 [p (1-p^t)/(1-p) - c (1-c^t)/(1-c)]. Independent links have c = p^2.

    >>> pair(divide(1, 2), divide(1, 4))
    Fraction(4, 3)
    """
    return 2 * sigma2 * (_geometric(p, t) - _geometric(c, t))


def owner(p: Any, t: Any = None, sigma2: Any = 1) -> Any:
    """E|x - theta_i|^2 = p (1-p^t)/(1-p) sigma2: what links share does not show here."""
    return sigma2 * _geometric(p, t)


def _geometric(x: Any, t: Any) -> Any:
    """x + x^2 + ... + x^t."""
    return divide(x, 1 - x) if t is None else divide(x * (1 - x**t), 1 - x)
