"""C1 derived: D2's step of SGD on a quadratic, with noise and a loss for each phase; steady state by Cramer's rule.

p is the loss of parameters, p_g of gradients; otherwise as in `lossproof.theory.derive.stability`. The replicas are
N - 1; a parameter server is rank 0 of N + 1, has weight 0, and N senders beside it.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from lossproof.theory import dynamics, staleness
from lossproof.theory.derive import stability as derive
from lossproof.theory.derive.stability import AFTER, BEFORE, FRESH, SHARES, STALE, alpha, counted, kappa, s, w, w2
from lossproof.theory.derive.steps import Derivation, N, Step, algebra, given, p, recursion, sigma2, t

p_g = sp.Symbol("p_g", positive=True)
eta, h, v = sp.symbols("eta h v", positive=True)
q = 1 - p
NOISE = sp.Symbol(r"E[\bar\xi^2]")
SAME, PAIR = sp.symbols(r"E[y_i^2]_\infty E[y_iy_j]_\infty")


def moments() -> Derivation:
    """C1: the recursion with noise; its steady state for each model; what does not depend on the model; a Hessian."""
    step, refresh = derive.owner_step(), derive.broadcast()
    noise = _noise()
    rows = _rows(step, refresh, noise)
    folded = _folded(refresh)
    lossy, reliable, server = derive.lossy_shares(p_g), derive.reliable_shares(p_g), _server()
    kept = _kept(lossy[-6:], reliable[-6:], server)
    models = (
        ("lossy", lossy[-6:], N, dynamics.lossy_steady(N, p, kappa, alpha)),
        ("reliable", reliable[-6:], N, dynamics.reliable_steady(N, p, w, w2)),
        ("server", server, N + 1, dynamics.server_steady(N, p, kappa, alpha)),
    )
    return Derivation(
        (
            *step,
            *noise,
            *refresh,
            *rows,
            *folded,
            *lossy,
            *reliable,
            *server,
            *kept,
            *(found for model in models for found in _steady(step, folded, *model)),
            *_without_loss(),
            *_hessian(),
        )
    )


def _noise() -> tuple[Step, ...]:
    """The mean of the survivors' noise, xi_i with variance sigma^2, against anything of the past."""
    first, apart, one = sp.symbols(r"E[\bar\xi_0^2] E[\bar\xi_n^2] E[m_i/K^2]")
    owner = given(first, SHARES.owner_square * sigma2, "the owner's; noise of mean 0 given the past and the masks")
    others = recursion(
        apart,
        lambda n: owner.right + n * one * sigma2,
        owner.right,
        lambda before: before + one * sigma2,
        "one more rank: its square; its products with the t before it vanish, as noises are independent",
    )
    share = dynamics.noise_share(SHARES)
    whole = algebra(
        NOISE, share * sigma2, "N - 1 others", {NOISE: others.right.subs(t, N - 1), one: SHARES.squares / (N - 1)}
    )
    return owner, others, whole, algebra(v, eta**2 * share * sigma2, "in the owner's step", {v: eta**2 * whole.right})


def _rows(step: tuple[Step, ...], refresh: tuple[Step, ...], noise: tuple[Step, ...]) -> tuple[Step, ...]:
    """The closed form of a step, moment by moment."""
    closed = dynamics.after(dynamics.Moments(*BEFORE), N, p, s, SHARES, v)
    e, xi = sp.symbols(r"(x-s\,e) \bar\xi")
    moved = algebra(
        FRESH, step[-2].right + v, "x' = (x - s e) - eta times the mean noise; the product has mean 0",
        {FRESH: sp.expand((e - eta * xi) ** 2), e * xi: 0, e**2: step[-2].right, xi**2: noise[-2].right,
         v: noise[-1].right},
    )  # fmt: skip
    meaning = {FRESH: moved.right, STALE: step[-1].right}
    return (
        moved,
        *(
            algebra(left, right, "so, in closed form", {left: value, **meaning}, conclusion=True)
            for left, right, value in zip(AFTER, closed, (FRESH, *(r.right for r in refresh)), strict=True)
        ),
    )


def _folded(refresh: tuple[Step, ...]) -> tuple[Step, ...]:
    """In the steady state the broadcast leaves two unknowns; and the drift between replicas that to the owner."""
    XX, XY, YY, YZ = BEFORE
    steady = {FRESH: XX, STALE: (XY - q * XX) / p}
    square = algebra(SAME, XX, "steady state: the second equation, solved",
                     {SAME: (refresh[1].right - p * YY) / q, **steady})  # fmt: skip
    product = algebra(PAIR, (2 * XY - q * XX) / (1 + p), "the third and the fourth, solved",
                      {PAIR: (refresh[2].right - p**2 * YZ) / (1 - p**2), **steady})  # fmt: skip
    apart, gap = sp.symbols(r"E[(y_i-y_j)^2] E[(x-y_i)^2]")
    between = algebra(
        apart, 2 / (1 + p) * gap, "whatever the owner does: drift between replicas is 2/(1+p) times that to the owner",
        {apart: 2 * SAME - 2 * PAIR, gap: XX - 2 * XY + SAME, SAME: square.right, PAIR: product.right}, conclusion=True,
    )  # fmt: skip
    return square, product, between


