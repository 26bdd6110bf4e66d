r"""D1 derived: the mean of SGD under loss, from the law of the masks to quasi-hyperbolic momentum.

q = 1 - p; s = eta h; means are named by what they are of: x the owner's copy, y a stale one, v the optimizer's buffer.
"""

from __future__ import annotations

import sympy as sp

from lossproof.theory import aggregation, bursts, momentum, staleness
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
    t,
)

q = 1 - p
s, alpha, p_g, w, eta, beta = sp.symbols(r"s \alpha p_g w \eta \beta", positive=True)
OWNER, STALE = sp.symbols(r"\omega_o \omega_s", positive=True)
X, X1, X2 = sp.symbols(r"E[x_t] E[x_{t-1}] E[x_{t-2}]")
Y, Y1 = sp.symbols(r"E[y_t] E[y_{t-1}]")
V, V1, V2, NEXT = sp.symbols(r"E[v_t] E[v_{t-1}] E[v_{t-2}] E[x_{t+1}]")
G, G1 = sp.symbols(r"g_t g_{t-1}")


def mean_of_training() -> Derivation:
    """D1: the weights; the mean on a quadratic; its lag and what undoes it; many ranks; bursts."""
    return Derivation((*_weights(), *_quadratic(), *_lag(), *_many_ranks(), *_bursts()))


def _weights() -> tuple[Step, ...]:
    """The expected weight of the owner's fresh copy and of all stale ones together, for three models."""
    some = given(alpha, 1 - aggregation.no_survivor(N, p_g), "P(K >= 1): here p_g enters, and only here")
    total = expectation(OWNER + STALE, [(alpha, 1), (1 - alpha, 0)], alpha, "weights m/K sum to 1 given a survivor, to "
                        "0 without one")  # fmt: skip
    one = algebra(OWNER, alpha / N, "own link lossy: N senders alike", {OWNER: total.right / N})
    rest = algebra(
        STALE, alpha * (N - 1) / N, "the others", {STALE: STALE + OWNER + total.right - total.left - one.right}
    )
    own = given(w, aggregation.owner_weight(N, p_g), "own link reliable: E[1/K], A3; alpha = 1, someone survives")
    others = algebra(STALE, 1 - w, "the others", {STALE: total.right.subs(alpha, 1) - w})
    steps: list[Step] = [some, total, one, rest, own, others]
    general = momentum.of_weights(OWNER, STALE, p)
    for model, claimed, owner, stale in (
        ("server", momentum.server(alpha, p), sp.Integer(0), total.right),
        ("lossy", momentum.cluster(N, p_g, p, "lossy"), one.right, rest.right),
        ("reliable", momentum.cluster(N, p_g, p), own.left, others.right),
    ):
        meaning = {OWNER: owner, STALE: stale, w: own.right}
        if model == "lossy":
            meaning[alpha] = some.right
        what = "a parameter server" if model == "server" else f"own link {model}"
        for name, symbol in (("rate", "r"), ("momentum", r"\beta"), ("share", r"\nu")):
            left = sp.Symbol(rf"{symbol}_{{\mathrm{{{model}}}}}")
            steps.append(algebra(left, sp.sympify(getattr(claimed, name)), f"{what}: the {name} of the recursion below",
                                 {left: getattr(general, name), **meaning}, conclusion=True))  # fmt: skip
    return tuple(steps)


