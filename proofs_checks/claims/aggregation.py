"""A1 to A3: what the owner's estimate is on average.

Legend: N ranks, P packets, E elements of a packet.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import combinations
from math import comb
from typing import Any

import sympy as sp
import torch

from lossproof.impl.loss import Arrivals, OwnLink
from lossproof.impl.round import Round
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import datagram_mistakes, datagrams, estimates, mistakes, processes
from lossproof.proofs_checks.instruments.patterns import (
    Scripted,
    all_patterns,
    exact_sum,
    expectation,
    require_identical,
)
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import aggregation, certify
from lossproof.theory.derive import aggregation as derive
from lossproof.theory.laws import Bernoulli

p, X = sp.symbols("p X")
N_, t_ = sp.symbols("N t", integer=True, positive=True)
p_ = sp.Symbol("p", positive=True)
FLOATS = "floating point: the mean is exact here, rounded to nearest in training"


def _columns(ranks: int) -> list[list[int]]:
    """For each element of the basis the gradients of all senders."""
    return [[int(g) for g in column] for column in estimates.basis(ranks).T]


def _sampled(loss: float, ranks: int, packets: int, run: Run, own_link: OwnLink, **options: Any) -> Any:
    """Estimates (P,) of gradients 1, 0, ..., 0 and 1/2 at the last rank; all lie in [0, 1]."""
    columns_NE = torch.tensor([[1.0], *[[0.0]] * (ranks - 2), [0.5]])
    estimate_PE, _ = estimates.of_law(
        Bernoulli(loss), ranks, packets, run.seed, columns_NE, own_link=own_link, **options
    )
    return estimate_PE[:, 0]


A1 = Claim(
    "A1",
    "The survivor mean is unbiased given a survivor, under every exchangeable loss",
    derive.survivor_mean,
    assumes=(
        "the gradients are fixed before the losses are drawn",
        "the arrival vector is exchangeable across senders and P(K >= 1) > 0; independence is not needed",
    ),
    not_claimed=("gradients that depend on past losses (D5)", "unequal links (A6)", FLOATS),
    witness="independent links of equal loss; the owner's own link is lossy like the others",
)
A1.derived(
    plant("weight 1/(N-1)", aggregation, "survivor_weight", lambda N: aggregation.divide(1, N - 1)),
    plant("weight 1", aggregation, "survivor_weight", lambda N: 1),
    plant("weight 1/N^2", aggregation, "survivor_weight", lambda N: aggregation.divide(1, N**2)),
)


@A1.rung(
    "certified",
    plant("weight 1/(N-1)", aggregation, "survivor_weight", lambda N: aggregation.divide(1, N - 1 or 2)),
    plant("weight 1/(N+1)", aggregation, "survivor_weight", lambda N: aggregation.divide(1, N + 1)),
    plant("the sum, not the mean", aggregation, "survivor_weight", lambda N: 1),
)
def _weights(run: Run) -> Evidence:
    # For all N and k, by induction on N: k binom(N, k) / (N binom(N-1, k-1)) is 1 at N = k, and N -> N+1 leaves it.
    N, k = sp.symbols("N k")
    grow = ((N + 1) / (N + 1 - k)) * (N / (N + 1)) / (N / (N + 1 - k))  # of binom(N, k), 1/N, 1/binom(N-1, k-1)
    require(certify.is_zero(grow - 1), "the ratio of binomials is not k/N for all N")
    require(certify.is_zero(aggregation.survivor_weight(N) - (k / N) / k), "the weight is not (k/N)/k for all N and k")
    limit = run.pick(7, 10)
    for ranks in range(1, limit + 1):
        for size in range(1, ranks + 1):
            share = Fraction(sum(1 for s in combinations(range(ranks), size) if 0 in s), comb(ranks, size)) / size
            claimed = aggregation.survivor_weight(ranks)
            require(share == claimed, f"N = {ranks}, k = {size}: the expected weight is {share}, not {claimed}")
    return Evidence(f"weight 1/N by induction for all N, k; subsets recounted for N <= {limit}")


@A1.rung(
    "enumerated",
    mistakes.DIVIDE_BY_N,
    mistakes.COUNT_PLUS_ONE,
    mistakes.IGNORE_LOSS,
    mistakes.NEXT_PACKETS_MASK,
    mistakes.NOT_ZEROED,
    plant("weight 1/(N+1)", aggregation, "survivor_weight", lambda N: aggregation.divide(1, N + 1)),
)
def _every_subset(run: Run) -> Evidence:
    # An exchangeable law is a mixture over K of the uniform law on the sets of that size: equality for each K is all.
    limit = run.pick(6, 10)
    for ranks in range(1, limit + 1):
        arrived_NP = all_patterns(ranks)
        estimate_PE = estimates.of_patterns(arrived_NP, estimates.basis(ranks))
        for size in range(ranks + 1):
            rows = estimate_PE[arrived_NP.sum(0) == size]
            for element, gradients in enumerate(_columns(ranks)):
                mean = exact_sum(rows[:, element]) / comb(ranks, size)
                claimed = aggregation.survivor_mean(gradients) if size else 0
                require(
                    mean == claimed, f"N = {ranks}, K = {size}, gradients {gradients}: mean {mean}, claimed {claimed}"
                )
    return Evidence(f"all 2^N patterns for N <= {limit}, every K by itself")


@A1.rung(
    "sampled",
    mistakes.DIVIDE_BY_N,
    mistakes.COUNT_PLUS_ONE,
    mistakes.NOT_ZEROED,
    mistakes.own_link("reliable"),
    mistakes.a_fifth_more(aggregation, "survivor_mean"),
    processes.planting("DIVIDE_BY_N"),
    processes.planting("COUNT_PLUS_ONE"),
    processes.planting("NOT_ZEROED"),
    datagram_mistakes.COUNTED_TWICE,
    datagram_mistakes.UNEQUAL_LINKS,
)
def _many_ranks(run: Run) -> Evidence:
    ranks, packets, loss = 24, run.pick(20_000, 200_000), 0.8
    estimate_P = _sampled(loss, ranks, packets, run, "lossy")
    # A packet without a survivor estimates 0; one with a survivor may too (gradients of 0), so K is drawn again.
    some_P = Arrivals(Bernoulli(loss), [0] * packets, ranks, run.seed, "lossy").gradients(0).any(0)
    claimed = float(aggregation.survivor_mean([2, *[0] * (ranks - 2), 1])) / 2
    require_mean("E[survivor mean | K >= 1]", estimate_P[some_P.numpy()], claimed, 0, 1, ALPHA / 2)
    here = run.pick(2, 3)
    gradients = [1 + 2 * rank for rank in range(here)]  # none is 0, so an estimate of 0 has no survivor
    played = processes.play(
        here, Bernoulli(loss), run.seed, "lossy", torch.tensor(gradients, dtype=torch.float64).view(1, here, 1), 10_000
    )
    some = played.estimates_TPE[played.estimates_TPE != 0].numpy()
    mean = float(aggregation.survivor_mean(gradients))
    require_mean(f"under DDP on {here} processes", some, mean, 1, max(gradients), ALPHA / 2)
    over_udp = datagrams.gradients(run.pick(2, 8), 4)
    sent = datagrams.play(over_udp, run.pick(1000, 5000), 0.3, run.seed, remote=True)
    datagrams.require_unbiased("over UDP", sent, over_udp, ALPHA)
    detail = f"N = {ranks}, p = {loss}, {packets} packets; DDP on {here} processes; datagrams from 3 senders by UDP"
    return Evidence(detail, 2 * ALPHA)


A2 = Claim(
    "A2",
    "What no survivor costs: zero, zero fill, hold, own",
    derive.no_survivor,
    assumes=("A1's", "(hold) losses independent in time", "(own) the owner's gradient needs no network"),
    not_claimed=("which choice trains best", FLOATS),
    witness="independent links of equal loss, constant gradients",
)
A2.derived(
    plant("p^(N-1) without a survivor", aggregation, "no_survivor", lambda N, p: p ** (N - 1)),
    plant("zero fill keeps gbar", aggregation, "zero_fill", lambda gbar, p: gbar),
    plant("own counted with q^N", aggregation, "survivor_mean_or_own", lambda g, o, N, p: g + (1 - p) ** N * (o - g)),
    plant("hold forgets at once", aggregation, "survivor_mean_or_hold", lambda g, s, N, p, t: g + p**N * (s - g)),
    plant("zero loses q^N", aggregation, "survivor_mean_or_zero", lambda gbar, N, p: (1 - (1 - p) ** N) * gbar),
)


@A2.rung(
    "certified",
    plant("hold loses its start", aggregation, "survivor_mean_or_hold", lambda g, s, N, p, t: g * (1 - p ** (N * t))),
    plant("hold with p^t", aggregation, "survivor_mean_or_hold", lambda g, s, N, p, t: g + p**t * (s - g)),
    plant("own overshoots", aggregation, "survivor_mean_or_own", lambda g, o, N, p: g + p**N * (o + g)),
    plant("zero grows", aggregation, "survivor_mean_or_zero", lambda gbar, N, p: (1 + p**N) * gbar),
)
def _fallbacks(run: Run) -> Evidence:
    g, e, o, P0 = sp.symbols("g e o P0")

    def hold(t: Any) -> Any:
        return aggregation.survivor_mean_or_hold(g, e, N_, p_, t)

    powers = {p_ ** (N_ * t_): X, p_**N_: P0, p_**t_: sp.Symbol("Y")}
    step = hold(t_ + 1) - (1 - p_**N_) * g - p_**N_ * hold(t_)
    require(certify.is_zero(hold(0) - e) and certify.is_zero(step, powers), "hold does not solve its recursion")
    own = aggregation.survivor_mean_or_own(g, o, N_, p_) - (1 - p_**N_) * g - p_**N_ * o
    require(certify.is_zero(own, powers), "own is not a mixture of gbar and g_o")
    kept = aggregation.survivor_mean_or_zero(1, N_, p_)
    for difference, what in (
        (kept, "zero: below 0"),
        (1 - kept, "zero: above gbar"),
        (kept - aggregation.zero_fill(1, p_), "zero fill above the survivor mean with zero"),
    ):
        bounded = certify.is_nonnegative(
            difference.subs(p_**N_, p_ * X), (p_, X)
        )  # p^N = p p^(N-1), X = p^(N-1) in [0, 1]
        require(bounded, f"{what}: no certificate for all N and p")
    return Evidence("recursion and mixture for all N, t, p; zero fill <= zero <= gbar for gbar >= 0")


CHOICES: dict[str, tuple[dict[str, Any], Callable[[Any, Any, Any, Any], Any]]] = {
    "zero": ({}, lambda gbar, own, N, p: aggregation.survivor_mean_or_zero(gbar, N, p)),
    "own": ({"no_survivor": "own"}, lambda gbar, own, N, p: aggregation.survivor_mean_or_own(gbar, own, N, p)),
    "zero fill": ({"rule": "zero_fill"}, lambda gbar, own, N, p: aggregation.zero_fill(gbar, p)),
}
"""The choices without memory: the options of `aggregate`, and what it then gives on average."""


@A2.rung(
    "enumerated",
    mistakes.OWN_FOR_ZERO,
    mistakes.ZERO_FOR_HOLD,
    mistakes.HOLD_FOR_OWN,
    mistakes.SURVIVORS_FOR_ZERO_FILL,
    mistakes.NEIGHBOURS_GRADIENT,
    mistakes.NEXT_PACKETS_MASK,
    plant("p^(N+1) without a survivor", aggregation, "no_survivor", lambda N, p: p ** (N + 1)),
)
def _every_pattern(run: Run) -> Evidence:
    limit = run.pick(4, 6)
    for ranks in range(1, limit + 1):
        arrived_NP = all_patterns(ranks)
        for name, (options, closed) in CHOICES.items():
            estimate_PE = estimates.of_patterns(arrived_NP, estimates.basis(ranks), **options)
            for element, g in enumerate(_columns(ranks)):
                gbar = aggregation.survivor_mean(g)
                enumerated = expectation(estimate_PE[:, element], arrived_NP)
                require_identical(
                    f"{name}, N = {ranks}, g = {g}", enumerated, lambda p: closed(gbar, g[0], ranks, p), ranks + 1
                )
    ranks, rounds = 2, run.pick(3, 5)
    arrived_BP = all_patterns(ranks * rounds)
    payload_NPE = estimates.payload(estimates.basis(ranks), arrived_BP.shape[1])
    channel = Scripted(ranks, arrived_BP.view(rounds, ranks, -1))
    held_TPE, _ = estimates.over_rounds(rounds, channel, payload_NPE, no_survivor="hold")
    for t in range(rounds):
        for element, g in enumerate(_columns(ranks)):
            require_identical(
                f"hold, t = {t + 1}, g = {g}",
                expectation(held_TPE[t, :, element], arrived_BP),
                lambda p: aggregation.survivor_mean_or_hold(aggregation.survivor_mean(g), 0, ranks, p, t + 1),
                ranks * (rounds + 1),
            )
    return Evidence(f"all patterns for N <= {limit}, as polynomials in p; hold over {rounds} rounds of N = 2")


@A2.rung(
    "sampled",
    mistakes.WORDS_OF_31_BITS,
    mistakes.OWN_FOR_ZERO,
    mistakes.HOLD_FOR_OWN,
    mistakes.ZERO_FOR_HOLD,
    mistakes.SURVIVORS_FOR_ZERO_FILL,
    mistakes.SAME_FOR_ALL_SENDERS,
    mistakes.a_fifth_more(aggregation, "zero_fill"),
)
def _often_none(run: Run) -> Evidence:
    ranks, packets, loss, rounds = 6, run.pick(20_000, 200_000), 0.8, 3
    gbar = float(aggregation.survivor_mean([2, *[0] * (ranks - 2), 1])) / 2
    for what, (options, closed) in CHOICES.items():
        estimate_P = _sampled(loss, ranks, packets, run, "lossy", **options)
        require_mean(f"{what}, E[estimate]", estimate_P, closed(gbar, 1.0, ranks, loss), 0, 1, ALPHA / 4)
    estimate_P = _sampled(loss, ranks, packets, run, "lossy", rounds=rounds, no_survivor="hold")
    held = aggregation.survivor_mean_or_hold(gbar, 0.0, ranks, loss, rounds)
    require_mean("hold, E[estimate]", estimate_P, held, 0, 1, ALPHA / 4)
    return Evidence(f"four choices, N = {ranks}, p = {loss}, {packets} packets", ALPHA)


def _bias_times(factor: Callable[[Any], Any]) -> Any:
    right = aggregation.owner_bias
    return lambda g_owner, gbar, N, p: right(g_owner, gbar, N, p) * factor(N)


A3 = Claim(
    "A3",
    "A reliable own link biases the survivor mean towards the owner's gradient",
    derive.owner_bias,
    assumes=(
        "the owner's own gradient always arrives, N >= 2",
        "the other links lose independently with probability p",
    ),
    not_claimed=(
        "that equal expected gradients on all ranks remove the bias: they must be equal where they are evaluated, and "
        "staleness alone breaks that (enumerated here on f(x) = x^2/2)",
        FLOATS,
    ),
    witness="two ranks, p = 1/2: the owner's weight is 3/4",
)
A3.derived(
    plant("weight with p^(N-1)", aggregation, "owner_weight", lambda N, p: (1 - p ** (N - 1)) / (N * (1 - p))),
    plant("weight without 1/N", aggregation, "owner_weight", lambda N, p: (1 - p**N) / (1 - p)),
    plant("bias of the other sign", aggregation, "owner_bias", _bias_times(lambda N: -1)),
    plant("bias without N/(N-1)", aggregation, "owner_bias", _bias_times(lambda N: aggregation.divide(N - 1, N))),
)


@A3.rung(
    "certified",
    plant("weight with p^(N-1)", aggregation, "owner_weight", lambda N, p: (1 - p ** (N - 1)) / (N * (1 - p))),
    plant(
        "weight over N-1",
        aggregation,
        "owner_weight",
        lambda N, p: aggregation.divide(1 - p**N, (N - 1 or 3) * (1 - p)),
    ),
    plant("weight 1 - p^N", aggregation, "owner_weight", lambda N, p: 1 - p**N),
)
def _owner_weight(run: Run) -> Evidence:
    # For all N: w = integral of E z^B = (p + qz)^(N-1) over [0, 1]; F = (p + qz)^N / (Nq) is its antiderivative.
    z = sp.Symbol("z", positive=True)
    base = p_ + (1 - p_) * z
    antiderivative = base**N_ / (N_ * (1 - p_))
    slope = sp.diff(antiderivative, z) / base ** (N_ - 1)
    ends = antiderivative.subs(z, 1) - antiderivative.subs(z, 0)
    weight = aggregation.owner_weight(N_, p_)
    require(certify.is_zero(sp.powsimp(slope) - 1), "not an antiderivative")
    require(certify.is_zero(ends - weight, {p_**N_: X}), "the owner's weight is not the integral for all N")
    for ranks in range(1, run.pick(8, 16) + 1):
        series = sum(sp.binomial(ranks - 1, j) * (1 - p) ** j * p ** (ranks - 1 - j) / (j + 1) for j in range(ranks))
        require(certify.is_zero(series - aggregation.owner_weight(ranks, p)), f"N = {ranks}: not the binomial sum")
    # 1 <= S_N = N w <= N by induction: S_1 = 1 and S_(N+1) - S_N = p^N lies in [0, 1].
    growth = (N_ + 1) * aggregation.owner_weight(N_ + 1, p_) - N_ * weight
    for bound in (growth, 1 - growth):
        require(certify.is_nonnegative(bound, (p_, X), {p_**N_: X}), "no certificate for 1/N <= w <= 1")
    require(certify.is_zero(aggregation.owner_weight(1, p) - 1), "w is not 1 for N = 1")
    return Evidence("weight and 1/N <= w <= 1 for all N and p")


@A3.rung(
    "enumerated",
    mistakes.DIVIDE_BY_N,
    mistakes.COUNT_PLUS_ONE,
    mistakes.NEXT_SENDERS_MASK,
    mistakes.NEXT_PACKETS_MASK,
    plant("no bias", aggregation, "owner_bias", lambda o, g, N, p: 0),
    plant(
        "weight with p^(N-1)",
        aggregation,
        "owner_weight",
        lambda N, p: aggregation.divide(1 - p ** (N - 1), N * (1 - p)),
    ),
)
def _owner_always_arrives(run: Run) -> Evidence:
    limit = run.pick(5, 8)
    for ranks in range(2, limit + 1):
        others_BP = all_patterns(ranks - 1)
        arrived_NP = torch.cat([torch.ones_like(others_BP[:1]), others_BP])
        estimate_PE = estimates.of_patterns(arrived_NP, estimates.basis(ranks))
        for element, g in enumerate(_columns(ranks)):
            gbar = aggregation.survivor_mean(g)
            enumerated = expectation(estimate_PE[:, element] - float(gbar), others_BP)
            require_identical(
                f"bias, N = {ranks}, g = {g}",
                enumerated,
                lambda p: aggregation.owner_bias(g[0], gbar, ranks, p),
                ranks + 1,
            )
    _stale_bias()
    return Evidence(
        f"all patterns for 2 <= N <= {limit}, as polynomials in p; and the bias that staleness alone causes"
    )


def _stale_bias() -> None:
    """f(x) = x^2/2 on both of two ranks, from x = 8 with rate 1/2: stale gradients differ, the owner's is favoured."""
    bits_BP = all_patterns(2)  # parameter packet of step 1, gradient packet of step 2, both of rank 1
    ones = torch.ones_like(bits_BP[0])
    channel = Scripted(
        2, torch.stack([torch.stack([ones, ones]), torch.stack([ones, bits_BP[1]])]),
        torch.stack([torch.stack([ones, bits_BP[0]]), torch.stack([ones, ones])]),
    )  # fmt: skip
    round_ = Round.in_process(torch.full((4, 1), 8.0, dtype=torch.float64), torch.zeros(4, dtype=torch.long), channel)
    error_P = torch.zeros(4)
    for _ in range(2):
        gradients_NPE = round_.replicas_HPE.clone()

        def update(estimate: torch.Tensor, g: torch.Tensor = gradients_NPE) -> None:
            nonlocal error_P
            error_P = (estimate - g.mean(0)).squeeze(-1)
            round_.fresh_QE.sub_(estimate / 2)

        round_.step(gradients_NPE, update)
    # At step 2: g_o = 4, and E g_1 = 4 + 4p, so gbar - g_o = 2p on average.
    require_identical(
        "bias by staleness", expectation(error_P, bits_BP), lambda p: aggregation.owner_bias(0, 2 * p, 2, p), 4
    )


