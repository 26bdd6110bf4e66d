r"""C2 derived: one step of SGD on a smooth function from stale copies, and what is left of it on average.

Vectors are written by coordinate; what is summed over coordinates, packets and ranks is linear in these squares. x is
the owner's, y_i rank i's copy; a and b_i are the gradients of f there, d = x - y_i, m_i/K the weights of the survivors,
e their mean and \bar{b} its mean over the noise.
"""

from __future__ import annotations

import sympy as sp

from lossproof.theory import convergence
from lossproof.theory.derive.steps import (
    Derivation,
    N,
    Step,
    algebra,
    expectation,
    fixed_point,
    given,
    p,
    recursion,
    sigma2,
    t,
)

eta, L, s, alpha, kappa, theta, w, rate = sp.symbols(r"\eta L s \alpha \kappa \theta w \beta", positive=True)
root, tau = sp.symbols(r"r \tau", positive=True)
a, b, d, e, u, z, x = sp.symbols("a b_i d e u z x", real=True)
f, f_next, D, G, far, price, Phi = sp.symbols(r"f(x) E[f(x')] D G \Delta \lambda \Phi", real=True)
squared, SLACK = sp.symbols(r"|\nabla{f(x)}|^2 \mathrm{slack}")
APART = sp.Symbol("{|x-y_i|^2}")
OF = convergence.Weights(alpha, kappa, theta)


def theorem() -> Derivation:
    """C2: the descent of f, the gap between copies, their sum, T steps; then the step size and a case of equality."""
    stale = _stale_weights()
    spread = _second_moment()
    descent = _descent(spread[-1], stale[0])
    gap = _gap(spread[-1])
    both = _together(descent[-1], gap[-1])
    return Derivation((*stale, *spread, *descent, *gap, *both, *_step_size(), *_attained()))


def _stale_weights() -> tuple[Step, ...]:
    """Delta = E sum m_i/K |a - b_i|^2 in units of L^2 D; D is the mean of |x - y_i|^2 over the N - 1 replicas."""
    each, others = sp.symbols(r"{E[m_i/K]} E[m_i/K]_{i\ne{o}}")
    smooth = given(sp.Symbol(r"{|a-b_i|^2}"), L**2 * APART, "at most: f is L-smooth")
    alike = given(each, alpha / N, "own link lossy: N senders alike, the owner's copy is not stale")
    rest = given(others, (1 - w) / (N - 1), "own link reliable: the owner has w = E[1/K], N - 1 others share the rest")
    largest = given(sp.Symbol(r"\max_i{E[m_i/K]}"), w, "own link reliable, several owners: at most w each")
    reasons = {
        "own link lossy": (alike, convergence.lossy_stale(N, alpha)),
        "own link reliable, one owner": (rest, convergence.reliable_stale(N, w, 1)),
        "own link reliable, several owners": (largest, convergence.reliable_stale(N, w, 2)),
    }
    return (
        smooth,
        *(step for step, _ in reasons.values()),
        *(
            algebra(theta, closed, f"{reason}: N - 1 stale copies", {theta: (N - 1) * step.right}, conclusion=True)
            for reason, (step, closed) in reasons.items()
        ),
    )


def _second_moment() -> tuple[Step, ...]:
    """E|e|^2 <= G + kappa sigma^2, G = E sum m_i/K |b_i|^2."""
    K, S, Q, noise, mean, estimate = sp.symbols(r"K \sum{b_i} \sum{b_i^2} E|e-\bar{b}|^2 E|\bar{b}|^2 {E|e|^2}")
    one_more, at_one = sp.symbols(r"J_{K+1}-J_K J_1")
    jensen = K * Q - S**2  # K^2 times the excess of the mean square over the squared mean
    first = algebra(
        at_one, 0, "J_K = K sum b_i^2 - (sum b_i)^2: one survivor", {at_one: jensen.subs({Q: b**2, S: b, K: 1})}
    )
    grows = algebra(
        one_more,
        Q - 2 * u * S + K * u**2,
        "one survivor u more adds sum (u - b_i)^2 >= 0: so J_K >= 0 for all K, and |mean|^2 <= mean of |b_i|^2",
        {one_more: jensen.subs({K: K + 1, Q: Q + u**2, S: S + u}, simultaneous=True) - jensen},
    )
    drive = given(mean, G, "at most: G = E sum m_i/K |b_i|^2, the means of both over the masks")
    inverse = given(sp.Symbol("1/K"), kappa, "mean where K >= 1, and the estimate is 0 where K = 0")
    averaged = algebra(
        noise,
        kappa * sigma2,
        "at most: K uncorrelated terms of variance sigma^2, over K^2",
        {noise: sp.Symbol("1/K") * sigma2, sp.Symbol("1/K"): inverse.right},
    )
    total = algebra(
        estimate, G + kappa * sigma2, "at most: noise has mean 0",
        {estimate: mean + noise, mean: drive.right, noise: averaged.right},
    )  # fmt: skip
    return first, grows, drive, inverse, averaged, total


