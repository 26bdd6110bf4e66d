"""D3 derived: the excess risk of C1's steady state by orders of eta h, and what a copy more of a packet is worth.

p is the loss of parameters, p_g of gradients; r_g + r_p = R copies; c and d are the prices of the two losses.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from lossproof.theory import dynamics, redundancy, stability
from lossproof.theory.derive.stability import SHARES, alpha, kappa, s, w, w2
from lossproof.theory.derive.steps import Derivation, N, Step, algebra, expectation, given, p, recursion

p_g, c, d = sp.symbols("p_g c d", positive=True)
r, R = sp.symbols("r_g R", integer=True, positive=True)


def where_to_spend() -> Derivation:
    """D3: the expansion for each model, with its exact remainder; the prices of small losses; copies."""
    lossy = stability.lossy_shares(N, kappa, alpha)
    reliable = stability.reliable_shares(w, w2)
    server = dynamics.server_shares(kappa, alpha)
    return Derivation(
        (
            *_expanded("lossy", dynamics.lossy_steady(N, p, kappa, alpha), lossy),
            *_expanded("reliable", dynamics.reliable_steady(N, p, w, w2), reliable),
            *_expanded("server", dynamics.server_steady(N, p, kappa, alpha), server),
            *_prices(),
            *_copies(),
        )
    )


def _expanded(name: str, steady: dynamics.Steady, of: stability.Shares) -> tuple[Step, ...]:
    """4 N_eff times the risk, in units of eta sigma^2."""
    risk, ranks, whole, phi, rest = sp.symbols(
        " ".join(
            rf"{x}_{{\mathrm{{{name}}}}}" for x in ("R", r"{N_{\mathrm{eff}}}", r"4N_{\mathrm{eff}}R", r"\varphi", "Q")
        )
    )
    stale = given(phi, of.others, f"{name}: the expected weight of all stale senders")
    effective = algebra(ranks, redundancy.of_shares(of), "weights over what is left of the noise of one rank",
                        {ranks: redundancy.of_shares(SHARES), **dict(zip(SHARES, of, strict=True))})  # fmt: skip
    exact = given(
        risk, s / 2 * steady.moments(p, s, dynamics.noise_share(of)).xx, "C1: h E[x^2]/2 in units of eta sigma^2"
    )
    remainder = given(rest, redundancy.remainder(steady, of.others, p, s), "finite at s = 0, up to the stability limit")
    return (
        stale,
        effective,
        exact,
        remainder,
        algebra(
            whole, 1 + s * redundancy.slope(phi, p) + s**2 * rest, "exact; s^2 times what is finite is O(s^2)",
            {whole: 4 * effective.right * exact.right, rest: remainder.right, phi: stale.right}, conclusion=True,
        ),
    )  # fmt: skip


def _prices() -> tuple[Step, ...]:
    """To first order at most one packet is lost: K is N - 1 instead of N."""
    steps: list[Step] = []
    for model, links in (("reliable", N - 1), ("lossy", N)):
        gradients, parameters = redundancy.prices(N, s, model)  # type: ignore[arg-type]
        kept, price, stale = sp.symbols(
            " ".join(
                rf"{x}_{{\mathrm{{{model}}}}}"
                for x in ("E[1/K]", r"\partial\ln(1/N_{\mathrm{eff}})", r"\partial\ln{R}")
            )
        )
        one = expectation(
            kept, [(1 - links * p_g, 1 / N), (links * p_g, 1 / (N - 1))], 1 / N + links * p_g * (1 / (N - 1) - 1 / N),
            f"{model}: none or one of {links} gradients lost, more have O(p_g^2)",
        )  # fmt: skip
        steps += (
            one,
            algebra(price, gradients, "per p_g, at small losses: what gradients cost", conclusion=True,
                    where={price: sp.diff(sp.expand(N * one.right), p_g)}),
            algebra(stale, parameters, "per p, at small losses and to first order in s: what parameters cost",
                    {stale: sp.diff(s * redundancy.slope((N - 1) / N, p), p).subs(p, 0)}, conclusion=True),
        )  # fmt: skip
    gradients, parameters = redundancy.prices(N, s, "server")
    server = sp.symbols(r"\partial\ln{R}_{\mathrm{server}}")
    steps += (
        algebra(gradients, redundancy.prices(N, s, "lossy")[0], "a server: gradients as with a lossy own link"),
        algebra(server, parameters, "and all senders stale, phi = 1",
                {server: sp.diff(s * redundancy.slope(sp.Integer(1), p), p).subs(p, 0)}, conclusion=True),
    )  # fmt: skip
    return tuple(steps)


def _copies() -> tuple[Step, ...]:
    """r_g + r_p = R copies."""
    lost, difference = sp.symbols(r"p^{(r)} f(r_g+1)-f(r_g)")

    def cost(r: Any) -> Any:
        return c * redundancy.arrives_never(p, r) + d * redundancy.arrives_never(p, R - r)

    return (
        recursion(lost, lambda k: redundancy.arrives_never(p, k), sp.Integer(1), lambda before: p * before,
                  "a packet sent once more is lost if that copy is lost too"),
        algebra(
            difference, (1 - p) * p**r * (d * p ** (R - 2 * r - 1) - c), "f = c p^(r_g) + d p^(r_p), of both: it "
            "falls while p^(2 r_g + 1 - R) > d/c, so the least has |r_g - r_p - ln(c/d)/ln(1/p)| <= 1",
            {difference: cost(r + 1) - cost(r)}, conclusion=True,
        ),
    )  # fmt: skip
