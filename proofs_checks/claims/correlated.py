"""B6: drift when steps have a memory.

Legend: P packets, E elements of a packet, T steps.
"""

from __future__ import annotations

from fractions import Fraction
from math import sqrt
from typing import Any

import sympy as sp
import torch

from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import histories, mistakes
from lossproof.proofs_checks.instruments.patterns import all_patterns, expectation, require_identical
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import certify, correlated, drift
from lossproof.theory.derive import correlated as derive

p, t = sp.Symbol("p", positive=True), sp.Symbol("t", integer=True, nonnegative=True)
rho = sp.Symbol("rho", real=True)
X, Y, s = sp.symbols("X Y s")
POWERS = {p**t: X, rho**t: Y}
_overlap, _pair = correlated.overlap, correlated.pair


def _named(expression: Any) -> Any:
    """With p^t and rho^t named, (p rho)^t split first."""
    return sp.expand_power_exp(sp.expand_power_base(sp.expand(expression), force=True)).subs(POWERS)


def _factor_alone(p: Any, rho: Any, t: Any = None, sigma2: Any = 1) -> Any:
    return drift.pair(p, t, sigma2) * (1 + p * rho) / (1 - p * rho)


def _not_thinned(p: Any, rho: Any, t: Any = None, sigma2: Any = 1) -> Any:
    """With rho where p rho belongs (and 2 for 1, so that rho = 1 is no pole)."""
    return drift.owner(p, t, sigma2) * (1 + rho) / (2 - rho)


def _overlap_late(p: Any, rho: Any, t: Any = None, sigma2: Any = 1) -> Any:
    return _overlap(p, rho, t if t is None else t + 1, sigma2)


def _heavier(rate: Any, momentum: Any, noise2: Any) -> Any:
    return rate**2 * noise2 / (1 - momentum)


FACTOR_ALONE = plant("the factor alone", correlated, "pair", _factor_alone)
NOT_THINNED = plant("rho for p rho", correlated, "owner", _not_thinned)
HEAVIER = plant("heavy ball, 1 - momentum", correlated, "heavy_ball", _heavier)
OVERLAP_LATE = plant("overlap of the next step", correlated, "overlap", _overlap_late)

B6 = Claim(
    "B6",
    "Correlated steps: drift grows by (1 + p rho)/(1 - p rho), and shrinks for rho < 0",
    derive.correlation,
    assumes=(
        "parameter packets are lost independently in time and between links, with probability p",
        "common start: all copies equal at t = 0",
        "steps independent of all masks, E<u_k, u_l> = sigma^2 rho^|k-l|, |rho| <= 1",
    ),
    not_claimed=(
        "steps that react to the losses: training is a closed loop (C1)",
        "that the steady state bounds the start: for rho near -1 drift overshoots it (owner, rho = -1: p sigma^2 at "
        "t = 1 and p/(1+p) sigma^2 in the end); B2 and B3 do bound it at every t",
        "heavy ball from an empty momentum buffer: it is an instance once its steps are stationary",
        "floating point",
    ),
    witness="steps of +1 or -1 that flip with probability (1-rho)/2; heavy ball, white gradients, rho = its momentum",
)
B6.derived(NOT_THINNED, OVERLAP_LATE, FACTOR_ALONE, HEAVIER)


