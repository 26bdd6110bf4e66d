"""D4 by exact arithmetic: all laws of short bursts, the least variance, bursts without a mean age, the clock."""

from __future__ import annotations

import sympy as sp

from lossproof.proofs_checks.claim import require
from lossproof.theory import certify, inspection

p, X, n, c = sp.symbols("p X n c", positive=True)


def all_lengths(longest: int) -> None:
    """T = 1..longest with free probabilities; the chain of what is left of a burst, tick by tick."""
    odds = sp.symbols(f"w1:{longest + 1}", positive=True)
    chances = [w / sum(odds) for w in odds]
    tail = [sum(chances[j:]) for j in range(longest)] + [sp.Integer(0)]
    mean = sum(j * x for j, x in enumerate(chances, 1))
    square = sum(j * j * x for j, x in enumerate(chances, 1))
    left = [1 - p, *(inspection.place(j, p, mean, tail[j - 1]) for j in range(1, longest + 1)), 0]
    enter = inspection.burst_rate(p, mean)
    require(certify.is_zero(sum(left) - 1), "the places of all packets do not sum to 1")
    require(certify.is_zero(left[0] * (1 - enter) + left[1] - left[0]), "not stationary: arrivals")
    for j in range(1, longest + 1):
        after = left[j + 1] + left[0] * enter * chances[j - 1]
        require(certify.is_zero(after - left[j]), f"not stationary: {j} losses left")
    age = inspection.mean_age(p, mean, square - mean**2)
    require(certify.is_zero(sum(j * x for j, x in enumerate(left)) - age), "not the mean of the places")
    met = inspection.met_length(mean, square - mean**2)
    require(certify.is_zero(sum(j * j * x for j, x in enumerate(chances, 1)) / mean - met), "not the mean burst met")
    per_cycle = sum(x * inspection.mean_age_of_runs([j], 1) for j, x in enumerate(chances, 1))
    require(certify.is_zero(per_cycle * p / mean - age), "not the ages of the runs of a log")


def least(largest: int) -> None:
    """Whole lengths near L = n + f have the least variance, and none has less: (T-n)(T-n-1) >= 0 for whole T."""
    f, T = sp.symbols("f T", positive=True)
    for whole in range(1, largest + 1):
        two = {whole: 1 - f, whole + 1: f}
        variance = sum(x * (length - whole - f) ** 2 for length, x in two.items())
        require(certify.is_zero(variance - inspection.least_variance(whole, f)), "not the variance of two lengths")
    # For any T: (T - n - f)^2 - least = (T-n)(T-n-1) + (1 - 2f)(T - n - f), and the last has mean 0.
    rest = (T - n - f) ** 2 - inspection.least_variance(n, f) - (T - n) * (T - n - 1)
    require(certify.is_zero(rest - (1 - 2 * f) * (T - n - f)), "not the least variance")
    geometric = inspection.mean_age(p, T, inspection.geometric_variance(T))
    require(certify.is_zero(geometric - p * T), "Gilbert-Elliott: the mean age is not pL")


def without_mean() -> None:
    """A tail determined by its steps and its limit 0; from place n + m on, the next m terms come to a fixed amount."""
    m = sp.Symbol("m", positive=True)
    L = n + c
    step = inspection.heavy_tail(m, p, n, c) - inspection.heavy_tail(m + 1, p, n, c)
    require(
        certify.is_zero(step - inspection.place(n + m, p, L, inspection.heavy_length_tail(m, c))), "not the tail of A"
    )
    first = p - sum((inspection.place(j, p, 2 + c, 1) for j in (1, 2)), sp.Integer(0))
    require(certify.is_zero(first - inspection.heavy_tail(1, p, 2, c)), "does not go on from P(A >= 1) = p")
    # Of the m terms after the m-th, at m + m X, each is at least the last; n and m are above 1.
    later = inspection.heavy_tail(m * (1 + X), p, n, c) - inspection.heavy_tail(2 * m, p, n, c)
    above = later.subs({n: 1 / n, m: 1 / m}, simultaneous=True)
    require(certify.is_nonnegative(above, (p, X, c, n, m)), "no certificate that E A has no bound")
    require(certify.is_zero(inspection.heavy_tail(2 * m, p, n, c) * m - p * c / (2 * L)), "not a fixed amount")


def clock() -> None:
    """By induction on the ticks, from the chain itself."""
    m, t = sp.Symbol("m", positive=True), sp.Symbol("t", integer=True, positive=True)
    leave = (1 - p) * (1 - m)
    enter, L = p * (1 - m), 1 / leave
    require(certify.is_zero(p * leave - (1 - p) * enter), "not stationary with a share p of bad ticks")
    require(certify.is_zero(inspection.memory(p, L) - (1 - enter - leave)), "lambda is not the eigenvalue of a tick")
    require(certify.is_zero(inspection.burst_in_steps(p, L, 1) - L), "one tick a step changes the link")
    now, then = (1 / inspection.burst_in_steps(p, L, ticks) for ticks in (t, t + 1))
    tick = (1 - now) * leave + now * (1 - enter)  # good after one more: left, or not entered again
    require(certify.is_zero(then - tick, {m**t: X}), "not one more tick of the chain")
    fewer = inspection.burst_in_steps(p, L, t) - inspection.burst_in_steps(p, L, t + 1)
    require(certify.is_nonnegative(fewer, (p, m, X), {m**t: X}), "no certificate that more ticks make shorter bursts")
    at_least = inspection.burst_in_steps(p, L, t) - 1 / (1 - p)
    require(certify.is_nonnegative(at_least, (p, m, X), {m**t: X}), "no certificate for L' >= 1/(1-p)")
    require(certify.is_zero(at_least, {m**t: sp.Integer(0)}), "not independent losses for many ticks")
