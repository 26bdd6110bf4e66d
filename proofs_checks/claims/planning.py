"""U1: what `plan` says of a deployment is what the claims, the laws and the implementation say of it.

Legend: N ranks; P packets = patterns of arrivals.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import lcm, prod
from typing import Any

import torch

from lossproof.impl import aggregate as stage_1
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments.patterns import all_patterns
from lossproof.theory import aggregation, burst_ages, bursts, plan, stability, survivors, unequal
from lossproof.theory.derive import bursts as derive
from lossproof.theory.laws import GilbertElliott

_TERMS = 160
_WITHIN = Fraction(1, 10**12)
"""Relative: what a float answer may be off."""
_right_owner, _right_kappa = bursts.gilbert_owner, survivors.kappa
_right_worst, _right_pair = burst_ages.worst_mean, burst_ages.pair_worst
_right_ages, _right_equal, _right_unequal = plan._ages, plan._equal_weights, unequal.sender_weights

U1 = Claim(
    "U1",
    "What `plan` says of a deployment is what the laws and the implementation say of it",
    derive.any_losses,
    assumes=("equal or per-sender losses, independent or Gilbert-Elliott with a step clock", "steady state"),
    not_claimed=("what the network will do: that is what the numbers are given for", "the wording of the advice"),
    witness="16 ranks at 10 % loss",
)
U1.leave_out("derived", "not applicable", "the closed forms are derived where they are claimed: A1 to A7, B1 to B8, D2")


def _close(what: str, said: float | None, true: Fraction) -> None:
    require(
        said is not None and abs(Fraction(said) - true) <= _WITHIN * max(abs(true), _WITHIN),
        f"{what}: {said} for {float(true)}",
    )


@U1.rung(
    "certified",
    plant("the mean age for the quantile", burst_ages, "quantile", lambda p, L, above: int(p * L)),
    plant("bursts ignored", plan, "_ages", lambda N, p, L: _right_ages(N, p, 1 / (1 - p))),
    plant("the worst of N - 1", burst_ages, "worst_mean", lambda N, p, L: _right_worst(N - 1, p, L)),
    plant("the variance once", burst_ages, "pair_worst", lambda p, L: _right_pair(p, L) / 2),
    plant("half the drift to the owner", bursts, "gilbert_owner", lambda *arguments: _right_owner(*arguments) / 2),
    plant("lossless step under loss", stability, "stable_step", lambda *arguments: 2.0),
)  # fmt: skip
def _ages(run: Run) -> Evidence:
    """Ages and drifts against sums over the law's own tail, cut off where nothing is left."""
    cases = [(2, 0.1, None), (5, 0.5, None), (3, 0.3, 2.5), (16, 0.25, 4), (4, 0.0, None)]
    for N, loss, burst in cases:
        found = plan.plan(N, loss, burst)
        law = GilbertElliott(loss, 1 / (1 - Fraction(str(loss))) if burst is None else burst)
        a = [law.age_tail(k) for k in range(1, _TERMS)]
        what, mean = f"N = {N}, loss {loss}, burst {burst}", sum(a, Fraction(0))
        second = sum(((2 * k + 1) * tail for k, tail in enumerate(a)), Fraction(0))
        require((found.ranks, found.loss, found.burst) == (N, loss, burst), f"{what}: other settings")
        _close(f"{what}: age_mean", found.age_mean, mean)
        _close(f"{what}: drift_owner", found.drift_owner, mean)
        _close(f"{what}: drift_pair", found.drift_pair, 2 * sum((tail * (1 - tail) for tail in a), Fraction(0)))
        _close(f"{what}: drift_pair_worst", found.drift_pair_worst, 2 * (second - mean**2))
        _close(f"{what}: age_max_mean", found.age_max_mean, sum((1 - (1 - tail) ** N for tail in a), Fraction(0)))
        least = next(age for age, tail in enumerate(a) if tail <= Fraction(1, 1000))
        require(found.age_q999 == least, f"{what}: age_q999 {found.age_q999} for {least}")
        step = found.stable_step
        require((step is None) == (burst is not None), f"{what}: stable_step {step}")
        if step is not None:
            A, B, C = (Fraction(x) for x in stability.coefficients(N, Fraction(str(loss)), "reliable"))
            _close(f"{what}: a s^2 + b s at s = stable_step", float(A * Fraction(step) ** 2 + B * Fraction(step)), C)
        require(found.stable_step_lossless == 2.0, f"{what}: stable_step_lossless {found.stable_step_lossless}")
    return Evidence(f"{len(cases)} deployments, ages and drifts from the laws' tails")


