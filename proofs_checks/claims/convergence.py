"""C2: how fast training on any smooth function converges when packets are lost.

Legend: N ranks, Q packets, P = patterns or independent runs, T steps.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import torch

from lossproof.impl.channel import SimulatedChannel
from lossproof.impl.loss import Arrivals
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import convergence_checks, descent, mistakes
from lossproof.proofs_checks.instruments.statistics import ALPHA
from lossproof.theory import convergence, stability
from lossproof.theory.derive import convergence as derive
from lossproof.theory.laws import Bernoulli

Half, Third = Fraction(1, 2), Fraction(1, 3)
_weights, _lossy_stale, _reliable_stale = convergence.weights, convergence.lossy_stale, convergence.reliable_stale
_slack, _floor, _stretch, _gap = convergence.slack, convergence.floor, convergence.stretch, convergence.gap
_price, _noise, _start, _best = convergence.price, convergence.stale_noise, convergence.start, convergence.best_rate
_simple, _largest = convergence.simple_step, convergence.largest_step

C2 = Claim(
    "C2",
    "SGD on any smooth function: the lossless bound with 1/alpha, kappa for 1/N, and a share for staleness; attained",
    derive.theorem,
    assumes=(
        "f has L-Lipschitz gradients, is bounded below by f*, and is the same on all N ranks",
        "gradients are unbiased at each rank's own copy, and uncorrelated between ranks given the past; their variance "
        "is at most sigma^2: the sum over packets of the largest over ranks",
        "plain SGD of step size eta on the survivor mean, no survivor no update; common start",
        "gradient masks of a step do not depend on its noise nor on the past; senders alike (own link lossy) or the "
        "others alike (own link reliable); alpha, kappa, theta are those of independent links",
        "given the past each broadcast packet is lost with probability at most p_p; links may lose together",
        "L eta is at most largest_step: 1 - sqrt(p_p) will do with a lossy own link or one owner of all packets",
    ),
    not_claimed=(
        "different data on different ranks: then the wrong point is approached (A3, A6, D5)",
        "bursts of gradient losses; momentum and adaptive optimizers",
        "that training diverges with a larger step: a quadratic bears more (D2)",
        "the last iterate: this is about the mean over the steps, or one step drawn at random",
        "floating point",
    ),
    witness="f = L x^2/2 on all ranks, noise of random sign: attained at L eta = 1 if no parameters are lost",
    advice="The noise floor is that of alpha/kappa ranks without loss, about N (1 - p_g): raise the batch or lower the "
    "step by that much. Parameter loss costs no more than a share p_p of the noise floor as long as L eta <= "
    "1 - sqrt(p_p): at 1 % loss keep L eta below 0.9, at 10 % below 0.68, and staleness needs no further care. With "
    "several owners and a reliable own link use largest_step, which is smaller where gradients are lost too.",
)
WRONG_WEIGHTS = (
    plant("alpha = 1", convergence, "weights", lambda *a: _weights(*a)._replace(alpha=1)),
    plant("kappa = 1/N", convergence, "weights", lambda N, *a: _weights(N, *a)._replace(kappa=Fraction(1, N))),
    plant("no copy is stale", convergence, "weights", lambda *a: _weights(*a)._replace(theta=0)),
    plant("N stale copies", convergence, "lossy_stale", lambda N, alpha: alpha),
    plant("several owners like one", convergence, "reliable_stale", lambda N, w, owners: _reliable_stale(N, w, 1)),
    plant("the owner's weight for the others'", convergence, "reliable_stale", lambda N, w, owners: w),
)
WRONG_STEP = (
    plant("gap without noise", convergence, "gap", lambda p, rate, D, drive, noise: _gap(p, rate, D, drive, 0)),
    plant("gap forgotten at rate p", convergence, "gap", lambda p, rate, D, *a: _gap(p, rate, D * p / rate, *a)),
    plant("stretch 1", convergence, "stretch", lambda p, rate: 1),
    plant("stretch 1/(1 - rate)", convergence, "stretch", lambda p, rate: 1 / (1 - rate)),
    plant("half the price", convergence, "price", lambda *a: _price(*a) / 2),
    plant("price of one step", convergence, "price", lambda eta, L, theta, rate: eta * L**2 * theta / 2),
)
WRONG_FLOOR = (
    plant("floor without alpha", convergence, "floor", lambda s, of, *a: _floor(s, of._replace(alpha=1), *a)),
    plant("floor without staleness", convergence, "floor", lambda s, of, p, rate: s / of.alpha),
    plant("floor halved", convergence, "floor", lambda *a: _floor(*a) / 2),
    plant("mean gap of white steps", convergence, "stale_noise", lambda p, rate: p / (1 - p)),
    plant("start without alpha", convergence, "start", lambda d, T, eta, alpha: _start(d, T, eta, 1)),
    plant("start halved", convergence, "start", lambda *a: _start(*a) / 2),
)
WRONG_SIZE = (
    plant("slack without staleness", convergence, "slack", lambda s, *a: 1 - s),
    plant("slack for 2s", convergence, "slack", lambda s, *a: _slack(2 * s, *a)),
    plant("slack cubic in s", convergence, "slack", lambda s, *a: 1 - s - s * (1 - s - _slack(s, *a))),
    plant("simple step 1/(1 + tau r)", convergence, "simple_step", lambda r, tau: 1 / (1 + tau * r)),
    plant("a rate between p and sqrt(p)", convergence, "simple_rate", lambda r: (r**2 + r) / 2),
)  # fmt: skip
C2.derived(*WRONG_WEIGHTS[3:], *WRONG_STEP[:5], *WRONG_FLOOR[:3], WRONG_FLOOR[4], *WRONG_SIZE)


# -- certified


@C2.rung(
    "certified",
    *WRONG_WEIGHTS,
    *WRONG_STEP[2:],
    *WRONG_FLOOR,
    *WRONG_SIZE,
    plant(
        "one owner unless said otherwise",
        convergence,
        "weights",
        lambda N, p, own_link="reliable", owners=1: _weights(N, p, own_link, owners),
    ),
    plant("largest step with p for sqrt(p)", convergence, "largest_step", lambda theta, p: _largest(theta, p * p)),
    plant(
        "any step size",
        convergence,
        "best_rate",
        lambda s, theta, p: _best(min(max(s, 1e-9), _largest(theta, p)), theta, p),
    ),
    plant("an allowed rate, not the best", convergence, "best_rate", lambda s, theta, p: float(p) ** 0.5),
    plant("the rate of white steps", convergence, "best_rate", lambda s, theta, p: float(p)),
)
def _all_parameters(run: Run) -> Evidence:
    convergence_checks.inequalities()
    convergence_checks.step_sizes()
    convergence_checks.counted(run.pick(5, 9))
    convergence_checks.rates(run)
    ratios = convergence_checks.quadratics(run)
    (least, _), (worst, at) = min(ratios), max(ratios)
    return Evidence(
        "each inequality, the step size and both rates, for all parameters; quadratics stay, by exact moments, between "
        f"{float(least):.3f} (small steps: 1/2) and {float(worst):.4f} of the bound ({at}), and attain it at s = 1 "
        "without parameter loss",
        tightness=round(float(worst), 4),
    )


# -- enumerated


@C2.rung(
    "enumerated",
    mistakes.DIVIDE_BY_N,
    mistakes.COUNT_PLUS_ONE,
    mistakes.IGNORE_LOSS,
    mistakes.OWN_FOR_ZERO,
    mistakes.NOT_ZEROED,
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.INVERTED,
    mistakes.BROADCAST_FIRST,
    *WRONG_WEIGHTS[:3],
    *WRONG_STEP[:4],
    *WRONG_FLOOR[:3],
    *WRONG_FLOOR[4:],
    *WRONG_SIZE[:2],
)
def _every_pattern(run: Run) -> Evidence:
    _equalities()
    states = _any_state(run)
    worst = _some_steps(run)
    return Evidence(
        f"all losses and signs of the noise: one step from {states} states of two packets, never above, equal where it "
        f"should be; {run.pick(2, 3)} steps on a quadratic and a double well, at most {float(worst):.3f} of the bound"
    )


POINTS = [(Fraction(1, 5), Fraction(1, 9)), (Half, Fraction(1, 4)), (Fraction(1, 7), Fraction(4, 9))]


def _equalities() -> None:
    for own_link in ("lossy", "reliable"):
        # Fresh copies of a quadratic of curvature L: every inequality for f is an equality.
        for N, step in ((2, Half), (3, Fraction(6))):
            run = descent.Steps(descent.quadratic([[1.0]]), [12.0], None, [0], N, own_link, float(step), 6.0)
            f = run.mean(run.x_TPQ[-1].square().sum(-1) / 2)
            for lost, _ in POINTS:
                of = convergence.weights(N, lost, own_link, 1)
                slack, floor = (
                    convergence.slack(step, of.theta, Fraction(0), Half),
                    convergence.floor(step, of, 0, Half),
                )
                claimed = 72 - step / 2 * of.alpha * 144 * (1 + slack) + step * of.alpha / 2 * of.kappa * 36 * floor
                found = f(lost, Fraction(0))
                require(found == claimed, f"N = {N}, s = {step}, own link {own_link}: E f(x') = {found}, not {claimed}")
        # From the same point, T steps at s = 1: the bound less what is left at the end.
        steps = descent.Steps(descent.quadratic([[1.0]]), [4.0], None, [0], 2, own_link, 1.0, 2.0, 2)
        for lost, _ in POINTS:
            of = convergence.weights(2, lost, own_link, 1)
            squares = [steps.mean(x.square().sum(-1))(lost, Fraction(0)) for x in steps.x_TPQ]
            left = convergence.start(squares[2] / 2, 2, 1, of.alpha)
            bound = convergence.bound(8, 2, 1, 1, 4, of, 0, 0)
            require(sum(squares[:2]) / 2 == bound - left, f"p_g = {lost}, own link {own_link}: not attained at s = 1")
    # The gap, where the mean step is d (p - rate)/p: own link reliable, the same gradient on both ranks.
    for lost, rate in ((Half, Fraction(3, 4)), (Fraction(1, 4), Half)):
        d, step = 4, 4 * (lost - rate) / lost
        constant = lambda x: x.sum(-1), lambda x, step=step: torch.full_like(x, float(step))
        run = descent.Steps(constant, [0.0], [[0.0], [-d]], [0], 2, "reliable", 1.0, 2.0)
        for p_g in (Third, Half):
            noise = convergence.weights(2, p_g, "reliable", 1).kappa * 4
            found, claimed = run.mean(run.gap_P())(p_g, lost), convergence.gap(lost, rate, d**2, step**2, noise)
            require(found == claimed, f"p_p = {lost}, rate {rate}: E D' = {found}, not {claimed}")


def _any_state(run: Run) -> int:
    """f(x) - f* + price D after a step against what it may be, whatever the state and the step size."""
    matrix = [[2, 1], [1, 2]]  # L = 3
    count = 0
    for own_link in ("lossy", "reliable"):
        for N, owners in run.pick(((2, (0, 1)),), ((2, (0, 1)), (2, (0, 0)), (3, (2, 1)))):
            for x, y in (((4, -2), (0, 6)), ((2, 2), (-6, 4)), ((0, 8), (10, -10))):
                for step in (Fraction(1, 4), Fraction(3, 4)):
                    y_NQ = [[v * (1 + i) for v in y] for i in range(N)]
                    taken = descent.Steps(descent.quadratic(matrix), x, y_NQ, owners, N, own_link, float(step), 6.0)
                    _require_step(taken, matrix, x, y_NQ, owners, own_link, step, Fraction(2 * 36))
                    count += 1
    return count


def _require_step(
    taken: descent.Steps, matrix: Any, x: Any, y_NQ: Any, owners: Any, own_link: Any, step: Fraction, sigma2: Fraction
) -> None:
    N, L = len(y_NQ), 3
    y_NQ = [[x[k] if owners[k] == i else v for k, v in enumerate(y)] for i, y in enumerate(y_NQ)]
    gradient, *stale = [
        [Fraction(sum(h * v for h, v in zip(row, at, strict=True))) for row in matrix] for at in (x, *y_NQ)
    ]
    D = sum(Fraction((a - b) ** 2) for y in y_NQ for a, b in zip(x, y, strict=True)) / (N - 1)
    f, gap = taken.mean(descent.quadratic(matrix)[0](taken.x_TPQ[-1])), taken.mean(taken.gap_P())
    for lost, p_p in POINTS:
        of = convergence.weights(N, lost, own_link, len(set(owners)))
        each = [[of.alpha / N] * len(x)] * N
        if own_link == "reliable":
            each = [[of.kappa if i == o else (1 - of.kappa) / (N - 1) for o in owners] for i in range(N)]
        G = sum(w * b**2 for ws, bs in zip(each, stale, strict=True) for w, b in zip(ws, bs, strict=True))
        for rate in ((1 + p_p) / 2, (1 + 3 * p_p) / 4):
            worth = convergence.price(step, L, of.theta, rate)
            now = Fraction(sum(a * b for a, b in zip(x, gradient, strict=True)), 2) + worth * D
            claimed = now - step * of.alpha / 2 * sum(a**2 for a in gradient) - step / 2 * G * convergence.slack(
                L * step, of.theta, p_p, rate) + step * of.alpha / 2 * of.kappa * sigma2 * convergence.floor(
                L * step, of, p_p, rate)  # fmt: skip
            found = f(lost, p_p) + worth * gap(lost, p_p) / (N - 1)
            where = f"x = {x}, y = {y_NQ}, owners {owners}, own link {own_link}, eta = {step}, p = {lost}, {p_p}"
            require(found <= claimed, f"{where}: {float(found)} after the step, above {float(claimed)}")


def _some_steps(run: Run) -> Fraction:
    """From a common start, at several losses and every step size that is allowed there."""
    worst, T = Fraction(0), run.pick(2, 3)
    for own_link in ("lossy", "reliable"):
        for function, x in (
            (descent.quadratic([[1.0]]), 2.0),
            (descent.double_well(), 0.5),
            (descent.double_well(), -1.0),
        ):
            distance = Fraction(float(function[0](torch.tensor([x], dtype=torch.float64))))
            for step in (Fraction(1, 4), Half, Fraction(7, 8)):
                taken = descent.Steps(function, [x], None, [0], 2, own_link, float(step), 1.0, T)
                squares = [taken.mean(function[1](at).square().sum(-1)) for at in taken.x_TPQ[:-1]]
                for lost, p_p in [*POINTS, (Fraction(1, 50), Fraction(1, 400))]:
                    of = convergence.weights(2, lost, own_link, 1)
                    if step > convergence.largest_step(float(of.theta), float(p_p)):
                        continue
                    found = sum(mean(lost, p_p) for mean in squares) / T
                    bound = convergence.bound(distance, T, step, 1, 1, of, p_p)
                    require(found <= bound, f"{T} steps of {step} from {x}, p = {lost}, {p_p}: {found}, not {bound}")
                    worst = max(worst, found / Fraction(bound))
    return worst


# -- sampled


@C2.rung(
    "sampled",
    mistakes.NOT_ZEROED,
    mistakes.INVERTED,
    WRONG_FLOOR[2],
    plant("floor a fifth too low", convergence, "floor", lambda *a: _floor(*a) / 1.2),
)
def _many_ranks(run: Run) -> Evidence:
    packets, found = run.pick(300, 4_000), []
    settings: tuple[tuple[stability.OwnLink, int, float, float, descent.Function, str], ...] = (
        ("lossy", 2, 0.5, 1.0, descent.quadratic([[1.0]]), "quadratic"),
        ("reliable", 12, 0.01, 1.0, descent.quadratic([[1.0]]), "quadratic"),
        ("lossy", 12, 0.3, 0.9, descent.double_well(), "double well"),
    )
    for own_link, N, loss, share, function, name in settings:
        of, steps = convergence.weights(N, loss, own_link, 1), 60
        eta = share * convergence.largest_step(of.theta, loss)
        channel = SimulatedChannel(Arrivals(Bernoulli(loss), [0] * packets, N, run.seed, own_link))
        sample_P = descent.running(channel, function, packets, eta, 1.0, steps, run.seed)
        distance = float(function[0](torch.zeros(1, dtype=torch.float64)))
        bound = convergence.bound(distance, steps, eta, 1.0, 1.0, of, loss)
        ratio = descent.require_at_most(f"{name}, N = {N}, p = {loss}", sample_P, bound, ALPHA / 4)
        found.append(f"{name} N = {N} p = {loss} {ratio:.2f}")
    runs = [descent.trained(4, 0.1, 1.0, run.pick(20, 100), run.seed % 2**62 + k) for k in range(run.pick(2, 6))]
    over = np.array([measured / bound for measured, bound in runs])
    ratio = descent.require_at_most("a small network", over, 1.0, ALPHA / 4)
    return Evidence(f"measured over bound: {', '.join(found)}, a small network in the cluster {ratio:.2g}", ALPHA)


C2.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
