"""X1 derived: an e-value of 1/alpha is a false alarm with probability at most alpha, after any number of samples."""

from __future__ import annotations

import sympy as sp

from lossproof.theory.derive.steps import Derivation, algebra, expectation, following, given, recursion

alpha, lam = sp.symbols(r"\alpha \lambda", positive=True)


def level() -> Derivation:
    """The samples' mean given the past is m; a bet of lambda multiplies the capital by 1 + lambda (x - m)."""
    x, m, share, slack = sp.symbols(r"E[x_{t+1}|past] m w s")
    factor, capital, before, start = sp.symbols(r"E[1+\lambda(x_{t+1}-m)|past] E[e_{t+1}] E[e_t] e_0")
    mixed, alarm, e = sp.symbols(r"E[we+(1-w)e'] P(e\ge{1/\alpha}) E[e]")
    hypothesis = given(
        x, m, "the hypothesis; the bet is fixed beforehand, and no larger than keeps the factor positive"
    )
    fair = algebra(factor, sp.Integer(1), "linearity", {factor: 1 + lam * (x - m), x: hypothesis.right})
    first = given(start, sp.Integer(1), "no sample")
    law = algebra(capital, before, "tower rule: the new factor given the past", {capital: before * fair.right})
    capital_law = recursion(
        before, lambda n: first.right, first.right, following(law, before), "induction on t", conclusion=True
    )
    average = expectation(
        mixed, [(share, capital_law.right), (1 - share, capital_law.right)], capital_law.right, "an average over bets"
    )
    split = given(e, alarm / alpha + slack, "e is at least 1/alpha where it alarms and nowhere negative, so s >= 0")
    return Derivation(
        (
            hypothesis,
            fair,
            first,
            law,
            capital_law,
            average,
            split,
            algebra(
                alarm,
                alpha * (1 - slack),
                "Markov: so at most alpha",
                {alarm: sp.solve(split.right - e, alarm)[0], e: average.right},
                conclusion=True,
            ),
        )
    )