def _descent(estimate: Step, smooth: Step) -> tuple[Step, ...]:
    """E f(x') against f(x)."""
    inner, quadratic, product = sp.symbols(r"\nabla{f(x)}\cdot{b_i} L\int_0^1{z|u|^2}dz \nabla{f(x)}\cdot{E[e]}")
    along = given(
        sp.Symbol(r"f(x+u)-f(x)-\nabla{f(x)}\cdot{u}"),
        sp.Symbol(r"\int_0^1(\nabla{f(x+zu)}-\nabla{f(x)})\cdot{u}dz"),
        "the fundamental theorem; the difference of gradients is at most L z |u|",
    )
    curve = algebra(quadratic, L * u**2 / 2, "so this is at most", {quadratic: sp.integrate(L * z * u**2, (z, 0, 1))})
    polar = algebra(inner, (a**2 + b**2 - (a - b) ** 2) / 2, "polarisation", {inner: a * b})
    summed = algebra(
        product,
        (alpha * squared + G - far) / 2,
        "times E[m_i/K], which sum to alpha; Delta = E sum m_i/K |a - b_i|^2; noise has mean 0",
        {product: polar.right, (a - b) ** 2: far, a**2: alpha * squared, b**2: G},
    )
    stale = algebra(far, theta * L**2 * D, "at most: see theta", {far: theta * smooth.right, APART: D})
    moved = algebra(
        f_next,
        f - eta * alpha * squared / 2 - eta * (1 - L * eta) * G / 2 + eta * theta * L**2 * D / 2
        + L * eta**2 * kappa * sigma2 / 2,
        "at most: u = -eta e",
        {f_next: f - eta * product + curve.right.subs(u**2, eta**2 * sp.Symbol("{E|e|^2}")),
         product: summed.right, estimate.left: estimate.right, far: stale.right},
    )  # fmt: skip
    return along, curve, polar, summed, stale, moved


def _gap(estimate: Step) -> tuple[Step, ...]:
    """E D' against D: a lost packet leaves |x' - y|^2 = |d - eta e|^2, one that arrives nothing."""
    after, young, mean, noise, lost = sp.symbols(r"E[D'] Y \eta^2{G} \eta^2{\kappa\sigma^2} E|d-{\eta}e|^2")
    wider = algebra(
        young,
        ((rate - p) * d + p * u) ** 2 / (p * (rate - p)),
        "Y = (beta/p) d^2 + beta/(beta-p) u^2 - (d-u)^2: at least 0 for p < beta",
        {young: rate / p * d**2 + convergence.stretch(p, rate) * u**2 - (d - u) ** 2},
    )
    step = given(
        lost,
        rate / p * D + convergence.stretch(p, rate) * mean + noise,
        "at most, by Y >= 0 for the mean of the step; its noise is uncorrelated with d and adds its square",
    )
    kept = expectation(
        after,
        [(p, step.right), (1 - p, 0)],
        convergence.gap(p, rate, D, mean, noise),
        "at most: lost with probability at most p, whatever was before",
    )
    meaning = {mean: eta**2 * G, noise: eta**2 * (estimate.right - G)}
    return (
        wider,
        step,
        kept,
        algebra(
            after,
            rate * D + p * convergence.stretch(p, rate) * eta**2 * G + p * eta**2 * kappa * sigma2,
            "so",
            {after: kept.right, **meaning},
        ),
    )


def _together(descent: Step, gap: Step) -> tuple[Step, ...]:
    """Phi = f(x) - f* + lambda D, lambda such that D drops out; then T steps of it."""
    after, cost, best, total, begin, average = sp.symbols(
        r"E[\Phi'] \lambda' f^* E[\Phi_t+\frac{\eta\alpha}{2}\sum_{k<t}|\nabla{f(x_k)}|^2] \Phi_0 "
        r"\frac{1}{t}\sum_{k<t}E|\nabla{f(x_k)}|^2"
    )
    costs = algebra(
        cost,
        price * rate + eta * theta * L**2 / 2,
        "what stands at D in E f(x') + lambda E D'",
        {cost: sp.expand(descent.right + price * gap.right).coeff(D)},
    )
    weight = fixed_point(price, convergence.price(eta, L, theta, rate), costs, price, "lambda: as much as in Phi")
    floor = convergence.floor(L * eta, OF, p, rate)
    sunk = algebra(
        after,
        Phi - eta * alpha * squared / 2 - eta / 2 * SLACK * G + eta * alpha / 2 * kappa * sigma2 * floor,
        "at most: E f(x') + lambda E D', each as above",
        {after: descent.right - best + price * gap.right, Phi: f - best + price * D, price: weight.right,
         SLACK: convergence.slack(L * eta, theta, p, rate)},
        conclusion=True,
    )  # fmt: skip
    allowed = given(sp.Symbol(r"\max(0,-\mathrm{slack})"), sp.Integer(0), "the step size: slack >= 0; and G >= 0")
    noise = eta * alpha / 2 * kappa * sigma2 * floor
    added = recursion(
        total,
        lambda k: begin + k * noise,
        begin,
        lambda before: before + (sunk.right - Phi + eta * alpha * squared / 2).subs(SLACK, allowed.right),
        "at most: T = t steps",
    )
    distance = sp.Symbol("{f(x_0)-f^*}")
    equal = given(begin, distance, "common start: D = 0; and Phi_t >= 0 at the end")
    return (
        costs,
        weight,
        sunk,
        allowed,
        added,
        equal,
        algebra(
            average,
            convergence.start(distance, t, eta, alpha) + kappa * sigma2 * floor,
            "the theorem: at most; s = L eta",
            {average: 2 * added.right / (eta * alpha * t), begin: equal.right},
            conclusion=True,
        ),
    )


