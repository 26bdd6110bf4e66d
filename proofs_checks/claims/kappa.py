"""A7: kappa = E[1/K; K >= 1], which every variance of the survivor mean is made of.

Legend: N ranks, P packets = patterns, E elements.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import sympy as sp
import torch

from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import estimates, mistakes
from lossproof.proofs_checks.instruments.patterns import all_patterns, expectation, require_identical
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import aggregation, certify, survivors
from lossproof.theory.aggregation import divide
from lossproof.theory.derive import kappa as derive
from lossproof.theory.laws import Bernoulli

p, X, u, v = sp.symbols("p X u v", positive=True)
N_ = sp.Symbol("N", integer=True, positive=True)


def one_sign(polynomial: Any, sign: int, symbols: tuple[sp.Symbol, ...] = (u, v)) -> bool:
    """Whether numerator times denominator has coefficients of this sign only: a sign for all u, v >= 0."""
    numerator, denominator = certify.rational(polynomial, {})
    terms = certify.coefficients(sp.expand(numerator * denominator), symbols)
    return bool(terms) and all(sign * c > 0 for c in terms.values())


def elevated(on_kappa: tuple[Any, Any], on_some: tuple[Any, Any], j: Any) -> Any:
    """Coefficient j >= 2 of (aq + bp) kappa + (cq + dp)(1 - p^N), times N + 1, in the Bernstein basis of degree N + 1.

    In that of degree N they have 1/k and 1 for k >= 1, else 0; a factor q or p raises the degree.
    """
    (a, b), (c, d) = on_kappa, on_some
    return a * j / (j - 1) + b * (N_ + 1 - j) / j + c * j + d * (N_ + 1 - j)


def ends(linear: Any) -> tuple[Any, Any]:
    """(a, b) of a linear function aq + bp of p."""
    require(certify.is_zero(sp.diff(linear, p, 2)), f"not linear in p: {linear}")
    return linear.subs(p, 0), linear.subs(p, 1)


A7 = Claim(
    "A7",
    "kappa = E[1/K; K >= 1] in three forms and between two bounds",
    derive.kappa,
    assumes=("independent links of equal loss p < 1", "(upper bound) Nq > 2p"),
    not_claimed=(
        "a bound with a constant below 2: none holds for N = 2",
        "exact floats: relative error below 1e-13 at the sizes compared with exact rationals",
    ),
    witness="p = 1/2: N = 2, 9/16 <= kappa = 5/8 and no upper bound; N = 8, 0.248 <= kappa = 0.294 <= 0.332",
)
_term = survivors.kappa_term
WRONG_KAPPA = (
    plant(
        "1 - p^(k+1)",
        survivors,
        "kappa_term",
        lambda k, N, p: divide(p ** (N - k) * survivors.some_survivor(k + 1, p), k),
    ),
    plant("without 1/k", survivors, "kappa_term", lambda k, N, p: p ** (N - k) * survivors.some_survivor(k, p)),
    plant("p^(N-k+1)", survivors, "kappa_term", lambda k, N, p: p * _term(k, N, p)),
    plant("one term too few", survivors, "kappa", lambda N, p: sum(_term(k, N, p) for k in range(1, N))),
)
WRONG_BOUNDS = (
    plant("lower bound not squared", survivors, "kappa_lower", lambda N, p: divide(1 - p**N, N * (1 - p))),
    plant("lower bound too low", survivors, "kappa_lower", lambda N, p: divide((1 - p**N) ** 2, N)),
    plant("upper bound with p", survivors, "kappa_upper", lambda N, p: divide(1 - p**N, N * (1 - p) - p)),
    plant("upper bound with 3p", survivors, "kappa_upper", lambda N, p: divide(1 - p**N, N * (1 - p) - 3 * p)),
    plant(
        "upper bound of the other sign", survivors, "kappa_upper", lambda N, p: divide(1 - p**N, N * (1 - p) + 2 * p)
    ),
)
A7.derived(*WRONG_KAPPA, *WRONG_BOUNDS)


@A7.rung(
    "certified",
    *WRONG_KAPPA,
    *WRONG_BOUNDS,
    plant("floats that cancel", survivors, "some_survivor", lambda N, p: 1 - p**N),
)
def _bounds(run: Run) -> Evidence:
    k, m, n = sp.symbols("k m n", positive=True)
    P0 = aggregation.no_survivor(N_, p)
    # kappa_N = p kappa_(N-1) + (1 - p^N)/N for all N; its Bernstein coefficients 1/k solve it: 1/k = (N-k)/(Nk) + 1/N.
    powers = {p**N_: X, p**k: sp.Symbol("Y")}
    moved = survivors.kappa_term(k, N_ + 1, p) - p * survivors.kappa_term(k, N_, p)
    added = survivors.kappa_term(N_, N_, p) - (1 - P0) / N_
    require(certify.is_zero(moved, powers) and certify.is_zero(added, powers), "not the recursion of kappa")
    require(certify.is_zero(1 / k - (N_ - k) / (N_ * k) - 1 / N_), "not the Bernstein coefficients of kappa")
    limit = run.pick(7, 14)
    for ranks in range(1, limit + 1):
        value = sp.expand(survivors.kappa(ranks, p))
        form = certify.bernstein(certify.coefficients(value, (p,)), 1)
        require(
            form == {(i,): Fraction(1, ranks - i) if i < ranks else 0 for i in range(ranks + 1)},
            f"N = {ranks}: kappa is not the binomial sum",
        )
        below = certify.is_nonnegative(value - survivors.kappa_lower(ranks, p), (p,))
        require(below, f"N = {ranks}: no certificate for the lower bound")
        ratio = sp.cancel(survivors.kappa_lower(ranks, p) / value)
        require(
            ratio.subs(p, 0) == ratio.subs(p, 1) == 1, f"N = {ranks}: the lower bound is not tight at p = 0 and p = 1"
        )
    # Lower, all N: E[1/K;K>=1] E[K] - P(K>=1)^2 = sum over m < n of P_m P_n (m-n)^2/(mn), and E[K] = Nq.
    require(certify.is_zero(m / n + n / m - 2 - (m - n) ** 2 / (m * n)), "not a sum of squares")
    require(certify.is_zero((1 - P0) ** 2 / survivors.kappa_lower(N_, p) - N_ * (1 - p), {p**N_: X}), "not E[K] below")
    # Upper, all N: (N+1)(1 - p^N - (aq + bp) kappa) has coefficients 0, N(1-b), then (j-2)(N+1-j)/(j(j-1)) >= 0.
    a, b = ends(certify.rational((1 - P0) / survivors.kappa_upper(N_, p), {p**N_: X})[0])
    later = elevated((-a, -b), (1, 1), u + 2).subs(N_, 1 + u + v)
    require(one_sign(later, 1) and one_sign((1 - b).subs(N_, 1 + v), 1, (v,)), "upper bound: a coefficient is negative")
    slack = sp.cancel((survivors.kappa_upper(2, p) - survivors.kappa(2, p)) / p)
    require(certify.is_zero(slack.subs(p, 0)), "the upper bound for N = 2 is not tight to first order at p = 0")
    at = (16, Fraction(1, 10))
    return Evidence(
        f"both bounds for all N and p; kappa recounted for N <= {limit}; {_floats()}",
        tightness=round(float(survivors.kappa(*at) / survivors.kappa_upper(*at)), 4),
    )


def _floats() -> str:
    """Floats against exact rationals, judged exactly; and against both bounds at N = 10^6."""
    for ranks in (1, 2, 9, 60):
        for exact in (Fraction(0), Fraction(1, 2**30), Fraction(3, 8), Fraction(127, 128), 1 - Fraction(1, 2**40)):
            value, right = Fraction(survivors.kappa(ranks, float(exact))), survivors.kappa(ranks, exact)
            require(
                abs(value - right) <= right / 10**13,
                f"N = {ranks}, p = {exact}: float {float(value)}, exact {float(right)}",
            )
    million = 10**6
    for loss in (0.1, 0.999):
        low, value, high = (
            form(million, loss) for form in (survivors.kappa_lower, survivors.kappa, survivors.kappa_upper)
        )
        require(
            low <= value * (1 + 1e-13) and value <= high * (1 + 1e-13),
            f"N = 10^6, p = {loss}: {value} not in [{low}, {high}]",
        )
    return "floats to 1e-13 at N <= 60, between the bounds at N = 10^6"


@A7.rung(
    "enumerated",
    mistakes.DIVIDE_BY_N,
    mistakes.COUNT_PLUS_ONE,
    mistakes.IGNORE_LOSS,
    mistakes.NOT_ZEROED,
    *WRONG_KAPPA,
    plant("P(K >= 2) for P(K >= 1)", survivors, "some_survivor", lambda N, p: 1 - p**N - N * (1 - p) * p ** (N - 1)),
)
def _every_count(run: Run) -> Evidence:
    limit = run.pick(6, 10)
    for ranks in range(1, limit + 1):
        arrived_NP, columns = all_patterns(ranks), estimates.basis(ranks)[:, :-1]
        estimate_PE = estimates.of_patterns(arrived_NP, columns)
        inverse_P = estimate_PE.square().sum(1)  # the sum of squared weights of K survivors is 1/K, here times scale^2
        some_P = (estimate_PE.sum(1) > 0).double()
        scale = int(columns[0, 0]) ** 2
        enumerated, some = expectation(inverse_P, arrived_NP), expectation(some_P, arrived_NP)
        require_identical(f"N = {ranks}, kappa", _over(enumerated, scale), lambda p: survivors.kappa(ranks, p), ranks)
        require_identical(f"N = {ranks}, P(K >= 1)", some, lambda p: survivors.some_survivor(ranks, p), ranks)
        for loss in (Fraction(1, 3), Fraction(6, 7)):
            given, claimed = enumerated(loss) / scale / some(loss), survivors.inverse_count(ranks, loss)
            require(given == claimed, f"N = {ranks}, p = {loss}: E[1/K | K >= 1] = {given}, claimed {claimed}")
    return Evidence(f"all patterns for N <= {limit}, as polynomials in p: 1/K is the sum of squared weights")


def _over(form: Callable[[Fraction], Fraction], scale: int) -> Callable[[Fraction], Fraction]:
    return lambda p: form(p) / scale


@A7.rung(
    "sampled",
    mistakes.COUNT_PLUS_ONE,
    mistakes.DIVIDE_BY_N,
    mistakes.WORDS_OF_31_BITS,
    mistakes.SAME_FOR_ALL_SENDERS,
    mistakes.own_link("reliable"),
    *WRONG_KAPPA[:2],
)
def _many_counts(run: Run) -> Evidence:
    ranks, packets, loss = 20, run.pick(4_000, 40_000), 0.9
    estimate_PE, _ = estimates.of_law(Bernoulli(loss), ranks, packets, run.seed, torch.eye(ranks))
    inverse_P = (estimate_PE**2).sum(1).clip(0, 1)
    require_mean("kappa", inverse_P, survivors.kappa(ranks, loss), 0, 1, ALPHA / 2)
    some = inverse_P[inverse_P > 0]
    require(some.size > 0, "no packet has a survivor")
    require_mean("E[1/K | K >= 1]", some, survivors.inverse_count(ranks, loss), 0, 1, ALPHA / 2)
    return Evidence(f"N = {ranks}, p = {loss}, {packets} packets", ALPHA)


A7.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
