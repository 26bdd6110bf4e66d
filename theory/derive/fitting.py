"""F1 derived: what a log of losses tells beyond its counts (nothing), and where its likelihood is largest."""

from __future__ import annotations

from typing import Any

import sympy as sp

from lossproof.theory import runs
from lossproof.theory.derive.steps import Derivation, Step, algebra, expectation, given, p

b, a, lost, arrived, number = sp.symbols("b a l m n_{alike}", positive=True)
counts = sp.symbols("n_00 n_01 n_10 n_11 s_0 s_1", positive=True)


def fitted() -> Derivation:
    """F1: logs with equal counts are equally likely; runs; bursts without memory; likelihood; binomial bounds."""
    return Derivation((*_uniform(), *_runs(), *_bursts(), *_maximum(), *_coverage()))


def _uniform() -> tuple[Step, ...]:
    enter = runs.entering(p, b)
    steady = algebra((1 - p) * enter, p * b, "the steady state: as many bursts begin as end")
    moves = (1 - enter, enter, b, 1 - b, 1 - p, p)
    names = (*(f"P({i}|{j})" for j, i in ((0, 0), (0, 1), (1, 0), (1, 1))), "P(x_1=0)", "P(x_1=1)")
    grown = []
    for k, (name, chance) in enumerate(zip(names, moves, strict=True)):
        more = [n + int(k == j) for j, n in enumerate(counts)]
        ratio = runs.likelihood(p, b, more) / runs.likelihood(p, b, counts)
        symbol = sp.Symbol(name)
        grown.append(
            algebra(symbol, chance, "one more packet multiplies the likelihood by its chance", {symbol: ratio})
        )
    start = algebra(runs.likelihood(p, b, [0] * 6), sp.Integer(1), "an empty log; so it is a function of the counts")
    one, same = sp.symbols("P(log|counts) P(log)")
    uniform = algebra(one, 1 / number, "n logs are alike and equally likely, whatever p and b",
                      {one: same / (number * same), same: runs.likelihood(p, b, counts)}, conclusion=True)  # fmt: skip
    return steady, *grown, start, uniform


def _runs() -> tuple[Step, ...]:
    n, k = sp.symbols("n k", integer=True, positive=True)
    _, n01, _, n11, _, s1 = counts
    r1, r0 = sp.symbols("r_1 r_0", positive=True)
    bursts = given(r1, n01 + s1, "a burst begins after an arrival or first; gaps likewise, r_0 = n_10 + s_0")
    losses = algebra(
        lost, n11 + r1, "a loss begins a burst or follows a loss", {lost: n01 + n11 + s1, r1: bursts.right}
    )

    def ways(total: Any, parts: Any) -> Any:
        return runs.compositions(total, parts, sp.binomial)

    alike = given(number, ways(lost, r1) * ways(arrived, r0),
                  "bursts and gaps alternate from the first outcome on: any lengths of both make one log")  # fmt: skip
    return (
        bursts,
        losses,
        algebra(ways(n, sp.Integer(1)), sp.Integer(1), "one run"),
        algebra(ways(sp.Integer(1), sp.Integer(2)), sp.Integer(0), "one packet makes no two runs"),
        algebra(ways(n + 1, k + 1), ways(n, k) + ways(n, k + 1),
                "the first run has one packet, or more: so this counts the run lengths, by induction"),
        alike,
        algebra(sp.Symbol("P(log|counts)"), 1 / (ways(lost, r1) * ways(arrived, r0)),
                "lengths of bursts and of gaps are uniform, and independent of each other",
                {sp.Symbol("P(log|counts)"): 1 / number, number: alike.right}, conclusion=True),
    )  # fmt: skip


def _bursts() -> tuple[Step, ...]:
    first, later, mean = sp.symbols("P(x_1=1) P(x_tx_{t+1}=01) E[r_1]")
    n = lost + arrived
    begins = expectation(first, [(lost / n, 1), (arrived / n, 0)], lost / n, "no memory: all arrangements alike")
    hit = expectation(later, [(arrived / n, lost / (n - 1)), (lost / n, 0)], arrived * lost / n / (n - 1),
                      "an arrival, then one of the losses among the others")  # fmt: skip
    return (
        begins,
        hit,
        algebra(mean, runs.mean_bursts(lost, arrived), "linearity over the n places where a burst may begin",
                {mean: first + (n - 1) * later, first: begins.right, later: hit.right}, conclusion=True),
    )  # fmt: skip


def _maximum() -> tuple[Step, ...]:
    log = sp.expand_log(sp.log(runs.likelihood(p, b, counts)), force=True)
    by_burst, by_loss = sp.symbols("(logL)'_b (logL)'_a")
    c = p / (1 - p)
    other = log.subs(p, a / (a + b))
    return (
        algebra(a / (1 - a / (a + b)) * b / (a + b), runs.entering(a / (a + b), b), "the chain rests at p = a/(a+b)"),
        algebra(b * (1 - b) * (1 - c * b) * by_burst, runs.burst_equation(p, b, counts), "a = b p/(1-p), p held",
                {by_burst: sp.diff(log, b)}, conclusion=True),
        algebra(a * (1 - a) * (a + b) * by_loss, runs.loss_equation(a, b, counts), "p = a/(a+b), b held",
                {by_loss: sp.diff(other, a)}, conclusion=True),
    )  # fmt: skip


def _coverage() -> tuple[Step, ...]:
    n, k = sp.symbols("n k", integer=True, positive=True)
    slope = sp.Symbol("P(K<=k)'")
    q = sp.Symbol("q", positive=True)  # 1 - p
    chance = sp.binomial(n, k) * p**k * (1 - p) ** (n - k)

    def below(k: Any) -> Any:
        return runs.at_most_slope(k, n, p, sp.binomial)

    return (
        algebra(sp.diff((1 - p) ** n, p), below(sp.Integer(0)), "none lost", {1 - p: q}),
        algebra(slope, below(k), "one term more than for k - 1, by induction: never positive, so P(K <= k) falls in p; "
                "a bound at which it is alpha is below p in at most a share alpha of logs",
                {slope: below(k - 1) + sp.diff(chance, p), 1 - p: q}, conclusion=True),
    )  # fmt: skip