def _step_size() -> tuple[Step, ...]:
    """Which step sizes are allowed, and what they cost; r = sqrt(p), tau = sqrt(theta)."""
    cost, least, gain, left, simple, share = sp.symbols(
        r"c(\beta) c(r) c(\beta)-c(r) \mathrm{slack}(s_0) s_0 \mathrm{floor}(s_0)"
    )
    k, times, limit = sp.symbols(r"k \frac{(\beta-p)(1-\beta)}{1-s}\mathrm{slack} \mathrm{slack}(\beta=r)")
    rate_cost = p * convergence.stretch(p, rate) / (1 - rate)
    square = {p: root**2}
    of_rate = algebra(cost, (1 - SLACK - s) / (s**2 * theta), "what stands at s^2 theta",
                      {SLACK: convergence.slack(s, theta, p, rate), cost: rate_cost})  # fmt: skip
    smallest = algebra(
        least,
        root**2 / (1 - root) ** 2,
        "at beta = r = sqrt(p)",
        {least: rate_cost.subs(rate, convergence.simple_rate(root)), **square},
    )
    higher = algebra(
        gain,
        (root * (rate - root) / (1 - root)) ** 2 / ((rate - root**2) * (1 - rate)),
        "at least 0: no other rate allows a larger step",
        {gain: rate_cost.subs(square) - smallest.right},
    )
    up_to = given(simple, convergence.simple_step(root, tau), "the simple step size")
    spare = algebra(
        left,
        root * tau * (1 - root) / (1 - root + tau * root) ** 2,
        "what it leaves at beta = r: at least 0; theta = tau^2",
        {left: convergence.slack(up_to.right, tau**2, root**2, root)},
        conclusion=True,
    )
    allowed = algebra(
        limit, 1 - s - s**2 * theta * smallest.right, "the largest step has none left", {
            limit: convergence.slack(s, theta, root**2, convergence.simple_rate(root))}, conclusion=True)  # fmt: skip
    quadratic = algebra(
        times,
        (1 + p - k * p) * rate - rate**2 - p,
        "k = s^2 theta/(1-s): its smaller root, at most r as both multiply to p, is the least rate that is allowed",
        {times: SLACK * (rate - p) * (1 - rate) / (1 - s), SLACK: convergence.slack(s, theta, p, rate),
         theta: k * (1 - s) / s**2},
    )  # fmt: skip
    bill = algebra(
        share,
        s / alpha * (1 + theta * p - theta * p * (1 - s / (1 - root))),
        "the floor at beta = r: for s <= 1 - r staleness adds at most the share theta p",
        {share: convergence.floor(s, OF, p, root)},
        conclusion=True,
    )
    return of_rate, smallest, higher, up_to, spare, allowed, quadratic, bill


def _attained() -> tuple[Step, ...]:
    """f = L x^2/2 for all ranks and no parameter loss: the mean square in steady state against the bound."""
    now, before, ratio = sp.symbols(r"{E|Lx'|^2} {E|Lx|^2} \mathrm{floor}/E|Lx|^2")
    step = expectation(
        now,
        [(alpha, (1 - s) ** 2 * before + s**2 * kappa * sigma2 / alpha), (1 - alpha, before)],
        (1 - alpha * s * (2 - s)) * before + s**2 * kappa * sigma2,
        "x' = x - eta(L x + noise), or x without a survivor; E[1/K | K >= 1] = kappa/alpha",
    )
    steady = fixed_point(before, s * kappa * sigma2 / (alpha * (2 - s)), step, before, "solved")
    return (
        step,
        steady,
        algebra(
            ratio,
            2 - s,
            "the floor without parameter loss is that much too high: 1 at s = 1, attained",
            {ratio: kappa * sigma2 * convergence.floor(s, OF, sp.Integer(0), sp.Integer(0)) / steady.right},
            conclusion=True,
        ),
    )
