"""B9 derived: links that are independent and alike given an environment that they share."""

from __future__ import annotations

import sympy as sp

from lossproof.theory import bursts, common, drift
from lossproof.theory.derive.steps import Derivation, algebra, expectation, given, limit, p, recursion, sigma2, t

o, c, loss = sp.symbols("o c p_1", positive=True)


def shared_environment() -> Derivation:
    """Jensen: c_k = E X^2 >= (E X)^2; then environments drawn anew each step, and outages."""
    a, both, spread, X = sp.symbols(r"a_k c_k E(X_k-a_k)^2 E[X_k^2]")
    pair, pair_c = sp.symbols("D_t V_t")
    environment = common.outage_environment(loss, o)
    alone = (loss - o) / (1 - o)
    return Derivation(
        (
            given(sp.Symbol("X_k"), sp.Symbol(r"P(A\ge{k}|\mathrm{environment})"), "the same for all links"),
            given(
                a, sp.Symbol("E[X_k]"), "so a replica's own age, and its drift to the owner, are as if links were alone"
            ),
            given(both, X, "given the environment two links are independent"),
            algebra(spread, X - a**2, "E(X - a)^2 with E X = a", {spread: X - 2 * a * a + a**2}),
            algebra(
                bursts.pair([a], [a], [both], sigma2),
                bursts.pair_independent([a], sigma2) - 2 * sigma2 * spread,
                "B8: less than for independent links by the variance of X_k, summed over k",
                {both: X, spread: X - a**2},
                conclusion=True,
            ),
            expectation(
                loss,
                list(zip(*environment, strict=True)),
                loss,
                "an outage hits all links; else each loses so often that its overall loss is p_1",
            ),
            expectation(
                c,
                [(o, 1), (1 - o, alone**2)],
                common.moments(*environment)[1],
                "two links at once",
                conclusion=True,
            ),
            algebra(
                common.moments(*environment)[1],
                loss**2 + common.variance(*environment),
                "and above p^2 by the variance of X",
                conclusion=True,
            ),
            recursion(
                pair_c,
                lambda s: common.owner(p, s, sigma2),
                sp.Integer(0),
                lambda before: before + sigma2 * p ** (t + 1),
                "a_k = p^k: environments of different steps are independent",
                conclusion=True,
            ),
            recursion(
                pair,
                lambda s: common.pair(p, c, s, sigma2),
                sp.Integer(0),
                lambda before: before + bursts.pair([p ** (t + 1)], [p ** (t + 1)], [c ** (t + 1)], sigma2),
                "c_k = c^k likewise",
                conclusion=True,
            ),
            limit(common.owner(p, t, sigma2), common.owner(p, None, sigma2), "p^t -> 0"),
            limit(common.owner(c, t, sigma2), common.owner(c, None, sigma2), "c^t -> 0", c),
            algebra(
                common.pair(p, c, None, sigma2),
                2 * common.owner(p, None, sigma2) - 2 * common.owner(c, None, sigma2),
                "steady state",
                conclusion=True,
            ),
            algebra(
                common.pair(p, p**2, None, sigma2),
                drift.pair(p, None, sigma2),
                "independent links: c = p^2, and B2",
                conclusion=True,
            ),
        )
    )
