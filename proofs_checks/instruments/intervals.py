"""How far a measured mean may lie from the true one: intervals that hold at any sample size."""

from __future__ import annotations

import math

import torch


def half_width(samples: torch.Tensor, low: float, high: float, alpha: float = 1e-6) -> float:
    r"""Half the width of a confidence interval for the mean of independent samples that lie in [low, high].

    .. math:: |\bar x - \mu| \le
        \sqrt{\frac{2 v \ln(4/\alpha)}{n}} + \frac{7 (\text{high}-\text{low}) \ln(4/\alpha)}{3 (n-1)}

    with v the sample variance, fails with probability at most alpha, whatever the law of the samples: the empirical
    Bernstein bound of Maurer and Pontil (COLT 2009), on both sides.

    Raises:
        ValueError: fewer than two samples, or some outside [low, high].

    >>> half_width(torch.zeros(10_001), 0, 1) < 0.004
    True
    """
    n = samples.numel()
    if n < 2 or not bool(((samples >= low) & (samples <= high)).all()):
        raise ValueError(f"samples must be at least 2 and lie in [{low}, {high}], got {n}: {samples}")
    log = math.log(4 / alpha)
    return math.sqrt(2 * float(samples.double().var()) * log / n) + 7 * (high - low) * log / (3 * (n - 1))