def _through_aggregate(losses: tuple[Fraction, ...], owner: int, own_link: str) -> dict[str, Any]:
    """E[m_i/K; K >= 1] of each sender, E[1/K; K >= 1] and P(K = 0), over all patterns of arrivals."""
    N = len(losses)
    arrived_NP = all_patterns(N)
    if own_link == "reliable":
        arrived_NP = arrived_NP[:, arrived_NP[owner]]
    scale = lcm(*range(1, N + 1))
    payload_NPE = (scale * torch.eye(N, dtype=torch.float64))[:, None].repeat(1, arrived_NP.shape[1], 1)
    estimate_PE, count_P = stage_1.aggregate(payload_NPE, arrived_NP)
    chances = [
        prod((1 - p if m else p) for i, (p, m) in enumerate(zip(losses, row, strict=True))
             if i != owner or own_link == "lossy")
        for row in arrived_NP.T.tolist()
    ]  # fmt: skip
    weights = [
        sum(c * int(e) for c, e in zip(chances, estimate_PE[:, i].tolist(), strict=True)) / scale for i in range(N)
    ]
    counts = list(zip(chances, count_P.tolist(), strict=True))
    return {
        "weights": weights,
        "kappa": sum((c / k for c, k in counts if k), Fraction(0)),
        "none": sum((c for c, k in counts if not k), Fraction(0)),
    }


@U1.rung(
    "enumerated",
    plant("own link always lossy", plan, "_equal_weights", lambda N, p, own: _right_equal(N, p, "lossy")),
    plant("own link always reliable", plan, "_equal_weights", lambda N, p, own: _right_equal(N, p, "reliable")),
    plant("unequal links with the other own link", unequal, "sender_weights",
          lambda of, own: _right_unequal(of, "lossy" if own == "reliable" else "reliable")),
    plant("kappa of one rank more", survivors, "kappa", lambda N, p: _right_kappa(N + 1, p)),
    plant("the owner weighs like the others", aggregation, "owner_weight", lambda N, p: Fraction(1, N)),
)  # fmt: skip
def _weights(run: Run) -> Evidence:
    """Weights, kappa and no survivor against the implementation over every pattern, equal and unequal links."""
    half, fifth = Fraction(1, 2), Fraction(1, 5)
    cases = [(fifth,) * 2, (half,) * 3, (fifth,) * 4, (fifth, half, fifth), (half, Fraction(1, 10), fifth, fifth)]
    for losses, own_link in product(cases, ("reliable", "lossy")):
        N, equal = len(losses), len(set(losses)) == 1
        what = f"losses {[str(p) for p in losses]}, own link {own_link}"
        owners = [_through_aggregate(losses, owner, own_link) for owner in range(N)]
        if equal:
            _same(f"{what}", plan.plan(N, losses[0], own_link=own_link), owners[0], 0)  # type: ignore[arg-type]
        found = plan.plan(losses=losses, own_link=own_link)  # type: ignore[arg-type]
        for owner, (sender, measured) in enumerate(zip(found.senders or (), owners, strict=True)):
            _same(f"{what}, rank {owner}", sender, measured, owner)
            mean = sum(m["weights"][owner] / (1 - m["none"]) for m in owners) / N
            _close(f"{what}: weight of rank {owner}", sender.weight, Fraction(mean))
            _close(f"{what}: 1 + bias of rank {owner}", 1 + sender.bias, 1 + mean - Fraction(1, N))
            p = losses[owner]
            _close(f"{what}: loss of rank {owner}", sender.loss, p)
            _close(f"{what}: age of rank {owner}'s packets", sender.age_mean, p / (1 - p))
            _close(f"{what}: pairs of rank {owner}'s packets", sender.drift_pair, 2 * p / (1 - p**2))
        if not equal:
            kept = own_link == "lossy"
            require((found.kappa is not None) == kept and found.age_mean is None, f"{what}: one value for all owners")
            require("age_mean" in found.reasons and found.stable_step is None, f"{what}: no reason given")
            if kept:
                _close(f"{what}: kappa", found.kappa, owners[0]["kappa"])
    return Evidence(f"{2 * len(cases)} deployments of up to 4 ranks, every pattern through aggregate")


def _same(what: str, found: Any, measured: dict[str, Any], owner: int) -> None:
    some = 1 - measured["none"]
    _close(f"{what}: kappa", found.kappa, measured["kappa"])
    N = len(measured["weights"])
    _close(f"{what}: variance_inflation", found.variance_inflation, N * measured["kappa"] / some)
    _close(f"{what}: owner_weight", found.owner_weight, measured["weights"][owner] / some)
    _close(f"{what}: p_no_survivor", found.p_no_survivor, measured["none"])


U1.leave_out("sampled", "not applicable", "all that it says is compared exactly; the claims behind it are sampled")
U1.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
