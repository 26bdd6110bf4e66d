r"""SGD on a quadratic under loss, exactly: second moments step by step, and their steady state (claim C1).

One quadratic of curvature h for all N ranks, optimum 0, step size eta, s = eta h. Every rank takes the gradient at its
own copy y_i, plus noise of mean 0 and variance sigma^2, independent across ranks and of the past. The owner moves by
-eta times the mean of the survivors' gradients, x' = x - eta (...), no survivor, no update; then every replica is
refreshed, y_i' = x', or keeps its y_i. Gradient packets are lost with probability p_gradients, parameter packets
with p.

E x^2, E x y_i, E y_i^2, E y_i y_j close: z' = M z + (1, q, q, q^2) v with M of `lossproof.theory.stability`, q = 1 - p,
v = eta^2 sigma^2 * `noise_share`. The steady state, with a, b, c of the stability limit:

.. math:: E x^2 = v\,\frac{n_0 + n_1 s}{\alpha s\,(c - b s - a s^2)}, \qquad
    E (x-y)^2 = \frac{p}{1-p}\,v\,\frac{c}{c - b s - a s^2}, \qquad E (y_i-y_j)^2 = \frac{2}{1+p}\,E (x-y)^2.

Models: ranks that own what they send, their own link `reliable` or `lossy`, N >= 2; or a `server`, all N >= 1 of whose
senders hold stale copies. A full Hessian decouples into its eigendirections if one mask covers all coordinates;
otherwise see `lossproof.theory.coupled`. Arguments and answers as in `lossproof.theory.aggregation`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from lossproof.theory import stability, survivors
from lossproof.theory.aggregation import divide
from lossproof.theory.stability import Shares

Model = Literal["reliable", "lossy", "server"]


class Moments(NamedTuple):
    """E x^2, E x y_i, E y_i^2, E y_i y_j of the owner's x and its replicas; the last means nothing if there is one."""

    xx: Any
    xy: Any
    yy: Any
    yz: Any


def server_shares(kappa: Any, alpha: Any) -> Shares:
    """Nobody's copy is the owner's: all N senders are stale."""
    return Shares(0, alpha, 0, 0, kappa, alpha - kappa)


def shares(N: int, p_gradients: Any, model: Model) -> Shares:
    """The means of the weights of the survivors."""
    if model == "server":
        return server_shares(survivors.kappa(N, p_gradients), survivors.some_survivor(N, p_gradients))
    return stability.shares(N, p_gradients, model)


def copies(N: Any, model: Model) -> Any:
    """How many copies there are, the owner's x among them."""
    return N + 1 if model == "server" else N


def noise_share(of: Shares) -> Any:
    """E[sum of m_i/K^2]: what the estimate keeps of the noise variance of one rank; E[1/K; K >= 1]."""
    return of.owner_square + of.squares


def added(p: Any, v: Any) -> Moments:
    """What noise of variance v in the owner's step adds to the moments after the broadcast."""
    q = 1 - p
    return Moments(v, q * v, q * v, q**2 * v)


def after(z: Moments, copies: Any, p: Any, s: Any, of: Shares, v: Any) -> Moments:
    """The moments after one step, M z + added."""
    M = stability.second_moments(copies, p, s, of)
    return Moments(
        *(sum(c * m for c, m in zip(row, z, strict=True)) + new for row, new in zip(M, added(p, v), strict=True))
    )


def trajectory(
    N: int, p_gradients: Any, p: Any, s: Any, steps: int, model: Model = "reliable", start: Any = 1, noise: Any = 0
) -> list[Moments]:
    """The moments before step 1, 2, ..., steps, and after it; all copies start at one point with E x^2 = `start`.

    `noise` = eta^2 sigma^2. With noise 0 and `start` the mean squared it gives what the noiseless part becomes.

    >>> [z.xx for z in trajectory(2, divide(1, 2), divide(1, 2), 1, 2)]
    [1, Fraction(0, 1), Fraction(1, 16)]
    """
    of = shares(N, p_gradients, model)
    path = [Moments(start, start, start, start)]
    for _ in range(steps):
        path.append(after(path[-1], copies(N, model), p, s, of, noise * noise_share(of)))
    return path


