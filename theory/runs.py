"""Closed forms of a loss log as a chain with one step of memory (F1): its likelihood, its bursts, its alike.

A log is a sequence of outcomes, 1 is lost. `counts` are, over all its chains, the transitions n00, n01, n10, n11 and
the first outcomes s0, s1; p is the loss and 1/b the mean burst. Arguments as in `lossproof.theory.aggregation`; the
derivations are in `lossproof.theory.derive.fitting`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lossproof.theory.aggregation import divide

Binomial = Callable[[Any, Any], Any]


def entering(p: Any, b: Any) -> Any:
    """The chance of a loss after an arrival: in the steady state as many bursts begin as end.

    >>> entering(0.5, 0.25)
    0.25
    """
    return divide(b * p, 1 - p)


def likelihood(p: Any, b: Any, counts: Sequence[Any]) -> Any:
    """The probability of one log with these counts, a function of its counts only."""
    n00, n01, n10, n11, s0, s1 = counts
    a = entering(p, b)
    return p**s1 * (1 - p) ** s0 * a**n01 * (1 - a) ** n00 * b**n10 * (1 - b) ** n11


def burst_equation(p: Any, b: Any, counts: Sequence[Any]) -> Any:
    """0 where b is the best for this loss: the slope of the log-likelihood times b (1-b) (1-a)."""
    n00, n01, n10, n11, _, _ = counts
    c, moves = divide(p, 1 - p), n01 + n10
    return moves - b * (moves * (1 + c) + n00 * c + n11) + b**2 * c * (moves + n00 + n11)


def loss_equation(a: Any, b: Any, counts: Sequence[Any]) -> Any:
    """0 where a is the best chance of a loss after an arrival for this b: the slope times a (1-a) (a+b)."""
    n00, n01, _, _, s0, s1 = counts
    into, starts = n01 + s1, s0 + s1
    return into * b + a * (into * (1 - b) - n00 * b - starts) + a**2 * (starts - into - n00)


def compositions(total: Any, parts: Any, binomial: Binomial = math.comb) -> Any:
    """How many sequences of `parts` run lengths sum to `total`: a run may end after every packet but the last.

    >>> compositions(5, 2)
    4
    """
    return binomial(total - 1, parts - 1)


def mean_bursts(lost: Any, arrived: Any) -> Any:
    """The mean number of bursts if all arrangements of the losses among the arrivals are equally likely.

    >>> mean_bursts(2, 2)
    Fraction(3, 2)
    """
    return divide(lost * (arrived + 1), lost + arrived)


def at_most_slope(k: Any, n: Any, p: Any, binomial: Binomial = math.comb) -> Any:
    """The slope in p of the probability of at most k losses among n independent ones: never positive."""
    return -n * binomial(n - 1, k) * p**k * (1 - p) ** (n - 1 - k)
