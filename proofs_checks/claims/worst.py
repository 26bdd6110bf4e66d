"""B7: the worst of many replicas.

Legend: N ranks, R replicas that are not the owner's, P packets, E elements of a packet, T steps.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import sympy as sp
import torch

from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import burst_age_checks, histories, mistakes
from lossproof.proofs_checks.instruments.patterns import all_patterns, expectation, require_identical
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import burst_ages, certify, worst
from lossproof.theory.derive import worst as derive
from lossproof.theory.laws import Bernoulli

p, t = sp.Symbol("p", positive=True), sp.Symbol("t", integer=True, nonnegative=True)
X = sp.Symbol("X")

_bursty = burst_ages.worst_mean
_mean, _part, _drift = worst.age_max_mean, worst.age_max_part, worst.drift_bounds


def _log_enclosure(x: Fraction, terms: int = 60) -> tuple[Fraction, Fraction]:
    """Rational numbers on both sides of log x, x > 1: the series of 2 artanh y and what is left of it at most."""
    y = (x - 1) / (x + 1)
    low = 2 * sum((y ** (2 * i + 1) / (2 * i + 1) for i in range(terms)), Fraction(0))
    return low, low + 2 * y ** (2 * terms + 1) / (2 * terms + 1) / (1 - y * y)


def _worst_coin_walk(replicas: int, loss: float, steps: int) -> float:
    """E max |x - theta_i|^2 for coin-flip steps of size 1: over all walks of them, P(max <= v) = P(one <= v)^R."""
    chances = [(1 - loss) * loss**a for a in range(steps)] + [loss**steps]
    total = 0.0
    for signs in product((1, -1), repeat=steps):
        squares = [sum(signs[:a]) ** 2 for a in range(steps + 1)]
        below = 0.0
        for value in sorted(set(squares)):
            at_most = math.fsum(c for c, s in zip(chances, squares, strict=True) if s <= value) ** replicas
            total += value * (at_most - below) / 2**steps
            below = at_most
    return total


B7 = Claim(
    "B7",
    "The worst of N replicas: its age grows with log N, not with t, and its drift is 1 to 2 times sigma^2 E max A",
    derive.worst_replica,
    assumes=(
        "parameter packets are lost independently in time and between links, with probability p",
        "common start; N counts the replicas other than the owner's",
        "lower bound of the drift: steps as in B2",
        "upper bound: steps are a martingale difference, E|u_t|^2 = sigma^2, and do not depend on the losses",
    ),
    not_claimed=(
        "the factor 4 of Doob's inequality, which bounds the sums of the first steps of a martingale, while a replica "
        "lacks the last ones; for those the factor is 2, the least for martingale differences of varying size",
        "links that lose together: the worst age is then smaller (B9)",
        "floating point",
    ),
    witness="steps of +1 or -1 by a fair coin, independent losses",
)
B7.derived(
    plant("all N links lost, not one", worst, "age_max_tail", lambda k, N, p: p ** (k * N)),
    plant("N+1 replicas", worst, "age_max_tail", lambda k, N, p: 1 - (1 - p**k) ** (N + 1)),
    plant("inclusion without exclusion", worst, "age_max_part", lambda j, N, p, t=None: abs(_part(j, N, p, t))),
    plant("log p for log 1/p", worst, "age_max_bounds", lambda H, rate: (-H / rate - 1, -H / rate)),
    plant("lower bound less 2", worst, "age_max_bounds", lambda H, rate: (H / rate - 2, H / rate)),
    plant("factor 4", worst, "drift_bounds", lambda age, sigma2=1: (sigma2 * age, 4 * sigma2 * age)),
    plant("lower bound doubled", worst, "drift_bounds", lambda age, sigma2=1: (2 * sigma2 * age, 2 * sigma2 * age)),
)


@B7.rung(
    "certified",
    plant("N+1 replicas", worst, "age_max_tail", lambda k, N, p: 1 - (1 - p**k) ** (N + 1)),
    plant("one step older", worst, "age_max_mean", lambda N, p, t=None: _mean(N, p, t) + 1),
    plant("H_(N-1)", worst, "harmonic", lambda N, one=1: one * sum(Fraction(1, k) for k in range(1, N))),
    plant("sandwich of width 2", worst, "age_max_bounds", lambda H, rate: (H / rate - 2, H / rate)),
    plant("sandwich one too low", worst, "age_max_bounds", lambda H, rate: (H / rate - 2, H / rate - 1)),
    plant("factor 3/2", worst, "drift_bounds", lambda age, sigma2=1: (sigma2 * age, 3 * sigma2 * age / 2)),
    plant("factor 4", worst, "drift_bounds", lambda age, sigma2=1: (sigma2 * age, 4 * sigma2 * age)),
    plant("the integral for the sum", worst, "_age_max_mean",
          lambda N, p, t: float(worst.harmonic(N)) / -math.log(p)),
    plant("bursts: N+1 replicas", burst_ages, "worst_mean", lambda N, p, L: _bursty(N + 1, p, L)),
    plant("bursts: one replica", burst_ages, "worst_mean", lambda N, p, L: _bursty(1, p, L)),
    plant("bursts without effect", burst_ages, "worst_mean", lambda N, p, L: _bursty(N, p, 1 / (1 - p))),
)  # fmt: skip
def _age_and_bounds(run: Run) -> Evidence:
    _sandwich()
    _backward_sums()
    _stable_floats()
    burst_age_checks.oldest(run.pick(12, 40))
    limit = run.pick(4, 7)
    for n in range(1, limit + 1):
        now, then, steady = worst.age_max_mean(n, p, t), worst.age_max_mean(n, p, t + 1), worst.age_max_mean(n, p)
        require(certify.is_zero(worst.age_max_mean(n, p, 0)), f"N = {n}: the age at t = 0 is not 0")
        step = then - now - worst.age_max_tail(t + 1, n, p)
        require(certify.is_zero(step, {p**t: X}), f"N = {n}: not the sum of P(max A >= k)")
        require(certify.is_zero(steady - now, {p**t: sp.Integer(0)}), f"N = {n}: not the limit")
    return Evidence(
        f"E max A for N <= {limit}, all p and t; H_N/log(1/p) - 1 < E max A < H_N/log(1/p) for all N and p; "
        "also with bursts; the worst drift is at most 2 sigma^2 E max A, the least factor if sizes of steps may vary"
    )


def _sandwich() -> None:
    # f_N = 1 - (1-z)^N rises in z for all N, by induction: f_(N+1) = f_N + z (1 - f_N); so it falls in k, z = p^k.
    G, E, Z, Y = sp.symbols("G E Z Y")  # f_N is F at Z and G <= F at ZY
    F = G + (1 - G) * E
    require(
        certify.is_nonnegative((F + Z * (1 - F)) - (G + Z * Y * (1 - G)), (G, E, Z, Y)), "the tail does not fall in k"
    )
    H, rate = sp.symbols("H rate", positive=True)
    lower, upper = worst.age_max_bounds(H, rate)
    require(certify.is_zero(upper * rate - H), "the upper bound is not the integral H_N / log(1/p)")
    require(certify.is_zero(upper - lower - worst.age_max_tail(0, 3, p)), "the bounds do not differ by the term k = 0")
    for n in range(1, 25):  # the integral of f_N(z)/z over [0, 1], coefficient by coefficient
        integral = sum((Fraction((-1) ** (j + 1) * math.comb(n, j), j) for j in range(1, n + 1)), Fraction(0))
        require(worst.harmonic(n) == integral, f"H_{n} is not {integral}")
    for n, loss in product((1, 2, 7, 20), (Fraction(1, 10), Fraction(1, 2), Fraction(9, 10))):
        low, high = _log_enclosure(1 / loss)
        exact, harmonic = worst.age_max_mean(n, loss), worst.harmonic(n)
        inside = worst.age_max_bounds(harmonic, low)[0] < exact < worst.age_max_bounds(harmonic, high)[1]
        require(inside, f"N = {n}, p = {loss}: {float(exact)} is not within the bounds")


def _stable_floats() -> None:
    for n, loss, when in product((1, 2, 9), (0.3, 0.9, 0.9995, 0.0), (None, 5)):
        stable, exact = worst.age_max_mean(n, loss, when), worst.age_max_mean(n, Fraction(str(loss)), when)
        require(abs(stable - exact) <= 1e-11 * exact, f"N = {n}, p = {loss}, t = {when}: {stable} for {float(exact)}")


def _backward_sums() -> None:
    a, b, d, R, x = sp.symbols("a b d R x")
    factor = worst.drift_bounds(sp.Integer(1))[1]
    grown = (a - d) ** 2 + (b + d) ** 2 - a**2 - b**2  # d (b - a) has mean 0
    require(
        certify.is_zero(grown - 2 * d * (b - a) - factor * d**2),
        "a step does not add the stated multiple of its square",
    )
    # Sharp: a walk of steps +-1 stopped when its range reaches R ends R away from its other extreme. From an end of a
    # range r it takes r + 1 steps in mean to reach r + 1 (x (r+2-x) from x), so R (R+1)/2 in all.
    time = x * (R + 2 - x)
    even = time - 1 - (time.subs(x, x - 1) + time.subs(x, x + 1)) / 2
    total = R * (R + 1) / 2
    require(certify.is_zero(even), "not the mean time to leave an interval")
    require(certify.is_zero(total.subs(R, R + 1) - total - time.subs(x, 1)), "not the mean time to a range")
    require(
        certify.is_zero(R**2 / total - factor * R / (R + 1)),
        "the factor is not the limit that the stopped walk attains",
    )


def _all_histories(steps: int, replicas: int, coins: bool) -> tuple[torch.Tensor, Any]:
    """Squared gaps (R, P) over all histories of the links, and of coin-flip steps or for orthonormal ones."""
    links = replicas * steps
    bits = all_patterns(links + (steps if coins else 0))
    lost_TRP = ~bits[:links].view(steps, replicas, -1)
    flips = [(2 * sign.double() - 1)[:, None] for sign in bits[links:]]
    gaps = histories.owner_gaps(histories.scripted(lost_TRP, flips if coins else histories.orthonormal(steps)))
    require(not bool(gaps[0].any()), "the owner's copy is stale")
    return gaps[1:], bits[:links]


def _bursty_histories(replicas: int, steps: int) -> None:
    """Two-state chains, history by history: a burst goes on with 1 - 1/L and begins with p/(1-p)/L."""
    for loss, burst in (
        (Fraction(1, 3), Fraction(5, 2)),
        (Fraction(3, 5), Fraction(5, 2)),
        (Fraction(1, 2), Fraction(1)),
    ):
        enter = loss / (1 - loss) / burst
        weights = []
        for bits in all_patterns(steps).T.tolist():  # True is an arrival
            chance = 1 - loss if bits[0] else loss
            for before, now in pairwise(bits):
                begins = enter if before else 1 - 1 / burst
                chance *= 1 - begins if now else begins
            weights.append(chance)
        burst_age_checks.oldest_of_histories(replicas, steps, loss, burst, weights)


@B7.rung(
    "enumerated",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.INVERTED,
    mistakes.BROADCAST_FIRST,
    mistakes.ONE_MASK_FOR_ALL,
    plant("N+1 replicas", worst, "age_max_tail", lambda k, N, p: 1 - (1 - p**k) ** (N + 1)),
    plant("inclusion without exclusion", worst, "age_max_part", lambda j, N, p, t=None: abs(_part(j, N, p, t))),
    plant(
        "lower bound 1.1",
        worst,
        "drift_bounds",
        lambda age, sigma2=1: (sigma2 * age * Fraction(11, 10), 2 * sigma2 * age),
    ),
    plant("upper bound 1", worst, "drift_bounds", lambda age, sigma2=1: (sigma2 * age, sigma2 * age)),
    plant("bursts: N+1 replicas", burst_ages, "worst_mean", lambda N, p, L: _bursty(N + 1, p, L)),
    plant("bursts without effect", burst_ages, "worst_mean", lambda N, p, L: _bursty(N, p, 1 / (1 - p))),
)
def _every_history(run: Run) -> Evidence:
    replicas, steps = 3, run.pick(3, 4)
    gaps, arrived_BP = _all_histories(steps, replicas, coins=False)
    oldest = gaps.amax(0)  # with orthonormal steps the squared gap is the age
    degree = replicas * steps + 6
    for k in range(steps + 1):
        tail = expectation((oldest >= k).double(), arrived_BP)
        require_identical(f"P(max A >= {k})", tail, lambda loss: worst.age_max_tail(k, replicas, loss), degree)
    mean = expectation(oldest, arrived_BP)
    require_identical("E max A", mean, lambda loss: worst.age_max_mean(replicas, loss, steps), degree)
    require_identical(
        "worst drift, orthonormal steps: the lower bound is attained",
        mean,
        lambda loss: worst.drift_bounds(worst.age_max_mean(replicas, loss, steps))[0],
        degree,
    )
    _bursty_histories(2, steps)
    gaps, arrived_BP = _all_histories(steps, replicas, coins=True)
    flips = expectation(gaps.amax(0), arrived_BP)
    for loss in (Fraction(i, 8) for i in range(1, 8)):
        lower, upper = worst.drift_bounds(worst.age_max_mean(replicas, loss, steps))
        drift = flips(loss) / 2**steps
        require(lower <= drift <= upper, f"p = {loss}: worst drift {drift}, not in [{lower}, {upper}]")
    return Evidence(
        f"all 2^{(replicas + 1) * steps} histories of {replicas} links and of coin-flip steps; lower bound attained; "
        "two links with bursts"
    )


@B7.rung(
    "sampled",
    mistakes.ALWAYS_FRESH,
    mistakes.BROADCAST_FIRST,
    mistakes.SAME_FOR_ALL_RECEIVERS,
    mistakes.SAME_FOR_ALL_STEPS,
    mistakes.WORDS_OF_31_BITS,
    plant("age of one replica", worst, "_age_max_mean", lambda N, p, t: float(_mean(1, Fraction(str(p)), t))),
    plant("upper bound 1.2", worst, "drift_bounds", lambda age, sigma2=1: (sigma2 * age, 1.2 * sigma2 * age)),
    plant("lower bound 1.5", worst, "drift_bounds", lambda age, sigma2=1: (1.5 * sigma2 * age, 2 * sigma2 * age)),
)
def _many_replicas(run: Run) -> Evidence:
    replicas, steps, loss, packets = 48, 9, 0.5, run.pick(400, 4_000)
    coins = torch.Generator().manual_seed(run.seed % 2**63)
    signs_TP = torch.randint(0, 2, (steps, packets), generator=coins).double() * 2 - 1
    moves = [torch.stack([torch.ones_like(sign_P), sign_P], 1) for sign_P in signs_TP]  # element 0 counts the age
    round_ = histories.drawn(Bernoulli(loss), [0] * packets, replicas + 1, run.seed, moves)
    gap_NPE = (round_.replicas_HPE - round_.fresh_QE).abs()
    age_P, drift_P = gap_NPE[..., 0].amax(0), gap_NPE[..., 1].amax(0).square()
    mean, drift = worst.age_max_mean(replicas, loss, steps), _worst_coin_walk(replicas, loss, steps)
    require_mean("E max A", age_P.numpy(), mean, 0, steps, ALPHA / 2)
    require_mean("worst drift", drift_P.numpy(), drift, 0, steps**2, ALPHA / 2)
    lower, upper = worst.drift_bounds(mean)
    require(lower <= drift <= upper, f"worst drift {drift:.4g}, not in [{lower:.4g}, {upper:.4g}]")
    return Evidence(
        f"worst of {replicas} replicas, {packets} packets at p = {loss} after {steps} steps: age "
        f"{float(age_P.mean()):.3f} of {mean:.3f}; coin-flip drift {drift / mean:.3f} sigma^2 E max A",
        ALPHA,
        round(drift / upper, 4),
    )


B7.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