@A3.rung(
    "sampled",
    mistakes.own_link("lossy"),
    mistakes.DIVIDE_BY_N,
    mistakes.COUNT_PLUS_ONE,
    mistakes.WORDS_OF_31_BITS,
    mistakes.SAME_FOR_ALL_SENDERS,
    plant("no bias", aggregation, "owner_bias", lambda o, g, N, p: 0.0),
    mistakes.a_fifth_more(aggregation, "owner_bias"),
    datagram_mistakes.LATE_TAKEN,
)
def _owner_of_many(run: Run) -> Evidence:
    ranks, packets, loss = 16, run.pick(20_000, 200_000), 0.6
    gbar = float(aggregation.survivor_mean([2, *[0] * (ranks - 2), 1])) / 2
    estimate_P = _sampled(loss, ranks, packets, run, "reliable")
    require_mean("E[survivor mean]", estimate_P, gbar + aggregation.owner_bias(1.0, gbar, ranks, loss), 0, 1)
    over_udp = datagrams.gradients(run.pick(3, 8), 3)
    sent = datagrams.play(over_udp, run.pick(1000, 5000), 0.3, run.seed)
    datagrams.require_round(sent, over_udp)
    datagrams.require_owner_weight("over UDP", sent, over_udp, 0.3, ALPHA)
    return Evidence(f"N = {ranks}, p = {loss}, {packets} packets; N = 3 over UDP, p = 0.3", 2 * ALPHA)


for claim, verdict, reason in (
    (A1, "not run", "no Rocq proof is written yet"),
    (A2, "not applicable", "kernel proofs are kept for A1 and B2"),
    (A3, "not applicable", "kernel proofs are kept for A1 and B2"),
):
    claim.leave_out("kernel", verdict, reason)  # type: ignore[arg-type]
