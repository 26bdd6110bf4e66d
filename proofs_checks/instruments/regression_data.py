"""A real regression: the diabetes data that scikit-learn ships (Efron, Hastie, Johnstone and Tibshirani, 2004).

Legend: n rows, D = 10 features.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lossproof.proofs_checks.judge import MissingExtra


class Regression(NamedTuple):
    """Half the mean square of features_nD @ theta - target_n; its Hessian and its solution."""

    features_nD: NDArray[np.float64]
    target_n: NDArray[np.float64]
    hessian: NDArray[np.float64]
    solution_D: NDArray[np.float64]

    @property
    def residual_n(self) -> NDArray[np.float64]:
        return self.features_nD @ self.solution_D - self.target_n

    @property
    def curvature(self) -> float:
        """The largest eigenvalue of the Hessian."""
        return float(np.linalg.eigvalsh(self.hessian)[-1])


@cache
def diabetes() -> Regression:
    """442 patients; features and target standardised."""
    try:
        from sklearn.datasets import load_diabetes
    except ModuleNotFoundError:
        raise MissingExtra("needs scikit-learn: install lossproof[data]") from None
    data: Any = load_diabetes(scaled=False)
    return regression(standard(data.data), standard(data.target))


def standard(values_n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean 0 and variance 1, column by column."""
    return np.asarray((values_n - values_n.mean(0)) / values_n.std(0), dtype=np.float64)


def regression(features_nD: NDArray[np.float64], target_n: NDArray[np.float64]) -> Regression:
    """The least squares problem of these rows."""
    hessian = features_nD.T @ features_nD / len(features_nD)
    solution_D = np.linalg.solve(hessian, features_nD.T @ target_n / len(features_nD))
    return Regression(features_nD, target_n, hessian, np.asarray(solution_D, dtype=np.float64))
