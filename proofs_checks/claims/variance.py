"""A5: how far the owner's estimate spreads, by rule.

Legend: N ranks, P packets = patterns, E elements.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import comb, lcm

import sympy as sp
import torch

from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.claims.kappa import elevated, ends, one_sign
from lossproof.proofs_checks.instruments import estimates, mistakes
from lossproof.proofs_checks.instruments.patterns import all_patterns, exact_sum, expectation, require_identical
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import aggregation, certify, survivors, variance
from lossproof.theory.aggregation import divide
from lossproof.theory.derive import variance as derive
from lossproof.theory.laws import Bernoulli

p, X, h, u, v = sp.symbols("p X h u v", positive=True)
N_ = sp.Symbol("N", integer=True, positive=True)
FLOATS = "floating point: the sums are exact here, rounded to nearest in training"


A5 = Claim(
    "A5",
    "The spread of the survivor mean, of inverse probability, and where they cross",
    derive.spread,
    assumes=(
        "fixed gradients, N >= 2, own link lossy like the others",
        "(survivor mean) an exchangeable law; (inverse probability) independent links, q_i > 0",
        "(crossover) independent links of equal loss",
    ),
    not_claimed=(
        "the survivor mean or 0 by its covariance alone, which leaves out that 0 is biased: here by mean squared error",
        "which rule trains best",
        FLOATS,
    ),
    witness="two ranks, p = 1/2: crossover at |gbar|^2 = s^2/6 given a survivor, at 0 over all rounds",
)
_given, _all_rounds, _inverse = variance.crossover_given_survivor, variance.crossover, survivors.inverse_count
WRONG_SPREAD = (
    plant("1/K, not 1/K - 1/N", variance, "survivor_mean", lambda s2, N, inverse: s2 * inverse),
    plant("with replacement", variance, "survivor_mean", lambda s2, N, inverse: s2 * inverse * (1 - divide(1, N))),
    plant("other sign", variance, "survivor_mean", lambda s2, N, inverse: s2 * (inverse + divide(1, N))),
    plant("no error without a survivor", variance, "survivor_mean_or_zero", lambda s2, m2, N, inverse, none:
          (1 - none) * variance.survivor_mean(s2, N, inverse)),
    plant("1/q for p/q", variance, "inverse_probability", lambda squares, losses: divide(sum(
        divide(x, 1 - p) for x, p in zip(squares, losses, strict=True)), len(losses) ** 2)),
    plant("1/N for 1/N^2", variance, "inverse_probability", lambda squares, losses: divide(sum(
        divide(x * p, 1 - p) for x, p in zip(squares, losses, strict=True)), len(losses))),
    plant("s2 not times (N-1)/N", variance, "inverse_probability_equal", lambda s2, m2, N, p:
          divide(p, N * (1 - p)) * (m2 + s2)),
)  # fmt: skip
WRONG_CROSSING = (
    plant("crossing without the 1/N", variance, "crossover_given_survivor", lambda N, p, inverse=None:
          _given(N, p, (_inverse(N, p) if inverse is None else inverse) + divide(1, N))),
    plant("crossing one too low", variance, "crossover_given_survivor", lambda N, p, inverse=None:
          _given(N, p, inverse) - 1),
    plant("both crossings equal", variance, "crossover", lambda N, p, inverse=None, none=None: _given(N, p, inverse)),
    plant("crossing the other way", variance, "crossover", lambda N, p, inverse=None, none=None:
          -_all_rounds(N, p, inverse, none)),
)  # fmt: skip
A5.derived(*WRONG_SPREAD, *WRONG_CROSSING)


@A5.rung(
    "certified",
    *WRONG_CROSSING,
    plant("kappa with 1/N", survivors, "kappa_term", lambda k, N, p: divide(p ** (N - k) * (1 - p**k), N)),
)
def _when_they_cross(run: Run) -> Evidence:
    # For all N: F = Np (1-P0) r* has one sign change in its Bernstein coefficients, so one zero in (0, 1) (Descartes).
    # Given a survivor, with h = kappa/(1-P0): coefficients 0, -N(N-1), then (N^2 - i^2)/i >= 0 for j = i + 1 = 2..N+1.
    F = sp.expand(sp.cancel(N_ * p * variance.crossover_given_survivor(N_, p, h)))
    on_kappa, on_some = ends(F.coeff(h, 1)), ends(F.coeff(h, 0))
    later = elevated(on_kappa, on_some, u + 2).subs(N_, 1 + u + v)
    second = (N_ * (on_kappa[1] + on_some[1])).subs(N_, 2 + v)
    require(one_sign(later, 1), "given a survivor: a later coefficient is negative")
    require(one_sign(second, -1, (v,)), "given a survivor: the second coefficient is not negative")
    # Over all rounds the numerator is less by Np p^N (N-1)/N, in the first coefficient; the denominator is positive.
    none = sp.Symbol("P0")
    ahead = p / (N_ * (1 - p)) - none
    gap = variance.crossover(N_, p, h, none) * ahead * N_**2 * (1 - p) - F * (1 - none)
    require(
        certify.is_zero(gap + none * p * (N_ - 1)),
        "over all rounds: not the same numerator but for the first coefficient",
    )
    some = 1 - X * p - N_ * (1 - p) * X  # P(K >= 2) with X = p^(N-1) grows with N, from 0 for N = 1
    growth = some.subs({N_: N_ + 1, X: X * p}, simultaneous=True) - some - N_ * (1 - p) ** 2 * X
    require(certify.is_zero(growth) and certify.is_zero(some.subs({N_: 1, X: 1})), "P(K = 1) may exceed P(K >= 1)")
    for what, form, never in (("given a survivor", variance.crossover_given_survivor, Fraction(3, 5)),
                              ("over all rounds", variance.crossover, Fraction(1, 2))):  # fmt: skip
        require(
            form(2, never) == 0 and form(2, never - Fraction(1, 99)) > 0,
            f"N = 2, {what}: no last crossing at p = {never}",
        )
    last_crossing: dict[str, Fraction] = {}
    recounted = run.pick((2, 4), (2, 3, 4, 5, 6, 8, 12, 16))
    for ranks in recounted:
        for what, form in (
            ("given a survivor", variance.crossover_given_survivor),
            ("over all rounds", variance.crossover),
        ):
            numerator, denominator = certify.rational(form(ranks, p), {})
            signs = []
            for side in (numerator, denominator):
                terms = certify.bernstein(certify.coefficients(side, (p,)), 1)
                row = [c > 0 for _, c in sorted(terms.items()) if c]
                signs.append(sum(a != b for a, b in pairwise(row)))
            require(signs == [1, 0], f"N = {ranks}, {what}: {signs} sign changes above and below")
            low, high = Fraction(0), Fraction(1)
            while high - low > Fraction(1, 10**5):
                middle = (low + high) / 2
                crossing = form(ranks, middle)
                low, high = (middle, high) if crossing > 0 else (low, middle)
            last_crossing[what] = high
    shown = ", ".join(f"{float(at):.4f} {what}" for what, at in last_crossing.items())
    return Evidence(
        f"one loss p*(N) for all N: no crossover iff p >= p*; N = 2: 3/5 and 1/2; N = {recounted[-1]}: {shown}"
    )


def _moments(columns_NE: torch.Tensor) -> tuple[list[Fraction], list[Fraction], Fraction, Fraction]:
    """gbar, |g_i|^2, s^2 and |gbar|^2 by their definitions."""
    rows = [[Fraction(int(x)) for x in row] for row in columns_NE]
    gbar = [sum(column, Fraction(0)) / len(rows) for column in zip(*rows, strict=True)]
    squares = [sum((x * x for x in row), Fraction(0)) for row in rows]
    spread = sum(((x - m) ** 2 for row in rows for x, m in zip(row, gbar, strict=True)), Fraction(0))
    return gbar, squares, spread / (len(rows) - 1), sum((m * m for m in gbar), Fraction(0))


def _distance(estimate_PE: torch.Tensor, gbar: list[Fraction]) -> torch.Tensor:
    return (estimate_PE - torch.tensor([float(m) for m in gbar], dtype=torch.float64)).square().sum(1)


@A5.rung(
    "enumerated",
    mistakes.DIVIDE_BY_N,
    mistakes.COUNT_PLUS_ONE,
    mistakes.IGNORE_LOSS,
    mistakes.NEXT_SENDERS_PROBABILITY,
    mistakes.PROBABILITY_IGNORED,
    mistakes.SELF_NORMALISED,
    *WRONG_SPREAD,
    *WRONG_CROSSING,
)
def _every_pattern(run: Run) -> Evidence:
    limit = run.pick(4, 7)
    for ranks in range(2, limit + 1):
        arrived_NP, columns = all_patterns(ranks), estimates.basis(ranks)
        gbar, _, s2, m2 = _moments(columns)
        squared_P = _distance(estimates.of_patterns(arrived_NP, columns), gbar)
        for k in range(1, ranks + 1):  # each K by itself: every exchangeable law
            enumerated = exact_sum(squared_P[arrived_NP.sum(0) == k]) / comb(ranks, k)
            claimed = variance.survivor_mean(s2, ranks, Fraction(1, k))
            require(enumerated == claimed, f"N = {ranks}, K = {k}: spread {enumerated}, claimed {claimed}")
        _independent(ranks, arrived_NP, squared_P, s2, m2)
        _inverse_probability(ranks, arrived_NP, columns)
        for q in (2, 4, 8):
            _crossing(ranks, arrived_NP, q)
    return Evidence(f"all patterns for 2 <= N <= {limit}; every exchangeable law; crossovers at p = 1/2, 3/4, 7/8")


def _independent(ranks: int, arrived_NP: torch.Tensor, squared_P: torch.Tensor, s2: Fraction, m2: Fraction) -> None:
    some_P = arrived_NP.any(0)
    for what, values_P, closed in (
        ("given a survivor", squared_P * some_P, lambda p: (1 - p**ranks) * variance.survivor_mean(
            s2, ranks, survivors.inverse_count(ranks, p))),
        ("or zero", squared_P, lambda p: variance.survivor_mean_or_zero(
            s2, m2, ranks, survivors.inverse_count(ranks, p), aggregation.no_survivor(ranks, p))),
    ):  # fmt: skip
        require_identical(f"N = {ranks}, spread {what}", expectation(values_P, arrived_NP), closed, ranks)


def _by_inverse_probability(arrived_NP: torch.Tensor, columns: torch.Tensor, one_in: list[int]) -> torch.Tensor:
    """Estimates for q_i = 1/one_in[i], powers of two."""
    arrival = torch.tensor([1 / q for q in one_in], dtype=torch.float64)
    return estimates.of_patterns(arrived_NP, columns, rule="inverse_probability", arrival_probability_NQ=arrival)


def _inverse_probability(ranks: int, arrived_NP: torch.Tensor, columns: torch.Tensor) -> None:
    gbar, squares, s2, m2 = _moments(columns)
    for one_in in ([2, 4, 1, 8, 2, 4, 8][:ranks], [2] * ranks, [4] * ranks):
        losses = [1 - Fraction(1, q) for q in one_in]
        squared_P = _distance(_by_inverse_probability(arrived_NP, columns, one_in), gbar)
        enumerated = estimates.mean(squared_P, estimates.product_law(arrived_NP, losses))
        forms = [variance.inverse_probability(squares, losses)]
        if len(set(losses)) == 1:
            forms.append(variance.inverse_probability_equal(s2, m2, ranks, losses[0]))
        for claimed in forms:
            require(enumerated == claimed, f"N = {ranks}, losses {losses}: spread {enumerated}, claimed {claimed}")


def _crossing(ranks: int, arrived_NP: torch.Tensor, one_in: int) -> None:
    """Spreads over s^2 are linear in r: two gradients of equal s^2 give the r at which they cross."""
    loss = 1 - Fraction(1, one_in)
    law = estimates.product_law(arrived_NP, [loss] * ranks)
    some, scale = 1 - law[0], lcm(*range(1, ranks + 1))
    given, over_all, like_with_like = [], [], []
    for shift in (0, 1):
        columns = scale * (torch.arange(ranks)[:, None] ** 2 + shift)
        gbar, _, s2, m2 = _moments(columns)
        weighted = [
            Fraction(x)
            for x in _distance(_by_inverse_probability(arrived_NP, columns, [one_in] * ranks), gbar).tolist()
        ]
        survivor = [Fraction(x) for x in _distance(estimates.of_patterns(arrived_NP, columns), gbar).tolist()]
        by_weights = sum(x * w for x, w in zip(weighted, law, strict=True))
        by_survivors = sum(x * w for x, w in zip(survivor[1:], law[1:], strict=True))  # pattern 0 has none
        given.append((m2 / s2, by_weights - by_survivors / some))
        over_all.append((m2 / s2, by_weights - by_survivors - survivor[0] * law[0]))
        like_with_like.append((m2 / s2, by_weights - weighted[0] * law[0] - by_survivors))
    for what, found, claimed in (
        ("given a survivor", given, variance.crossover_given_survivor(ranks, loss)),
        ("over all rounds", over_all, variance.crossover(ranks, loss)),
        ("both given a survivor", like_with_like, variance.crossover(ranks, loss)),
    ):
        (r0, d0), (r1, d1) = found
        require(d1 > d0, f"N = {ranks}, p = {loss}, {what}: the survivor mean does not gain with r")
        crossing = r0 - d0 * (r1 - r0) / (d1 - d0)
        require(crossing == claimed, f"N = {ranks}, p = {loss}, {what}: crossover at r = {crossing}, claimed {claimed}")


@A5.rung(
    "sampled",
    mistakes.DIVIDE_BY_N,
    mistakes.COUNT_PLUS_ONE,
    mistakes.SELF_NORMALISED,
    mistakes.WORDS_OF_31_BITS,
    mistakes.SAME_FOR_ALL_SENDERS,
    WRONG_SPREAD[0],
    WRONG_SPREAD[2],
    WRONG_SPREAD[3],
    WRONG_SPREAD[5],
)
def _many_ranks(run: Run) -> Evidence:
    ranks, packets, loss = 20, run.pick(10_000, 100_000), 0.9
    columns = (torch.arange(ranks)[:, None] % 2).double()
    _, squares, s2, m2 = _moments(columns)
    estimate_PE, count_P = estimates.of_law(Bernoulli(loss), ranks, packets, run.seed, columns)
    require(bool(count_P.any()), "no packet has a survivor")
    squared_P, inverse = (estimate_PE[:, 0] - 0.5) ** 2, survivors.inverse_count(ranks, loss)
    claimed = variance.survivor_mean(float(s2), ranks, inverse)
    require_mean("spread given a survivor", squared_P[count_P > 0], claimed, 0, 1, ALPHA / 3)
    claimed = variance.survivor_mean_or_zero(float(s2), float(m2), ranks, inverse, loss**ranks)
    require_mean("error of the survivor mean or 0", squared_P, claimed, 0, 1, ALPHA / 3)
    q = torch.full((ranks,), 1 - loss, dtype=torch.float64)
    weighted_PE, _ = estimates.of_law(
        Bernoulli(loss), ranks, packets, run.seed, columns, rule="inverse_probability", arrival_probability_NQ=q
    )
    high = (0.5 / (1 - loss) - 0.5) ** 2 * (1 + 1e-12)
    claimed = variance.inverse_probability([float(x) for x in squares], [loss] * ranks)
    require_mean("spread of inverse probability", (weighted_PE[:, 0] - 0.5) ** 2, claimed, 0, high, ALPHA / 3)
    return Evidence(f"N = {ranks}, p = {loss}, {packets} packets", ALPHA)


A5.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
