"""B8: losses that come in bursts.

Legend: N ranks, R receivers, P packets, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import numpy as np
import sympy as sp
import torch

from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import burst_age_checks, histories, mistakes
from lossproof.proofs_checks.instruments.patterns import all_patterns
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean, require_probability
from lossproof.theory import burst_ages, bursts, certify, drift
from lossproof.theory.aggregation import divide
from lossproof.theory.derive import bursts as derive
from lossproof.theory.laws import GilbertElliott, HeavyTailed, Law, Renewal, Trace, renewal, threshold

p, r = sp.symbols("p r", positive=True)
t = sp.Symbol("t", integer=True, nonnegative=True)
X, k, n, A1, A2, TAU, DELTA = sp.symbols("X k n a_1 a_2 tau delta")
L = 1 / (1 - r)
POWERS = {r**t: X}

_pair_worst, _quantile = burst_ages.pair_worst, burst_ages.quantile
_pair, _square_sum, _recurrence = bursts.gilbert_pair, bursts.recurrent_square_sum, bursts.chain_recurrence


def _other_denominator(p: Any, L: Any, t: Any = None, sigma2: Any = 1) -> Any:
    owner = bursts.gilbert_owner(p, L, t, sigma2)
    squares = (2 * owner - _pair(p, L, t, sigma2)) * (2 * L - 1)
    return 2 * owner - squares / (2 * L + 1)


def _no_paradox(p: Any, mean: Any, variance: Any, sigma2: Any = 1) -> Any:
    return sigma2 * p * (mean + 1) / 2


B8 = Claim(
    "B8",
    "Bursty losses: drift to the owner is sigma^2 times the mean age, whatever the losses, and may have no bound",
    derive.any_losses,
    assumes=(
        "losses are stationary, of any law, and independent of the steps",
        "steps are uncorrelated with E|u_t|^2 = sigma^2",
        "common start; pairwise constants of named laws: independent links",
    ),
    not_claimed=(
        "steps that react to losses: gradients taken at stale replicas",
        "a bound from a finite mean burst: P(T >= j) = 2/(j(j+1)) has mean 2, and under it drift grows as log t; what "
        "helps is a bound on ages, such as a reliable parameter phase every R steps (B12)",
        "floating point",
    ),
    witness="a two-state chain on every link, steps of +1 or -1 by a fair coin",
)
B8.derived(
    plant("counts both losing", bursts, "pair", lambda a, b, c, sigma2=1: sigma2 * (sum(a) + sum(b))),
    plant("tail one step late", bursts, "gilbert_tail", lambda k, p, L: p * (1 - 1 / L) ** k),
    plant("pL/(2L+1)", bursts, "gilbert_pair", _other_denominator),
    plant("to the owner L", bursts, "gilbert_owner", lambda p, L, t=None, sigma2=1: sigma2 * L),
    plant("trace and determinant swapped", bursts, "chain_recurrence",
          lambda *chain: (*_recurrence(*chain)[:2], *_recurrence(*chain)[:1:-1])),
    plant("squares of a geometric tail", bursts, "recurrent_square_sum", lambda a, b, tau, delta: a**2 / (1 - tau**2)),
    plant("clock without effect", bursts, "effective_burst", lambda p, L, ticks: L),
    plant("no inspection paradox", bursts, "renewal_owner", _no_paradox),
    plant("heavy tail p/k^2", bursts, "heavy_tail", lambda k, p: p / k**2),
)  # fmt: skip


@B8.rung(
    "certified",
    plant("pL/(2L+1)", bursts, "gilbert_pair", _other_denominator),
    plant("to the owner L", bursts, "gilbert_owner", lambda p, L, t=None, sigma2=1: sigma2 * L),
    plant("tail one step late", bursts, "gilbert_tail", lambda k, p, L: p * (1 - 1 / L) ** k),
    plant("squares of a geometric tail", bursts, "recurrent_square_sum", lambda a, b, tau, delta: a**2 / (1 - tau**2)),
    plant("determinant with the wrong sign", bursts, "chain_recurrence",
          lambda *chain: (*_recurrence(*chain)[:3], -_recurrence(*chain)[3])),
    plant("clock without effect", bursts, "effective_burst", lambda p, L, ticks: L),
    plant("heavy tail p/k^2", bursts, "heavy_tail", lambda k, p: divide(p, k**2)),
    plant("lengths without weight", bursts, "renewal_tail", lambda k, p, tail: p * [*tail, 0][k - 1]),
    plant("no inspection paradox", bursts, "renewal_owner", _no_paradox),
    plant("E A^2 of independent loss", burst_ages, "second_moment", lambda p, L: p * (1 + p) / (1 - p) ** 2),
    plant("E A^2 as 2pL^2", burst_ages, "second_moment", lambda p, L: 2 * p * L**2),
    plant("Var A, not doubled", burst_ages, "pair_worst", lambda p, L, G2=1: _pair_worst(p, L, G2) / 2),
    plant("quantile in floats", burst_ages, "quantile", lambda p, L, above: max(0, math.ceil(
        math.log(above / p) / math.log1p(-1 / L))) if L > 1 else int(p > above)),
    plant("quantile one step older", burst_ages, "quantile", lambda p, L, above: _quantile(p, L, above) + 1),
)  # fmt: skip
def _all_parameters(run: Run) -> Evidence:
    _renewal()
    _no_bound()
    _two_parameters()
    _four_parameters()
    burst_age_checks.all_parameters()
    return Evidence(
        "Gilbert-Elliott for all p, L, t, and with four parameters as recurrences; pairwise between 2(1-p) and 2 times "
        "the drift to the owner; E A^2, worst pair and quantiles of the age; heavy tail: from step n to 2n the drift "
        "to the owner grows by at least p/2, for all n"
    )


def _two_parameters() -> None:
    a = bursts.gilbert_tail(t + 1, p, L)
    for form, term in ((bursts.gilbert_owner, a), (bursts.gilbert_pair, 2 * a * (1 - a))):
        now, then = form(p, L, t), form(p, L, t + 1)
        require(certify.is_zero(form(p, L, 0)), "the drift at t = 0 is not 0")
        require(certify.is_zero(then - now - term, POWERS), "not the sum of its tail")
        require(certify.is_zero(form(p, L) - now, {r**t: sp.Integer(0)}), "not the limit")
        require(
            certify.is_nonnegative(form(p, L) - now, (p, r, X), POWERS), "no certificate for an increase to the limit"
        )
        free = 1 / (1 - p)
        same = drift.owner if form is bursts.gilbert_owner else drift.pair
        require(certify.is_zero(form(p, free) - same(p)), "L = 1/(1-p) is not independent loss")
    e, l = sp.symbols("e l", positive=True)  # the share of bad ticks is e/(e+l), the mean stay 1/l
    for chain, form in ((bursts.chain_owner, bursts.gilbert_owner), (bursts.chain_pair, bursts.gilbert_pair)):
        difference = chain(e, l, 0, 1, None, 3) - form(e / (e + l), 1 / l, None, 3)
        require(certify.is_zero(difference), "not the chain of four parameters")
    # A second tick: the two-step transition bad -> good of the chain itself.
    enter, leave = p * (1 - r) / (1 - p), 1 - r
    out = (1 - leave) * leave + leave * (1 - enter)
    require(
        certify.is_zero(bursts.effective_burst(p, L, 2) - 1 / out), "two ticks a step: not the chain's second power"
    )
    require(certify.is_zero(bursts.effective_burst(p, L, 1) - L), "one tick a step changes the chain")


def _four_parameters() -> None:
    # A function of (a_1, a_2) that loses its first term when the sequence moves on, and vanishes with it, is the sum.
    moved = A2, TAU * A2 - DELTA * A1, TAU, DELTA
    total = bursts.recurrent_sum(A1, A2, TAU, DELTA) - bursts.recurrent_sum(*moved)
    squares = bursts.recurrent_square_sum(A1, A2, TAU, DELTA) - bursts.recurrent_square_sum(*moved)
    require(certify.is_zero(total - A1), "not the sum of a recurrence")
    require(certify.is_zero(squares - A1**2), "not the sum of squares of a recurrence")
    e, l, g, b = sp.symbols("e l g b", positive=True)
    M = sp.Matrix([[(1 - e) * g, e * b], [l * g, (1 - l) * b]])
    row = sp.Matrix([[l * g, e * b]]) / (e + l)
    terms = bursts.recurrent_terms(*bursts.chain_recurrence(e, l, g, b), 3)
    for term in terms:
        require(certify.is_zero(term - row[0] - row[1]), "not the chain's probability to lose k packets in a row")
        row = row * M


def _renewal() -> None:
    # Both sides are linear in the law of T given its mean, so point masses and mixtures of two say all.
    for low, high, weight in ((1, 4, Fraction(1, 3)), (3, 3, Fraction(1)), (2, 7, Fraction(4, 5))):
        tail = [Fraction(j <= low) * weight + Fraction(j <= high) * (1 - weight) for j in range(1, high + 1)]
        mean = low * weight + high * (1 - weight)
        variance = low**2 * weight + high**2 * (1 - weight) - mean**2
        a = [bursts.renewal_tail(k, Fraction(1, 5), tail) for k in range(1, high + 2)]
        require(a[0] == Fraction(1, 5) and a[-1] == 0, "not a tail that starts at the loss")
        closed = bursts.renewal_owner(Fraction(1, 5), mean, variance)
        require(bursts.owner(a) == closed, f"T = {low} or {high}: drift {bursts.owner(a)}, claimed {closed}")
        law = Renewal(Fraction(1, 5), tuple(one - more for one, more in pairwise([*tail, Fraction(0)])))
        require([law.age_tail(k) for k in range(1, high + 2)] == a, "not the tail of the shipped law")


def _no_bound() -> None:
    # a_k - a_(k+1) = (p/L) P(T >= k), a_1 = p and a_k -> 0 determine a_k; L = 2.
    steps = bursts.heavy_tail(k, p) - bursts.heavy_tail(k + 1, p) - p / 2 * bursts.heavy_length_tail(k)
    require(certify.is_zero(steps), "not the tail under bursts with P(T >= j) = 2/(j(j+1))")
    require(certify.is_zero(bursts.heavy_tail(1, p) - p), "the tail does not start at the loss")
    # The n terms after the n-th are at least p/2 in all: each is at least p/(2n), k = n + (n) X.
    later = bursts.heavy_tail(n * (1 + X), p) - p / (2 * n)
    require(certify.is_nonnegative(later.subs(n, 1 / k), (p, k, X)), "no certificate that the drift has no bound")
    a = p * X  # 0 <= a_k <= a_1 = p
    for below, what in (
        (bursts.pair_independent([a]) - 2 * (1 - p) * a, "2(1-p)"),
        (2 * a - bursts.pair_independent([a]), "2"),
    ):
        require(certify.is_nonnegative(below, (p, X)), f"pairwise is not within {what} times the drift to the owner")


# -- enumerated


def _chain_weights(chain: Sequence[Fraction], lost_TP: torch.Tensor) -> list[Fraction]:
    """P(history) of a four-parameter chain that starts stationary: over all paths of its states."""
    enter, leave, good, bad = chain
    weights = []
    for history in lost_TP.T.tolist():
        share = [leave / (enter + leave), enter / (enter + leave)]
        for i, lost in enumerate(history):
            if i:
                share = [share[0] * (1 - enter) + share[1] * leave, share[0] * enter + share[1] * (1 - leave)]
            share = [s * (x if lost else 1 - x) for s, x in zip(share, (good, bad), strict=True)]
        weights.append(sum(share, Fraction(0)))
    return weights


def _burst_weights(
    loss: Fraction, tail: Callable[[int], Fraction], mean: Fraction, lost_TP: torch.Tensor
) -> list[Fraction]:
    """P(history) under renewal bursts: over what is left of the current burst, T or more counted as T."""
    T = lost_TP.shape[0]
    begin = [1 - loss] + [loss / mean * tail(j) for j in range(1, T)]
    begin.append(1 - sum(begin, Fraction(0)))
    length = [tail(j) - tail(j + 1) for j in range(1, T)] + [tail(T)]
    enter = loss / (mean * (1 - loss))
    weights = []
    for history in lost_TP.T.tolist():
        share = begin
        for i, lost in enumerate(history):
            if i:
                moved = [share[0] * (1 - enter) + share[1], *share[2:], Fraction(0)]
                share = [m + (enter * share[0] * length[j - 1] if j else 0) for j, m in enumerate(moved)]
            share = [s if (j > 0) == bool(lost) else Fraction(0) for j, s in enumerate(share)]
        weights.append(sum(share, Fraction(0)))
    return weights


def _require_drifts(what: str, lost_TP: torch.Tensor, weights: list[Fraction], owner: Fraction, pair: Fraction) -> None:
    """Two links with these independent histories, through the implementation, against both closed forms."""
    require(sum(weights) == 1, f"{what}: the histories have total probability {sum(weights)}")
    T, histories_ = lost_TP.shape
    first, second = torch.arange(histories_).repeat(histories_), torch.arange(histories_).repeat_interleave(histories_)
    round_ = histories.scripted(torch.stack([lost_TP[:, first], lost_TP[:, second]], 1), histories.orthonormal(T))
    both = [w * v for v, w in product(weights, weights)]
    for gap_P, claimed, which in (
        (histories.owner_gaps(round_)[2], owner, "drift to the owner"),
        (histories.pair_gaps(round_, 1, 2), pair, "pairwise drift"),
    ):
        drift = histories.weighted(gap_P, both)
        require(drift == claimed, f"{what}, {which} after {T} steps: {drift}, claimed {claimed}")


@B8.rung(
    "enumerated",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.INVERTED,
    mistakes.BROADCAST_FIRST,
    mistakes.ONE_MASK_FOR_ALL,
    plant("pL/(2L+1)", bursts, "gilbert_pair", _other_denominator),
    plant("trace and determinant swapped", bursts, "chain_recurrence",
          lambda *chain: (*_recurrence(*chain)[:2], *_recurrence(*chain)[:1:-1])),
    plant("heavy tail p/k^2", bursts, "heavy_tail", lambda k, p: divide(p, k**2)),
    plant("counts both losing once", bursts, "pair", lambda a, b, c, sigma2=1: sigma2 * (sum(a) + sum(b) - sum(c))),
    plant("E A^2 as 2pL^2", burst_ages, "second_moment", lambda p, L: 2 * p * L**2),
    plant("Var A, not doubled", burst_ages, "pair_worst", lambda p, L, G2=1: _pair_worst(p, L, G2) / 2),
    plant("quantile one step older", burst_ages, "quantile", lambda p, L, above: _quantile(p, L, above) + 1),
)  # fmt: skip
def _every_history(run: Run) -> Evidence:
    steps = run.pick(4, 5)
    lost_TP = all_patterns(steps)
    for loss, burst in ((Fraction(1, 3), Fraction(5, 2)), (Fraction(1, 2), 1), (Fraction(1, 10), 7)):
        weights = _chain_weights((loss / burst / (1 - loss), Fraction(1) / burst, Fraction(0), Fraction(1)), lost_TP)
        owner, pair = (form(loss, burst, steps) for form in (bursts.gilbert_owner, bursts.gilbert_pair))
        _require_drifts(f"p = {loss}, L = {burst}", lost_TP, weights, owner, pair)
        burst_age_checks.every_history(Fraction(loss), Fraction(burst), lost_TP, weights)
    for chain in product(("1/4", "1"), ("2/3",), ("0", "1/5"), ("1/2", "1")):
        rates = [Fraction(rate) for rate in chain]
        enter, leave, good, bad = rates
        owner, pair = (form(enter, leave, good, bad, steps) for form in (bursts.chain_owner, bursts.chain_pair))
        _require_drifts(f"chain {[*map(str, rates)]}", lost_TP, _chain_weights(rates, lost_TP), owner, pair)
    third = Fraction(1, 3)
    a = [bursts.heavy_tail(k, third) for k in range(1, steps + 1)]
    weights = _burst_weights(third, bursts.heavy_length_tail, Fraction(2), lost_TP)
    _require_drifts("heavy tail", lost_TP, weights, bursts.owner(a), bursts.pair_independent(a))
    _words_to_lengths(run.pick(64, 4096))
    require(a == [HeavyTailed(third).age_tail(k) for k in range(1, steps + 1)], "not the tail of the shipped law")
    tail = [Fraction(1), Fraction(3, 4), Fraction(3, 4)]
    a = [bursts.renewal_tail(k, third, tail) for k in range(1, steps + 1)]
    weights = _burst_weights(third, lambda j: tail[j - 1] if j <= 3 else Fraction(0), sum(tail, Fraction(0)), lost_TP)
    _require_drifts("bursts of 1 or 3", lost_TP, weights, bursts.owner(a), bursts.pair_independent(a))
    _replayed("0110111010", "1011000110")
    return Evidence(
        f"all 2^{2 * steps} histories of two links under 13 laws; two dependent links replayed from every start"
    )


def _words_to_lengths(longest: int) -> None:
    """The heavy-tailed sampler at the last word that gives a length of at least j and at the first that does not."""
    for j in range(1, longest + 1):
        for sampler, tail in (
            (renewal._heavy_length, bursts.heavy_length_tail(j)),
            (renewal._heavy_residual, bursts.heavy_tail(j, 1)),
        ):
            edge = threshold(Fraction(tail))
            last, first = sampler(np.array([edge - 1, edge]))
            require(last >= j > first or j == 1 <= last, f"length {j} is not sampled with probability {tail}")


def _replayed(one: str, other: str) -> None:
    """Two unequal links that lose together, periodic from a random start: steady state once every age has been cut."""
    period = len(one)
    steps = 2 * period
    lost_TRP = torch.tensor([[[bits[(start + s) % period] == "1" for start in range(period)] for bits in (one, other)]
                             for s in range(steps)])  # fmt: skip
    round_ = histories.scripted(lost_TRP, histories.orthonormal(steps))
    both = "".join("1" if x == y == "1" else "0" for x, y in zip(one, other, strict=True))
    a, b, c = ([Trace(bits, "step").age_tail(k) for k in range(1, period)] for bits in (one, other, both))
    even = [Fraction(1, period)] * period
    for gap_P, claimed in (
        (histories.pair_gaps(round_, 1, 2), bursts.pair(a, b, c)),
        (histories.owner_gaps(round_)[1], bursts.owner(a)),
        (histories.owner_gaps(round_)[2], bursts.owner(b)),
    ):
        drift = histories.weighted(gap_P, even)
        require(drift == claimed, f"replay of {one} and {other}: drift {drift}, claimed {claimed}")


# -- sampled


def _measure(
    law: Law, run: Run, receivers: int, owners: int, own: int, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Drift to the owner and pairwise, over links and disjoint pairs of them; one of `own` packets of each owner."""
    owner_P = [owner for owner in range(owners) for _ in range(own)]
    round_ = histories.drawn(law, owner_P, owners + receivers, run.seed, histories.orthonormal(steps))
    to_owner = histories.owner_gaps(round_)[owners:, ::own]
    replicas = round_.replicas_HPE[owners:, ::own]
    return to_owner.flatten(), (replicas[::2] - replicas[1::2]).square().sum(-1).flatten()