@B6.rung("certified", NOT_THINNED, OVERLAP_LATE, FACTOR_ALONE, HEAVIER)
def _all_correlations(run: Run) -> Evidence:
    owner, pair, overlap = correlated.owner, correlated.pair, correlated.overlap
    rate, momentum, noise2 = sp.symbols("rate momentum noise2")
    variance = correlated.heavy_ball(rate, momentum, noise2)
    zeros = {
        "heavy ball, stationary": variance - momentum**2 * variance - rate**2 * noise2,
        "overlap, t = 0": overlap(p, rho, 0),
        "overlap, recursion": overlap(p, rho, t + 1) - p * rho * (overlap(p, rho, t) + 1),
        "overlap, stationary": overlap(p, rho) - p * rho * (overlap(p, rho) + 1),
        "to the owner, t = 0": owner(p, rho, 0),
        "to the owner, recursion": owner(p, rho, t + 1) - p * (owner(p, rho, t) + 2 * overlap(p, rho, t) + 1),
        "to the owner, stationary": owner(p, rho) - p * (owner(p, rho) + 2 * overlap(p, rho) + 1),
        "pair, nothing lost, rho = 0, t = 0": pair(0, 0, 0),
        "pair, stationary": pair(p, rho) - p**2 * pair(p, rho) - 2 * (1 - p) * owner(p, rho),
    }
    for r in (rho, p):  # rho = p is a case of its own in the closed form
        zeros[f"pair, t = 0, rho = {r}"] = pair(p, r, 0)
        zeros[f"pair, recursion, rho = {r}"] = (
            pair(p, r, t + 1) - p**2 * pair(p, r, t) - 2 * (1 - p) * owner(p, r, t + 1)
        )
    ends = ((owner, drift.owner, correlated.owner_worst), (pair, drift.pair, correlated.pair_worst))
    for form, white, worst in ends:
        for when in (None, t):
            zeros[f"rho = 0 is not {white.__module__}.{white.__name__}, t = {when}"] = form(p, 0, when) - white(p, when)
            zeros[f"rho = 1 is not B5, {form.__name__}, t = {when}"] = form(p, 1, when) - worst(p, when)
    for what, expression in zeros.items():
        require(certify.is_zero(_named(expression)), f"{what}: not zero for all p, rho and t")
    for form, white, worst in ends:
        for low, high in ((form(p, -s), white(p)), (white(p), form(p, s)), (form(p, s), worst(p))):
            ordered = certify.is_nonnegative(high - low, (p, s))
            require(ordered, "no certificate for rho < 0 below B2, rho > 0 between B2 and B5")
    # rho < 0 at every t: B2 and B3 obey these recursions with an overlap of 0 (rho = 0). Here the overlap is <= 0, and
    # so, by induction on t through terms that all increase in the one before, are V_t and D_t below them.
    against = -_named(overlap(p, rho, t)).subs({rho: -s, Y: 2 * Y - 1})  # rho^t in [-1, 1]
    require(certify.is_nonnegative(against, (p, s, X, Y)), "no certificate for an overlap <= 0")
    overshoot = owner(p, -1, 1) - owner(p, -1)
    require(certify.is_nonnegative(overshoot, (p,)) and not certify.is_zero(overshoot), "no overshoot at rho = -1")
    return Evidence("recursions for all t, p, rho; rho < 0 below B2 at every t, rho > 0 between B2 and B5")


@B6.rung(
    "enumerated",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.BLENDS,
    mistakes.BROADCAST_FIRST,
    mistakes.ONE_MASK_FOR_ALL,
    FACTOR_ALONE,
    NOT_THINNED,
    HEAVIER,
    plant("rho of the other sign", correlated, "pair", lambda p, rho, t=None, sigma2=1: _pair(p, -rho, t, sigma2)),
)
def _every_flip(run: Run) -> Evidence:
    steps = run.pick(4, 5)
    degree = steps + 2  # (1 - p rho)(1 - p^2) times either side is a polynomial of degree <= 2 steps + 3 in p
    # Signs that flip with probability (1-rho)/2: all sign paths from +1 (the other half mirrors them), all masks.
    flip_TP = all_patterns(steps - 1).repeat_interleave(4**steps, 1)
    sign_TP = torch.cat([torch.ones(1, flip_TP.shape[1]), (1 - 2 * flip_TP.double()).cumprod(0)]).double()
    arrived_BP, flips_P = histories.links(steps, 2 ** (steps - 1)), flip_TP.sum(0)
    forms = (correlated.owner, correlated.pair)
    for gap, form in zip(histories.scripted_gaps(arrived_BP, list(sign_TP[:, :, None])), forms, strict=True):
        by_flips = [expectation(histories.square(gap)[flips_P == k], arrived_BP[:, flips_P == k]) for k in range(steps)]
        # times 1 - p rho, both sides are polynomials in rho of degree <= steps: steps + 1 values of rho are all
        for r in (Fraction(2 * k, steps) - 1 for k in range(steps + 1)):
            weights = [((1 - r) / 2) ** k * ((1 + r) / 2) ** (steps - 1 - k) for k in range(steps)]
            require_identical(
                f"t = {steps}, rho = {r}",
                lambda loss: sum(w * mean(loss) for w, mean in zip(weights, by_flips, strict=True)),
                lambda loss: form(loss, r, steps),
                degree,
            )
    variance = correlated.heavy_ball(2, Fraction(1, 2), Fraction(3, 4))
    for gap, form in zip(_heavy_ball(steps), forms, strict=True):
        measured = expectation(histories.square(gap), histories.links(steps))
        require_identical("heavy ball", measured, lambda loss: form(loss, Fraction(1, 2), steps, variance), degree)
    return Evidence(
        f"all masks and sign paths over {steps} steps, as polynomials in p and rho; torch's SGD with momentum 1/2"
    )