# -- steady state


class Steady(NamedTuple):
    """E x^2 = v (n0 + n1 s) / (rate s (c - b s - a s^2)), `rate` the expected sum of the weights."""

    n0: Any
    n1: Any
    rate: Any
    a: Any
    b: Any
    c: Any

    def slack(self, s: Any) -> Any:
        """c - b s - a s^2, positive for 0 <= s < s*: the determinant of I - M but for factors."""
        return self.c - self.b * s - self.a * s**2

    def moments(self, p: Any, s: Any, v: Any) -> Moments:
        xx = divide(v * (self.n0 + self.n1 * s), self.rate * s * self.slack(s))
        gap = self.gap(p, s, v)
        return Moments(xx, xx - divide(gap, 2), xx, xx - divide(gap, 1 + p))

    def gap(self, p: Any, s: Any, v: Any) -> Any:
        """E(x - y)^2: B3's p/(1-p) times the noise of a step, times what curvature makes of it."""
        return divide(p * v * self.c, (1 - p) * self.slack(s))


def lossy_steady(N: Any, p: Any, kappa: Any, alpha: Any) -> Steady:
    """Own link lossy."""
    return Steady(N * (1 - p**2), alpha * p * (2 * N + p - 3), alpha, *stability.lossy_coefficients(N, p, kappa, alpha))


def reliable_steady(N: Any, p: Any, w: Any, w2: Any) -> Steady:
    """Own link reliable."""
    n1 = p * (2 * (N - 2) - w * ((N - 1) * (1 - p) - 2))
    return Steady((N - 1) * (1 - p**2), n1, 1, *stability.reliable_coefficients(N, p, w, w2))


def server_steady(N: Any, p: Any, kappa: Any, alpha: Any) -> Steady:
    """A server: a = 2p (N kappa - alpha), b = N (1-p^2) - 2 alpha p (N (1-p) - 2), c = 2 N (1-p^2)."""
    b = N * (1 - p**2) - 2 * alpha * p * (N * (1 - p) - 2)
    return Steady(N * (1 - p**2), 2 * alpha * p * (N - 1), alpha, 2 * p * (N * kappa - alpha), b, 2 * N * (1 - p**2))


def steady(N: int, p_gradients: Any, p: Any, model: Model = "reliable") -> Steady:
    """The coefficients of the steady state.

    >>> steady(2, divide(1, 2), divide(1, 2)).slack(2)  # two ranks, own link reliable: the limit is 2
    Fraction(0, 1)
    """
    return steady_of(shares(N, p_gradients, model), N, p, model)


def steady_of(of: Shares, N: Any, p: Any, model: Model) -> Steady:
    """The same from the weights."""
    if model == "reliable":
        return reliable_steady(N, p, of.owner, of.owner_square)
    form = lossy_steady if model == "lossy" else server_steady
    return form(N, p, noise_share(of), of.owner + of.others)


def stable_step(N: int, p_gradients: Any, p: Any, model: Model = "reliable") -> float:
    """s*: with other losses in the two phases, and for a server, what `stability.stable_step` is for equal ones.

    >>> stable_step(2, 0.5, 0.5)
    2.0
    """
    _, _, _, a, b, c = steady(N, p_gradients, p, model)
    return stability.root(a, b, c)


def excess_risk(N: int, p_gradients: Any, p: Any, s: Any, model: Model = "reliable") -> Any:
    """E[h x^2 / 2] in steady state, in units of eta sigma^2, 0 < s < s*. Without loss: 1 / (2 N (2 - s)).

    >>> excess_risk(4, 0, 0, 1)
    Fraction(1, 8)
    """
    of = shares(N, p_gradients, model)
    return divide(s * steady_of(of, N, p, model).moments(p, s, noise_share(of)).xx, 2)
