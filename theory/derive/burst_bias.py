r"""D5 derived: what x is on average when gradients are lost in bursts, for two ranks; the rule that is not displaced.

q = 1 - p; m_1, m_2 are the last masks, m_1', m_2' the next, which given the last have the means q + mu (m - q) and do
not depend on each other. a is the weight of each gradient if both arrive, b that of one alone. The optimum is 0.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from lossproof.theory import burst_bias
from lossproof.theory.derive.steps import (
    Derivation,
    N,
    Step,
    algebra,
    expectation,
    following,
    given,
    p,
    recursion,
)

q = 1 - p
mu, eta, h1, h2, L = sp.symbols(r"\mu \eta h_1 h_2 L", positive=True)
a, b, v, x, c1, c2 = sp.symbols("a b v x c_1 c_2", real=True)
m1, m2, n1, n2 = sp.symbols("{m_1} {m_2} {m_1'} {m_2'}")
X, Y1, Y2, Z = sp.symbols(r"{E[x]} {E[m_1x]} {E[m_2x]} {E[m_1m_2x]}")
P1, P2, P12 = sp.symbols(r"{E[m_1'x]} {E[m_2'x]} {E[m_1'm_2'x]}")
AFTER = sp.symbols(r"{E[x']} {E[m_1'x']} {E[m_2'x']} {E[m_1'm_2'x']}")
H = h1 + h2
NU, A, B, G, W = sp.symbols(r"\nu A B G w")
MEANING = {NU: q * (1 - mu), A: b * h1, B: b * h2, G: a * H, W: b * v * p * q}
"""Shorthands."""


def displaced() -> Derivation:
    """D5: the masks, one step of the first moments, where it settles; why the conditional rule is at the optimum."""
    masks = _masks()
    step = _step(masks)
    return Derivation((*masks, *_fixed_gradients(), *step, *_settles(step), *_conditional(masks), *_price(masks)))


def _masks() -> tuple[Step, ...]:
    """What the last masks say of the next."""
    enter, leave, after_arrival, after_loss = sp.symbols("e l q(1) q(0)")
    given_mask = sp.Symbol("P(m'=1|m)")
    left = given(leave, 1 / L, "Gilbert-Elliott: the mean stay in the bad state is L")
    entered = given(enter, p * leave / q, "stationary: entered as often as left")
    kept = algebra(
        mu, 1 - enter - leave, "the share of m - q that a step keeps",
        {mu: burst_bias.memory(p, L), enter: entered.right, leave: left.right}, conclusion=True,
    )  # fmt: skip
    of_mu = {enter: p * (1 - mu), leave: q * (1 - mu)}
    balance = algebra(of_mu[enter], p * of_mu[leave] / q, "so e = p (1 - mu), l = q (1 - mu): balanced, with that sum")
    arrived = algebra(after_arrival, burst_bias.foretold(1, p, mu), "after an arrival",
                      {after_arrival: 1 - enter, **of_mu})  # fmt: skip
    lost = algebra(after_loss, burst_bias.foretold(0, p, mu), "after a loss", {after_loss: leave, **of_mu})
    line = algebra(
        given_mask, q + mu * (m1 - q), "both in one", {
            given_mask: m1 * arrived.right + (1 - m1) * lost.right}, conclusion=True)  # fmt: skip
    return left, entered, kept, balance, arrived, lost, line


def _fixed_gradients() -> tuple[Step, ...]:
    """For gradients that do not depend on the masks both rules are unbiased, bursts or not."""
    g1, g2, plain, mean = sp.symbols(r"g_1 g_2 E[\hat{g}] E[\hat{g}|K\ge1]")
    some = [(q**2, a * (g1 + g2)), (q * p, b * g1), (p * q, b * g2), (p**2, 0)]
    inverse = dict(zip((a, b), burst_bias.pair_weights("inverse_probability", p), strict=True))
    survivors = dict(zip((a, b), burst_bias.pair_weights("survivor_mean", p), strict=True))
    of = [(w, value.subs(inverse) if value != 0 else 0) for w, value in some]
    given_some = [(w / (1 - p**2), value.subs(survivors)) for w, value in some[:3]]
    return (
        expectation(plain, of, (g1 + g2) / 2, "fixed gradients, inverse probability: unbiased"),
        expectation(mean, given_some, (g1 + g2) / 2, "fixed gradients, survivor mean: unbiased"),
    )


def _step(masks: tuple[Step, ...]) -> tuple[Step, ...]:
    """One step of SGD, then its means with the masks."""
    optimum, moved, weight = sp.symbols(r"x^* {x'} {w_1}")
    first, second = sp.symbols(r"{h_1(c_1-x^*)} {h_2(c_2-x^*)}", cls=sp.Symbol)
    foretell = masks[-1].right
    centre = given(optimum, burst_bias.optimum((h1, h2), (c1, c2)), "the minimum of the mean")
    pulls = algebra(first, h1 * h2 * (c1 - c2) / H, "v", {first: h1 * (c1 - optimum), optimum: centre.right})
    opposite = algebra(second, -pulls.right, "-v", {second: h2 * (c2 - optimum), optimum: centre.right})
    by_masks = [
        algebra(weight, value, reason, {weight: n1 * (b + (a - b) * n2), n1: i, n2: j})
        for i, j, value, reason in (
            (1, 1, a, "w_1 = m_1' (b + (a - b) m_2'): both arrive"), (1, 0, b, "alone"), (0, 1, 0, "not at all"))
    ]  # fmt: skip
    one = n1 * (b + (a - b) * n2) * (h1 * x - v) + n2 * (b + (a - b) * n1) * (h2 * x + v)
    sgd = algebra(
        moved, x - eta * (b * n1 * (h1 * x - v) + b * n2 * (h2 * x + v) + (a - b) * n1 * n2 * H * x),
        "x around the optimum", {moved: x - eta * one})  # fmt: skip
    now = {m1 * m2 * x: Z, m1 * x: Y1, m2 * x: Y2, x: X}
    ahead = [
        algebra(left, right, reason, {left: sp.expand(product), **now, **MEANING})
        for left, right, reason, product in (
            (P1, NU * X + mu * Y1, "given the last masks, x is fixed", foretell * x),
            (P2, NU * X + mu * Y2, "likewise", foretell.subs(m1, m2) * x),
            (P12, NU**2 * X + NU * mu * (Y1 + Y2) + mu**2 * Z, "links do not depend on each other",
             foretell * foretell.subs(m1, m2) * x),
        )
    ]  # fmt: skip
    known = {n1 * n2 * x: P12, n1 * x: P1, n2 * x: P2, n1 * n2: q**2, n1: q, n2: q, x: X}
    spelled = (
        X - eta * (A * P1 + B * P2 + (G - A - B) * P12),
        P1 - eta * (A * P1 + (G - A) * P12 - W),
        P2 - eta * (B * P2 + (G - B) * P12 + W),
        (1 - eta * G) * P12,
    )
    moments = [
        algebra(
            left,
            right,
            "masks are 0 or 1, so their own squares",
            {left: _without_squares(mask * sgd.right), **known, **MEANING},
        )
        for left, mask, right in zip(AFTER, (sp.Integer(1), n1, n2, n1 * n2), spelled, strict=True)
    ]
    shorthands = [given(name, meaning, "shorthand") for name, meaning in MEANING.items()]
    return (centre, pulls, opposite, *by_masks, sgd, *shorthands, *ahead, *moments)


def _without_squares(expression: Any) -> Any:
    expanded = sp.expand(expression)
    for n in (n1, n2):
        for power in (3, 2):
            expanded = expanded.subs(n**power, n)
    return sp.expand(expanded)


def _settles(step: tuple[Step, ...]) -> tuple[Step, ...]:
    """A steady state, for any weights; then either rule, and small steps.

    With x' = x and m' x' = m x what the next masks see, P, solves four linear equations; nothing is divided.
    """
    ahead, moments = step[-7:-4], step[-4:]
    same = {Y1: moments[1].right, Y2: moments[2].right, Z: moments[3].right}
    seen = {Y1: (P1 - NU * X) / mu, Y2: (P2 - NU * X) / mu}
    equations = [
        (moments[0].right - X) / -eta,
        *((s.right - s.left).subs(same) for s in ahead[:2]),
        sp.expand(ahead[2].right.subs(Z, same[Z])).subs(seen) - P12,
    ]
    unknown = (P1, P2, P12, X)
    matrix = sp.Matrix([[sp.expand(e).coeff(z) for z in unknown] for e in equations])
    replaced = matrix.copy()
    replaced[:, 3] = sp.Matrix([-sp.expand(e).subs(dict.fromkeys(unknown, 0)) for e in equations])
    det, det_x, slope = sp.symbols(r"\det \det_x {dE[x]/d\eta}")
    whole, first = (sp.expand(m.det(method="laplace")) for m in (matrix, replaced))
    pull = given(v, h1 * h2 * (c1 - c2) / H, "as above")
    found = burst_bias.displacement((h1, h2), (c1, c2), p, mu, eta, (a, b))
    determinant = algebra(
        det,
        q * (1 - mu) * burst_bias.stiffness((h1, h2), p, mu, eta, (a, b)),
        "x' = x and m' x' = m x: four linear equations in what the next masks see",
        {det: whole, **MEANING},
    )
    solved = algebra(
        X,
        found,
        "Cramer's rule: where x settles, for all p, L, eta, h, and either rule",
        {X: det_x / det, det_x: first, **MEANING, det: determinant.right, v: pull.right},
        conclusion=True,
    )
    rules = []
    names: tuple[tuple[str, burst_bias.Rule], ...] = (
        ("survivor mean", "survivor_mean"),
        ("inverse probability", "inverse_probability"),
    )
    for name, rule in names:
        weights = dict(zip((a, b), burst_bias.pair_weights(rule, p), strict=True))
        small = sp.diff(found, eta).subs(eta, 0).subs(weights)
        gain = 2 / (1 + p) if rule == "survivor_mean" else 1 / (2 * q)
        right = -gain * p * mu / (1 - mu) * pull.right * (h1 - h2) / H
        rules.append(algebra(slope, right, f"{name}: at eta = 0", {slope: small}))
    many = algebra(
        slope,
        burst_bias.small_step((h1, h2), (c1, c2), p, L, sp.Integer(1)),
        "inverse probability in terms of bursts: mu/(1-mu) = L q - 1",
        {slope: rules[1].right, mu: burst_bias.memory(p, L)},
        conclusion=True,
    )
    return pull, determinant, solved, *rules, many


def _conditional(masks: tuple[Step, ...]) -> tuple[Step, ...]:
    """Given the past, m_i'/q_i has mean 1, whatever x is: so the mean of x moves as without loss."""
    now, before, weight, start = sp.symbols("E[x_{t+1}-x^*] {E[x_t-x^*]} {E[m_i'/q_i|past]} {E[x_0-x^*]}")
    h_bar = sp.Symbol(r"\bar{h}", positive=True)
    foretell = masks[-1].right
    martingale = expectation(
        weight, [(foretell, 1 / burst_bias.foretold(m1, p, mu)), (1 - foretell, 0)], sp.Integer(1),
        "q_i = P(m_i' = 1 | the last mask), which x and the past do not change", conclusion=True)  # fmt: skip
    moves = algebra(
        now, (1 - eta * h_bar) * before, "E x' = x - (eta/N) sum h_i (x - c_i), with x first as given",
        {now: before - eta / N * weight * N * h_bar * before, weight: martingale.right})  # fmt: skip
    path = recursion(
        before, lambda s: (1 - eta * h_bar) ** s * start, start, following(moves, before),
        "induction on t: gradient descent without loss, to the optimum for eta h < 2", conclusion=True)  # fmt: skip
    return martingale, moves, path


def _price(masks: tuple[Step, ...]) -> tuple[Step, ...]:
    """What it costs: E[1/q_i], against 1/q."""
    cost, more = sp.symbols(r"{E[1/q_i]} {E[1/q_i]-1/q}")
    inverse = expectation(
        cost, [(q, 1 / masks[-3].right), (p, 1 / masks[-2].right)], burst_bias.price(p, mu),
        "the last packet arrived or was lost", conclusion=True)  # fmt: skip
    return inverse, algebra(more, p * mu**2 / (q * (1 - mu) * (q + p * mu)), "never less, and larger without bound "
                            "for long bursts", {more: inverse.right - 1 / q}, conclusion=True)  # fmt: skip
