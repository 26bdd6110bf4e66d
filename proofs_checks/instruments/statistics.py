"""Tests with an exact false-alarm probability: no normal approximation, no three-sigma band."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from lossproof.proofs_checks.claim import require

ALPHA = 1e-9
"""The false-alarm probability of one sampled check."""
_SHARES = np.array([0.95, *2.0 ** -np.arange(1, 15)])


def evidence_against_mean(samples: NDArray[np.float64], mean: float, low: float, high: float) -> float:
    r"""log of an e-value against "the samples, given the past, have this mean and lie in [low, high]".

    .. math:: e = \frac{1}{|\Lambda|} \sum_{\lambda \in \Lambda} \prod_i (1 + \lambda y_i),
        \quad y_i = x_i - \text{mean}

    Every bet lambda is a fraction of the largest that keeps all factors positive. Under the hypothesis every factor has
    conditional mean 1, so E e = 1 and P(e >= 1/alpha) <= alpha at any sample size
    and under optional stopping. Reference: Waudby-Smith and Ramdas, JRSS B 2024 (betting).
    """
    if not low <= mean <= high or low >= high:
        return float("inf")
    if samples.size and not (samples.min() >= low and samples.max() <= high):
        return float("inf")
    if mean in (low, high) and not (samples == mean).all():
        return float("inf")  # a mean at the edge of the range leaves no other value
    y = np.asarray(samples, dtype=np.float64).ravel() - mean
    bets = np.concatenate([_SHARES / (mean - edge) for edge in (low, high) if mean != edge])
    logs = np.array([np.log1p(bet * y).sum() for bet in bets])
    return float(np.logaddexp.reduce(logs) - np.log(bets.size))


def require_mean(
    what: str, samples: NDArray[np.float64], mean: float, low: float, high: float, alpha: float = ALPHA
) -> None:
    """Refutes "independent samples in [low, high] have this mean" at level alpha."""
    log_e = evidence_against_mean(samples, mean, low, high)
    require(
        log_e < np.log(1 / alpha),
        f"{what}: mean {np.mean(samples):.4g} of {samples.size} samples against {mean:.4g} (log e-value {log_e:.3g})",
    )


def resolution(samples: int, mean: float, square: float, alpha: float) -> float:
    """The share of their mean by which so many samples may fall short of it at level alpha, see `require_at_least`."""
    return float(np.sqrt(2 * square * np.log(1 / alpha) / samples) / mean)


def require_at_least(what: str, samples: NDArray[np.float64], mean: float, square: float, alpha: float) -> None:
    """Refutes "independent samples >= 0 have this mean and this mean square" where theirs is too low, at level alpha.

    P(mean of n <= mu - t) <= exp(-n t^2 / (2 E x^2)), as exp(-y) <= 1 - y + y^2/2 for y >= 0: no upper limit is
    needed, and nothing is chosen after the samples. Reference: Maurer, J. Inequal. Pure Appl. Math. 2003.
    """
    require(bool((samples >= 0).all()), f"{what}: samples must not be negative")
    least = mean * (1 - resolution(samples.size, mean, square, alpha))
    found = float(samples.mean())
    require(found > least, f"{what}: mean {found:.4g} of {samples.size} samples against {mean:.4g}, least {least:.4g}")


def binomial_p_value(successes: int, trials: int, probability: float) -> float:
    """The exact p-value of a binomial count, twice the smaller tail."""
    below, above = binom.cdf(successes, trials, probability), binom.sf(successes - 1, trials, probability)
    return min(1.0, 2 * float(min(below, above)))


def require_probability(what: str, successes: int, trials: int, probability: float, alpha: float = ALPHA) -> None:
    """Refutes "each of the independent trials succeeds with this probability" at level alpha."""
    possible = 0 <= probability <= 1
    require(
        possible and binomial_p_value(successes, trials, probability) > alpha,
        f"{what}: {successes} of {trials} against probability {probability:.4g}",
    )