def _heavy_ball(steps: int) -> histories.Gaps:
    """torch's own SGD, rate 2 and momentum 1/2, on orthogonal gradients with |g|^2 = 3 (1/2)^2: all dyadic.

    The buffer starts in its stationary law: |buffer|^2 = (3/4) / (1 - 1/4) = 1, orthogonal to all later gradients.
    """
    P, E = 4**steps, 1 + 3 * steps
    gradient_TE = torch.zeros(steps, E, dtype=torch.float64)
    for k in range(steps):
        gradient_TE[k, 1 + 3 * k : 4 + 3 * k] = 0.5
    round_ = histories.at_rest(histories.two_replicas(histories.links(steps), steps), [0] * P, E)
    parameter = torch.nn.Parameter(round_.fresh_QE)
    optimizer = torch.optim.SGD([parameter], lr=2.0, momentum=0.5)
    optimizer.state[parameter]["momentum_buffer"] = torch.eye(1, E, dtype=torch.float64).repeat(P, 1)

    def update(estimate_PE: torch.Tensor) -> None:
        parameter.grad = estimate_PE
        optimizer.step()

    for gradient_E in gradient_TE:
        round_.step(gradient_E.expand(3, P, E).contiguous(), update)
    return histories.gaps(round_)


@B6.rung(
    "sampled",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.SAME_FOR_ALL_STEPS,
    mistakes.WORDS_OF_31_BITS,
    NOT_THINNED,
    plant("correlation ignored", correlated, "pair", lambda p, rho, t=None, sigma2=1: drift.pair(p, t, sigma2)),
    plant("rho of the other sign", correlated, "pair", lambda p, rho, t=None, sigma2=1: _pair(p, -rho, t, sigma2)),
)
def _long_memory(run: Run) -> Evidence:
    steps, loss, packets, ratios = 10, 0.5, run.pick(4_000, 30_000), []
    for r in (0.75, -0.75):
        step_TE = _autoregressive(r, steps)
        longest = float(step_TE.cumsum(0).square().sum(1).max())  # stationary: as large as a sum of steps gets
        high = longest * (1 + 1e-9)
        to_owner, apart = (
            histories.square(gap).numpy() for gap in histories.drawn_gaps(run.seed, loss, packets, list(step_TE))
        )
        require_mean(f"owner, rho = {r}", to_owner, correlated.owner(loss, r, steps), 0, high, ALPHA / 4)
        require_mean(f"pair, rho = {r}", apart, correlated.pair(loss, r, steps), 0, high, ALPHA / 4)
        ratios.append(f"{apart.mean() / drift.pair(loss, steps):.3f} times B2 at rho = {r}")
    return Evidence(f"{packets} pairs at p = {loss} after {steps} steps: {' and '.join(ratios)}", ALPHA)


def _autoregressive(r: float, steps: int) -> torch.Tensor:
    """(T, T): u_t = r u_(t-1) + sqrt(1-r^2) e_t with orthonormal e_t, so <u_k, u_l> = r^|k-l| on every path."""
    noise_TE = torch.eye(steps, dtype=torch.float64)
    rows = [noise_TE[0]]
    for e in noise_TE[1:]:
        rows.append(r * rows[-1] + sqrt(1 - r * r) * e)
    return torch.stack(rows)


B6.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
