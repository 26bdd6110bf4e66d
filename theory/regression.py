r"""SGD on a least-squares regression under loss: what C1 predicts of it, and what it leaves out (claim C4).

Every rank draws B rows (x, t) of n at its own copy, so its gradient is H_B y - g: the noise grows with the copy's
distance to the solution. C1 keeps its part at the solution, of covariance Sigma/B, Sigma = E x x' e^2, e the residual
there. The second moments also close with the whole of it, from a start of mean 0 (the solution): E[g g'] =
H C H + (F(C) - H C H + Sigma)/B, F(C) = E x x' (x'Cx). One coordinate, f = E x^4, T the steady E x^2 for v = 1:

.. math:: \frac{E x^2}{E x^2_{C1}} = \frac{1}{1 - \eta^2\,\frac{f-h^2}{B}\,\overline{m^2/K^2}\,T} \approx
    1 + \eta h\,\frac{f/h^2-1}{2 B N_{\mathrm{eff}}}.

Legend: n rows, D coordinates; matrices are D x D, NumPy, of floats or of fractions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lossproof.theory import dynamics
from lossproof.theory.aggregation import divide
from lossproof.theory.dynamics import Model

Array = Any


class Matrices(NamedTuple):
    """E x x', E x y_i', E y_i y_i', E y_i y_j' of the owner's x and its replicas, as `dynamics.Moments`."""

    xx: Array
    xy: Array
    yy: Array
    yz: Array


@dataclass(frozen=True)
class Minibatches:
    """The gradient noise of B rows drawn with replacement; `residual_n` = features @ solution - target."""

    features_nD: Array
    residual_n: Array
    B: int

    @property
    def hessian(self) -> Array:
        return _mean(self.features_nD, 0 * self.residual_n + 1)

    @property
    def at_solution(self) -> Array:
        """Sigma/B, all that C1 knows of the noise."""
        return _mean(self.features_nD, self.residual_n**2) / self.B

    def growing(self, C: Array) -> Array:
        """(F(C) - H C H)/B, what a copy of covariance C adds to it."""
        squares_n = ((self.features_nD @ C) * self.features_nD).sum(-1)
        return (_mean(self.features_nD, squares_n) - self.hessian @ C @ self.hessian) / self.B


def _mean(x_nD: Array, weight_n: Array) -> Array:
    return (x_nD * weight_n[:, None]).T @ x_nD / len(x_nD)


def after(
    z: Matrices, N: int, p_gradients: Any, p: Any, eta: Any, of: Minibatches, model: Model, growing: bool = True
) -> Matrices:
    """The second moments after a step from copies of mean 0; without `growing`, C1's."""
    weights, q, H = dynamics.shares(N, p_gradients, model), 1 - p, of.hessian
    others = dynamics.copies(N, model) - 1
    each = divide(weights.others, others)

    def own(C: Array) -> Array:
        return H @ C @ H + of.at_solution + (of.growing(C) if growing else 0)

    crossed = H @ z.xy @ H
    square = (
        weights.owner_square * own(z.xx)
        + weights.with_owner * (crossed + crossed.T)
        + weights.squares * own(z.yy)
        + weights.pairs * (H @ z.yz @ H)
    )
    with_x = weights.owner * (H @ z.xx) + weights.others * (H @ z.xy.T)
    with_y = weights.owner * (H @ z.xy) + each * (H @ (z.yy + (others - 1) * z.yz))
    xx = z.xx - eta * (with_x + with_x.T) + eta**2 * square
    stale = z.xy - eta * with_y
    return Matrices(xx, q * xx + p * stale, q * xx + p * z.yy, q**2 * xx + p * q * (stale + stale.T) + p**2 * z.yz)


def excess_risk(
    N: int, p_gradients: Any, p: Any, eta: Any, of: Minibatches, model: Model, steps: int, growing: bool = True
) -> Any:
    """E[x'Hx]/2 after some steps from the solution."""
    z = Matrices(*[0 * of.hessian] * 4)
    for _ in range(steps):
        z = after(z, N, p_gradients, p, eta, of, model, growing)
    return (of.hessian * z.xx).sum() / 2


def predicted(N: int, p: float, eta: float, of: Minibatches, model: Model, steps: int) -> float:
    """The same by C1 from the eigenvalues of the Hessian and the noise along its eigenvectors."""
    h_D, v_DD = np.linalg.eigh(of.hessian)
    noise_D = np.einsum("ak,ab,bk->k", v_DD, of.at_solution, v_DD) * eta**2
    along = [dynamics.trajectory(N, p, p, eta * h, steps, model, 0.0, noise)[-1].xx
             for h, noise in zip(h_D.tolist(), noise_D.tolist(), strict=True)]  # fmt: skip
    return float(h_D @ np.array(along) / 2)


def steady_factor(T: Any, eta: Any, f: Any, h: Any, B: Any, share: Any) -> Any:
    """One coordinate: steady E x^2 over C1's; T = C1's for v = 1, share = E[sum m_i/K^2]. Beyond its pole: unstable."""
    return divide(1, 1 - eta**2 * (f - h**2) / B * share * T)


def first_order(s: Any, f: Any, h: Any, B: Any, ranks: Any) -> Any:
    """`steady_factor` to first order in s = eta h; `ranks` = N_eff."""
    return 1 + divide(s * (f / h**2 - 1), 2 * B * ranks)
