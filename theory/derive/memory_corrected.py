r"""D6 derived: inverse probability around the last message; what it pays for; descent on parabolas.

q = 1 - p. x is measured from the optimum, u from a rank's gradient there; T is what one rank's term of the estimate is
off, h + (m/q)(g - h) - x, with g = x + xi around that gradient. xi is noise of mean 0 and variance v, independent of
all before it, whose own square is all that moments of second order see of it.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from lossproof.theory import aggregation, memory_corrected
from lossproof.theory.derive.steps import (
    Derivation,
    N,
    Step,
    algebra,
    expectation,
    given,
    limit,
    p,
    recursion,
    t,
)

q = 1 - p
s, v, m2, d2, r, inverse = sp.symbols(r"s v |\mu|^2 d^2 \zeta^2 E[1/K|K\ge1]", positive=True)
rho, g, h, x, u, xi, beta = sp.symbols(r"\rho g h x u \xi \beta", real=True)
V, A, B = sp.symbols("E[x^2] E[xu] E[u^2]")
SPELLED = 3
"""Sums over unequal ranks are written out for this N; every step before them is for one rank."""


def around_the_last_message() -> Derivation:
    """D6: unbiased; its spread; how much a gradient changes between messages; against other rules; descent."""
    estimate = _estimate()
    change = _change()
    step = _descent()
    return Derivation((*estimate, *change, *_shrunk(change[-1]), _against_survivors(change[-1]), *step, *_steady(step)))


def _estimate() -> tuple[Step, ...]:
    mean, square, whole = sp.symbols(r"E[h+\frac{m}{q}(g-h)] E|h+\frac{m}{q}(g-h)-g|^2 E|\hat{g}-\bar{g}|^2")
    values = [(p, h), (q, h + (g - h) / q)]
    unbiased = expectation(mean, values, g, "one rank's term, given the past: whatever is remembered", conclusion=True)
    apart = [(w, (value - unbiased.right) ** 2) for w, value in values]
    one = expectation(square, apart, (g - h) ** 2 * p / q, "and how far it is from its mean")
    losses, gradients, remembered = (
        [sp.Symbol(f"{name}_{i}", positive=True) for i in range(SPELLED)] for name in ("p", "g", "h")
    )
    terms = (one.right.subs({p: a, g: b, h: c}) for a, b, c in zip(losses, gradients, remembered, strict=True))
    changes = [(b - c) ** 2 for b, c in zip(gradients, remembered, strict=True)]
    return (
        unbiased,
        one,
        algebra(whole, memory_corrected.spread(changes, losses),
                f"independent links: variances add up; N = {SPELLED}",
                {whole: sum(terms) / SPELLED**2}, conclusion=True),
    )  # fmt: skip


def _change() -> tuple[Step, ...]:
    """h is the gradient of k >= 1 steps before with probability q p^(k-1), or 0 if none arrived yet."""
    size, apart, product, start, changed = sp.symbols(
        r"E|g_t|^2 E|g_t-g_{t-k}|^2 E[g_t\cdot{g_{t-k}}] E|g_0-h_0|^2 E|g_t-h_t|^2"
    )
    k = sp.Symbol("k", integer=True, positive=True)
    second = given(size, m2 + v, "a mean and noise of variance v")
    lagged = given(product, m2 + v * rho**k, "noise that keeps the share rho of itself a step")
    between = algebra(apart, 2 * v * (1 - rho**k), "expanded",
                      {apart: 2 * size - 2 * product, size: second.right, product: lagged.right})  # fmt: skip
    first = algebra(start, m2 + v, "nothing is remembered: h_0 = 0", {start: size, size: second.right})
    new = between.right.subs(k, t + 1)
    grows = recursion(
        changed, lambda at: memory_corrected.change(v, rho, p, m2, at), first.right,
        lambda before: before + p**t * (q * new + p * first.right - first.right),
        "a step more: where none had arrived, with p^t, the one of t + 1 steps before may have", conclusion=True,
    )  # fmt: skip
    settled = limit(grows.right, memory_corrected.change(v, rho, p), "p^t -> 0", bounded={rho**t: sp.Symbol("R")},
                    conclusion=True)  # fmt: skip
    least = sp.Symbol(r"|\mu|^2_*", real=True)
    return (
        second, lagged, between, first, grows,
        algebra(least, memory_corrected.pays_above(v, rho, p),
                "as large as the gradient itself, |mu|^2 + v: above it the memory pays",
                {least: settled.right - v}, conclusion=True),
        settled,
    )  # fmt: skip


def _shrunk(settled: Step) -> tuple[Step, ...]:
    """beta h in the place of h."""
    with_h, residual, slope, gain, gain_plain, least = sp.symbols(
        r"E[g\cdot{h}] E|g-{\beta}h|^2 dE|g-{\beta}h|^2/d\beta E|g-h|^2-E|g-\beta^*h|^2 E|g|^2-E|g-\beta^*h|^2 \beta^*"
    )
    met = algebra(with_h, m2 + v * memory_corrected.overlap(rho, p), "half of what both are less than the change",
                  {with_h: (2 * (m2 + v) - settled.right) / 2})  # fmt: skip
    form = algebra(residual, memory_corrected.shrunk_change(m2, v, rho, p, beta), "expanded",
                   {residual: (m2 + v) * (1 + beta**2) - 2 * beta * with_h, with_h: met.right})  # fmt: skip
    best = memory_corrected.shrink(m2, v, rho, p)
    stationary = algebra(slope, sp.Integer(0), "least for this beta", {
        slope: sp.diff(form.right, beta), beta: best}, conclusion=True)  # fmt: skip
    return (
        met,
        form,
        algebra(least, best, "the correlation of a gradient and the last message", {least: met.right / (m2 + v)}),
        stationary,
        algebra(gain, (m2 + v) * (1 - best) ** 2, "a square: never more than with the whole memory", {
            gain: settled.right - form.right.subs(beta, best)}, conclusion=True),
        algebra(gain_plain, (m2 + v) * best**2, "a square: never more than without any", {
            gain_plain: m2 + v - form.right.subs(beta, best)}, conclusion=True),
    )  # fmt: skip


def _against_survivors(settled: Step) -> Step:
    """A5: the survivor mean spreads by what gradients of one step differ, r between means and v of noise."""
    survivors = (r + v) * (inverse - aggregation.survivor_weight(N))
    around = settled.right * p / (q * N)
    difference = around - survivors
    crossing = sp.Symbol(r"\zeta^2_*", real=True)
    root = difference.subs(r, 0) / (difference.subs(r, 0) - difference.subs(r, 1))
    return algebra(
        crossing, memory_corrected.survivor_crossing(N, p, v, rho, inverse),
        "equal spread: above it the memory spreads less than the survivor mean of A5", {crossing: root},
        conclusion=True,
    )  # fmt: skip


def _noise(expression: Any) -> Any:
    """The mean over xi of a polynomial of degree 2 in it."""
    form = sp.Poly(sp.expand(expression), xi)
    return form.coeff_monomial(1) + form.coeff_monomial(xi**2) * v


def _descent() -> tuple[Step, ...]:
    """One rank's term given the past; then a step of the moments, by the past's own moments."""
    names = sp.symbols(r"E[T] E[T^2] E[u'] E[Tu'] E[u'^2] E[x'^2] E[x'u'] E[u'^2]_{t+1}")
    lost, arrived = u - x, u + (x + xi - u) / q - x
    apart = (x - u) ** 2

    def mean(name: Any, if_lost: Any, if_arrived: Any, right: Any, reason: str) -> Step:
        return expectation(name, [(p, _noise(if_lost)), (q, _noise(if_arrived))], right, reason)

    off = mean(names[0], lost, arrived, sp.Integer(0), "a term's error has mean 0, so those of other ranks do not "
               "matter where one of them is multiplied")  # fmt: skip
    square = mean(names[1], lost**2, arrived**2, memory_corrected.term(p, v, apart), "its square")
    kept = mean(names[2], u, x + xi, q * x + p * u, "what is remembered next")
    both = mean(names[3], lost * u, arrived * (x + xi), q * square.right, "with the error")
    own = mean(names[4], u**2, (x + xi) ** 2, q * (x**2 + v) + p * u**2, "its own square")
    now = memory_corrected.Moments(V, (A,) * SPELLED, (B,) * SPELLED)
    then = memory_corrected.follow(now, (p,) * SPELLED, s, v)
    of_past = {x**2: V, x * u: A, u**2: B}

    def moment(name: Any, value: Any, right: Any, reason: str) -> Step:
        return algebra(name, right, reason, {name: sp.expand(value), **of_past})

    stepped = moment(names[5], (1 - s) ** 2 * x**2 + (s / SPELLED) ** 2 * SPELLED * square.right, then.xx,
                     f"x' = x - s (x + mean T), N = {SPELLED} equal ranks")  # fmt: skip
    crossed = moment(names[6], (1 - s) * x * kept.right - s / SPELLED * both.right, then.xu[0], "its own T only")
    return off, square, kept, both, own, stepped, crossed, moment(names[7], own.right, then.uu[0], "and u'")


def _steady(step: tuple[Step, ...]) -> tuple[Step, ...]:
    """Any number of ranks, equal losses: the three moments give themselves back."""
    off, names = step[1].right, sp.symbols(r"E[x^2]_\infty E[xu]_\infty E[u^2]_\infty d^2_* d^2_{**}", real=True)
    error = sp.expand(off).subs({x**2: V, x * u: A, u**2: B})
    plain = sp.symbols(r"E[x^2]_{\mathrm{IP}}")
    survivors = sp.symbols(r"E[x^2]_{\mathrm{SM}}")
    c, y, W = sp.symbols(r"c E[T^2]_{\mathrm{IP}} E[x^2]_t", real=True)
    bare = [(p, _noise((c - x) ** 2)), (q, _noise(((x - c + xi) / q - (x - c)) ** 2))]
    without = expectation(y, bare, ((x - c) ** 2 * p + v) / q, "plain inverse probability: h = 0, a term's error")
    plain_step = (1 - s) ** 2 * W + s**2 / N * (p * (W + d2) + v) / q
    spread = d2 * N / (N - 1)
    survivor_step = (1 - s) ** 2 * W + s**2 * ((spread + v) * (inverse - 1 / N) + v / N)

    def settles(name: Any, right: Any, stepped: Any, before: Any, reason: str) -> Step:
        return algebra(name, right, reason, {name: stepped, before: right}, conclusion=True)

    own = algebra(names[2], V + v, "N equal ranks: gives itself back", {
        names[2]: q * (V + v) + p * B, B: V + v})  # fmt: skip
    met = algebra(names[1], memory_corrected.crossed(V, N, p, s, v), "likewise", {
        names[1]: (1 - s) * (q * V + p * A) - s / N * q * error, B: own.right,
        A: memory_corrected.crossed(V, N, p, s, v)})  # fmt: skip
    floors = (
        settles(names[0], memory_corrected.steady(N, p, s, v)[0],
                (1 - s) ** 2 * V + s**2 / N * error.subs({A: met.right, B: own.right}), V,
                "and so does this: the ranks' differences do not occur"),
        without,
        settles(plain, memory_corrected.plain(N, p, s, v, d2), plain_step, W,
                "averaged over ranks around the optimum: mean (x - c)^2 = E x^2 + d^2"),
        settles(survivors, memory_corrected.survivor_mean(N, p, s, v, d2, inverse), survivor_step, W,
                "the survivor mean of A5, with a survivor; without one nothing moves"),
    )  # fmt: skip

    def root(difference: Any) -> Any:
        """Where a linear function of d2 is 0, in units of v."""
        return difference.subs(d2, 0) / (difference.subs(d2, 0) - difference.subs(d2, v))

    return (
        own,
        met,
        *floors,
        algebra(names[3], memory_corrected.pays_beyond(N, p, s), "the memory's floor equals plain inverse "
                "probability's, in units of v", {names[3]: root(floors[2].right - floors[0].right)}, conclusion=True),
        algebra(names[4], memory_corrected.pays_beyond_survivors(N, p, s, inverse), "and the survivor mean's",
                {names[4]: root(floors[3].right - floors[0].right)}, conclusion=True),
    )  # fmt: skip