def _server() -> tuple[Step, ...]:
    """All N senders are stale; the owner, one more, has no weight."""
    means = {0: alpha, 1: kappa}
    K = derive.K
    values = (0, counted(K / K, means), 0, 0, counted(1 / K, means), counted((K - 1) / K, means))
    reasons = ("a server sends no gradient", "all weights sum to 1 where K >= 1", "none", "none",
               "K squares", "K (K-1) ordered pairs")  # fmt: skip
    closed = dynamics.server_shares(kappa, alpha)
    return tuple(
        algebra(name, right, f"server: {reason}", {name: value})
        for name, value, right, reason in zip(SHARES, values, closed, reasons, strict=True)
    )


def _kept(lossy: tuple[Step, ...], reliable: tuple[Step, ...], server: tuple[Step, ...]) -> tuple[Step, ...]:
    """What is left of the noise: E[1/K; K >= 1] each time."""
    share = sp.Symbol(r"E[\sum{m_i/K^2}]")
    return tuple(
        algebra(share, right, f"{name}: E[1/K; K >= 1]", {share: dynamics.noise_share(SHARES), **_named(shares)})
        for name, shares, right in (("lossy", lossy, kappa), ("reliable", reliable, w), ("server", server, kappa))
    )


def _named(shares: tuple[Step, ...]) -> dict[Any, Any]:
    return dict(zip(SHARES, [share.right for share in shares], strict=True))


def _steady(
    step: tuple[Step, ...], folded: tuple[Step, ...], name: str, shares: tuple[Step, ...], copies: Any, closed: Any
) -> tuple[Step, ...]:
    """Two equations left: E x'^2 is E x^2, and q E x^2 + p E x'y is E xy."""
    XX, XY, YY, YZ = BEFORE
    meaning = {YY: folded[0].right, YZ: folded[1].right}
    rest = [
        (1 + p) * (XX - step[-2].right),
        (1 + p) * (XY - q * XX - p * step[-1].right),
    ]
    rows = [sp.expand(row.subs(N, copies).subs(_named(shares)).subs(meaning)) for row in rest]
    matrix = sp.Matrix([[sp.cancel(row.coeff(z)) for z in (XX, XY)] for row in rows])
    found, drift, limit = sp.symbols(
        rf"E[x^2]_{{\mathrm{{{name}}}}} E[(x-y)^2]_{{\mathrm{{{name}}}}} [p/(1-p)]_{{\mathrm{{{name}}}}}"
    )
    determinant = derive.minor(matrix)
    square = (1 + p) * v * matrix[1, 1] / determinant
    product = -(1 + p) * v * matrix[1, 0] / determinant
    at = closed.moments(p, s, v)
    gap = closed.gap(p, s, v)
    return (
        algebra(found, at.xx, f"{name}: the other two equations, by Cramer's rule", {found: square}, conclusion=True),
        algebra(drift, gap, "and with E xy from the same; c - b s - a s^2 > 0 up to the stability limit",
                {drift: 2 * (square - product)}, conclusion=True),
        algebra(at.xx - at.xy, gap / 2, "so E xy"),
        algebra(at.yy - at.yz, gap / (1 + p), "so E y_i y_j"),
        algebra(limit, (gap / v).subs(s, 0), "for eta h to 0 what B3 says", {limit: staleness.age_mean(p)}),
    )  # fmt: skip


def _without_loss() -> tuple[Step, ...]:
    risk = sp.Symbol(r"h\,E[x^2]/2")
    lossless = (
        dynamics.lossy_steady(N, sp.Integer(0), 1 / N, sp.Integer(1)).moments(sp.Integer(0), s, eta**2 * sigma2 / N).xx
    )
    return (
        algebra(
            risk, eta * sigma2 / (2 * N * (2 - eta * h)), "without loss: what is known of SGD",
            {risk: h / 2 * lossless, s: eta * h}, conclusion=True,
        ),
    )  # fmt: skip


def _hessian() -> tuple[Step, ...]:
    """A full Hessian, one mask for all coordinates."""
    along, before, weight, at, noise = sp.symbols(r"v_k'x v_k'x_t \sum{m_i/K} v_k'y_i v_k'\xi_i")
    turned = sp.Symbol(r"v_k'Hy_i")
    eigen = given(turned, h * at, "H v_k = h v_k, |v_k| = 1; the weights are the same for all coordinates")
    return (
        eigen,
        algebra(
            along, before - weight * (s * at + eta * noise), "so v_k'x moves as x does, with the noise v_k'xi",
            {along: before - eta * weight * (turned + noise), turned: eigen.right, s: eta * h}, conclusion=True,
        ),
        given(sp.Symbol("x'Hx/2"), sp.Symbol(r"\sum{h_k(v_k'x)^2/2}"), "spectral theorem: the risk is a sum over k"),
    )  # fmt: skip
