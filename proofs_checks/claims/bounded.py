"""B5: the worst that bounded steps can do to the drift, and steps with a mean.

Legend: P packets, E elements of a packet, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import sympy as sp
import torch

from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import histories, mistakes
from lossproof.proofs_checks.instruments.patterns import expectation, require_identical
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import certify, correlated, drift, staleness
from lossproof.theory.derive import correlated as derive

p, t = sp.Symbol("p", positive=True), sp.Symbol("t", integer=True, nonnegative=True)
X, s = sp.symbols("X s")
POWERS = {p**t: X}
_owner, _pair = correlated.owner_worst, correlated.pair_worst


def _mean_and_noise(steps: int) -> list[torch.Tensor]:
    """Steps 1 in element 0, orthonormal in the others: a mean, and exact squares of what zero mean gives on average."""
    return list(torch.cat([torch.ones(steps, 1), torch.eye(steps)], 1).double())


def _scaled(form: Callable[..., Any], factor: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda p, *args, **options: form(p, *args, **options) * factor(p)


SLOWER = plant("(1-p)^1", correlated, "pair_worst", _scaled(_pair, lambda p: 1 - p))
LESS = plant("without 1+p", correlated, "owner_worst", _scaled(_owner, lambda p: 1 / (1 + p)))
NO_NOISE = plant("no noise", correlated, "pair_biased", lambda p, t=None, mu2=0, sigma2=1: _pair(p, t, mu2))
NO_MEAN = plant("no mean", correlated, "owner_biased", lambda p, t=None, mu2=0, sigma2=1: drift.owner(p, t, sigma2))
AS_NOISE = plant(
    "mean counted like noise",
    correlated,
    "pair_biased",
    lambda p, t=None, mu2=0, sigma2=1: drift.pair(p, t, mu2 + sigma2),
)


def _late(p: Any, t: Any = None, G2: Any = 1) -> Any:
    return _owner(p, t, G2) - (0 if t is None else G2 * p * p**t)


LATE = plant("2t + 2 for 2t + 1", correlated, "owner_worst", _late)

B5 = Claim(
    "B5",
    "Worst case of bounded steps: 2p/(1-p)^2 G^2 between replicas, p(1+p)/(1-p)^2 G^2 to the owner",
    derive.worst,
    assumes=(
        "parameter packets are lost independently in time and between links, with probability p",
        "common start: all copies equal at t = 0",
        "bound: |u_t| <= G on every path, otherwise arbitrary, even chosen with all masks known",
        "equality with a mean: u_t = mu + a martingale difference of variance sigma^2, masks independent of the past",
    ),
    not_claimed=(
        "a bound on the worst of many replicas (B7), or under bursts (B8)",
        "that training comes near it: that takes steps that never turn",
        "floating point",
    ),
    witness="constant steps u = G attain both bounds",
)
B5.derived(SLOWER, LESS, LATE, AS_NOISE, NO_MEAN)


@B5.rung(
    "certified",
    SLOWER,
    LESS,
    LATE,
    AS_NOISE,
    NO_MEAN,
    plant("the limit at all times", correlated, "owner_worst", lambda p, t=None, G2=1: _owner(p, None, G2)),
)
def _every_path_bounded(run: Run) -> Evidence:
    owner, pair, age = correlated.owner_worst, correlated.pair_worst, staleness.age_mean
    n, S, Q, u, mu2, sigma2 = sp.symbols("n S Q u mu2 sigma2")
    zeros = {
        "n sum u^2 - (sum u)^2 does not grow by a square": (n + 1) * (Q + u**2) - (S + u) ** 2
        - (1 + 1 / n) * (n * Q - S**2) - (S - n * u) ** 2 / n,
        "to the owner, t = 0": owner(p, 0),
        "to the owner, recursion": owner(p, t + 1) - p * (owner(p, t) + 2 * age(p, t) + 1),
        "to the owner, stationary": owner(p) - p * (owner(p) + 2 * age(p) + 1),
        "to the owner, growth": owner(p, t + 1) - owner(p, t) - (2 * t + 1) * p * p**t,
        "pair, t = 0": pair(p, 0),
        "pair, recursion": pair(p, t + 1) - p**2 * pair(p, t) - 2 * (1 - p) * owner(p, t + 1),
        "pair, stationary": pair(p) - p**2 * pair(p) - 2 * (1 - p) * owner(p),
    }  # fmt: skip
    for when in (None, t):
        biased = correlated.owner_biased(p, when, mu2, sigma2), correlated.pair_biased(p, when, mu2, sigma2)
        zeros[f"mean plus noise, to the owner, t = {when}"] = (
            biased[0] - mu2 * owner(p, when) - sigma2 * drift.owner(p, when)
        )
        zeros[f"mean plus noise, pair, t = {when}"] = biased[1] - mu2 * pair(p, when) - sigma2 * drift.pair(p, when)
    for what, expression in zeros.items():
        require(certify.is_zero(expression, POWERS), f"{what}: not zero for all p and t")
    # V grows by (2t+1) p^(t+1) >= 0 to its limit; D_(t+1) = p^2 D_t + 2(1-p) V_(t+1) from D_0 = 0 does because V does.
    rest = (owner(p) - owner(p, t)).subs({p ** (t + 1): p * X, p**t: X}).subs(t, s / (1 - s))  # t >= 0 as 0 <= s < 1
    require(certify.is_nonnegative(rest, (p, X, s)), "no certificate for V_t <= V")
    return Evidence(
        "|sum of n steps| <= n G for all n; moments of the age for all t, p; bounds increase to their limits"
    )


@B5.rung(
    "enumerated",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.INVERTED,
    mistakes.BROADCAST_FIRST,
    mistakes.ONE_MASK_FOR_ALL,
    plant("a bound 1% smaller", correlated, "pair_worst", _scaled(_pair, lambda p: Fraction(99, 100))),
    LATE,
    NO_NOISE,
    NO_MEAN,
)
def _every_path(run: Run) -> Evidence:
    longer = run.pick(4, 5)
    arrived_BP = histories.links(longer)
    to_owner, apart = histories.scripted_gaps(arrived_BP, _mean_and_noise(longer))
    for what, squared_P, closed in (
        ("owner, constant steps", to_owner[:, 0] ** 2, lambda loss: correlated.owner_worst(loss, longer)),
        ("pair, constant steps", apart[:, 0] ** 2, lambda loss: correlated.pair_worst(loss, longer)),
        ("owner, mean 1 and noise", histories.square(to_owner), lambda loss: correlated.owner_biased(loss, longer, 1)),
        ("pair, mean 1 and noise", histories.square(apart), lambda loss: correlated.pair_biased(loss, longer, 1)),
    ):
        require_identical(what, expectation(squared_P, arrived_BP), closed, 2 * longer + 6)
    # Every path of steps in {-1, 0, 1} against every pattern, one by one: so also for steps that know all masks.
    steps = run.pick(3, 4)
    paths = list(product((-1.0, 0.0, 1.0), repeat=steps))
    arrived_BP = histories.links(steps, len(paths))
    path_TP1 = torch.tensor(paths, dtype=torch.float64).repeat_interleave(4**steps, 0).T[:, :, None]
    to_owner, apart = histories.scripted_gaps(arrived_BP, list(path_TP1))
    age, age_gap = histories.scripted_gaps(arrived_BP, [torch.ones(1, 1, dtype=torch.float64)] * steps)
    bounded = (to_owner.abs() <= age).all() and (apart.abs() <= age_gap.abs()).all()
    require(bool(bounded), "a sum of steps exceeds their number")
    squared = histories.square(apart).view(len(paths), -1)
    means = [expectation(row, histories.links(steps))(Fraction(1, 3)) for row in squared]
    worst = correlated.pair_worst(Fraction(1, 3), steps)
    require(max(means) == worst, f"the worst of {len(paths)} paths drifts {max(means)}, claimed {worst}")
    attained = [path for path, mean in zip(paths, means, strict=True) if mean == worst]
    require(attained == [(-1.0,) * steps, (1.0,) * steps], f"attained by {attained}, not by constant steps alone")
    return Evidence(
        f"constant and biased steps over {longer} steps, as polynomials in p; all {len(paths)} paths of -1, 0, 1 over "
        f"{steps} steps against all masks: constant steps alone attain the bound"
    )


@B5.rung(
    "sampled",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.SAME_FOR_ALL_STEPS,
    mistakes.SAME_FOR_ALL_RECEIVERS,
    SLOWER,
    LESS,
    NO_NOISE,
)
def _long_runs(run: Run) -> Evidence:
    steps, loss, packets = 12, 0.5, run.pick(5_000, 40_000)
    to_owner, apart = histories.drawn_gaps(run.seed, loss, packets, _mean_and_noise(steps))
    high, constant = steps**2, apart[:, 0].square().numpy()
    claimed = correlated.owner_worst(loss, steps)
    require_mean("owner, constant", to_owner[:, 0].square().numpy(), claimed, 0, high, ALPHA / 3)
    require_mean("pair, constant", constant, correlated.pair_worst(loss, steps), 0, high, ALPHA / 3)
    biased = correlated.pair_biased(loss, steps, 1)
    require_mean("pair, mean and noise", histories.square(apart).numpy(), biased, 0, high + steps, ALPHA / 3)
    measured = round(float(constant.mean()) / correlated.pair_worst(loss), 4)
    return Evidence(f"{packets} pairs at p = {loss} after {steps} constant steps, against the limit", ALPHA, measured)


B5.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
