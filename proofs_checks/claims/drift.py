"""B2 to B4: how far replicas drift apart.

Legend: N ranks, P packets, E elements of a packet, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy as sp
import torch

from lossproof.impl.round import Round
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import datagram_mistakes, datagrams, histories, mistakes, processes
from lossproof.proofs_checks.instruments.patterns import Scripted, all_patterns, expectation, require_identical
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import certify, drift
from lossproof.theory.derive import drift as derive
from lossproof.theory.laws import Bernoulli

p, t = sp.Symbol("p", positive=True), sp.Symbol("t", integer=True, nonnegative=True)
N, X = sp.symbols("N X", positive=True)
POWERS = {p**t: X}

FILTRATION = (
    "parameter packets are lost independently in time and between links, with probability p, independent of the past",
    "steps are a martingale difference: E[u_t | everything before the masks of t] = 0 and E|u_t|^2 = sigma^2 given it",
    "common start: all copies equal at t = 0",
)
NOT_CLAIMED = (
    "trained networks: SGD is mean-reverting, so its closed-loop drift lies below this by O(eta h) (C1)",
    "biased or correlated steps (B5, B6), bursts (B8), the worst replica (B7)",
    "floating point",
)


def _coin_flips(steps: int, ranks: int) -> tuple[Round, torch.Tensor]:
    """Rank 0 owns, ranks 1.. receive: all loss histories of their links (B, P) and all signs of steps of size 1."""
    links = (ranks - 1) * steps
    bits = all_patterns(links + steps)
    arrived_BP, sign_TP = bits[:links], bits[links:].double() * 2 - 1
    return histories.scripted(~arrived_BP.view(steps, ranks - 1, -1), list(sign_TP[:, :, None])), arrived_BP


def _mean_over_signs(values_P: torch.Tensor, arrived_BP: torch.Tensor, steps: int) -> Any:
    enumerated = expectation(values_P, arrived_BP)
    return lambda loss: enumerated(loss) / 2**steps


def _sampled(run: Run, ranks: int, steps: int, loss: float, packets: int) -> Round:
    owner_P = torch.arange(packets) % ranks
    return histories.drawn(Bernoulli(loss), owner_P, ranks, run.seed, histories.orthonormal(steps))


def _of_power(form: Callable[[Any, Any], Any]) -> Any:
    """A drift as a function of p and p^t; p^t is 0 in steady state."""
    return lambda p, t=None, sigma2=1: sigma2 * form(p, 0 if t is None else p**t)


def _on_processes(run: Run, loss: float, steps: int) -> tuple[int, processes.Played]:
    """The same under DDP: every rank's gradient in step t is -u_t, so that u_t is the step whoever survives."""
    here = run.pick(2, 3)
    gradients = -torch.eye(steps, dtype=torch.float64)[:, None].repeat(1, here, 1)
    return here, processes.play(here, Bernoulli(loss), run.seed, "reliable", gradients, 6_000)


def _wrong_pair(steady: Any) -> Any:
    """A drift that tends to a wrong constant at the right rate."""
    right = drift.pair
    return lambda p, t=None, sigma2=1: right(p, t, sigma2) * steady(p) / right(p)


TWO_P = plant("2p", drift, "pair", _wrong_pair(lambda p: 2 * p))
REPORTED = plant("2p/(1+p)", drift, "pair", _wrong_pair(lambda p: 2 * p / (1 + p)))
NO_OWNERS = plant("model without owners", drift, "model_pair", lambda p, N, t=None, sigma2=1: drift.pair(p, t, sigma2))
WITHOUT_P = plant("without p", drift, "owner", _of_power(lambda p, X: (1 - X) / (1 - p)))
TWICE_P = plant("2p/(1-p)", drift, "reported_constant", lambda p: 2 * p / (1 - p))
ONE_STEP = plant("gap of one step", drift, "stale_gap", lambda p, t=None, sigma2=1: sigma2)

B2 = Claim(
    "B2",
    "Drift between two replicas: 2p/(1-p^2) sigma^2, an equality for ever",
    derive.pair,
    assumes=FILTRATION,
    not_claimed=NOT_CLAIMED,
    witness="steps of +1 or -1 by a fair coin, independent losses",
)
B2.derived(
    REPORTED,
    plant(
        "p^(t+1)",
        drift,
        "pair",
        _of_power(lambda p, X: 2 * p / (1 - p**2) * (1 - p * X)),
    ),
    plant("without the common steps", drift, "pair", lambda p, t=None, sigma2=1: 2 * drift.owner(p, t, sigma2)),
    NO_OWNERS,
)