@B8.rung(
    "sampled",
    mistakes.ALWAYS_FRESH,
    mistakes.BROADCAST_FIRST,
    mistakes.SAME_FOR_ALL_STEPS,
    mistakes.SAME_FOR_ALL_RECEIVERS,
    plant("independent losses", bursts, "gilbert_owner", lambda p, L, t=None, sigma2=1: drift.owner(p, t, sigma2)),
    plant("without the common steps", bursts, "gilbert_pair", lambda *args: 2 * bursts.gilbert_owner(*args)),
    plant("clock without effect", bursts, "effective_burst", lambda p, L, ticks: L),
    plant("bursts that start with the run", renewal, "_heavy_residual", renewal._heavy_length),
    plant("bursts of residual length", renewal, "_heavy_length", renewal._heavy_residual),
    plant("heavy tail p/k^2", bursts, "heavy_tail", lambda k, p: p / k**2),
)
def _shipped_laws(run: Run) -> Evidence:
    loss, burst, steps, owners, own = 0.4, 4, 8, 4, 3
    receivers = run.pick(700, 7_000)
    step_clock, packet_clock = GilbertElliott(loss, burst), GilbertElliott(loss, burst, clock="packet")
    found = []
    for law, packets, mean in ((step_clock, 1, burst), (packet_clock, own, bursts.effective_burst(loss, burst, own))):
        to_owner, pairs = _measure(law, run, receivers, owners, packets, steps)
        what = f"{law.clock} clock"
        require_mean(
            f"{what}: to the owner", to_owner.numpy(), bursts.gilbert_owner(loss, mean, steps), 0, steps, ALPHA / 6
        )
        require_mean(f"{what}: pairwise", pairs.numpy(), bursts.gilbert_pair(loss, mean, steps), 0, steps, ALPHA / 6)
        found.append(f"{what} {to_owner.mean():.3f}, {pairs.mean():.3f}")
    to_owner, pairs = _measure(HeavyTailed(loss), run, receivers, owners, 1, steps)
    a = [bursts.heavy_tail(k, loss) for k in range(1, steps + 1)]
    require_mean("heavy tail: to the owner", to_owner.numpy(), bursts.owner(a), 0, steps, ALPHA / 9)
    require_mean("heavy tail: pairwise", pairs.numpy(), bursts.pair_independent(a), 0, steps, ALPHA / 9)
    # The gap is the age, so a gap is a loss in the last step: bursts keep beginning at their rate.
    lost = int((to_owner > 0).sum())
    require_probability("heavy tail: last packet lost", lost, to_owner.numel(), bursts.heavy_tail(1, loss), ALPHA / 9)
    found.append(f"heavy tail {to_owner.mean():.3f}, {pairs.mean():.3f}")
    return Evidence(
        f"p = {loss}, L = {burst}, {to_owner.numel()} links after {steps} steps, to the owner and pairwise: "
        + "; ".join(found),
        ALPHA,
    )


B8.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
