r"""Where to spend redundant packets: on gradients or on parameters (claim D3).

The excess risk of SGD in an eigendirection of curvature h, s = eta h, phi = the stale senders' expected weight:

.. math:: \frac{\eta\sigma^2}{4 N_{\rm eff}}\left[1 + s\left(\frac12 + \frac{\varphi p}{1-p}\right) + O(s^2)\right],
    \qquad N_{\mathrm{eff}} = \frac{\alpha}{\kappa}

so loss of gradients costs O(p_gradients) and loss of parameters O(s p). Sending every packet r times makes a loss of
p into p^r. Of copies = r_g + r_p, the best r_g - r_p is ln(1/s) / ln(1/p) or so. Arguments as in `dynamics`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from lossproof.theory import dynamics
from lossproof.theory.aggregation import divide
from lossproof.theory.dynamics import Model
from lossproof.theory.stability import Shares


def effective_ranks(N: int, p_gradients: Any, model: Model = "reliable") -> Any:
    """N_eff = alpha / E[1/K; K >= 1]: without loss N ranks would do as well, to first order in the step.

    >>> effective_ranks(2, divide(1, 2))
    Fraction(4, 3)
    """
    return of_shares(dynamics.shares(N, p_gradients, model))


def of_shares(of: Shares) -> Any:
    """N_eff from the mean weights: their sum over what is left of the noise of one rank."""
    return divide(of.owner + of.others, dynamics.noise_share(of))


def slope(phi: Any, p: Any) -> Any:
    """1/2 + phi p/(1-p): how fast the risk grows with eta h, in relation to that at 0."""
    return divide(1, 2) + divide(phi * p, 1 - p)


def expansion(N: int, p_gradients: Any, p: Any, s: Any, model: Model = "reliable") -> Any:
    """The excess risk to first order in s = eta h, in units of eta sigma^2.

    >>> expansion(2, 0, divide(1, 2), divide(1, 10))
    Fraction(11, 80)
    """
    phi = dynamics.shares(N, p_gradients, model).others
    return divide(1 + s * slope(phi, p), 4 * effective_ranks(N, p_gradients, model))


def remainder(steady: dynamics.Steady, phi: Any, p: Any, s: Any) -> Any:
    """Exact risk = (eta sigma^2 / 4 N_eff) [1 + s slope + s^2 remainder]."""
    a, b = divide(steady.a, steady.c), divide(steady.b, steady.c)
    grows = slope(phi, p)
    return divide(a + grows * b + grows * a * s, 1 - b * s - a * s**2)


# -- copies


def arrives_never(p: Any, r: Any) -> Any:
    """The loss of a packet that is sent r times, each lost by itself with probability p."""
    return p**r


def prices(N: Any, s: Any, model: Model = "reliable") -> tuple[Any, Any]:
    """What a small loss of gradients and one of parameters add to the risk, relative to no loss, N >= 2."""
    gradients = 1 if model == "reliable" else divide(N, N - 1)
    return gradients, s if model == "server" else divide(s * (N - 1), N)


def advantage(N: Any, p: float, s: float, model: Model = "reliable") -> float:
    """r_g - r_p where both losses cost the same: ln(gradients' price / parameters' price) / ln(1/p), about.

    The best whole numbers are within 1 of it, as far as the prices are what losses cost and both are sent.

    >>> round(advantage(1000, 0.1, 0.01), 2)
    2.0
    """
    gradients, parameters = prices(N, s, model)
    return math.log(gradients / parameters) / math.log(1 / p)


class Split(NamedTuple):
    """Copies of a gradient packet and of a parameter packet, and the excess risk, in units of eta sigma^2."""

    gradients: int
    parameters: int
    risk: Any


def risk(r_gradients: int, r_parameters: int, loss: Any, ranks: int, eta_h: Any, model: Model = "reliable") -> Any:
    """The exact steady excess risk (C1) of one split, in units of eta sigma^2; infinite beyond the stability limit."""
    p_gradients, p = arrives_never(loss, r_gradients), arrives_never(loss, r_parameters)
    of = dynamics.shares(ranks, p_gradients, model)
    steady = dynamics.steady_of(of, ranks, p, model)
    if steady.slack(eta_h) <= 0:
        return math.inf
    return divide(eta_h * steady.moments(p, eta_h, dynamics.noise_share(of)).xx, 2)


def split(copies: int, loss: Any, ranks: int, eta_h: Any, model: Model = "reliable") -> Split:
    """The best way to send `copies` = r_g + r_p, each at least 1: exact where loss and eta_h are.

    With floats, splits whose risks agree to 12 digits count as equal, and the one closest to `advantage` is taken.

    Raises:
        ValueError: fewer than 2 copies, or eta_h beyond the stability limit of every split.

    >>> split(6, divide(1, 10), 16, divide(1, 100))[:2]
    (4, 2)
    """
    if copies < 2:
        raise ValueError(f"copies must be at least 2, one of each packet, got {copies}")
    of = [Split(r, copies - r, risk(r, copies - r, loss, ranks, eta_h, model)) for r in range(1, copies)]
    least = min(each.risk for each in of)
    if least == math.inf:
        raise ValueError(f"eta_h must be below the stability limit of some split, got {eta_h}")
    exact = not any(isinstance(x, float) for x in (loss, eta_h))
    best = [each for each in of if each.risk == least or (not exact and each.risk <= least * (1 + 1e-12))]
    if len(best) == 1 or not loss:
        return best[0]
    aim = advantage(ranks, float(loss), float(eta_h), model)
    return min(best, key=lambda each: abs(each.gradients - each.parameters - aim))


def even(copies: int, loss: Any, ranks: int, eta_h: Any, model: Model = "reliable") -> Split:
    """As many copies of both packets, an odd one where it does more good."""
    halves = sorted({copies // 2, copies - copies // 2})
    return min(
        (Split(r, copies - r, risk(r, copies - r, loss, ranks, eta_h, model)) for r in halves), key=lambda x: x.risk
    )


@dataclass(frozen=True)
class Redundancy:
    """The best split of a budget of copies; risks in units of eta sigma^2, None beyond the stability limit."""

    copies: int
    eta_h: float
    gradients: int
    parameters: int
    risk: float
    risk_even: float | None
    risk_lossless: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self) -> list[tuple[str, Any, str]]:
        """Name, value and meaning."""
        half, rest = self.copies // 2, self.copies - self.copies // 2
        shared = f"{half} of each" if half == rest else f"{half} and {rest}, the better way round"
        return [
            ("copies_gradients", self.gradients, f"copies of a gradient packet, {self.copies} to spend (D3)"),
            ("copies_parameters", self.parameters, "copies of a parameter packet (D3)"),
            (
                "risk",
                self.risk,
                f"excess risk along a direction of eta h = {self.eta_h:g} with these, in eta sigma^2 (C1)",
            ),
            ("risk_even", self.risk_even, f"the same with {shared}"),
            ("risk_lossless", self.risk_lossless, "the same without loss"),
        ]


def spend(copies: int, loss: Any, ranks: int, eta_h: Any, model: Model = "reliable") -> Redundancy:
    """`split` against `even`, as floats."""
    best, half = split(copies, loss, ranks, eta_h, model), even(copies, loss, ranks, eta_h, model)
    others = (half.risk, risk(1, 1, 0 * loss, ranks, eta_h, model))  # 0 of its kind: floats stay fast
    shown = [None if value == math.inf else float(value) for value in others]
    return Redundancy(copies, float(eta_h), best.gradients, best.parameters, float(best.risk), *shown)
