"""B9 derived: links that are independent and alike given an environment that they share."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import bursts, common, drift
from lossproof.theory.derive.steps import (
    Derivation,
    Step,
    algebra,
    expectation,
    following,
    given,
    limit,
    p,
    recursion,
    sigma2,
    t,
)

o, c, loss = sp.symbols("o c p_1", positive=True)


def shared_environment() -> Derivation:
    """B9: Jensen for any environment; then outages, an example of one; then environments drawn anew each step."""
    return Derivation((*_any_environment(), *_outages(), *_new_each_step()))


def _any_environment() -> tuple[Step, ...]:
    X, a, both, spread = sp.symbols(r"X_k a_k c_k E(X_k-E[X_k])^2")
    alone = given(a, sp.Symbol("E[X_k]"), "X_k = P(A >= k | environment), the same for all links; each is as if alone")
    shared = given(both, sp.Symbol("E[X_k^2]"), "given the environment two links are independent")
    around = algebra(
        spread,
        shared.right - alone.right**2,
        "expanded",
        {spread: sp.expand((X - alone.right) ** 2), X**2: shared.right, X: alone.right},
    )
    return (
        alone,
        shared,
        around,
        algebra(
            bursts.pair([a], [a], [both], sigma2),
            bursts.pair_independent([a], sigma2) - 2 * sigma2 * spread,
            "B8: less than for independent links by the variance of X_k, summed over k",
            {both: shared.right, a: alone.right, spread: around.right},
            conclusion=True,
        ),
    )


def _outages() -> tuple[Step, ...]:
    inside, average = sp.symbols("p_2 E[X]", positive=True)
    environment = common.outage_environment(loss, o)
    mean, square = common.moments(*environment)
    total = expectation(
        loss, [(o, 1), (1 - o, inside)], o + (1 - o) * inside, "an outage hits all links; else each loses by itself"
    )
    alone = algebra(inside, environment[1][1], "so often that its loss is p_1 over all", {loss: total.right})
    both = expectation(c, [(o, 1), (1 - o, alone.right**2)], square, "two links at once", conclusion=True)
    return (
        total,
        alone,
        algebra(average, loss, "its mean is the loss", {average: mean}),
        both,
        algebra(both.right, loss**2 + common.variance(*environment), "above p_1^2 by its variance", conclusion=True),
    )


def _new_each_step() -> tuple[Step, ...]:
    """Environments of different steps are independent; so are a link's losses, and those that two links share."""
    one, one_before, two, two_before, none = sp.symbols("a_t a_{t-1} c_t c_{t-1} a_0")
    V, D, start = sp.symbols("V_t D_t V_0")
    first = given(none, sp.Integer(1), "no packet yet; likewise c_0")
    one_law = expectation(one, [(p, one_before), (1 - p, 0)], p * one_before, "one link loses one more packet")
    two_law = expectation(two, [(c, two_before), (1 - c, 0)], c * two_before, "and so do two links")
    a = recursion(one, lambda k: p**k, first.right, following(one_law, one_before), "induction on t")
    both = recursion(two, lambda k: c**k, first.right, following(two_law, two_before), "induction on t")
    new, new_both = (step.right.subs(t, t + 1) for step in (a, both))
    equal = given(start, sp.Integer(0), "common start; likewise D_0")
    owner = recursion(
        V,
        lambda s: common.owner(p, s, sigma2),
        equal.right,
        lambda before: before + bursts.owner([new], sigma2),
        "B8: one more term of its sum",
        conclusion=True,
    )
    pair = recursion(
        D,
        lambda s: common.pair(p, c, s, sigma2),
        equal.right,
        lambda before: before + bursts.pair([new], [new], [new_both], sigma2),
        "B8: one more term of its sum",
        conclusion=True,
    )
    V_c, steady = sp.symbols("V_t(c) D")
    owners = [owner.right.subs(p, x) for x in (p, c)]
    split = algebra(pair.right, 2 * (V - V_c), "less what they share: the same sum, with c for p",
                    dict(zip((V, V_c), owners, strict=True)))  # fmt: skip
    limits = [
        limit(at, common.owner(x, None, sigma2), f"{x}^t -> 0", base=x) for x, at in zip((p, c), owners, strict=True)
    ]
    settled = algebra(
        steady,
        common.pair(p, c, None, sigma2),
        "steady state",
        {steady: split.right, V: limits[0].right, V_c: limits[1].right},
        conclusion=True,
    )
    return (
        first,
        one_law,
        two_law,
        a,
        both,
        equal,
        owner,
        pair,
        split,
        *limits,
        settled,
        algebra(settled.right.subs(c, p**2), drift.pair(p, None, sigma2), "independent links: c = p^2, and B2",
                conclusion=True),
    )  # fmt: skip
