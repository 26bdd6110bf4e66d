"""D4: what sets the age of a replica is the burst that a lost packet is in.

Legend: N ranks, R receivers = ranks 1.., P packets = histories or starts, T steps, M ticks a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch

from lossproof.impl.loss import Arrivals
from lossproof.impl.round import Round
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import histories, inspection_checks, mistakes
from lossproof.proofs_checks.instruments.patterns import all_patterns
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import bursts, inspection
from lossproof.theory.derive import inspection as derive
from lossproof.theory.laws import GilbertElliott, HeavyTailed, Law, Renewal, renewal

ONE = torch.ones(1, 1, dtype=torch.float64)

_met, _age, _place, _steps, _rate = (
    inspection.met_length, inspection.mean_age, inspection.place, inspection.burst_in_steps, inspection.burst_rate,
)  # fmt: skip

D4 = Claim(
    "D4",
    "The inspection paradox: E A = (p/2)(L + 1 + Var T / L), so a finite mean burst can already diverge",
    derive.met_bursts,
    assumes=(
        "a link alternates runs of losses, of independent lengths T of one law with mean L, with runs of arrivals, "
        "independent of them; stationary; loss p",
        "one tick per step, packet and link of the parameter phase; the clock: a two-state link (Gilbert-Elliott) of "
        "mean burst L ticks that ticks a fixed number of times a step",
    ),
    not_claimed=(
        "bursts of other than geometric lengths on a link that ticks several times a step: no closed form is given",
        "bursts whose lengths depend on each other, or on the runs of arrivals",
        "that real bursts have no variance: a log cannot tell; what it shows is that the estimate keeps growing",
        "floating point",
    ),
    witness="bursts of 1 or 3, equally often, at p = 1/5: L = 2, Var T = 1, E A = 7/20; of 2 only: 3/10",
    advice="A mean burst says little. What a replica's age, its drift (B8) and the momentum of loss (D1) depend on is "
    "the burst that a lost packet is in, of mean L + Var T / L: sum T (T+1)/2 over the runs of losses in a log, over "
    "its steps, is the mean age. If it keeps growing with the log, bound ages instead: a reliable parameter phase "
    "every R steps (B12). And give bursts in steps, not in packets: to a link that sends M packets a step, bursts far "
    "shorter than M packets are independent losses; only outages of a step or more are bursts.",
)


def _age_without_paradox(p: Any, mean: Any, variance: Any) -> Any:
    return _age(p, mean, 0 * variance)


NO_PARADOX = plant("no inspection paradox", inspection, "met_length", lambda mean, variance: mean + 0 * variance)
FROM_ZERO = plant(
    "places counted from 0", inspection, "mean_age", lambda p, mean, variance: _age(p, mean, variance) - p
)
WHOLE_BURST = plant(
    "as old as the burst is long", inspection, "mean_age", lambda p, mean, variance: p * _met(mean, variance)
)
UNWEIGHTED = plant(
    "all losses begin a burst", inspection, "place", lambda j, p, mean, tail: _place(j, p, mean, tail) * mean
)
SQUARE = plant("geometric variance L^2", inspection, "geometric_variance", lambda mean: mean**2)
NO_LEAST = plant("regular bursts of any mean", inspection, "least_variance", lambda whole, part: 0 * part)
FADES = plant(
    "a tail that falls as 1/i^2", inspection, "heavy_tail", lambda i, p, whole, rest: p * rest / ((whole + rest) * i**2)
)
NO_CLOCK = plant("clock without effect", inspection, "burst_in_steps", lambda p, L, ticks: L)
DIVIDED = plant("L over the ticks", inspection, "burst_in_steps", lambda p, L, ticks: L / ticks)
FORGETS = plant("clock without 1 - p", inspection, "burst_in_steps", lambda p, L, ticks: _steps(p, L, ticks) * (1 - p))
MEMORY = plant("lambda = 1 - 1/L", inspection, "memory", lambda p, L: 1 - 1 / L)
OF_ALL_TICKS = plant("bursts begin at any tick", inspection, "burst_rate", lambda p, mean: _rate(p, mean) * (1 - p))
RUNS_SQUARED = plant(
    "runs squared", inspection, "mean_age_of_runs", lambda runs, steps: Fraction(sum(run**2 for run in runs), 2 * steps)
)
D4.derived(
    NO_PARADOX, UNWEIGHTED, SQUARE, FADES, NO_CLOCK, OF_ALL_TICKS, FROM_ZERO, WHOLE_BURST, NO_LEAST, MEMORY, FORGETS
)


# -- certified


@D4.rung("certified", NO_PARADOX, FADES, NO_CLOCK, UNWEIGHTED, OF_ALL_TICKS, RUNS_SQUARED, FROM_ZERO, SQUARE, NO_LEAST,
         DIVIDED, MEMORY)  # fmt: skip
def _all_parameters(run: Run) -> Evidence:
    longest = run.pick(4, 6)
    inspection_checks.all_lengths(longest)
    inspection_checks.least(run.pick(3, 6))
    inspection_checks.without_mean()
    inspection_checks.clock()
    return Evidence(
        f"all laws of bursts of at most {longest} at once: stationary, mean age, burst met; least variance; no bound "
        "on E A_t for any mean above 1 and any p, t; the clock for all p, L and numbers of ticks"
    )


# -- enumerated


def _ages(lost_TP: torch.Tensor) -> torch.Tensor:
    """The age of one receiver (P,) after these losses, through the code that trains: the owner counts steps of 1."""
    round_: Round = histories.scripted(lost_TP[:, None], [ONE] * len(lost_TP))
    return (round_.fresh_QE - round_.replicas_HPE[1]).squeeze(-1)


def _of_bursts(lost_TP: torch.Tensor, p: Fraction, mean: Fraction, tail: Callable[[int], Fraction]) -> list[Fraction]:
    """P(history): over what is left of the current burst, T losses or more counted as T; arrivals end at any tick."""
    T = lost_TP.shape[0]
    begin = [1 - p, *(inspection.place(j, p, mean, tail(j)) for j in range(1, T))]
    begin.append(1 - sum(begin))
    length = [Fraction(0), *(tail(j) - tail(j + 1) for j in range(1, T)), tail(T)]
    enter = inspection.burst_rate(p, mean)
    weights = []
    for history in lost_TP.T.tolist():
        share = begin
        for i, lost in enumerate(history):
            if i:
                stay = [share[0] * (1 - enter) + share[1], *share[2:], Fraction(0)]
                share = [x + enter * share[0] * chance for x, chance in zip(stay, length, strict=True)]
            share = [x if (j > 0) == bool(lost) else Fraction(0) for j, x in enumerate(share)]
        weights.append(sum(share, Fraction(0)))
    return weights


@D4.rung(
    "enumerated",
    mistakes.ALWAYS_FRESH,
    NO_PARADOX,
    FADES,
    NO_CLOCK,
    mistakes.BROADCAST_FIRST,
    UNWEIGHTED,
    mistakes.ZERO_FOR_STALE,
    mistakes.INVERTED,
    FROM_ZERO,
    WHOLE_BURST,
    DIVIDED,
    FORGETS,
    OF_ALL_TICKS,
    RUNS_SQUARED,
)
def _every_history(run: Run) -> Evidence:
    steps = run.pick(4, 7)
    lost_TP = all_patterns(steps)
    ages_P = _ages(lost_TP)
    for loss, chances in ((Fraction(1, 5), (1, 0, 1)), (Fraction(1, 3), (0, 0, 1)), (Fraction(1, 2), (2, 1, 3))):
        tail = [Fraction(sum(chances[j:]), sum(chances)) for j in range(3)]
        mean = sum(tail, Fraction(0))
        square = sum((j * j * Fraction(x, sum(chances)) for j, x in enumerate(chances, 1)), Fraction(0))

        def of(j: int, tail: list[Fraction] = tail) -> Fraction:
            return tail[j - 1] if j <= len(tail) else Fraction(0)

        what = f"p = {loss}, T = 1, 2, 3 as {chances}"
        _require_age(
            what, ages_P, _of_bursts(lost_TP, loss, mean, of), inspection.mean_age(loss, mean, square - mean**2)
        )
    for loss, whole, rest in ((Fraction(1, 5), 1, Fraction(1)), (Fraction(1, 3), 2, Fraction(1, 2))):

        def without(j: int, whole: int = whole, rest: Fraction = rest) -> Fraction:
            return Fraction(1) if j <= whole else inspection.heavy_length_tail(j - whole, rest)

        mean = whole + rest
        known = sum((loss * (mean - k + 1) / mean for k in range(1, whole + 1)), Fraction(0))
        age = known + sum(inspection.heavy_tail(i, loss, whole, rest) for i in range(1, steps - whole + 1))
        _require_age(f"p = {loss}, no variance, L = {mean}", ages_P, _of_bursts(lost_TP, loss, mean, without), age)
    for runs in (((1, 2), (3, 1), (2, 3)), ((1, 1), (1, 4), (5, 2))):
        _require_cycle(runs)
    ticks = ((2, 3), *run.pick((), ((3, 3), (2, 5), (4, 2))))
    for M, T in ticks:
        _require_clock(M, T)
    return Evidence(
        f"all 2^{steps} histories of a link under 5 laws of bursts; cycles from every start, with runs of arrivals of "
        f"other lengths; all histories of {', '.join(f'{M * T} ticks, {M} a step' for M, T in ticks)}"
    )


def _require_age(what: str, ages_P: torch.Tensor, weights: list[Fraction], claimed: Fraction) -> None:
    require(sum(weights) == 1 and min(weights) >= 0, f"{what}: the histories have total probability {sum(weights)}")
    age = histories.weighted(ages_P, weights)
    require(age == claimed, f"{what}: mean age {age}, claimed {claimed}")


def _require_cycle(runs: Sequence[tuple[int, int]]) -> None:
    """Runs of losses and of arrivals for ever, from every start: stationary, with these bursts and any arrivals."""
    cycle = [lost for losses, arrivals in runs for lost in [True] * losses + [False] * arrivals]
    period, bursts = len(cycle), [losses for losses, _ in runs]
    lost_TP = torch.tensor([[cycle[(start + t) % period] for start in range(period)] for t in range(2 * period)])
    ages = _ages(lost_TP).tolist()
    mean, loss = Fraction(sum(bursts), len(bursts)), Fraction(sum(bursts), period)
    variance = Fraction(sum(b * b for b in bursts), len(bursts)) - mean**2
    met = Fraction(sum(b * b for b in bursts), sum(bursts))  # a loss of each burst for each of its places
    age = Fraction(int(sum(ages)), period)
    for found, claimed, name in (
        (age, inspection.mean_age(loss, mean, variance), "mean age"),
        (age, inspection.mean_age_of_runs(bursts, period), "mean age of its runs"),
        (met, inspection.met_length(mean, variance), "burst met"),
        *((Fraction(ages.count(j), period),
           inspection.place(j, loss, mean, Fraction(sum(b >= j for b in bursts), len(bursts))), f"P(A = {j})")
          for j in range(1, max(bursts) + 1)),
    ):  # fmt: skip
        require(found == claimed, f"cycle {runs}: {name} {found}, claimed {claimed}")


def _require_clock(M: int, T: int) -> None:
    """A two-state link over all its ticks; the first and the last of the packets that it sends in a step."""
    lost_BP = all_patterns(M * T)
    for loss, L in ((Fraction(1, 3), Fraction(5, 2)), (Fraction(1, 2), 4), (Fraction(1, 10), 7)):
        leave = 1 / Fraction(L)
        enter = loss * leave / (1 - loss)
        weights = []
        for history in lost_BP.T.tolist():
            chance = loss if history[0] else 1 - loss
            for before, now in pairwise(history):
                bad = 1 - leave if before else enter
                chance *= bad if now else 1 - bad
            weights.append(chance)
        slower = inspection.burst_in_steps(loss, L, M)
        claimed = bursts.gilbert_owner(loss, slower, T)
        for packet in (0, M - 1):
            _require_age(f"p = {loss}, L = {L} ticks, {M} a step", _ages(lost_BP[packet::M]), weights, claimed)


# -- sampled


@D4.rung(
    "sampled",
    mistakes.ALWAYS_FRESH,
    NO_PARADOX,
    NO_CLOCK,
    FADES,
    mistakes.SAME_FOR_ALL_STEPS,
    mistakes.a_fifth_more(inspection, "mean_age"),
    mistakes.BROADCAST_FIRST,
    WHOLE_BURST,
    DIVIDED,
    plant("bursts that start with the run", renewal, "_heavy_residual", renewal._heavy_length),
    mistakes.a_fifth_more(inspection, "burst_in_steps"),
    mistakes.WORDS_OF_31_BITS,
)
def _shipped_laws(run: Run) -> Evidence:
    loss, steps, owners, receivers, level = 0.3, 8, 16, run.pick(1_000, 4_000), ALPHA / 4
    found = []

    def check(what: str, law: Law, owned: int, claimed: float) -> None:
        """The last of the packets that each owner sends to each receiver in a step."""
        owner_P = [owner for owner in range(owners) for _ in range(owned)]
        round_ = histories.drawn(law, owner_P, owners + receivers, run.seed, [ONE] * steps)
        ages = (round_.fresh_QE - round_.replicas_HPE[owners:])[:, owned - 1 :: owned].flatten().numpy()
        require_mean(f"{what}: mean age", ages, claimed, 0, steps, level)
        found.append(f"{what} {ages.mean():.3f}, {claimed:.3f}")

    uneven = Renewal(loss, (0.8, 0, 0, 0, 0.2))  # L = 1.8, E T^2 = 5.8
    check("bursts of 1 or 5", uneven, 1, inspection.mean_age(loss, 1.8, 5.8 - 1.8**2))
    grows = sum(inspection.heavy_tail(i, loss, 0, 2) for i in range(1, steps + 1))
    check(f"no variance, {steps} steps", HeavyTailed(loss), 1, grows)
    slower = inspection.burst_in_steps(loss, 6, 3)
    check("three ticks a step", GilbertElliott(loss, 6, clock="packet"), 3, bursts.gilbert_owner(loss, slower, steps))
    arrivals = Arrivals(uneven, range(owners), owners + receivers, run.seed)
    lost_TL = torch.stack([~arrivals.parameters(t)[owners:].flatten() for t in range(9)]).int()
    up_to_L, from_L = lost_TL[:5].flip(0).cumprod(0).sum(0), lost_TL[4:].cumprod(0).sum(0)  # the middle one included
    met = (up_to_L + from_L - 1)[lost_TL[4] == 1].double().numpy()
    require_mean("the burst that a lost packet is in", met, inspection.met_length(1.8, 5.8 - 1.8**2), 1, 5, level)
    return Evidence(
        f"p = {loss}, {owners * receivers} links, mean age, claimed: {'; '.join(found)}; bursts of mean 1.8, those "
        f"that {met.size} losses are in {met.mean():.3f}",
        ALPHA,
    )


D4.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
