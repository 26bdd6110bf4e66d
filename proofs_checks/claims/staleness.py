"""B1: the age of a replica.

Legend: N ranks, P packets, T steps.
"""

from __future__ import annotations

from typing import Any

import sympy as sp
import torch

from lossproof.impl.round import Round
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import histories, mistakes
from lossproof.proofs_checks.instruments.patterns import all_patterns, expectation, require_identical
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_probability
from lossproof.theory import certify, staleness
from lossproof.theory.derive import drift as derive
from lossproof.theory.laws import Bernoulli

p, t = sp.Symbol("p", positive=True), sp.Symbol("t", integer=True, nonnegative=True)
X = sp.Symbol("X")
ONE = torch.ones(1, 1, dtype=torch.float64)


def _ages(round_: Round) -> torch.Tensor:
    """The age of every replica (N, P): the owners count steps of 1, a replica shows the last one it received."""
    return (round_.fresh_QE - round_.replicas_HPE).squeeze(-1)


def _mean_off(by: Any) -> Any:
    right = staleness.age_mean
    return lambda p, t=None: right(p, t) + by(p)


B1 = Claim(
    "B1",
    "The age of a replica is geometric, cut off at the start",
    derive.age,
    assumes=(
        "parameter packets are lost independently in time with probability p",
        "common start: all copies equal at t = 0",
    ),
    not_claimed=("bursts (B8)", "the worst of many replicas (B7)"),
    witness="independent losses at p = 1/2: ages 0, 1, 2, ... with probabilities 1/2, 1/4, 1/8, ...",
)
B1.derived(
    plant("tail p^(k+1)", staleness, "age_tail", lambda k, p: p ** (k + 1)),
    plant("P(A = a) without q", staleness, "age_pmf", lambda a, p: p**a),
    plant("mean 1/q", staleness, "age_mean", _mean_off(lambda p: 1)),
    plant("mean p^2/q", staleness, "age_mean", lambda p, t=None: p**2 / (1 - p) * (1 - (p**t if t is not None else 0))),
)


@B1.rung(
    "certified",
    plant("P(A = a) without q", staleness, "age_pmf", lambda a, p: p**a),
    plant("tail p^(k+1)", staleness, "age_tail", lambda k, p: p ** (k + 1)),
    plant("mean 1/q", staleness, "age_mean", _mean_off(lambda p: 1)),
    plant("mean grows past its limit", staleness, "age_mean",
          lambda p, t=None: p / (1 - p) * (1 + (p**t if t is not None else 0))),
)  # fmt: skip
def _distribution(run: Run) -> Evidence:
    powers = {p**t: X}
    # Total mass and mean by induction on t; both sides are rational in p and p^t.
    at_t = staleness.age_tail(t, p)
    require(certify.is_zero(staleness.age_tail(0, p) - 1), "mass at t = 0 is not 1")
    grown = staleness.age_pmf(t, p) + staleness.age_tail(t + 1, p) - at_t
    require(certify.is_zero(grown, powers), "the probabilities do not sum to 1 for all t")
    mean = staleness.age_mean(p, t)
    more = t * staleness.age_pmf(t, p) + (t + 1) * staleness.age_tail(t + 1, p) - t * at_t
    require(certify.is_zero(staleness.age_mean(p, 0)), "the mean at t = 0 is not 0")
    require(
        certify.is_zero(staleness.age_mean(p, t + 1) - mean - more, powers), "the mean is not that of the distribution"
    )
    for bound in (mean, staleness.age_mean(p, t + 1) - mean, staleness.age_mean(p) - mean):
        require(certify.is_nonnegative(bound, (p, X), powers), "no certificate for 0 <= E A_t <= E A_(t+1) <= p/q")
    return Evidence("total mass, mean, and 0 <= E A_t <= E A_(t+1) <= p/(1-p) for all t and p")


@B1.rung(
    "enumerated",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.INVERTED,
    mistakes.BLENDS,
    mistakes.BROADCAST_FIRST,
    plant("age counted from 1", staleness, "age_pmf", lambda a, p: (1 - p) * p ** (a - 1) if a else 1 - p),
    plant("mean 1/q", staleness, "age_mean", _mean_off(lambda p: 1)),
)
def _every_history(run: Run) -> Evidence:
    steps = run.pick(7, 11)
    arrived_TP = all_patterns(steps)
    owner_age, age = _ages(histories.scripted(~arrived_TP[:, None], [ONE] * steps))  # rank 1 receives
    require(not bool(owner_age.any()), "the owner's copy is stale")
    for a in range(steps + 1):
        require_identical(
            f"P(A_{steps} = {a})",
            expectation((age == a).double(), arrived_TP),
            lambda p: staleness.age_pmf(a, p) if a < steps else staleness.age_tail(steps, p),
            steps + 1,
        )
    require_identical("E A_t", expectation(age, arrived_TP), lambda p: staleness.age_mean(p, steps), steps + 2)
    return Evidence(f"all 2^{steps} histories of one link, as polynomials in p")


@B1.rung(
    "sampled",
    mistakes.ALWAYS_FRESH,
    mistakes.ZERO_FOR_STALE,
    mistakes.BROADCAST_FIRST,
    mistakes.SAME_FOR_ALL_STEPS,
    mistakes.WORDS_OF_31_BITS,
    plant("tail p^(k+1)", staleness, "age_tail", lambda k, p: p ** (k + 1)),
    mistakes.a_fifth_more(staleness, "age_tail"),
)
def _many_links(run: Run) -> Evidence:
    ranks, packets, steps, loss, levels = 9, run.pick(2_500, 25_000), 12, 0.3, 6
    age_NP = _ages(histories.drawn(Bernoulli(loss), [0] * packets, ranks, run.seed, [ONE] * steps))[1:]
    for k in range(1, levels + 1):
        older = int((age_NP >= k).sum())
        require_probability(f"P(A >= {k})", older, age_NP.numel(), staleness.age_tail(k, loss), ALPHA / levels)
    return Evidence(f"{age_NP.numel()} replicas of a packet after {steps} steps at p = {loss}, {levels} levels", ALPHA)


B1.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