@B2.rung(
    "certified",
    REPORTED,
    TWO_P,
    plant(
        "rate p^(2t) only",
        drift,
        "pair",
        _of_power(lambda p, X: 2 * p / (1 - p**2) * (1 - X**2)),
    ),
    plant(
        "model with one owner",
        drift,
        "model_pair",
        lambda p, N, t=None, sigma2=1: drift.pair(p, t, sigma2) * (1 - (1 - p) / (2 * N)),
    ),
)
def _pair_bound(run: Run) -> Evidence:
    now, then = drift.pair(p, t), drift.pair(p, t + 1)
    fresh = drift.owner(p, t) + 1
    require(certify.is_zero(drift.pair(p, 0)), "the drift at t = 0 is not 0")
    require(
        certify.is_zero(then - p**2 * now - 2 * p * (1 - p) * fresh, POWERS), "not the recursion of the four outcomes"
    )
    require(
        certify.is_zero(drift.pair(p) - p**2 * drift.pair(p) - 2 * p * (1 - p) * (drift.owner(p) + 1)), "not stationary"
    )
    for bound in (now, then - now, drift.pair(p) - now):
        require(certify.is_nonnegative(bound, (p, X), POWERS), "no certificate for 0 <= D_t <= D_(t+1) <= D")
    for when in (None, t):
        shards = (1 - 2 / N) * drift.pair(p, when) + 2 / N * drift.owner(p, when)
        require(
            certify.is_zero(drift.model_pair(p, N, when) - shards, POWERS), "whole model: not the mixture over owners"
        )
    return Evidence("recursion for all t and p; 0 <= D_t <= D_(t+1) <= 2p/(1-p^2) sigma^2")


@B2.rung(
    "enumerated",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.INVERTED,
    mistakes.BLENDS,
    mistakes.BROADCAST_FIRST,
    mistakes.ONE_MASK_FOR_ALL,
    REPORTED,
)
def _every_pair_history(run: Run) -> Evidence:
    steps = run.pick(4, 5)
    round_, arrived_BP = _coin_flips(steps, ranks=3)
    squared = histories.pair_gaps(round_, 1, 2)
    require_identical(
        f"D_{steps}, coin flips",
        _mean_over_signs(squared, arrived_BP, steps),
        lambda loss: drift.pair(loss, steps),
        2 * steps + 4,
    )

    # Every rank in turn as the owner: the drift of ranks 1 and 2 when neither owns, and when one does.
    for owner in range(3):
        others = [rank for rank in range(3) if rank != owner]
        masks = torch.ones(steps, 3, 4**steps, dtype=torch.bool)
        masks[:, others] = all_patterns(2 * steps).view(steps, 2, -1)
        channel = Scripted(3, parameters_TNP=masks)
        round_ = histories.run(channel, [owner] * 4**steps, histories.orthonormal(steps))
        squared = histories.pair_gaps(round_, 1, 2)
        require_identical(
            f"D_{steps}, orthonormal steps, owner {owner}",
            expectation(squared, all_patterns(2 * steps)),
            lambda loss: (drift.owner if owner else drift.pair)(loss, steps),
            2 * steps + 4,
        )
    return Evidence(f"all 2^{3 * steps} histories of two links and of coin-flip steps, as polynomials in p")


@B2.rung(
    "sampled",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.SAME_FOR_ALL_RECEIVERS,
    mistakes.SAME_FOR_ALL_STEPS,
    mistakes.WORDS_OF_31_BITS,
    REPORTED,
    NO_OWNERS,
    mistakes.a_fifth_more(drift, "pair"),
    mistakes.a_fifth_more(drift, "model_pair"),
    datagram_mistakes.STALE_SLOT,
    datagram_mistakes.UNEQUAL_LINKS,
)
def _many_pairs(run: Run) -> Evidence:
    ranks, steps, loss, packets = 4, 10, 0.5, run.pick(16_000, 160_000)
    round_ = _sampled(run, ranks, steps, loss, packets)
    squared_P, owner_P = histories.pair_gaps(round_, 0, 1), torch.arange(packets) % ranks
    neither = squared_P[owner_P > 1].numpy()
    require_mean("pairwise drift", neither, drift.pair(loss, steps), 0, steps, ALPHA / 2)
    model = squared_P.view(-1, ranks).mean(1).numpy()  # a model: one shard of each owner, sigma^2/N each
    require_mean("drift of whole models", model, drift.model_pair(loss, ranks, steps), 0, steps, ALPHA / 2)
    measured = float(neither.mean() / drift.pair(loss))
    over_udp = datagrams.orthonormal(4, 3)
    sent = datagrams.play(over_udp, run.pick(1000, 5000), loss, run.seed)
    datagrams.require_round(sent, over_udp)
    datagrams.require_drift("over UDP", sent, loss, ALPHA)
    detail = f"{neither.size} pairs at N = {ranks}, p = {loss}, after {steps} steps; over UDP too"
    return Evidence(detail, 2 * ALPHA, round(measured, 4))