def _quadratic() -> tuple[Step, ...]:
    """The owner's step and the broadcast; then the stale copies are eliminated."""
    estimate = sp.Symbol("E[e_t]")
    mean = given(
        estimate, OWNER * X + STALE * Y, "linearity: masks of step t do not depend on copies, all stale ones have one "
        "mean, noise has mean 0; the gradient is h times that",
    )  # fmt: skip
    buffer = given(V, beta * V1 + mean.right, "the optimizer: heavy ball with a momentum beta of its own, or beta = 0")
    moved = algebra(NEXT, X - s * buffer.right, "the owner's step", {NEXT: X - s * V, V: buffer.right})
    fresh = expectation(Y, [(q, X), (p, Y1)], q * X + p * Y1, "the broadcast: refreshed, or as it was")
    kept = algebra(
        staleness.age_pmf(t + 1, p), p * staleness.age_pmf(t, p), "the same by B1, a mean over ages whose weights fall "
        "by p from one to the next: that A_t = a says nothing of x_(t-a), which depends on earlier masks",
    )  # fmt: skip
    first, at_0 = sp.Symbol("P(A=0)"), staleness.age_pmf(sp.Integer(0), p)
    earlier = {X: X1, Y: Y1, V1: V2}
    stepped = [
        algebra(v, (before - after) / s, "the owner's steps before", {after: before - s * v})
        for v, before, after in ((V1, X1, X), (V2, X2, X1))
    ]
    stale = algebra(
        STALE * Y1, stepped[0].right - beta * stepped[1].right - OWNER * X1, "so that is what the stale copies did",
        {X: X1 - s * V1, X2: X1 + s * V2, V1: buffer.right.subs(earlier, simultaneous=True)},
    )  # fmt: skip
    closed = momentum.mean_step(momentum.of_weights(OWNER, STALE, p), (X, X1, X2), (s * X, s * X1), beta)
    whole = algebra(
        NEXT, closed, "two lags in series, the optimizer's and that of loss: (1 - beta z)(1 - p z), z one step back",
        {NEXT: moved.right, Y: fresh.right, Y1: stale.right / STALE, V1: stepped[0].right}, conclusion=True,
    )  # fmt: skip
    plain = momentum.mean_step(momentum.server(alpha, p), (X, X1, 0), (s * X, s * X1))
    return (
        mean, buffer, moved, fresh, kept, algebra(first, at_0, "and the freshest weighs q", {first: q}), *stepped,
        stale, whole,
        algebra(NEXT, plain, "a parameter server and plain SGD: heavy ball with coefficient p, rate alpha (1-p)",
                {NEXT: whole.right, beta: 0, OWNER: 0, STALE: alpha}),
        algebra(NEXT, X + p * (X - X1) - s * alpha * (1 - p) * X, "spelled out", {NEXT: plain}, conclusion=True),
    )  # fmt: skip


def _lag() -> tuple[Step, ...]:
    """The slow mode E x_t = (1 - e)^t in powers of the gain, with loss and without; then what makes them equal."""
    e, gain, delay, wanted, r, memory, share = sp.symbols(r"\epsilon \gamma d \beta_0 r \beta_p \nu", positive=True)
    of = momentum.QuasiHyperbolic(r, memory, share)
    z = 1 - e
    lossy = z**3 - momentum.mean_step(of, (z**2, z, 1), (s * z**2, s * z), beta)
    mode = sp.Symbol(r"(1-\epsilon)^3-\ldots")
    total = beta / (1 - beta) + momentum.lag(of)
    expanded = sp.Poly(sp.expand(lossy.subs({e: gain + delay * gain**2, s: gain * (1 - beta) / r})), gain)
    terms = [
        algebra(sp.Symbol(rf"[\gamma^{k}]"), sp.Integer(0), "the mode e = gamma + d gamma^2 solves the recursion up to "
                "gamma^3, with gamma = r s/(1 - beta) and d the delay: beta/(1 - beta), and that of loss",
                {sp.Symbol(rf"[\gamma^{k}]"): expanded.coeff_monomial(gain**k), delay: total})
        for k in range(3)
    ]  # fmt: skip
    equation = given(mode, lossy, "E x_t = (1 - e)^t in the recursion")
    lost, change, exact = sp.symbols(r"d_p \eta/\eta_0 E[x_{t+1}]_{\beta_0=p}", positive=True)
    right = momentum.corrected(wanted, lost)
    same_lag = algebra(
        right / (1 - right), wanted / (1 - wanted) - lost, "without loss the delay is that of momentum: keep the sum",
        conclusion=True,
    )  # fmt: skip
    same_gain = algebra(
        change, momentum.corrected_step(wanted, lost, r), "and the gain: r eta/(1 - beta) = eta_0/(1 - beta_0)",
        {change: (1 - right) / (r * (1 - wanted))}, conclusion=True,
    )  # fmt: skip
    serve = momentum.lag(momentum.server(alpha, p))
    small = sp.Symbol(r"d\beta/dp")
    bare = momentum.mean_step(momentum.NO_LOSS, (X, X1, X2), (s * X, s * X1), p)
    step = momentum.corrected_step(p, serve, alpha)
    met = momentum.mean_step(momentum.server(alpha, p), (X, X1, X2), (s * step * X, s * step * X1), sp.Integer(0))
    return (
        equation,
        *terms,
        same_lag,
        same_gain,
        algebra(lost, p / q, "a parameter server: the mean age", {lost: serve}, conclusion=True),
        algebra(momentum.corrected(wanted, serve), (wanted - p) / (1 - p * (2 - wanted)), "so", conclusion=True),
        algebra(small, -((1 - wanted) ** 2), "at p = 0: small loss is worth p (1 - beta_0)^2 of momentum, p itself "
                "only where beta_0 is small", {small: sp.diff(momentum.corrected(wanted, serve), p).subs(p, 0)},
                conclusion=True),
        algebra(momentum.corrected(p, serve), sp.Integer(0), "beta_0 = p: no momentum of its own"),
        algebra(exact, bare, "and then the mean is exactly that of heavy ball with p and without loss", {exact: met},
                conclusion=True),
    )  # fmt: skip


