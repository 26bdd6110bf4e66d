"""F1: what a fitted loss law rests on: random logs, levels, estimates.

Legend: N ranks, P packets, T steps, L links.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import comb
from typing import Any

import numpy as np
import sympy as sp
from scipy.stats import binom

from lossproof.impl.loss import Arrivals
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import fit_checks, log_checks, plain_log
from lossproof.proofs_checks.instruments.log_checks import chains
from lossproof.proofs_checks.instruments.statistics import ALPHA
from lossproof.theory import certify, fit, goodness, likelihood, recorded, runs
from lossproof.theory.derive import fitting as derive
from lossproof.theory.laws import Bernoulli, GilbertElliott

_likelihood, _random, _maximise, _binomial_high = (
    runs.likelihood, recorded.Runs.random, likelihood.maximise, likelihood.binomial_high,
)  # fmt: skip
_from_columns, _transitions, _hypergeometric = (
    recorded.Recorded.from_columns, recorded.Recorded.transitions, recorded.bursts_at_random,
)  # fmt: skip

F1 = Claim(
    "F1",
    "A fitted law: random logs are uniform given the counts, levels are kept, estimates are the maximum",
    derive.fitted,
    assumes=(
        "Gilbert-Elliott of two parameters in its steady state, Bernoulli among it; links lose independently",
        "the random logs are drawn by a perfect generator, all of one log from one seed",
    ),
    not_claimed=(
        "the level of the test that links have equal transitions, and the coverage of profile likelihood: asymptotic",
        "that a law which is not rejected is the true one: other laws are found only where a statistic shows them",
    ),
    witness="a log of two packets, whose only alike is itself: nothing is rejected",
)
F1.derived(
    plant("entered as often as left", runs, "entering", lambda p, b: b),
    plant("the first packets left out", runs, "likelihood", lambda p, b, n: _likelihood(p, b, (*n[:4], 0, 0))),
    plant("a run may end after the last", runs, "compositions", lambda n, k, binomial=comb: binomial(n, k - 1)),
    plant("a place fewer for bursts", runs, "mean_bursts", lambda lost, arrived: lost * arrived / (lost + arrived)),
    plant("first packets are no news of the loss", runs, "loss_equation", lambda a, b, n: (
        n[1] * b + a * (n[1] * (1 - b) - n[0] * b) - a**2 * (n[1] + n[0]))),
    plant("a loss more", runs, "at_most_slope", lambda k, n, p, binomial=comb: (
        -n * binomial(n - 1, k + 1) * p ** (k + 1) * (1 - p) ** (n - 2 - k))),
)  # fmt: skip


def _wrong_equation(p: Any, b: Any, n: Any) -> Any:
    return (n[1] + n[2]) * (1 - b) - b * n[3]


@F1.rung(
    "certified",
    plant("smaller ones count", recorded, "rank", lambda x, others: (1 + sum(y <= x for y in others)) / (
        1 + len(others))),
    plant("equal ones do not count", recorded, "rank", lambda x, others: (1 + sum(y > x for y in others)) / (
        1 + len(others))),
    plant("the observation does not count", recorded, "rank", lambda x, others: sum(y >= x for y in others) / max(
        1, len(others))),
    plant("a loss more", runs, "at_most_slope", lambda k, n, p: -n * comb(n - 1, k + 1) * p ** (k + 1) * (1 - p) ** (
        n - 2 - k)),
    plant("the burst without arrivals", runs, "burst_equation", _wrong_equation),
    plant("two-sided bounds at the one-sided level", likelihood, "binomial_high", lambda k, n, chance: (
        _binomial_high(k, n, 2 * chance))),
    plant("a place fewer for bursts", runs, "mean_bursts", lambda lost, arrived: lost * arrived / (lost + arrived)),
)  # fmt: skip
def _levels(run: Run) -> Evidence:
    log_checks.require_rank(run.pick(4, 6))
    p, a, b = sp.symbols("p a b")
    for n in range(1, run.pick(5, 9)):
        for k in range(n):
            below = sum(comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k + 1))
            slope = runs.at_most_slope(k, n, p)
            require(certify.is_zero(sp.diff(below, p) - slope), f"P(at most {k} of {n}): its slope")
            require(certify.is_nonnegative(-slope, (p,)), f"P(at most {k} of {n}) does not fall in p")
            bound = Fraction(likelihood.binomial_high(k, n, 0.05))
            off = sum(comb(n, j) * bound**j * (1 - bound) ** (n - j) for j in range(k + 1)) - Fraction(1, 20)
            require(abs(off) < Fraction(1, 10**9), f"{k} of {n} lost, at most {float(bound)}: {float(off):.3g} off")
        require(likelihood.binomial_high(n, n, 0.05) == 1, f"{n} of {n} lost, and the loss is below 1")
    counts = sp.symbols("n_00 n_01 n_10 n_11 s_0 s_1")
    n00, n01, n10, n11, _, s1 = counts
    # 0 between: at a probability of 0 and at the largest one the slope of the likelihood points inwards.
    ends = (
        (runs.burst_equation(p, sp.Integer(0), counts), n01 + n10),
        (runs.burst_equation(p, sp.Integer(1), counts) * (1 - p), n11 * (2 * p - 1)),
        (runs.burst_equation(p, (1 - p) / p, counts) * p, n00 * (1 - 2 * p)),
        (runs.loss_equation(sp.Integer(0), b, counts), (n01 + s1) * b),
        (runs.loss_equation(sp.Integer(1), b, counts), -n00 * (1 + b)),
        # without memory, b = 1 - p, the chain is a coin; the losses of a stationary one are a share p
        (runs.entering(p, 1 - p), p),
        (runs.entering(a / (a + b), b), a),
        (runs.mean_bursts(a, b) - runs.mean_bursts(b, a), (a - b) / (a + b)),
    )
    for found, wanted in ends:
        require(certify.is_zero(found - wanted), f"{found} is not {wanted}")
    return Evidence("levels with ties; Clopper-Pearson for all p; the likelihood's slope points inwards for all counts")


def _without_retries(self: Any, rng: Any) -> Any:
    """Places drawn once, a place drawn twice made up for by the first ones that are free."""
    chosen = np.zeros(self._size, dtype=bool)
    starts = np.repeat(self._starts, self._wanted)
    chosen[starts + rng.integers(0, np.repeat(self._room, self._wanted)).astype(int)] = True
    for start, total, wanted in zip(self._starts, self._last - self._starts, self._wanted, strict=True):
        free = [k for k in range(start, start + total) if not chosen[k]]
        for k in free[: wanted - chosen[start : start + total].sum()]:
            chosen[k] = True
    chosen ^= self._flip_n
    chosen[self._last] = True
    return np.diff(np.flatnonzero(chosen), prepend=-1)[self._time]


def _from_the_wrong_mean(log: Any, rng: Any, times: int) -> Any:
    observed, others = _hypergeometric(log, rng, times)
    return observed + 0.5, others


def _one_chain(self: recorded.Recorded) -> Any:
    found = _transitions(self)
    found[:, 4:] = 0
    return found


def _shifted(change: Callable[[Any], Any]) -> Any:
    """Other counts for the estimates."""
    return lambda links, counts, confidence: _maximise(links, change(counts), confidence)


@F1.rung(
    "enumerated",
    plant("first packets not counted", recorded.Recorded, "transitions", _one_chain),
    plant("the step clock ignored", recorded.Recorded, "from_columns", classmethod(
        lambda cls, *columns, clock="packet": _from_columns(*columns, clock="packet"))),
    plant("places drawn once", recorded.Runs, "random", _without_retries),
    plant("the same log again", recorded.Runs, "random", lambda self, rng: self.length_R),
    plant("smaller ones count", goodness, "rank", lambda x, others: (1 + sum(y <= x for y in others)) / (
        1 + len(others))),
    plant("bursts from the wrong mean", goodness, "bursts_at_random", _from_the_wrong_mean),
    plant("a statistic not standardised", goodness._Statistics, "__call__", lambda self, lengths: np.r_[
        lengths.sum(), np.zeros(len(self.names) - 1)]),
    plant("blocks of 4 packets", goodness, "_SHORTEST_BLOCK", 4),
    plant("the level for one test", fit.Fit, "p_values", property(
        lambda self: (min(1.0, self.tests[0].p_value), min(1.0, self.tests[1].p_value)))),
    plant("digits to nearest", fit, "_digits", lambda value, towards: float(f"{value:.6g}")),
    plant("arrivals for losses", likelihood, "maximise", _shifted(lambda n: n[:, [3, 2, 1, 0, 5, 4]])),
    plant("the first packets taken for arrivals", likelihood, "maximise", _shifted(
        lambda n: np.c_[n[:, :4], n[:, 4:].sum(axis=1), 0 * n[:, 5]])),
    plant("half the confidence", likelihood, "ndtri", lambda x: 0.5),
    plant("a bound too low", likelihood, "binomial_high", lambda k, n, chance: k / n),
)  # fmt: skip
def _logs(run: Run) -> Evidence:
    kinds = [
        chains("0110100"),
        chains("1110"),
        chains("01101", "0011", "1"),
        chains("1011", "0"),
        chains("0010100", "1101011"),
    ]
    kinds += [chains("10001"), chains("110101101")]
    if run.effort == "full":
        kinds += [[list(map(int, f"{k:06b}"))] for k in range(64)]
    rows = log_checks.small_counts(run.pick(4, 8))
    rows += [(30, 5, 5, 20, 1, 0), (0, 20, 20, 0, 1, 2), (400, 1, 1, 0, 3, 0), (2, 3, 4, 40, 0, 7)]
    fit_checks.require_digits()
    for some in kinds:
        log_checks.require_uniform(some)
    log_checks.require_estimates(rows, 0.9)
    log_checks.require_no_bounds()
    for some in (chains("01101"), chains("0011", "101", "000", "1"), *run.pick((), kinds)):
        log_checks.require_bursts_at_random(some)
    for margins in (
        [((3, 4), 4)],
        [((2, 3, 0), 4), ((4, 2), 1)],
        [((5, 2), 2), ((1, 3), 3)],
        [((2, 0), 2), ((2, 2), 2), ((0, 0), 0)],
    ):
        log_checks.require_homogeneity(margins)
    log_checks.require_blocks([[32] * 4, [32] * 5, [31], [32], [33, 30], [64, 1]], 16)
    if run.effort == "full":
        log_checks.require_blocks([[32] * 2**13, [32] * (2**13 + 1)], 2**15)
    rng = np.random.default_rng(run.seed)
    for sizes in ((70, 65, 33), (40,), (37, 20), (6, 1, 1)):
        log_checks.require_statistics([[0, 1, *(rng.random(n) < 0.4).astype(int).tolist()] for n in sizes], run.seed)
    log_checks.require_statistics(chains("0101"), run.seed)
    for same in ("000", "111"):
        found = goodness.one_step_of_memory(plain_log.log_of(chains(same)), rng, 3)
        require((found.p_value, found.simulations) == (1.0, 0), f"{same}: {found}")
    log_checks.require_read(run.pick(3, 8))
    fit_checks.require_verdicts()
    fit_checks.require_assembled(run.seed)
    fit_checks.require_senders()
    fit_checks.require_simulations()
    fit_checks.require_refusals()
    return Evidence(
        f"random logs like {len(kinds)} logs, all draws; both clocks; the maximum for {len(rows)} tables of counts"
    )


@F1.rung(
    "sampled",
    plant("all runs but the first of length 1", recorded.Runs, "random", lambda self, rng: np.r_[
        self.length_R.sum() - len(self.length_R) + 1, np.ones(len(self.length_R) - 1, int)]),
    plant("the observation ranked among the smallest", goodness, "rank", lambda x, others: 1 / (1 + len(others))),
    plant("an interval a tenth as wide", likelihood, "binomial_high", lambda k, n, chance: (
        k / n + (_binomial_high(k, n, chance) - k / n) / 10)),
    plant("p-values a tenth", fit.Fit, "p_values", property(
        lambda self: (self.tests[0].p_value / 10, self.tests[1].p_value / 10))),
)  # fmt: skip
def _rejections(run: Run) -> Evidence:
    level, logs, steps, checks, said = 0.2, run.pick(30, 400), run.pick(100, 300), 3, []
    base = fit.fit(plain_log.log_of([[0, 1, 1, 0]]), level=level, simulations=10)
    for law, families in ((Bernoulli(0.2), ("bernoulli",)), (GilbertElliott(0.3, 4), ("bernoulli", "gilbert-elliott"))):
        lost_PT, rng, wrong = _drawn(law, run.seed, logs, steps), np.random.default_rng(run.seed), 0
        for lost_T in lost_PT:
            log = plain_log.log_of([lost_T])
            tests = goodness.independence(log, rng, 10), goodness.one_step_of_memory(log, rng, 10)
            wrong += replace(base, tests=tests).verdict not in families
        require_at_most(f"{law!r} is rejected", wrong, logs, level, ALPHA / checks)
        said.append(f"{wrong} of {logs}")
        if isinstance(law, Bernoulli):
            counts = np.array([plain_log.counts(lost_T) for lost_T in lost_PT])
            links = [(number, number + 1) for number in range(logs)]
            intervals = [one.bernoulli for one in likelihood.maximise(links, counts, 1 - level)]
            outside = sum(not interval.low <= float(law.marginal()) <= interval.high for interval in intervals)
            require_at_most("the loss is outside its interval", outside, logs, level, ALPHA / checks)
    return Evidence(f"at level {level} rejected: Bernoulli {said[0]}, Gilbert-Elliott {said[1]} logs of {steps}", ALPHA)


def require_at_most(what: str, times: int, trials: int, level: float, alpha: float) -> None:
    require(float(binom.sf(times - 1, trials, level)) > alpha, f"{what}: {times} of {trials} times, level {level}")


def _drawn(law: Any, seed: int, packets: int, steps: int) -> Any:
    """Losses on the link from rank 1 to rank 0, for every packet by step: (P, T)."""
    arrivals = Arrivals(law, [0] * packets, 2, seed)
    return np.stack([~arrivals.gradients(step)[1].numpy() for step in range(steps)], axis=1).astype(int)


F1.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
