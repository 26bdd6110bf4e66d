"""B12: a reliable broadcast now and then, run by the same round through a channel that sometimes loses nothing.

Legend: H hosted ranks (all of them), P packets, Q of them owned here (all), E elements, T steps, R steps per period.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import sympy as sp
import torch

from lossproof.impl.channel import Channel, SimulatedChannel
from lossproof.impl.loss import Arrivals
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import histories, mistakes
from lossproof.proofs_checks.instruments.patterns import expectation, play, require_identical
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import certify, contrast, drift
from lossproof.theory.derive import contrast as derive
from lossproof.theory.laws import Bernoulli

p, R = sp.Symbol("p", positive=True), sp.Symbol("R", integer=True, positive=True)
X, s = sp.symbols("X s")
POWERS = {p**R: X}
Phases = list[torch.Tensor]
_saved = contrast.resync_pair_saved


class Resync(histories.Through):
    """Loses nothing in the parameter phases at t = 0 mod R; t counts from 1, the round's steps from 0."""

    period: int

    def parameters(self, step: int, fresh_QE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        received, arrived_HP = self.channel.parameters(step, fresh_QE)
        return received, torch.ones_like(arrived_HP) if (step + 1) % self.period == 0 else arrived_HP


def _phases(channel: Channel, packets: int, period: int) -> tuple[Phases, Phases]:
    """Squared gaps (P,) to the owner and between replicas at r = 0, ..., R-1 of the second period, t = R, ..., 2R-1."""
    resync = Resync(channel)
    resync.period = period
    round_ = histories.at_rest(resync, [0] * packets, 2 * period - 1)
    to_owner: Phases = []
    apart: Phases = []
    for u_E in histories.orthonormal(2 * period - 1):
        play(round_, [u_E])
        for squares, gap in zip((to_owner, apart), histories.gaps(round_), strict=True):
            squares.append(histories.square(gap))
    return to_owner[-period:], apart[-period:]


def _one_step_late(self: Resync, step: int, fresh_QE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    received, arrived_HP = self.channel.parameters(step, fresh_QE)
    return received, torch.ones_like(arrived_HP) if step % self.period == 0 else arrived_HP


B12 = Claim(
    "B12",
    "A reliable broadcast every R steps: B2 at t = r in phase r; it helps only for R up to about 1/(1-p)",
    derive.resync,
    assumes=(
        "parameter packets are lost independently in time and between links, with probability p; none at t = 0 mod R",
        "common start: all copies equal at t = 0",
        "steps are a martingale difference: given everything before the masks of t, E u_t = 0 and E|u_t|^2 = sigma^2",
    ),
    not_claimed=(
        "a sharp threshold: for R <= 1/(1-p) at least 2/3 of the average drift is saved, at any R at most 3/(2(1-p)R)",
        "what a reliable broadcast costs",
        "floating point",
    ),
    witness="p = 1/2, R = 2: drift 0 and 1/2 in turn, 1/4 on average, where B2 alone gives 4/3",
)


def _phases_from_1(p: Any, R: Any = None) -> Any:
    return _saved(p, R) - (0 if R is None else 1 - p**R)


def _without_end(p: Any, R: Any = None) -> Any:
    return _saved(p, R) * (2 if R is None else 1)


def _one_phase_less(p: Any, R: Any = None) -> Any:
    return (1 - (0 if R is None else p ** (R - 1))) / (1 - p)


FROM_1 = plant("phases 1 to R", contrast, "resync_pair_saved", _phases_from_1)
WITHOUT_END = plant("saves without end", contrast, "resync_pair_saved", _without_end)
HALVES = plant("half", contrast, "resync_pair_average", lambda p, R, sigma2=1: drift.pair(p, None, sigma2) / 2)
PEAK_R = plant("peak at R", contrast, "resync_pair_peak", lambda p, R, sigma2=1: drift.pair(p, R, sigma2))
PHASE_LESS = plant("owner: one phase less", contrast, "resync_owner_saved", _one_phase_less)
LATE = plant("reliable one step late", Resync, "parameters", _one_step_late)
NEVER = plant("never reliable", Resync, "parameters", histories.Through.parameters)

B12.derived(FROM_1, WITHOUT_END, HALVES, PEAK_R, PHASE_LESS)


@B12.rung("certified", FROM_1, WITHOUT_END, HALVES, PEAK_R, PHASE_LESS)
def _worth_it(run: Run) -> Evidence:
    average, saved, owners = contrast.resync_pair_average, contrast.resync_pair_saved, contrast.resync_owner_average
    grows = drift.pair(p, R + 1) - drift.pair(p, R)
    for what, expression in {
        "average of a pair, R = 1": average(p, 1),
        "average to the owner, R = 1": owners(p, 1),
        "average of a pair, one more phase": (R + 1) * average(p, R + 1) - R * average(p, R) - drift.pair(p, R),
        "average to the owner, one more phase": (R + 1) * owners(p, R + 1) - R * owners(p, R) - drift.owner(p, R),
        "peak": contrast.resync_pair_peak(p, R + 1) - drift.pair(p, R),
        "share saved": average(p, R) - drift.pair(p) * (1 - saved(p, R) / R),
        "share saved, limit": sp.expand(saved(p, R)).subs(p**R, 0).subs(p ** (2 * R), 0) - saved(p),
        "share saved to the owner, limit": sp.expand(contrast.resync_owner_saved(p, R)).subs(p**R, 0)
        - contrast.resync_owner_saved(p),
        "sum of r (r+1) over r < R, one more": ((R + 1) ** 3 - (R + 1) - R**3 + R) / 3 - R * (R + 1),
    }.items():
        require(certify.is_zero(expression, POWERS), f"{what}: not zero for all p and R")
    # With q = 1-p: D_r grows by 2 p^(r+1) (1 - p^(r+1)) <= 2pq(r+1), as 1 - p^r <= qr; hence D_r <= pq r(r+1). So
    # average/steady <= q^2 (1+p) (R^2-1)/6 <= (qR)^2/3, at most 1/3 for R <= 1/q.
    q = 1 - p
    slack = certify.rational(2 * p * q * (R + 1) - grows, POWERS)
    late = (slack[0] / slack[1]).subs(R, (1 - X) / q + s / (1 - s))  # all R >= (1 - p^R)/q
    kept = (q * R) ** 2 / 3 - p * q * (R**2 - 1) / 3 / drift.pair(p)
    for what, nonnegative, symbols in (
        ("the average increases with R, for D_r does with r", grows, (p, X)),
        ("share saved <= saved/R", saved(p) - saved(p, R), (p, X)),
        ("saved <= 3/(2q)", sp.Rational(3, 2) / q - saved(p), (p,)),
        ("1 - p^r <= qr, one more r", q * (1 - X), (p, X)),
        ("D_r <= pq r(r+1), one more r", late, (p, X, s)),
        ("average/steady <= (qR)^2/3", kept.subs(R, 1 + s / (1 - s)), (p, s)),
    ):
        require(certify.is_nonnegative(nonnegative, symbols, POWERS), f"no certificate: {what}")
    return Evidence(
        "averages by induction on R, increasing; 1 - ((1-p)R)^2/3 <= share saved <= 3/(2(1-p)R), for all p, R"
    )


@B12.rung(
    "enumerated",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.INVERTED,
    mistakes.BROADCAST_FIRST,
    LATE,
    NEVER,
    HALVES,
    PHASE_LESS,
    PEAK_R,
)
def _every_phase(run: Run) -> Evidence:
    longest = run.pick(3, 4)
    for period in range(1, longest + 1):
        arrived_BP = histories.links(2 * period - 1)
        channel = histories.two_replicas(arrived_BP, 2 * period - 1)
        degree = 2 * period + 1  # all are polynomials of degree <= 4R - 2, two links in 2R - 1 steps
        for squares, drift_at, average in zip(
            _phases(channel, arrived_BP.shape[1], period),
            (drift.owner, drift.pair),
            (contrast.resync_owner_average, contrast.resync_pair_average),
            strict=True,
        ):
            means = [expectation(squared_P, arrived_BP) for squared_P in squares]
            for r, mean in enumerate(means):
                require_identical(f"R = {period}, phase {r}", mean, lambda loss: drift_at(loss, r), degree)
            require_identical(
                f"R = {period}, average",
                lambda loss: sum(mean(loss) for mean in means) / period,
                lambda loss: average(loss, period),
                degree,
            )
        for k in range(1, 10):  # means is a pair's
            peak, claimed = (
                max(mean(Fraction(k, 10)) for mean in means),
                contrast.resync_pair_peak(Fraction(k, 10), period),
            )
            require(peak == claimed, f"R = {period}, p = {k}/10: the peak is {peak}, claimed {claimed}")
    return Evidence(
        f"all masks of two periods for R <= {longest}: phases and averages as polynomials in p, and the peak"
    )


@B12.rung(
    "sampled",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.WORDS_OF_31_BITS,
    LATE,
    NEVER,
    HALVES,
    PHASE_LESS,
)
def _two_periods(run: Run) -> Evidence:
    loss, packets, shares = 0.75, run.pick(3_000, 30_000), []
    for period in (4, 12):  # 1/(1-p), and three times as long
        channel = SimulatedChannel(Arrivals(Bernoulli(loss), [0] * packets, 3, run.seed))
        phases = _phases(channel, packets, period)
        to_owner, apart = (torch.stack(squared).mean(0).numpy() for squared in phases)
        high = (period - 1) / 2  # phase r lies in [0, r]
        require_mean(f"owner, R = {period}", to_owner, contrast.resync_owner_average(loss, period), 0, high, ALPHA / 6)
        require_mean(f"pair, R = {period}", apart, contrast.resync_pair_average(loss, period), 0, high, ALPHA / 6)
        peak = contrast.resync_pair_peak(loss, period)
        require_mean(f"peak, R = {period}", phases[1][-1].numpy(), peak, 0, period - 1, ALPHA / 6)
        shares.append(1 - float(apart.mean()) / drift.pair(loss))
    return Evidence(
        f"{packets} pairs at p = {loss}: R = 4 saves {shares[0]:.3f} of the drift, R = 12 {shares[1]:.3f}", ALPHA
    )


B12.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