def _many_ranks() -> tuple[Step, ...]:
    """Any smooth f: x stays within O(N^(-1/2)) of a trajectory X that no mask decides."""
    variance, mean2, fresh2, kappa, empty, own2 = sp.symbols(
        r"\mathrm{Var}Z |G|^2 |Z_o-G|^2 \kappa P(K=0) E[m_o/K^2]", positive=True
    )
    k, smooth, delta, D, limit_mean, limit_before = sp.symbols(r"k l \delta D_t G_t G_{t-1}", positive=True)
    stale_only, owner_too, whole = sp.symbols(r"E|e-G|^2_{K=k} E|e-G|^2_{m_oK=k} E|e-G|^2", positive=True)
    age = given(
        sp.Symbol("Z_i"), sp.Symbol("f'(X_{t-A_i})"), "ages independent between links, of one law, and "
        "independent of the gradient masks; G is the mean of Z_i, e that of the survivors' Z_i",
    )  # fmt: skip
    alone = algebra(stale_only, variance / k, "k survivors, each off by Z_i - G", {stale_only: k * variance / k**2})
    with_owner = algebra(
        owner_too, (fresh2 + (k - 1) * variance) / k**2, "the owner among them: off by Z_o - G, which is no noise",
        {owner_too: alone.right + (fresh2 - variance) / k**2},
    )  # fmt: skip
    inverse, inverse_own = sp.symbols("1/k m_o/k^2", positive=True)
    parts = inverse * variance + inverse_own * (fresh2 - variance)
    split = algebra(
        owner_too, parts, "that is", {owner_too: with_owner.right, inverse: 1 / k, inverse_own: 1 / k**2}
    )  # fmt: skip
    error = algebra(
        whole, momentum.spread(kappa, variance, empty, mean2, own2, fresh2),
        "over K, and G itself without a survivor; kappa and E[m_o/K^2] are O(1/N), A7",
        {whole: split.right + empty * mean2, inverse: kappa, inverse_own: own2}, conclusion=True,
    )  # fmt: skip
    start = given(sp.Symbol("D_0"), sp.Integer(0), "common start; D_t^2 = E max_(s<=t) |x_s - X_s|^2")
    grows = given(
        sp.Symbol("D_{t+1}"), (1 + eta * smooth) * D + eta * delta, "argued, at most that: X_(t+1) = X_t - eta G_t; "
        "weights sum to 1 or 0, grad f has Lipschitz constant l; triangle inequality in L^2; delta^2 >= all E|e-G|^2",
    )  # fmt: skip
    bound = recursion(
        D, lambda T: delta * momentum.distance(T, eta, smooth), start.right, following(grows, D),
        "so D_t is at most that, O(N^(-1/2)) for every t: x converges to X", conclusion=True,
    )  # fmt: skip
    later = expectation(limit_mean, [(q, G), (p, limit_before)], q * G + p * limit_before, "Bernoulli: a replica is at "
                        "X_t, or as old as before; g_t = grad f(X_t)")  # fmt: skip
    closed = momentum.mean_step(momentum.server(sp.Integer(1), p), (X, X1, 0), (eta * G, eta * G1))
    return (
        age, alone, with_owner, split, error, start, grows, bound, later,
        algebra(NEXT, closed, "heavy ball for any smooth f, as eta G_(t-1) = X_(t-1) - X_t; here E[x_t] stands for X_t",
                {NEXT: X - eta * limit_mean, limit_mean: later.right, limit_before: (X1 - X) / eta}, conclusion=True),
    )  # fmt: skip


