"""D1: losing parameter packets is momentum.

Legend: N ranks, P packets, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch

from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import mean_paths, mean_runs, mistakes, momentum_checks
from lossproof.proofs_checks.instruments.statistics import ALPHA
from lossproof.theory import momentum, stability, survivors
from lossproof.theory.derive import momentum as derive

_of_weights, _server, _cluster, _bursty, _step, _trajectory, _spread = (
    momentum.of_weights, momentum.server, momentum.cluster, momentum.bursty, momentum.mean_step, momentum.trajectory,
    momentum.spread,
)  # fmt: skip

D1 = Claim(
    "D1",
    "Losing parameter packets is momentum: heavy ball of coefficient p, up to the owner's own weight",
    derive.mean_of_training,
    assumes=(
        "means, on a quadratic: SGD, with or without heavy ball of its own, one Hessian for all ranks; gradient noise "
        "has mean 0 given the past; survivor mean, no survivor no update",
        "packets are lost independently, gradients with probability p_g, parameters with p; common start",
        "any smooth f and bursts: a parameter server or a cluster, N to infinity, links independent and of one law",
        "argued in words, not by a checked step: the triangle inequality by which x stays near its limit",
    ),
    not_claimed=(
        "that a run is close to its mean at small N: the mean says nothing of the spread (C1, D2)",
        "bursts at finite N: there E x is off by O(1/N)",
        "a reliable own link where the Hessian couples packets of different owners: an owner's copy of another's "
        "packet is as stale as anyone's; a lossy own link and a parameter server are exact for any Hessian and packets",
        "Adam: its first moment lags as momentum does, its second is not linear",
        "floating point",
    ),
    witness="p = 1/2, no gradient lost, eta h = 1: E x = 1, 0, -1/2, -1/2; torch's SGD with momentum and dampening 1/2",
    advice="Loss delays gradients by lag = nu E A steps: E A the mean age, p/(1-p) or pL; nu = 1 - 1/N or about that. "
    "Momentum delays them by beta/(1-beta). Keep the sum: 1/(1-beta) = 1/(1-beta_0) - lag "
    "(`lossproof.theory.momentum.corrected`); for independent losses beta = (beta_0 - p)/(1 - p (2 - beta_0)). To "
    "subtract p itself is right for small beta_0 only: at beta_0 = 0.9 and p = 0.1 it leaves 0.8, a delay of 4.1 steps "
    "for 9; what keeps it is 0.899. The two are lags in series, no sum: only beta_0 = p is met exactly, by no momentum "
    "and the step eta/(alpha (1-p)). Lost gradients add no momentum; they take away steps: a share 1 - p^N is left.",
)


def _subtract(momentum: Any, lag: Any) -> Any:
    return momentum - lag / (1 + lag)


def _other_link(N: Any, p_gradients: Any, p: Any, own_link: stability.OwnLink = "reliable") -> Any:
    return _cluster(N, p_gradients, p, "lossy" if own_link == "reliable" else "reliable")


def _empty_start(of: Any, gradient: Any, steps: int, start: Any = 1, optimizer: Any = 0) -> Any:
    """The buffer starts at 0 instead of at the first gradient."""
    x, buffer, velocity = [start], 0, 0
    for _ in range(steps):
        g = gradient(x[-1])
        buffer = of.momentum * buffer + (1 - of.momentum) * g
        velocity = optimizer * velocity + of.rate * ((1 - of.share) * g + of.share * buffer)
        x.append(x[-1] - velocity)
    return x


ONE_LAG = plant(
    "one lag of beta + p",
    momentum,
    "mean_step",
    lambda of, x, g, optimizer=0: _step(of, x, g, optimizer) + optimizer * of.momentum * (x[1] - x[2]),
)
UNSCALED = plant(
    "rate without 1 - p",
    momentum,
    "mean_step",
    lambda of, x, g, optimizer=0: _step(of, x, g, optimizer) - of.rate * of.share * of.momentum * g[0],
)
NO_MOMENTUM = plant("no momentum", momentum, "cluster", lambda *args: _cluster(*args)._replace(momentum=0))
OF_ARRIVALS = plant("momentum 1 - p", momentum, "server", lambda alpha, p: _server(alpha, p)._replace(momentum=1 - p))
ALL_STALE = plant("the owner's copy is stale too", momentum, "cluster", lambda *args: _cluster(*args)._replace(share=1))
SHARE_P = plant("share p", momentum, "bursty", lambda p, L: _bursty(p, L)._replace(share=p))
NO_BURSTS = plant("bursts without effect", momentum, "bursty", lambda p, L: momentum.server(1, p))
SUBTRACT = plant("momentum less p", momentum, "corrected", _subtract)
P_OF_EVERY_STEP = plant("delay p", momentum, "lag", lambda of: of.share * of.momentum)
LINKS_SWAPPED = plant("own links swapped", momentum, "cluster", _other_link)
NO_EMPTY = plant(
    "no survivor forgotten",
    momentum,
    "spread",
    lambda kappa, variance, empty, mean2, *own: _spread(kappa, variance, 0, mean2, *own),
)
D1.derived(
    ONE_LAG, ALL_STALE, SHARE_P, SUBTRACT, LINKS_SWAPPED, NO_EMPTY, UNSCALED, NO_MOMENTUM, P_OF_EVERY_STEP,
    plant("growth without its sum", momentum, "distance", lambda t, eta, smooth: eta * (1 + eta * smooth) ** (t - 1)),
    plant("step without the rate", momentum, "corrected_step", lambda m, lag, rate=1: 1 / (1 - lag * (1 - m))),
)  # fmt: skip


# -- certified


@D1.rung(
    "certified",
    ONE_LAG,
    ALL_STALE,
    SHARE_P,
    SUBTRACT,
    LINKS_SWAPPED,
    UNSCALED,
    NO_MOMENTUM,
    OF_ARRIVALS,
    NO_BURSTS,
    P_OF_EVERY_STEP,
    plant("buffer starts empty", momentum, "trajectory", _empty_start),
)
def _all_parameters(run: Run) -> Evidence:
    steps = run.pick(3, 4)
    momentum_checks.paths(steps)
    momentum_checks.of_ages(run.pick(3, 5))
    momentum_checks.counted(run.pick(3, 6))
    momentum_checks.corrections()
    return Evidence(
        f"for all weights, p, s and beta: the polynomial of the 3 x 3 mean map, and {steps} steps from the start; for "
        "all p, L and gradients: the mean over ages under bursts; weights by counting; max(0, beta_0 - p) <= beta <= "
        "beta_0 where p <= beta_0"
    )


# -- enumerated


@D1.rung(
    "enumerated",
    mistakes.ALWAYS_FRESH,
    mistakes.DIVIDE_BY_N,
    mistakes.ZERO_FOR_STALE,
    SHARE_P,
    ONE_LAG,
    LINKS_SWAPPED,
    mistakes.INVERTED,
    mistakes.BROADCAST_FIRST,
    mistakes.COUNT_PLUS_ONE,
    mistakes.OWN_FOR_ZERO,
    NO_BURSTS,
    NO_EMPTY,
    ALL_STALE,
    OF_ARRIVALS,
    plant("buffer starts empty", momentum, "trajectory", _empty_start),
    plant("spread of K, not of 1/K", momentum, "spread",
          lambda kappa, *others: _spread(kappa**2, *others)),
)  # fmt: skip
def _every_history(run: Run) -> Evidence:
    for model, N, steps, rate, own in (
        ("server", 1, 3, 1, 0.5), ("server", 2, 3, 2, 0.5), ("lossy", 2, 3, 2, 0.5), ("reliable", 2, 3, 1, 0.5),
        ("reliable", 3, 2, 3, 0), *run.pick((), (
            ("server", 3, 3, 2, 0.5), ("lossy", 3, 3, 1, 0.5), ("reliable", 3, 3, 2, 0), ("reliable", 2, 4, 2, 0.5))),
    ):  # fmt: skip
        means = mean_paths.means(model, N, steps, rate, own)
        _require_means(means, model, N, steps, [[1]], rate, own)
    filled = mean_paths.means("server", 2, 3, 1, rule="zero_fill")
    for p_gradients, loss in filled.grid:
        claimed = momentum.trajectory(momentum.server(1 - p_gradients, loss), lambda x: x, 3)
        require([x for (x,) in filled(p_gradients, loss)] == claimed, f"zero fill, p_g = {p_gradients}, p = {loss}")
    coupled = ((2, 1), (1, 3))
    _require_means(mean_paths.means("lossy", 2, 2, 1, 0.5, coupled), "lossy", 2, 2, coupled, 1, 0.5)
    _without_loss()
    _bursts(run)
    _spreads(run.pick(2, 3))
    return Evidence(
        "server and clusters of up to 3 ranks, SGD with momentum 1/2 and without, as polynomials in both losses; a "
        "Hessian that couples two owners; torch's SGD of momentum and dampening p; bursts for N to infinity; "
        "the spread of one estimate"
    )


def _require_means(
    means: mean_paths.Means, model: mean_paths.Model, N: int, steps: int, hessian: Any, rate: int, own: float
) -> None:
    H, start = np.array(hessian, dtype=object) * Fraction(rate), np.array([Fraction(1)] * len(hessian), dtype=object)
    for p_gradients, loss in means.grid:
        if model == "server":
            of = momentum.server(survivors.some_survivor(N, p_gradients), loss)
        else:
            of = momentum.cluster(N, p_gradients, loss, model)
        claimed = momentum.trajectory(of, lambda x: H @ x, steps, start, Fraction(own))
        for t, (found, x) in enumerate(zip(means(p_gradients, loss), claimed, strict=True)):
            where = f"{model}, N = {N}, p_g = {p_gradients}, p = {loss}, own momentum {own}: E x_{t}"
            require(found == list(x), f"{where} = {[*map(str, found)]}, claimed {[*map(str, x)]}")
            if t > 2:
                past = claimed[t - 1], claimed[t - 2], claimed[t - 3]
                step = momentum.mean_step(of, past, [H @ x for x in past], Fraction(own))
                require(
                    found == list(step), f"{where} = {[*map(str, found)]}, from the three before {[*map(str, step)]}"
                )


def _without_loss() -> None:
    """A server's mean is what torch's SGD does without loss, given momentum = dampening = p; p a power of 1/2."""
    N, steps, rate = 2, 3, 2
    means = mean_paths.means("server", N, steps, rate)
    for p_gradients, loss in ((Fraction(1, 2), Fraction(1, 4)), (Fraction(1, 4), Fraction(1, 2))):
        of = momentum.server(survivors.some_survivor(N, p_gradients), loss)
        x = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        beta = float(of.momentum)
        optimizer = torch.optim.SGD([x], lr=float(of.rate * rate), momentum=beta, dampening=beta)
        for t, (mean,) in enumerate(means(p_gradients, loss)):
            found = Fraction(float(x.detach()))
            require(
                of.share == 1 and found == mean, f"torch's SGD without loss is at {found} after {t} steps, not {mean}"
            )
            x.grad = x.detach().clone()
            optimizer.step()


def _bursts(run: Run) -> None:
    """The limit is that of quasi-hyperbolic momentum; links are two-state chains that start stationary."""
    steps, rate = 4, 2
    for loss, burst in ((Fraction(1, 3), Fraction(5, 2)), (Fraction(1, 2), 2), (Fraction(1, 10), 7)):
        enter = loss / (burst * (1 - loss))

        def weight(lost: Sequence[bool], loss: Fraction = loss, burst: Any = burst, enter: Any = enter) -> Fraction:
            chance = loss if lost[0] else 1 - loss
            for before, now in pairwise(lost):
                into = 1 - Fraction(1) / burst if before else enter
                chance *= into if now else 1 - into
            return chance

        found = mean_paths.many_ranks(range(1, run.pick(4, 5)), steps, rate, weight)
        claimed = momentum.trajectory(momentum.bursty(loss, burst), lambda x: rate * x, steps)[-1]
        require(found == claimed, f"p = {loss}, L = {burst}: E x_{steps} for N to infinity {found}, claimed {claimed}")


def _spreads(largest: int) -> None:
    """One estimate over both masks: copies at ages 0 and 1, and what it misses the mean over ages by, squared."""
    fresh, old = 3, 1
    models: tuple[mean_paths.Model, ...] = ("server", "lossy", "reliable")
    for model, N in product(models, range(2, largest + 1)):
        moments = mean_paths.estimates(model, N, fresh, old)
        for p_gradients, loss in moments.grid:
            (first,), (second,) = moments(p_gradients, loss)
            mean = (1 - loss) * fresh + loss * old
            variance, empty = loss * (1 - loss) * (fresh - old) ** 2, p_gradients**N
            if model == "server":
                claimed = momentum.spread(survivors.kappa(N, p_gradients), variance, empty, mean**2)
            else:
                of = stability.shares(N, p_gradients, model)
                kappa, missing = of.owner_square + of.squares, empty if model == "lossy" else 0
                claimed = momentum.spread(kappa, variance, missing, mean**2, of.owner_square, (fresh - mean) ** 2)
            found = second - 2 * mean * first + mean**2
            require(found == claimed, f"{model}, N = {N}, p_g = {p_gradients}, p = {loss}: {found}, claimed {claimed}")


# -- sampled


@D1.rung(
    "sampled",
    mistakes.ALWAYS_FRESH,
    mistakes.DIVIDE_BY_N,
    mistakes.SAME_FOR_ALL_STEPS,
    mistakes.INVERTED,
    NO_MOMENTUM,
    NO_BURSTS,
    mistakes.WORDS_OF_31_BITS,
    SHARE_P,
    ALL_STALE,
    plant("buffer starts empty", momentum, "trajectory", _empty_start),
)
def _as_it_trains(run: Run) -> Evidence:
    packets, ranks = run.pick(4_000, 40_000), run.pick(5_000, 40_000)
    found = [
        mean_runs.cluster(run.seed, packets, "reliable", ALPHA / 3),
        mean_runs.cluster(run.seed, packets, "lossy", ALPHA / 3),
    ]
    return Evidence("; ".join((*found, mean_runs.near_its_limit(run.seed, ranks, ALPHA / 3))), ALPHA)


D1.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
