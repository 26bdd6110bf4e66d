r"""What losing parameter packets does to the mean of training: it is momentum (claim D1).

SGD of step eta on a quadratic of Hessian H, the same for all ranks. Gradient packets are lost with probability p_g,
parameter packets with p, all independently. With g_t = H E x_t the owner's mean obeys

.. math:: b_t = \beta b_{t-1} + (1-\beta) g_t, \qquad
    E x_{t+1} = E x_t - r \eta\, [(1-\nu) g_t + \nu b_t], \qquad b_{-1} = g_0

*quasi-hyperbolic momentum* (Ma and Yarats, ICLR 2019) of rate r, momentum beta and share nu; nu = 1 is heavy ball with
dampening beta, which is `torch.optim.SGD(lr=r * eta, momentum=beta, dampening=beta)` without any loss. The rate of a
single gradient is then r (1 - beta), and r over all the steps that it takes to work.

- A parameter server, whose N senders all hold stale copies: r = alpha = 1 - p_g^N, beta = p, nu = 1.
- Ranks that own what they send: the same up to the owner's expected weight, 1 - nu, of order 1/N.
- N to infinity: for any smooth f, g_t = grad f(x_t), and for any independent losses of one law; Gilbert-Elliott of mean
  burst L gives beta = 1 - 1/L and nu = p/beta.

Arguments and answers as in `lossproof.theory.aggregation`; s = eta h in a direction of curvature h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lossproof.theory import aggregation, stability
from lossproof.theory.aggregation import divide


class QuasiHyperbolic(NamedTuple):
    """Rate r, momentum beta and share nu of the mean of lossy SGD."""

    rate: Any
    momentum: Any
    share: Any


NO_LOSS = QuasiHyperbolic(1, 0, 0)


def of_weights(owner: Any, stale: Any, p: Any) -> QuasiHyperbolic:
    """The owner's copy is fresh and has the expected weight `owner`; all the stale ones together have `stale`."""
    return QuasiHyperbolic(owner + stale, p, divide(stale, owner + stale))


def server(alpha: Any, p: Any) -> QuasiHyperbolic:
    """All senders stale: heavy ball with coefficient p. `alpha` is the expected sum of the weights.

    It is 1 - p_g^N for the survivor mean (no survivor, no update), 1 - p_g for `zero_fill`.
    """
    return QuasiHyperbolic(alpha, p, 1)


def cluster(N: Any, p_gradients: Any, p: Any, own_link: stability.OwnLink = "reliable") -> QuasiHyperbolic:
    """Ranks that own what they send, N >= 2, and one owner for all that H couples.

    Own link lossy: r = 1 - p_g^N, nu = 1 - 1/N, and whatever the owners. Reliable: r = 1, nu = 1 - w, w = E[1/K] (A3).

    >>> cluster(2, divide(1, 2), divide(1, 3))
    QuasiHyperbolic(rate=1, momentum=Fraction(1, 3), share=Fraction(1, 4))
    """
    if own_link == "lossy":
        return QuasiHyperbolic(1 - aggregation.no_survivor(N, p_gradients), p, 1 - divide(1, N))
    return QuasiHyperbolic(1, p, 1 - aggregation.owner_weight(N, p_gradients))


def bursty(p: Any, L: Any) -> QuasiHyperbolic:
    """Gilbert-Elliott of mean burst L > 1 steps, N to infinity; L = 1/(1-p) is independent loss, nu = 1."""
    momentum = 1 - divide(1, L)
    return QuasiHyperbolic(1, momentum, divide(p, momentum))


def mean_step(of: QuasiHyperbolic, x: Sequence[Any], g: Sequence[Any], optimizer: Any = 0) -> Any:
    """E x_(t+1), t >= 2, from x = (E x_t, E x_(t-1), E x_(t-2)) and g = (g_t, g_(t-1)), each times eta.

    `optimizer` is the momentum of the optimizer itself, heavy ball without dampening: two lags in series, third order.
    Without it x_(t-2) has no part, and t >= 1 will do.

    x_t + (optimizer + beta)(x_t - x_(t-1)) - optimizer beta (x_(t-1) - x_(t-2))
    - r [(1 - nu beta) g_t - (1 - nu) beta g_(t-1)].
    """
    rate, beta, share = of
    moved = (optimizer + beta) * (x[0] - x[1]) - optimizer * beta * (x[1] - x[2])
    return x[0] + moved - rate * ((1 - share * beta) * g[0] - (1 - share) * beta * g[1])


def trajectory(
    of: QuasiHyperbolic, gradient: Callable[[Any], Any], steps: int, start: Any = 1, optimizer: Any = 0
) -> list[Any]:
    """E x_0, ..., E x_steps from a common start and an empty momentum buffer; `gradient(x)` is eta times g at x.

    >>> trajectory(server(1, divide(1, 2)), lambda x: x, 3)
    [1, 0, Fraction(-1, 2), Fraction(-1, 2)]
    """
    x, buffer, velocity = [start], gradient(start), 0
    for _ in range(steps):
        g = gradient(x[-1])
        buffer = of.momentum * buffer + (1 - of.momentum) * g
        velocity = optimizer * velocity + of.rate * ((1 - of.share) * g + of.share * buffer)
        x.append(x[-1] - velocity)
    return x


# -- what to do about it


def lag(of: QuasiHyperbolic) -> Any:
    """The mean delay that loss adds to a gradient, in steps: nu beta/(1-beta), the stale share times the mean age."""
    return divide(of.share * of.momentum, 1 - of.momentum)


def corrected(momentum: Any, lag: Any) -> Any:
    """The optimizer's momentum that loses the same time as `momentum` without loss: 1/(1-beta) = 1/(1-momentum) - lag.

    With `corrected_step` the slow mode of every curvature decays as without loss, up to (eta h)^3. A parameter server
    at loss p: (momentum - p) / (1 - p (2 - momentum)). Negative where loss alone delays more than `momentum`.

    >>> corrected(divide(9, 10), divide(1, 9))  # loss 10 %: not 0.8, and hardly less than 0.9
    Fraction(80, 89)
    """
    return divide(momentum - lag * (1 - momentum), 1 - lag * (1 - momentum))


def corrected_step(momentum: Any, lag: Any, rate: Any = 1) -> Any:
    """The factor on eta that goes with `corrected` in an optimizer without dampening, such as torch's SGD.

    With dampening = momentum, or as Adam's first beta, the momentum needs no factor, and 1/rate is left.
    """
    return divide(1, rate * (1 - lag * (1 - momentum)))


# -- many ranks


def spread(kappa: Any, variance: Any, empty: Any, mean2: Any, own2: Any = 0, fresh2: Any = 0) -> Any:
    """E|estimate - G|^2 around G, the mean over one age: kappa variance + empty mean2 + own2 (fresh2 - variance).

    `variance` that of a stale sender's gradient, noise included; `empty` = P(K = 0), mean2 = |G|^2. Ranks that own what
    they send: own2 = E[1/K^2; the owner survives], fresh2 = E|gradient at the fresh copy - G|^2.
    """
    return kappa * variance + empty * mean2 + own2 * (fresh2 - variance)


def distance(t: Any, step: Any, smooth: Any) -> Any:
    """E max_(s<=t) |x_s - X_s|^2 is at most this squared times the largest `spread` of the first t steps.

    X is the trajectory for N to infinity of any f whose gradient has Lipschitz constant `smooth` > 0; spread is O(1/N).
    """
    return divide((1 + step * smooth) ** t - 1, smooth)
