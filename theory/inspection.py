r"""The age of a replica under bursts of losses is set by the burst that a lost packet is in (claim D4).

A link alternates runs of losses, of independent lengths T, with runs of arrivals of at least one, of any law; it ticks
once a step, a share p of the ticks is lost, L = E T. A long burst is met more often than it occurs, in proportion to
its length: the *inspection paradox*. The mean length of a burst met by a lost packet is L + Var T / L, and

.. math:: E A = \frac{p}{2} \left( L + 1 + \frac{\operatorname{Var} T}{L} \right)

in steady state: finite iff Var T is, whatever L. Regular bursts are best, geometric ones (Gilbert-Elliott) give pL, and
for every L > 1 some law has no mean age at all. If the link ticks several times a step, L in ticks says little:
`burst_in_steps`.

Arguments and answers as in `lossproof.theory.aggregation`; `tail` is P(T >= 1), P(T >= 2), ...
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lossproof.theory import bursts
from lossproof.theory.aggregation import divide


def met_length(mean: Any, variance: Any) -> Any:
    """The mean length of the burst that a lost packet is in, L + Var T / L.

    >>> met_length(2, 1)  # bursts of 1 or 3, equally often
    Fraction(5, 2)
    """
    return divide(mean * mean + variance, mean)


def mean_age(p: Any, mean: Any, variance: Any) -> Any:
    """E A = (p/2) (L + 1 + Var T / L): a lost packet lies anywhere in its burst.

    >>> mean_age(divide(1, 5), 2, 1)
    Fraction(7, 20)
    """
    return p * divide(met_length(mean, variance) + 1, 2)


def mean_age_of_runs(runs: Iterable[int], steps: int) -> Any:
    """E A from a log: the lengths of its runs of losses, among so many steps of that link and packet.

    >>> mean_age_of_runs([1, 3], 20)
    Fraction(7, 20)
    """
    return divide(sum(run * (run + 1) for run in runs), 2 * steps)


def place(j: Any, p: Any, mean: Any, tail_at_j: Any) -> Any:
    """P(the packet is lost and the j-th of its burst), which is P(A = j); also that j losses are left of it."""
    return divide(p, mean) * tail_at_j


def burst_rate(p: Any, mean: Any) -> Any:
    """How often a burst begins after an arrival, p/(L (1-p)); at most 1."""
    return divide(p, mean * (1 - p))


# -- laws of T


def geometric_variance(mean: Any) -> Any:
    """Var T of Gilbert-Elliott bursts, L (L-1): E A = pL."""
    return mean * (mean - 1)


def least_variance(whole: Any, part: Any) -> Any:
    """The least Var T of whole lengths for L = whole + part, 0 <= part < 1: lengths `whole` and one more."""
    return part * (1 - part)


def heavy_length_tail(i: Any, rest: Any) -> Any:
    """P(T >= whole + i) = rest/(i (i+1)) for i >= 1, 0 < rest <= 2; bursts are never shorter than `whole` >= 1.

    L = whole + rest, any number above 1, and Var T is infinite. The shipped law `HeavyTailed` is whole = 0, rest = 2.
    """
    return divide(rest, i * (i + 1))


def heavy_tail(i: Any, p: Any, whole: Any, rest: Any) -> Any:
    """P(A >= whole + i) under such bursts, p rest/(L i): E A_t grows as (p rest/L) log t, for ever."""
    return divide(p * rest, (whole + rest) * i)


# -- the clock


def memory(p: Any, L: Any) -> Any:
    """What is left of the state of a Gilbert-Elliott link after a tick, lambda = 1 - 1/(L (1-p)); L in ticks."""
    return 1 - divide(1, L * (1 - p))


def burst_in_steps(p: Any, L: Any, ticks: Any) -> Any:
    """The mean burst in steps of a Gilbert-Elliott link that ticks several times a step, 1/((1-p)(1-lambda^ticks)).

    From L at one tick down to 1/(1-p), independent loss; E A is p times that. The same as B8's `effective_burst`.

    >>> round(burst_in_steps(0.1, 50, 1000), 6)  # fifty packets of the thousand in a step: independent loss
    1.111111
    """
    return bursts.effective_burst(p, L, ticks)