def _bursts() -> tuple[Step, ...]:
    """Gilbert-Elliott, N to infinity: a bad link, all of whose packets are lost, turns good with probability 1/L."""
    mean, enter, leave = sp.symbols("L e 1/L", positive=True)
    bad, bad_before, limit_mean = sp.symbols(r"b_t b_{t-1} G_t")
    of = momentum.bursty(p, mean)
    balance = given(enter, p * leave / (1 - p), "stationary: the bad state, of share p, is entered as often as left")
    length = given(leave, 1 / mean, "the mean stay is L")
    all_bad = expectation(
        p * bad,
        [(p * (1 - leave), bad_before), (p * leave, 0),
         ((1 - p) * balance.right, G1), ((1 - p) * (1 - balance.right), 0)],
        p * ((1 - leave) * bad_before + leave * G1),
        "b: the mean over bad links of grad f at their copies: bad before, as it was; newly bad, fresh one step ago",
    )  # fmt: skip
    one_bad = algebra(bad, of.momentum * bad_before + (1 - of.momentum) * G1, "so b_t is the buffer of one step ago",
                      {bad: bad + (all_bad.right - all_bad.left) / p, leave: length.right})  # fmt: skip
    estimate = expectation(limit_mean, [(1 - p, G), (p, bad)], (1 - p) * G + p * bad, "good links are fresh")
    moved = given(NEXT, X - eta * limit_mean, "as above: x converges to X, written E[x_t]")
    before = sp.Symbol(r"\eta{b_{t-1}}")
    buffered = algebra(
        before, (X1 - X - eta * (1 - p) * G1) / p, "the step before",
        {X: X1 - eta * estimate.right.subs({G: G1, bad: bad_before}, simultaneous=True), before: eta * bad_before},
    )  # fmt: skip
    closed = momentum.mean_step(of, (X, X1, 0), (eta * G, eta * G1))
    names, delay = sp.symbols(r"\beta_L \nu_L r_L"), sp.Symbol("d_L")
    return (
        balance, length, all_bad, one_bad, estimate,
        algebra(
            limit_mean, (1 - of.share) * G + of.share * (of.momentum * bad + (1 - of.momentum) * G),
            "quasi-hyperbolic momentum: the buffer of now is beta b_t + (1 - beta) g_t", {limit_mean: estimate.right},
            conclusion=True,
        ),
        moved, buffered,
        algebra(NEXT, closed, "without the buffer", {NEXT: moved.right, limit_mean: estimate.right, bad: one_bad.right,
                                                     bad_before: buffered.right / eta}, conclusion=True),
        *(algebra(name, value, "spelled out", {name: claimed}, conclusion=True) for name, value, claimed in zip(
            names, (1 - 1 / mean, p * mean / (mean - 1), sp.Integer(1)), (of[1], of[2], of[0]), strict=True)),
        algebra(
            delay, bursts.gilbert_owner(p, mean), "it is the mean age, B8", {delay: momentum.lag(of)}, conclusion=True
        ),
        algebra(of.share.subs(mean, 1 / (1 - p)), sp.Integer(1), "L = 1/(1-p), no bursts: heavy ball"),
        algebra(of.momentum.subs(mean, 1 / (1 - p)), p, "with coefficient p"),
    )  # fmt: skip
