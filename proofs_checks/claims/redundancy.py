"""D3: redundant packets, of gradients or of parameters.

Legend: P problems.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np

from lossproof.proofs_checks.claim import Claim, Evidence, Refuted, Run, plant, require
from lossproof.proofs_checks.claims.dynamics import MODELS
from lossproof.proofs_checks.instruments import mistakes, quadratic_runs, second_moments
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import dynamics, redundancy, stability
from lossproof.theory.derive import redundancy as derive

_prices, _advantage, _split, _risk = redundancy.prices, redundancy.advantage, redundancy.split, redundancy.risk

D3 = Claim(
    "D3",
    "Where to spend redundancy: on gradients first, on parameters ln(1/(eta h))/ln(1/p) copies later",
    derive.where_to_spend,
    assumes=(
        "those of C1, in steady state; eta h below the stability limit",
        "every gradient packet is sent r_g times and every parameter packet r_p times, each copy lost independently",
        "a copy of either costs the same",
    ),
    not_claimed=(
        "copies that are lost together, as in a burst: spread them over time or paths, or p^r is not their loss",
        "coding that does better than repetition",
        "a run that has not converged: its transient is C1's",
        "the best of several directions at once: eta h is that of the direction whose risk matters",
        "floating point",
    ),
    witness="16 ranks, p = 1/10, eta h = 1/100, six copies: four of each gradient and two of each parameter packet",
    advice="Losing gradients costs excess risk in proportion to the loss, losing parameters only eta h times that. So "
    "protect gradients first: with R copies to spend, send about ln(1/(eta h))/ln(1/p) more of a gradient packet than "
    "of a parameter packet (two at p = 0.1 and eta h = 0.01), `lossproof plan --budget COPIES --step ETA_H`. All "
    "this is about the noise floor of a converged run; near the stability limit the exact split decides.",
)


def _swapped(*args: Any, **options: Any) -> Any:
    found = _split(*args, **options)
    return found._replace(gradients=found.parameters, parameters=found.gradients)


def _phases_swapped(r_g: int, r_p: int, *rest: Any) -> Any:
    return _risk(r_p, r_g, *rest)


def _ties_to_the_other_side(N: Any, p: float, s: float, model: Any = "reliable") -> float:
    return _advantage(N, p, s, model) * (1 if s != 1 / 150 else -1)


def _odd_for_gradients(copies: int, *rest: Any) -> Any:
    r = copies - copies // 2
    return redundancy.Split(r, copies - r, redundancy.risk(r, copies - r, *rest))


PHI = plant("phi = 1, fresh owner forgotten", redundancy, "slope", lambda phi, p: Fraction(1, 2) + p / (1 - p))
NO_HALF = plant("without 1/2", redundancy, "slope", lambda phi, p: phi * p / (1 - p))
AGE_P = plant("p for p/(1-p)", redundancy, "slope", lambda phi, p: Fraction(1, 2) + phi * p)
KAPPA = plant("N_eff = 1/kappa", redundancy, "of_shares", lambda of: 1 / dynamics.noise_share(of))
PRICES = plant("prices swapped", redundancy, "prices", lambda *args: _prices(*args)[::-1])
LINEAR = plant("r copies lost with p/r", redundancy, "arrives_never", lambda p, r: p / r)
ONE_MORE = plant("one copy more than sent", redundancy, "arrives_never", lambda p, r: p ** (r + 1))
NO_REMAINDER = plant("remainder forgotten", redundancy, "remainder", lambda *args: 0)
SWAPPED = plant("phases swapped", redundancy, "split", _swapped)
RISK_SWAPPED = plant("phases swapped in the risk", redundancy, "risk", _phases_swapped)
EVEN = plant("always the even split", redundancy, "split", lambda *args: redundancy.even(*args))
D3.derived(
    PHI, NO_HALF, PRICES, ONE_MORE, AGE_P, KAPPA, NO_REMAINDER, LINEAR,
    plant("gradients' price 1", redundancy, "prices", lambda N, s, model="": (1, _prices(N, s, model)[1])),
)  # fmt: skip


# -- certified


@D3.rung(
    "certified", PHI, EVEN, KAPPA, SWAPPED, AGE_P, RISK_SWAPPED, NO_HALF, NO_REMAINDER, ONE_MORE, LINEAR,
    plant("advantage of the other sign", redundancy, "advantage", lambda *args: -_advantage(*args)),
    plant("ties to the other side", redundancy, "advantage", _ties_to_the_other_side),
    plant("an odd copy for gradients", redundancy, "even", _odd_for_gradients),
    plant("beyond the limit", redundancy, "risk", lambda r_g, r_p, loss, N, s, model="reliable": dynamics.excess_risk(
        N, loss**r_g, loss**r_p, s, model)),
)  # fmt: skip
def _exactly(run: Run) -> Evidence:
    for model in MODELS:
        _require_expansion(model, run.pick(3, 6))
    within = max(_require_split(model, run.pick((4,), (2, 4, 9, 16))) for model in MODELS)
    _require_unstable()
    _require_floats()
    _require_even()
    return Evidence(
        f"the expansion and its remainder at exact points for N <= {run.pick(3, 6)}; the split against every other by "
        f"elimination; r_g - r_p within {within:.2f} of ln(1/(eta h))/ln(1/p) where a second parameter copy is worth it"
    )


def _solved(N: int, p_g: Fraction, p: Fraction, s: Fraction, model: dynamics.Model) -> Fraction:
    """The risk from the recursion, by elimination."""
    of, copies = dynamics.shares(N, p_g, model), dynamics.copies(N, model)
    left = second_moments.less(stability.second_moments(copies, p, s, of))
    right = dynamics.added(p, dynamics.noise_share(of))
    replaced = [[right[i], *row[1:]] for i, row in enumerate(left)]
    return s * second_moments.determinant(replaced) / second_moments.determinant(left) / 2


def _require_expansion(model: dynamics.Model, largest: int) -> None:
    for N, p_g, p, s in product(range(2, largest + 1), (Fraction(0), Fraction(1, 3)), (Fraction(1, 5), Fraction(1, 2)),
                                (Fraction(1, 1000), Fraction(1, 4))):  # fmt: skip
        phi = dynamics.shares(N, p_g, model).others
        rest = s**2 * redundancy.remainder(dynamics.steady(N, p_g, p, model), phi, p, s)
        first = redundancy.expansion(N, p_g, p, s, model)
        exact = _solved(N, p_g, p, s, model)
        what = f"{model}, N = {N}, p_g = {p_g}, p = {p}, s = {s}"
        require(exact == first + rest / 4 / redundancy.effective_ranks(N, p_g, model), f"{what}: not the risk {exact}")
        require(abs(exact / first - 1) <= 5 * s**2 / (1 - p) ** 2, f"{what}: off by more than O(s^2)")


def _require_split(model: dynamics.Model, sizes: tuple[int, ...]) -> float:
    worst = 0.0
    for N, p, s, copies in product(sizes, (Fraction(1, 100), Fraction(1, 10)), (Fraction(1, 1000), Fraction(1, 10)),
                                   range(2, 7)):  # fmt: skip
        best = redundancy.split(copies, p, N, s, model)
        others = {r: _solved(N, p**r, p ** (copies - r), s, model) for r in range(1, copies)}
        what = f"{model}, N = {N}, p = {p}, s = {s}, {copies} copies"
        require(best.gradients + best.parameters == copies, f"{what}: {best} does not spend them")
        require(
            best.risk == others[best.gradients] == min(others.values()), f"{what}: {best} is not the best of {others}"
        )
        aim = redundancy.advantage(N, float(p), float(s), model)
        off = abs(best.gradients - best.parameters - aim)
        if best.parameters > 1:
            require(off <= 1.1, f"{what}: {best} is {off} from the advantage {aim}")
            worst = max(worst, off)
        even = redundancy.even(copies, p, N, s, model)
        require(even.risk == min(others[copies // 2], others[copies - copies // 2]), f"{what}: {even} is not even")
    return worst


def _require_unstable() -> None:
    """Two ranks, a lossy own link and a loss of 7/10: unstable sooner than without loss."""
    loss, s = Fraction(7, 10), Fraction(13, 10)
    limits = [dynamics.stable_step(2, loss**r, loss ** (3 - r), "lossy") for r in (1, 2)]
    for r, limit in zip((1, 2), limits, strict=True):
        risk = redundancy.risk(r, 3 - r, loss, 2, s, "lossy")
        require(
            (risk == math.inf) == (s >= limit), f"{r} copies of gradients, limit {limit}: the risk at {s} is {risk}"
        )
    require(redundancy.risk(1, 1, loss, 2, Fraction(19, 10), "lossy") == math.inf, "beyond the limit a risk is finite")
    require(redundancy.risk(1, 1, Fraction(1, 2), 2, 2) == math.inf, "at the limit, 2 for two ranks, a risk is finite")
    for copies, step, named in ((1, Fraction(1, 10), "copies"), (2, Fraction(3), "eta_h")):
        try:
            found = redundancy.split(copies, Fraction(1, 2), 2, step)
        except ValueError as refusal:
            require(str(refusal).startswith(named), f"{copies} copies at s = {step}: {refusal}")
        else:
            raise Refuted(f"{copies} copies at s = {step} are split: {found}")


def _require_floats() -> None:
    """As with fractions; and where floats see no difference the prices decide, with fractions the risk."""
    usual, near_limit = (Fraction(1, 10), 12, Fraction(1, 50)), (Fraction(1, 2), 2, Fraction(13, 10))
    for copies, (p, N, s) in ((3, usual), (6, usual), (9, usual), (3, near_limit)):  # the last against the prices
        exact, found = redundancy.split(copies, p, N, s), redundancy.split(copies, float(p), N, float(s))
        same = exact[:2] == found[:2] and abs(found.risk / float(exact.risk) - 1) < 1e-12
        require(same, f"{copies} copies: floats say {found}, fractions {exact}")
    copies = 16
    for N, p, s, differs in (
        (6, Fraction(1, 100), Fraction(1, 150), False),
        (5, Fraction(1, 50), Fraction(1, 40), True),
    ):
        risks = {r: _solved(N, p**r, p ** (copies - r), s, "reliable") for r in range(1, copies)}
        least = min(risks.values())
        ties = [r for r, risk in risks.items() if risk <= least * (1 + Fraction(1, 10**13))]
        aim = math.log(N / (N - 1) / s) / math.log(1 / p)
        nearest = min((abs(2 * r - copies - aim), r) for r in ties)[1]
        found, exact = redundancy.split(copies, float(p), N, float(s)), redundancy.split(copies, p, N, s)
        require(len(ties) > 1 and found.gradients == nearest, f"of the ties {ties} floats take {found}, not {nearest}")
        require(risks[exact.gradients] == least, f"of {ties} fractions take {exact}")
        require((exact.gradients != nearest) == differs, f"{exact.gradients} and {nearest}: both should be tried")
    for none in (Fraction(0), 0.0):
        risk = redundancy.split(5, none, 4, Fraction(1, 10)).risk
        require(abs(risk - Fraction(1, 8 * 19) * 10) <= 1e-15, f"no loss: the risk is {risk}")


def _require_even() -> None:
    """Half of each, an odd one where it does more good: near the stability limit of two ranks for parameters."""
    N, p = 2, Fraction(1, 2)
    for s, copies, gradients in ((Fraction(1, 10), 5, 3), (Fraction(13, 10), 3, 1), (Fraction(13, 10), 4, 2)):
        parameters = copies - gradients
        halves = [_solved(N, p**r, p ** (copies - r), s, "reliable") for r in (gradients, parameters)]
        even = redundancy.even(copies, p, N, s)
        require(even == (gradients, parameters, min(halves)), f"s = {s}, {copies} copies: {even} of {halves}")
        spent, best = redundancy.spend(copies, p, N, s), redundancy.split(copies, p, N, s)
        claimed = redundancy.Redundancy(copies, float(s), best.gradients, best.parameters, float(best.risk),
                                        float(even.risk), float(1 / (2 * N * (2 - s))))  # fmt: skip
        require(spent == claimed, f"s = {s}, {copies} copies: {spent}, not {claimed}")


# -- enumerated


@D3.rung(
    "enumerated",
    mistakes.ALWAYS_FRESH,
    LINEAR,
    mistakes.DIVIDE_BY_N,
    ONE_MORE,
    mistakes.INVERTED,
    mistakes.COUNT_PLUS_ONE,
    mistakes.IGNORE_LOSS,
    mistakes.ZERO_FOR_STALE,
    plant("copies lost together", redundancy, "arrives_never", lambda p, r: p),
    plant("phases swapped", dynamics, "shares", lambda N, p, model: stability.shares(N, p**2, "lossy")),
)
def _every_copy(run: Run) -> Evidence:
    cases = [(2, "reliable", 2, (2, 1)), (2, "lossy", 1, (1, 2)), (2, "server", 1, (2, 2)), (3, "lossy", 1, (2, 1)),
             *run.pick([], [(2, "lossy", 2, (2, 1)), (2, "reliable", 2, (3, 1)), (3, "reliable", 1, (3, 2))])
             ]  # fmt: skip
    for N, model, steps, copies in cases:
        found = quadratic_runs.Histories(N, model, steps, [[1]], [1], [2], copies=copies)
        for p_g, p in found.grid:
            lost = redundancy.arrives_never(p_g, copies[0]), redundancy.arrives_never(p, copies[1])
            claimed = dynamics.trajectory(N, *lost, 1, steps, model, 1, 4)[-1]
            for (i, j), measured in np.ndenumerate(found.covariance(steps, p_g, p)):
                expected = claimed[second_moments.kind(i, j)]
                where = f"{model}, N = {N}, copies {copies}, p_g = {p_g}, p = {p}: copies {i} and {j}"
                require(measured == expected, f"{where}: {measured}, claimed {expected}")
    return Evidence(
        f"every pattern of lost copies, (N, model, steps, copies) = {cases}: C1 at losses p^r, as polynomials"
    )


# -- sampled


@D3.rung(
    "sampled",
    mistakes.ALWAYS_FRESH,
    mistakes.DIVIDE_BY_N,
    plant("copies lost together", redundancy, "arrives_never", lambda p, r: p),
    mistakes.a_fifth_more(dynamics, "noise_share"),
    mistakes.SAME_FOR_ALL_SENDERS,
    mistakes.COUNT_PLUS_ONE,
    mistakes.WORDS_OF_31_BITS,
)
def _running(run: Run) -> Evidence:
    N, loss, s, noise, steps, problems = 4, 0.5, 0.8, 0.8, 3, run.pick(8_000, 60_000)
    found = []
    best = redundancy.split(3, loss, N, s, "lossy")
    splits = (best[:2], best[1::-1])
    require(best.gradients > best.parameters, f"the best split is {best}")
    for r_g, r_p in splits:
        lost = redundancy.arrives_never(loss, r_g), redundancy.arrives_never(loss, r_p)
        predicted = s / 2 * dynamics.trajectory(N, *lost, s, steps, "lossy", 1.0, noise**2)[-1].xx
        risks_P = quadratic_runs.drawn(N, loss, "lossy", np.array([[s]]), [1.0], np.array([[noise]]), problems, steps,
                                       run.seed, 1, copies=(r_g, r_p))  # fmt: skip
        high = s / 2 * quadratic_runs.largest(1.0, s, noise, steps) ** 2
        require_mean(f"risk with {r_g} + {r_p} copies", risks_P, predicted, 0, high, ALPHA / 2)
        found.append(f"{r_g} + {r_p}: {risks_P.mean() / predicted:.3f}")
    return Evidence(
        f"N = {N}, p = {loss} a copy, {problems} problems, risk after {steps} steps over predicted: {', '.join(found)}",
        ALPHA,
    )


D3.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
