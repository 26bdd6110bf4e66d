"""X1: what the other claims are judged with, judged by what is known beforehand: false steps, negative polynomials,
patterns counted by hand, and tests of exactly known distributions.

Legend: N ranks, P packets, B links, E elements, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product
from math import comb, isinf, log, prod
from typing import Any

import numpy as np
import sympy as sp
import torch
from scipy.stats import binom
from sympy.polys.polyerrors import CoercionFailed

from lossproof.impl.loss import Arrivals
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import by_hand, estimates, histories, known, patterns, statistics
from lossproof.theory import certify
from lossproof.theory.derive import betting, steps
from lossproof.theory.laws import Bernoulli

p, t, N = known.p, known.t, known.N
j, k, x, y, X = known.j, known.k, known.x, known.y, known.X
THIRD = Fraction(1, 3)
_bernstein, _coefficients, _rational = certify.bernstein, certify.coefficients, certify.rational
_evidence, _p_value = statistics.evidence_against_mean, statistics.binomial_p_value

X1 = Claim(
    "X1",
    "The instruments can fail: what is false is refused, what is true is found, and levels are what they say",
    betting.level,
    assumes=(
        "SymPy's expansion of polynomials over the rationals, Python's integers and fractions, SciPy's binomial sums",
    ),
    not_claimed=(
        "that a true step is always provable, or a true inequality certified: a refusal is no refutation",
        "that a check which can fail is the right check: that is what each claim's own planted mistakes are for",
    ),
    witness="the false steps below, each refused: masks that add up to 1 + p, an induction from the wrong start, ...",
)


def _planted_step(name: str, description: str, proof: Callable[..., Callable[[], bool]]) -> Any:
    """A kind of step with a weaker proof."""

    def step(left: Any, *rest: Any, **marks: Any) -> steps.Step:
        return steps.Step(left, sp.Integer(0), "", proof(left, *rest))

    return plant(description, steps, name, step)


def _terms_only(left: Any, right: Any, shift: int, reason: str) -> Callable[[], bool]:
    return lambda: steps.vanishes(left.function - right.function.subs(j, k + shift))


@X1.rung(
    "derived",
    plant("everything vanishes", steps, "vanishes", lambda e: True),
    plant("tried at p = 1/3 in floats", steps, "vanishes", lambda e: abs(complex(sp.sympify(e).subs(
        {s: 1 / 3 for s in sp.sympify(e).free_symbols}).evalf())) < 1e-9),
    _planted_step("same_terms", "sums without their range", _terms_only),
    _planted_step("expectation", "masks not added up", lambda left, outcomes, right, reason: (
        lambda: steps.vanishes(sum(w * v for w, v in outcomes) - right))),
    _planted_step("recursion", "no start", lambda left, closed, start, then, reason: (
        lambda: steps.vanishes(closed(t + 1) - then(closed(t))))),
    _planted_step("limit", "a limit that ignores t", lambda of, right, reason: (
        lambda: steps.vanishes(of.subs(p**t, 0) - right))),
    plant("no step fails", steps.Derivation, "first_failure", lambda self: None),
    plant("all steps are conclusions", steps.Derivation, "conclusions", property(lambda self: self.steps)),
)  # fmt: skip
def _steps_can_fail(run: Run) -> Evidence:
    for expressions, true in ((known.ZERO, True), (known.NOT_ZERO, False)):
        for expression in expressions:
            require(steps.vanishes(expression) is true, f"{expression}: vanishing is not {true}")
    tried = list(known.examples())
    for what, step, true in tried:
        require(step.proof() is true, f"{what}: proved is not {true}")
    theorem = steps.binomial_theorem(x, y, N, k, "")
    for n in range(4):
        expanded = sum(comb(n, i) * x**i * y ** (n - i) for i in range(n + 1))
        for side in (theorem.left.subs(N, n).doit(), theorem.right.subs(N, n)):
            require(sp.expand(side - expanded) == 0, f"binomial theorem, n = {n}: {side}")
    law = steps.algebra(x, p * (y + 1), "")
    require(
        steps.following(law, y)(3) == 4 * p and steps.following(law, y, {p: 2})(3) == 8, "not the step's right side"
    )
    assumed, shown = steps.given(x, y, "given"), steps.algebra(x, x, "shown", conclusion=True)
    false = steps.algebra(x, y, "false")
    derivation = steps.Derivation((assumed, shown, false))
    require(derivation.conclusions == (shown,), "other conclusions than those marked")
    require(derivation.first_failure() is false, "the false step is not found")
    require(steps.Derivation((assumed, shown)).first_failure() is None, "a true step is refused")
    require((assumed.because, shown.because) == ("assumed: given", "shown"), "an assumption is not displayed as one")
    require(betting.level().first_failure() is None, "the level of the sampled tests is not proved")
    refused = sum(not true for _, _, true in tried)
    return Evidence(f"{refused} false steps of every kind refused, {len(tried) - refused} true ones proved")


@X1.rung(
    "certified",
    plant("everything is zero", certify, "is_zero", lambda *a: True),
    plant("the last coefficient ignored", certify, "bernstein", lambda c, d: dict(list(_bernstein(c, d).items())[:-1])),
    plant("the first coefficient ignored", certify, "bernstein", lambda c, d: dict(list(_bernstein(c, d).items())[1:])),
    plant("monomials for the Bernstein basis", certify, "bernstein", lambda c, d: c),
    plant(
        "no constant term",
        certify,
        "coefficients",
        lambda e, s: {k: c for k, c in _coefficients(e, s).items() if any(k)},
    ),
    plant("denominators ignored", certify, "rational", lambda e, powers: (_rational(e, powers)[0], sp.Integer(1))),
    plant("never a certificate", certify, "is_nonnegative", lambda *a: False),
)
def _certificates_can_fail(run: Run) -> Evidence:
    powers = {p**t: X}
    for zero in known.ZERO[:4]:
        require(certify.is_zero(zero, powers), f"{zero} is not found to be zero")
    for other in known.NOT_ZERO[:4]:
        require(not certify.is_zero(other, powers), f"{other} is taken for zero")
    for expression in (sp.sqrt(p), 1 / sp.sqrt(p), 2**t, 1 / (p**t - X)):
        require(known.raises(ValueError, lambda: certify.is_zero(expression, powers)), f"{expression} is not refused")
    for error, expression in ((CoercionFailed, x * y), (ValueError, 0.5 * x)):
        require(known.raises(error, lambda: certify.coefficients(expression, (x,))), f"{expression} is not refused")
    require(certify.is_zero(x - x) and not certify.is_zero(x - y), "without powers, other zeros")
    require(certify.bernstein({}, 2) == {(0, 0): 0}, "0 has other coefficients")
    named = certify.rational(p ** (2 * t + 1) / (1 + p), powers)
    require(named == (X**2 * p, 1 + p), "powers are not named")
    require(
        certify.coefficients(x**2 / 3 - 2 * y, (x, y)) == {(2, 0): THIRD, (0, 1): Fraction(-2)}, "other coefficients"
    )
    # Whatever the coefficients in the Bernstein basis, they come back; and a negative one anywhere is no certificate.
    for shape in ((3,), (1, 2)):
        indices = list(product(*(range(n + 1) for n in shape)))
        for at in indices:
            chosen = {index: Fraction(1 + 2 * i, 3) for i, index in enumerate(indices)} | {at: Fraction(-1, 5)}
            polynomial, symbols = known.in_bernstein_basis(chosen)
            back = certify.bernstein(certify.coefficients(polynomial, symbols), len(symbols))
            require(back == chosen, f"{chosen} comes back as {back}")
            for sign in (1, -1):
                require(not certify.is_nonnegative(sign * polynomial, symbols), f"{sign * polynomial}: certified")
                require(not certify.is_nonnegative(sign / polynomial, symbols), f"{sign / polynomial}: certified")
            some = {**chosen, at: Fraction(0)}
            polynomial, symbols = known.in_bernstein_basis(some)
            found = certify.is_nonnegative(polynomial, symbols) and certify.is_nonnegative(1 / polynomial, symbols)
            require(found, f"{polynomial}: no certificate")
            require(not certify.is_nonnegative(-polynomial, symbols), f"{-polynomial}: certified")
    for positive in (
        x * (1 - x),
        1 - 2 * x + 2 * x**2,
        x / (1 - x),
        (-x) / (x - 2),
        sp.Integer(0),
        (1 - x * y) / (1 + y),
    ):
        require(certify.is_nonnegative(positive, (x, y)), f"{positive}: no certificate")
    for negative in (
        -x,
        x - 1,
        2 * x - 1,
        1 - 2 * x,
        x / (x - 2),
        1 / (2 * x - 1),
        x + y - 1,
        1 - 2 * x * y,
        sp.Integer(-1),
    ):
        require(not certify.is_nonnegative(negative, (x, y)), f"{negative}: certified")
    require(certify.is_nonnegative(1 - p**t, (p, X), powers), "1 - p^t: no certificate")
    require(not certify.is_nonnegative(p**t - p, (p, X), powers), "p^t - p: certified")
    return Evidence("known zeros and non-zeros; every place of a negative coefficient, in one and two variables")


@X1.rung(
    "enumerated",
    plant("one pattern less", patterns, "all_patterns", lambda bits: (
        (torch.arange(max(1, 2**bits - 1)) >> torch.arange(bits)[:, None]) & 1 == 1)),
    plant("losses for arrivals", patterns, "expectation", lambda v, m, right=patterns.expectation: right(v, ~m)),
    plant("sums in floats", patterns, "exact_sum", lambda values: Fraction(values.sum().item())),
    plant("compared at one point", patterns, "require_identical", lambda what, one, two, degree: require(
        one(THIRD) == two(THIRD), what)),
    plant("senders' losses in reverse", estimates, "product_law", lambda m, losses, right=estimates.product_law: (
        right(m, losses[::-1]))),
    plant("a mean of floats", estimates, "mean", lambda values, law: Fraction(sum(
        v * float(w) for v, w in zip(values.tolist(), law, strict=True)))),
    plant("the pair for the owner", histories, "gaps", lambda r: (
        r.fresh_QE - r.replicas_HPE[2], r.replicas_HPE[1] - r.replicas_HPE[2])),
    plant("lost for arrived", histories, "two_replicas", lambda m, steps: histories.losing(m.view(steps, 2, -1))),
)  # fmt: skip
def _counted_by_hand(run: Run) -> Evidence:
    by_hand.require_patterns()
    by_hand.require_estimates()
    by_hand.require_histories()
    return Evidence(
        "patterns, weights, estimates and replicas, each against a plain loop; differences at one point seen"
    )


def _exact_binomial() -> None:
    for trials, probability in product((1, 7, 30), (Fraction(0), Fraction(1, 32), THIRD, Fraction(9, 10), Fraction(1))):
        for n in range(trials + 1):
            tails = [known.binomial_chance(side, trials, probability) for side in (lambda m: m <= n, lambda m: m >= n)]
            exact, computed = (
                min(Fraction(1), 2 * min(tails)),
                statistics.binomial_p_value(n, trials, float(probability)),
            )
            require(
                abs(computed - exact) <= 1e-9 * exact, f"{n} of {trials} at {probability}: {computed}, exactly {exact}"
            )
    for alpha, trials in ((None, 60), (0.05, 30), (0.3, 7)):
        options = {} if alpha is None else {"alpha": alpha}
        for n in range(trials + 1):
            refused = known.refuses(lambda: statistics.require_probability("", n, trials, 0.5, **options))
            tail = (
                known.binomial_chance(lambda m: m <= n, trials, Fraction(1, 2)),
                known.binomial_chance(lambda m: m >= n, trials, Fraction(1, 2)),
            )
            require(refused == (2 * min(tail) <= (alpha or 1e-9)), f"{n} of {trials} at level {alpha}: {refused}")
    for certain in (0, 1):
        require(
            not known.refuses(lambda: statistics.require_probability("", 5 * certain, 5, certain)),
            f"{certain} is refused",
        )
    for impossible in (-0.1, 1.2):
        require(
            known.refuses(lambda: statistics.require_probability("", 1, 2, impossible)),
            f"probability {impossible} passes",
        )


def _exact_e_value() -> None:
    for values, chances, low, high in (
        ((0.0, 1.0), (0.75, 0.25), 0, 1),
        ((0.0, 0.25, 2.0), (0.25, 0.5, 0.25), -1, 2),
        ((-1.0, 0.5), (0.5, 0.5), -1, 3),
    ):
        mean, total = sum(v * c for v, c in zip(values, chances, strict=True)), 0.0
        for drawn in product(range(len(values)), repeat=5):
            evidence = statistics.evidence_against_mean(np.array([values[d] for d in drawn]), mean, low, high)
            total += prod(chances[d] for d in drawn) * np.exp(evidence)
        require(abs(total - 1) < 1e-12, f"{values} with {chances}: E e = {total}")
    trials, probability = 60, 0.25
    samples = [np.array([1.0] * n + [0.0] * (trials - n)) for n in range(trials + 1)]
    logs = [statistics.evidence_against_mean(each, probability, 0, 1) for each in samples]
    for alpha in (None, 0.001, 0.05, 0.5):
        options = {} if alpha is None else {"alpha": alpha}
        refused = [
            known.refuses(lambda: statistics.require_mean("", each, probability, 0, 1, **options)) for each in samples
        ]
        require(refused == [e >= log(1 / (alpha or 1e-9)) for e in logs], f"level {alpha}: refuses otherwise than by e")
        chance = float(known.binomial_chance(refused.__getitem__, trials, Fraction(1, 4)))
        require(0 < chance <= (alpha or 1e-9), f"level {alpha}: true hypotheses refused with probability {chance}")
    for mean, low, high, given, impossible in (
        (0.5, 0, 1, [0.5, 1.5], True), (0.5, 0, 1, [-0.5], True), (1.5, 0, 1, [0.5], True), (-0.5, 0, 1, [0.5], True),
        (0.5, 0, 1, [float("nan")], True), (1.0, 1, 1, [1.0], True), (0.0, 0, 1, [0.0, 0.1], True),
        (1.0, 0, 1, [1.0, 0.9], True), (0.0, 0, 1, [0.0], False), (1.0, 0, 1, [1.0], False), (0.5, 0, 1, [0, 1], False),
        (0.5, 0, 1, [], False), (0.0, 0, 1, [], False),
    ):  # fmt: skip
        evidence = statistics.evidence_against_mean(np.array(given, dtype=float), mean, low, high)
        require(isinf(evidence) == impossible and (impossible or evidence <= 1), f"mean {mean}, {given}: {evidence}")


def _tail_only(successes: int, trials: int, probability: float) -> float:
    return float(binom.sf(successes - 1, trials, probability))


@X1.rung(
    "sampled",
    plant("one tail, not doubled", statistics, "binomial_p_value", lambda n, N, q: _p_value(n, N, q) / 2),
    plant("one tail only", statistics, "binomial_p_value", _tail_only),
    plant("off by one success", statistics, "binomial_p_value", lambda n, N, q: _p_value(n + 1, N, q)),
    plant("evidence doubled", statistics, "evidence_against_mean", lambda *a: 2 * _evidence(*a)),
    plant("bets added, not averaged", statistics, "evidence_against_mean", lambda *a: _evidence(*a) + log(30)),
    plant("never evidence", statistics, "evidence_against_mean", lambda *a: 0.0),
    plant("every mean accepted", statistics, "require_mean", lambda *a, **o: None),
    plant("every probability accepted", statistics, "require_probability", lambda *a, **o: None),
)
def _calibrated(run: Run) -> Evidence:
    require(statistics.ALPHA == 1e-9, f"a check's level is {statistics.ALPHA}")
    _exact_binomial()
    _exact_e_value()
    by_hand.require_drawn(run.seed)
    packets, loss = run.pick(20_000, 200_000), 0.25
    arrived_P = Arrivals(Bernoulli(loss), [0] * packets, 2, run.seed, "lossy").gradients(0)[0].double().numpy()
    arrived = int(arrived_P.sum())
    statistics.require_mean("arrivals", arrived_P, 1 - loss, 0, 1, statistics.ALPHA / 2)
    statistics.require_probability("arrivals", arrived, packets, 1 - loss, statistics.ALPHA / 2)
    for wrong in (0.7, 0.8):
        require(known.refuses(lambda: statistics.require_mean("", arrived_P, wrong, 0, 1)), f"a mean of {wrong} passes")
        refused = known.refuses(lambda: statistics.require_probability("", arrived, packets, wrong))
        require(refused, f"a probability of {wrong} passes")
    return Evidence(
        f"levels by exact tail sums and E e = 1 by enumeration; {packets} draws: 0.05 off is seen", statistics.ALPHA
    )


X1.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
