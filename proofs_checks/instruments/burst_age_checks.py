"""What `plan` says of ages under bursts: E A^2, the worst pair, quantiles and the oldest of N replicas (B7, B8).

Legend: P packets = histories, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from math import comb, prod

import sympy as sp
import torch

from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments import histories
from lossproof.theory import burst_ages, bursts, certify, correlated
from lossproof.theory.laws import GilbertElliott

p, r, G2 = sp.symbols("p r G^2", positive=True)
t = sp.Symbol("t", integer=True, nonnegative=True)
L = 1 / (1 - r)
HALF = Fraction(1, 2)
POWERS = {r**t: sp.Symbol("X")}


def all_parameters() -> None:
    """Of one age, for all p and L; quantiles also where the tail hits the level exactly."""
    # What is left of the sum of (2k-1) a_k after t terms is that of an age with loss a_(t+1), and t of its means twice.
    a, later = bursts.gilbert_tail(t + 1, p, L), bursts.gilbert_tail(t + 2, p, L)
    left, next_left = (
        burst_ages.second_moment(x, L) + 2 * s * bursts.gilbert_owner(x, L) for x, s in ((a, t), (later, t + 1))
    )
    require(certify.is_zero(left - next_left - (2 * t + 1) * a, POWERS), "not E A^2, the sum of (2k-1) P(A >= k)")
    require(certify.is_zero(left, {r**t: sp.Integer(0)}), "what is left of E A^2 does not vanish")
    variance = burst_ages.second_moment(p, L) - bursts.gilbert_owner(p, L) ** 2
    require(certify.is_zero(burst_ages.pair_worst(p, L, G2) - 2 * G2 * variance), "not 2 Var(A) G^2")
    free = burst_ages.pair_worst(p, 1 / (1 - p), G2)
    require(certify.is_zero(free - correlated.pair_worst(p, None, G2)), "L = 1/(1-p) is not independent loss (B5)")
    tenth, least = Fraction(1, 10), Fraction(1, 1000)
    for loss, burst, above in (
        (tenth, 1 / (1 - tenth), least), (8 * least, Fraction(2), least), (512 * least, Fraction(5), least),
        (least, Fraction(3), least), (least + least**2, Fraction(3), least), (tenth, Fraction(1), least),
        (1 - least, Fraction(1000), least), (Fraction(1, 3), Fraction(9, 4), Fraction(1, 10**30)),
        *((HALF, Fraction(2), HALF**k) for k in range(2, 60)), (HALF, Fraction(2), Fraction(1, 2**20 + 1)),
        (tenth, Fraction(100), Fraction(1, 10**40)), (HALF, Fraction(3), HALF * Fraction(2, 3) ** 7),
        (HALF, Fraction(4), HALF * Fraction(3, 4) ** 3), (HALF, Fraction(6), HALF * Fraction(5, 6) ** 2),
    ):  # fmt: skip
        age = burst_ages.quantile(loss, burst, above)
        older, as_old = (bursts.gilbert_tail(k, loss, burst) for k in (age + 1, age))
        where = f"p = {loss}, L = {burst}: {age} is not the age that at most {above} exceed"
        require(older <= above and (age == 0 or as_old > above), where)
        if age < 50:
            law = GilbertElliott(loss, burst)
            require(law.age_tail(age + 1) == older, f"p = {loss}, L = {burst}: not the tail of the shipped law")


def every_history(loss: Fraction, burst: Fraction, lost_TP: torch.Tensor, weights: list[Fraction]) -> None:
    """The age of one link up to T, and the gap of two under constant steps; ages above T: from what is left."""
    T, count = lost_TP.shape
    age_P = histories.owner_gaps(histories.scripted(lost_TP[:, None], histories.orthonormal(T)))[1]
    left = loss * (1 - 1 / burst) ** T
    mean, square = (histories.weighted(x, weights) for x in (age_P, age_P**2))
    # if A > T, A^2 - T^2 is (A - T)^2 + 2 T (A - T), and A - T is an age with loss P(A > T)
    claimed = burst_ages.second_moment(loss, burst) - burst_ages.second_moment(left, burst)
    claimed -= 2 * T * bursts.gilbert_owner(left, burst)
    require(square == claimed, f"p = {loss}, L = {burst}: E min(A, {T})^2 = {square}, claimed {claimed}")
    first, second = torch.arange(count).repeat(count), torch.arange(count).repeat_interleave(count)
    ones = [torch.ones(1, 1, dtype=torch.float64)] * T
    round_ = histories.scripted(torch.stack([lost_TP[:, first], lost_TP[:, second]], 1), ones)
    apart = histories.weighted(histories.pair_gaps(round_, 1, 2), [w * x for w, x in product(weights, weights)])
    beyond = burst_ages.second_moment(loss, burst) - square, bursts.gilbert_owner(loss, burst) ** 2 - mean**2
    claimed = burst_ages.pair_worst(loss, burst) - 2 * (beyond[0] - beyond[1])
    require(apart == claimed, f"p = {loss}, L = {burst}: E|A_i - A_j|^2 up to {T} is {apart}, claimed {claimed}")
    for above in (loss, loss / 2, loss * (1 - 1 / burst), left, left * 2):
        if left <= above:
            age = burst_ages.quantile(loss, burst, above)
            beyond_age = [histories.weighted((age_P > a).double(), weights) for a in range(T)]
            exact = next((a for a, chance in enumerate(beyond_age) if chance <= above), T)
            require(age == exact, f"p = {loss}, L = {burst}: {age} for {exact}, which at most {above} exceed")


def oldest(many: int) -> None:
    """The float against inclusion and exclusion in fractions, on both sides of where the sum gives way to an expansion.

    The oldest of N: sum over j of +-binom(N, j) p^j / (1 - r^j), since all of j are k old with chance (p r^(k-1))^j.
    """
    for N, loss, burst in product(
        (1, 2, 5, many),
        (Fraction(0), Fraction(1, 10**6), Fraction(1, 4), Fraction(3, 4), 1 - Fraction(1, 10**9)),
        (Fraction(1), Fraction(3, 2), Fraction(40), Fraction(999), Fraction(1001), Fraction(10**6)),
    ):
        stay = 1 - 1 / burst
        exact = sum((-1) ** (j + 1) * comb(N, j) * loss**j / (1 - stay**j) for j in range(1, N + 1))
        found = burst_ages.worst_mean(N, loss, burst)
        # what the expansion leaves out is below log(1/r)^3
        error = exact / 10**12 + (Fraction(burst) ** -3 / 100 if burst > 1000 else 0)
        require(abs(Fraction(found) - exact) <= error, f"N = {N}, p = {loss}, L = {burst}: {found} for {float(exact)}")


def oldest_of_histories(N: int, steps: int, loss: Fraction, burst: Fraction, weights: Sequence[Fraction]) -> None:
    """The oldest of N through the code that trains, up to T; what is left of the sum is that for a loss of P(A > T)."""
    patterns = list(product(range(len(weights)), repeat=N))
    history_RP = torch.tensor(patterns).T
    lost_TRP = torch.stack([(history_RP >> step) & 1 == 0 for step in range(steps)])
    gaps_NP = histories.owner_gaps(histories.scripted(lost_TRP, histories.orthonormal(steps)))
    mean = histories.weighted(
        gaps_NP.amax(0), [prod((weights[i] for i in pattern), start=Fraction(1)) for pattern in patterns]
    )
    left = loss * (1 - 1 / burst) ** steps
    claimed = burst_ages.worst_mean(N, loss, burst) - burst_ages.worst_mean(N, left, burst)
    require(abs(float(mean) - claimed) <= 1e-12, f"N = {N}, p = {loss}, L = {burst}: {float(mean)}, claimed {claimed}")