B3 = Claim(
    "B3",
    "Drift from a replica to its owner: p/(1-p) sigma^2",
    derive.owner,
    assumes=FILTRATION,
    not_claimed=NOT_CLAIMED,
    witness="steps of +1 or -1 by a fair coin, independent losses",
)
B3.derived(
    WITHOUT_P,
    plant("p^(t+1)", drift, "owner", _of_power(lambda p, X: p * (1 - p * X) / (1 - p))),
    plant("1 - p^2", drift, "owner", _of_power(lambda p, X: p * (1 - X) / (1 - p**2))),
)


@B3.rung(
    "certified",
    WITHOUT_P,
    plant(
        "limit twice", drift, "owner", lambda p, t=None, sigma2=1: sigma2 * p * (2 if t is None else 1 - p**t) / (1 - p)
    ),
    plant("overshoots", drift, "owner", _of_power(lambda p, X: p * (1 + X) / (1 - p))),
)
def _owner_bound(run: Run) -> Evidence:
    now, then = drift.owner(p, t), drift.owner(p, t + 1)
    require(certify.is_zero(drift.owner(p, 0)), "the drift at t = 0 is not 0")
    require(certify.is_zero(then - p * (now + 1), POWERS), "not the recursion V = p (V + sigma^2)")
    require(certify.is_zero(drift.owner(p) - p * (drift.owner(p) + 1)), "not stationary")
    for bound in (now, then - now, drift.owner(p) - now):
        require(certify.is_nonnegative(bound, (p, X), POWERS), "no certificate for 0 <= V_t <= V_(t+1) <= V")
    return Evidence("recursion for all t and p; 0 <= V_t <= V_(t+1) <= p/(1-p) sigma^2")


@B3.rung(
    "enumerated",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.INVERTED,
    mistakes.BLENDS,
    mistakes.BROADCAST_FIRST,
    WITHOUT_P,
)
def _every_link_history(run: Run) -> Evidence:
    steps = run.pick(6, 8)
    round_, arrived_BP = _coin_flips(steps, ranks=2)
    squared = histories.owner_gaps(round_)[1]
    require_identical(
        f"V_{steps}", _mean_over_signs(squared, arrived_BP, steps), lambda loss: drift.owner(loss, steps), steps + 2
    )
    return Evidence(f"all 2^{2 * steps} histories of one link and of coin-flip steps, as polynomials in p")


@B3.rung(
    "sampled",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.SAME_FOR_ALL_STEPS,
    mistakes.WORDS_OF_31_BITS,
    mistakes.BROADCAST_FIRST,
    mistakes.a_fifth_more(drift, "owner"),
    processes.planting("ZERO_FOR_STALE"),
    processes.planting("ALWAYS_FRESH"),
    processes.planting("SAME_FOR_ALL_STEPS"),
)
def _many_owners(run: Run) -> Evidence:
    ranks, steps, loss, packets = 4, 10, 0.5, run.pick(16_000, 160_000)
    round_ = _sampled(run, ranks, steps, loss, packets)
    other_P = (torch.arange(packets) + 1) % ranks
    gap = histories.owner_gaps(round_)[other_P, torch.arange(packets)].numpy()
    require_mean("drift to the owner", gap, drift.owner(loss, steps), 0, steps, ALPHA / 2)
    here, played = _on_processes(run, loss, steps)
    other_P = (played.owner_P + 1) % here
    far = histories.square(played.replicas_NPE[other_P, torch.arange(len(other_P))] - played.fresh_PE).numpy()
    require_mean(f"under DDP on {here} processes", far, drift.owner(loss, steps), 0, steps, ALPHA / 2)
    return Evidence(
        f"{packets} replicas at N = {ranks}, p = {loss}, after {steps} steps; DDP on {here} processes",
        ALPHA,
        round(float(gap.mean() / drift.owner(loss)), 4),
    )


B4 = Claim(
    "B4",
    "The reported constant 2p/(1+p) is exact for one reading of sigma^2 and too small by 1/(1-p) for the other",
    derive.reported,
    assumes=FILTRATION,
    not_claimed=(
        "which reading the paper intends: the constant is known second-hand and its sigma^2 is not defined there",
    ),
    witness="p = 1/2: 2/3 of the gap between fresh and stale copy, which is 2 sigma^2, makes B2's 4/3",
)
B4.derived(
    TWICE_P,
    plant("p/(1+p)", drift, "reported_constant", lambda p: p / (1 + p)),
    ONE_STEP,
    plant("gap without the new step", drift, "stale_gap", lambda p, t=None, sigma2=1: drift.owner(p, t, sigma2)),
)


@B4.rung(
    "certified",
    TWICE_P,
    ONE_STEP,
    plant("gap p^(t+1)", drift, "stale_gap", _of_power(lambda p, X: (1 - p * X) / (1 - p))),
)
def _two_readings(run: Run) -> Evidence:
    steady, reported = drift.pair(p), drift.reported_constant(p)
    require(certify.is_zero(steady - reported * drift.stale_gap(p)), "not exact under the reading as a gap")
    require(
        certify.is_zero(drift.stale_gap(p, t + 1) - p * drift.stale_gap(p, t) - 1, POWERS),
        "not the recursion of the gap",
    )
    require(certify.is_zero(drift.stale_gap(p, 1) - 1), "the first gap is not the first step")
    shortfall = steady - reported
    require(
        certify.is_nonnegative(shortfall, (p,)), "no certificate that the reported constant is no upper bound per step"
    )
    require(certify.is_zero(reported - (1 - p) * steady), "the two readings do not differ by the factor 1-p")
    return Evidence("exact for the gap; below B2 by the factor 1-p for the step, for all 0 < p < 1")


@B4.rung(
    "enumerated",
    mistakes.ALWAYS_FRESH,
    mistakes.BLENDS,
    mistakes.BROADCAST_FIRST,
    mistakes.ONE_MASK_FOR_ALL,
    TWICE_P,
    ONE_STEP,
)
def _one_sided_misses(run: Run) -> Evidence:
    steps = run.pick(4, 5)
    round_, arrived_BP = _coin_flips(steps, ranks=3)
    i, j = round_.replicas_HPE[1:]
    last_i, last_j = arrived_BP[-2:]
    one_sided = (last_i & ~last_j).double()
    gap = _mean_over_signs(histories.square(i - j) * one_sided, arrived_BP, steps)
    require_identical(
        f"gap given a one-sided miss at step {steps}",
        lambda loss: gap(loss) / (loss * (1 - loss)),
        lambda loss: drift.stale_gap(loss, steps),
        2 * steps + 4,
    )
    both_missed = _mean_over_signs(histories.square(i - j) * (~last_i & ~last_j), arrived_BP, steps)
    now = _mean_over_signs(histories.square(i - j), arrived_BP, steps)
    require_identical(  # D_t = p^2 D_(t-1) + (1-p^2) (reported constant) gap_t; at the fixed point D = constant x gap
        "drift from one-sided misses",
        lambda loss: (now(loss) - both_missed(loss)) / (1 - loss**2),
        lambda loss: drift.reported_constant(loss) * drift.stale_gap(loss, steps),
        2 * steps + 4,
    )
    return Evidence(f"all 2^{3 * steps} histories of two links and of coin-flip steps, as rational functions of p")


@B4.rung(
    "sampled",
    mistakes.ALWAYS_FRESH,
    mistakes.SAME_FOR_ALL_STEPS,
    mistakes.SAME_FOR_ALL_RECEIVERS,
    TWICE_P,
    ONE_STEP,
    mistakes.a_fifth_more(drift, "stale_gap"),
)
def _both_measured(run: Run) -> Evidence:
    ranks, steps, loss, packets = 4, 10, 0.5, run.pick(16_000, 160_000)
    round_ = _sampled(run, ranks, steps, loss, packets)
    mine = torch.arange(packets) % ranks > 1
    i, j = round_.replicas_HPE[:2, mine]
    x = round_.fresh_QE[mine]
    one_sided = (i == x).all(-1) & (j != x).any(-1)
    drift_P, gap_P = histories.square(i - j).numpy(), histories.square(i - j)[one_sided].numpy()
    require(gap_P.size > 0, "no one-sided miss")
    gap = drift.stale_gap(loss, steps)
    require_mean("gap given a one-sided miss", gap_P, gap, 0, steps, ALPHA / 2)
    require_mean("drift, gap reading", drift_P, drift.reported_constant(loss) * gap, 0, steps, ALPHA / 2)
    per_gap, per_step = drift_P.mean() / gap_P.mean(), drift_P.mean()
    return Evidence(
        f"p = {loss}, {drift_P.size} pairs: drift over gap {per_gap:.3f}, over step {per_step:.3f}, "
        f"reported {drift.reported_constant(loss):.3f}",
        ALPHA,
    )


B2.leave_out("kernel", "not run", "no Rocq proof is written yet")
B3.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
B4.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
