"""D2: the largest stable step on a quadratic.

Legend: N ranks, R receivers = ranks 1.., P packets.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from itertools import product
from math import comb
from typing import Any, get_args

import numpy as np
import sympy as sp
import torch

from lossproof.impl.channel import SimulatedChannel
from lossproof.impl.loss import Arrivals
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import mistakes, second_moments
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import certify, stability
from lossproof.theory.derive import stability as derive
from lossproof.theory.laws import Bernoulli

OWN_LINKS: tuple[stability.OwnLink, ...] = get_args(stability.OwnLink)
p, u, v, n = sp.symbols("p u v n", positive=True)

_shares, _moments, _lossy, _reliable, _square, _step = (
    stability.shares, stability.second_moments, stability.lossy_coefficients, stability.reliable_coefficients,
    stability.inverse_square, stability.stable_step,
)  # fmt: skip

D2 = Claim(
    "D2",
    "The stability limit in closed form; with a reliable own link, loss never lowers it",
    derive.limit_step,
    assumes=(
        "SGD on one quadratic, the same on all ranks; survivor mean, no survivor no update",
        "packets are lost independently with probability p < 1, equal in both phases",
        "an eigendirection of the Hessian travels in one packet",
        "stable: the second moments of owner and replicas tend to 0; noise of the gradients that does not depend on "
        "the parameters moves no limit",
    ),
    not_claimed=(
        "momentum and adaptive optimizers",
        "ranks with different curvatures (D5)",
        "noise that grows with the distance to the optimum: it lowers the limit, with and without loss",
        "bursts, and links of unequal loss",
        "floating point",
    ),
    witness="N = 2, p = 1/2: s* = 2 with a reliable own link, 2 (sqrt 3 - 1) = 1.464 with a lossy one",
)


def _changed(form: Any, *factors: Any) -> Any:
    """A closed form with its a, b, c multiplied."""
    return lambda *args: tuple(x * f for x, f in zip(form(*args), factors, strict=True))


def _of_lossy(change: Any) -> Any:
    return lambda N, p, kappa, alpha: _lossy(*change(N, p, kappa, alpha))


def _other_link(N: int, p: Any, own_link: stability.OwnLink = "reliable") -> Any:
    return _shares(N, p, "lossy" if own_link == "reliable" else "reliable")


def _fresh_replicas(N: Any, p: Any, s: Any, of: Any) -> Any:
    return _moments(N, 0 * p, s, of)


def _without_pairs(N: Any, p: Any, s: Any, of: Any) -> Any:
    return _moments(N, p, s, of._replace(pairs=0))


def _stale_owner(N: Any, p: Any, s: Any, of: Any) -> Any:
    """The owner's own y as stale as the others'."""
    return _moments(N, p, s, of._replace(owner=0, others=of.owner + of.others))


WRONG_MOMENTS = (
    plant("replicas always fresh", stability, "second_moments", _fresh_replicas),
    plant("replicas uncorrelated", stability, "second_moments", _without_pairs),
    plant("the owner's copy is stale", stability, "second_moments", _stale_owner),
)
WRONG_COEFFICIENTS = (
    plant("kappa for alpha", stability, "lossy_coefficients", _of_lossy(lambda N, p, k, a: (N, p, k, k))),
    plant("alpha = 1", stability, "lossy_coefficients", _of_lossy(lambda N, p, k, a: (N, p, k, 1))),
    plant("kappa = 1/N", stability, "lossy_coefficients", _of_lossy(lambda N, p, k, a: (N, p, k / k / N, a))),
    plant("N - 1 for N - 2", stability, "lossy_coefficients",
          lambda N, p, k, a: (_lossy(N, p, k, a)[0], _lossy(N, p, k, a)[1] - 2 * a * p * (1 - p), 2 * N * (1 - p**2))),
    plant("b of the other sign", stability, "lossy_coefficients", _changed(_lossy, 1, -1, 1)),
    plant("reliable: b of the other sign", stability, "reliable_coefficients", _changed(_reliable, 1, -1, 1)),
    plant("reliable: a of the other sign", stability, "reliable_coefficients", _changed(_reliable, -1, 1, 1)),
    plant("E[1/K]^2 for E[1/K^2]", stability, "reliable_coefficients",
          lambda N, p, w, w2: _reliable(N, p, w, w**2)),
)  # fmt: skip
WRONG_SQUARE = plant("E[1/K^2] without 1 - p", stability, "inverse_square", lambda N, p, kappa: kappa / N)
D2.derived(*WRONG_MOMENTS[1:], WRONG_COEFFICIENTS[1], WRONG_COEFFICIENTS[5], WRONG_SQUARE)


# -- certified


@D2.rung(
    "certified",
    *WRONG_COEFFICIENTS[::2],
    WRONG_MOMENTS[0],
    plant("own links swapped", stability, "shares", _other_link),
    WRONG_SQUARE,
    plant("the other root", stability, "stable_step", lambda N, p, own_link="reliable": 4 - _step(N, p, own_link)),
    plant("root rounded", stability, "stable_step", lambda *args: round(_step(*args), 9)),
    plant("one rank like two", stability, "stable_step", lambda N, *args: _step(max(N, 2), *args)),
)
def _all_ranks(run: Run) -> Evidence:
    N = sp.Symbol("N", positive=True)
    of_K = {
        "lossy": [stability.lossy_coefficients(N, p, 1 / u, 1), stability.lossy_shares(N, 1 / u, 1)],
        "reliable": [
            stability.reliable_coefficients(N, p, 1 / u, 1 / u**2),
            stability.reliable_shares(1 / u, 1 / u**2),
        ],
    }
    # Linear in the shares: c, b and a p are means over K, here called u, of what stands at that K. Its sign decides.
    for a, *_ in (of_K["lossy"][0], of_K["reliable"][0]):
        at = (a / p).subs(N, 2 + n)
        require(_is_positive(at.subs(u, 1)), "no certificate for a > 0 at K = 1")
        require(
            _is_positive((a / p).subs({N: u + v}).subs(u, 2 + n), strictly=False), "no certificate for a >= 0, K >= 2"
        )
    a, b, c = of_K["reliable"][0]
    slack = c - 2 * b - 4 * a
    require(certify.is_zero(slack - 4 * (N - 1) * p * (1 - p) * (u - 1) * (u - 2) / u**2), "s* >= 2 is not shown")
    a, b, c = stability.coefficients(2, p, "reliable")
    require(certify.is_zero(4 * a + 2 * b - c), "two ranks with a reliable own link: the limit is not 2")
    for name, K in (("lossy", N), ("reliable", N)):  # without loss all N survive
        a, b, c = (x.subs({p: 0, u: K}) for x in of_K[name][0])
        require(certify.is_zero(4 * a + 2 * b - c), f"{name}: without loss the limit is not 2")
    many = 2 * (1 + p) / (1 - p)
    for name in OWN_LINKS:  # 1/K -> 0 as N -> infinity; divided by N
        a, b, c = (sp.expand(sp.expand(x.subs(1 / u, 0).subs(N, 1 / n)) * n).subs(n, 0) for x in of_K[name][0])
        require(certify.is_zero(a * many**2 + b * many - c), f"{name}: not 2 (1+p)/(1-p) for N to infinity")
    _shares_of_counts(run.pick(5, 9))
    _determinants(run.pick(4, 7))
    digits = _roots(run)
    return Evidence(
        "for all N and p: one root, s* >= 2 with a reliable own link (= 2 for N = 2), 2 without loss, 2(1+p)/(1-p) for "
        f"N to infinity; the determinant for N <= {run.pick(4, 7)} and all p, s; {digits}"
    )


def _is_positive(expression: Any, strictly: bool = True) -> bool:
    """No negative coefficient in numerator times denominator, p = 1/(1+r), q = r/(1+r): a sign for all r, n, v >= 0."""
    r = sp.Symbol("r", positive=True)
    numerator, denominator = certify.rational(expression.subs(p, 1 / (1 + r)), {})
    terms = certify.coefficients(sp.expand(numerator * denominator), (r, n, v))
    return bool(terms or not strictly) and all(c > 0 for c in terms.values())


def _law_of_counts(N: int, loss: Fraction, own_link: stability.OwnLink) -> dict[int, tuple[Fraction, Fraction]]:
    """For each K >= 1 its probability, and that the owner survives as well."""
    law = {}
    for K in range(1, N + 1):
        with_owner = comb(N - 1, K - 1) * (1 - loss) ** (K - 1) * loss ** (N - K)
        if own_link == "reliable":
            law[K] = with_owner, with_owner
        else:
            law[K] = comb(N, K) * (1 - loss) ** K * loss ** (N - K), with_owner * (1 - loss)
    return law


def _shares_of_counts(largest: int) -> None:
    """Polynomials in p of degree N: N + 1 points decide."""
    for own_link in OWN_LINKS:
        for N in range(2, largest + 1):
            for loss in (Fraction(i, N + 2) for i in range(1, N + 2)):
                law = _law_of_counts(N, loss, own_link)
                counted = stability.Shares(
                    sum(o / K for K, (_, o) in law.items()),
                    sum((K * m - o) / K for K, (m, o) in law.items()),
                    sum(o / K**2 for K, (_, o) in law.items()),
                    sum(o * (K - 1) / K**2 for K, (_, o) in law.items()),
                    sum((K * m - o) / K**2 for K, (m, o) in law.items()),
                    sum((K * (K - 1) * m - 2 * (K - 1) * o) / K**2 for K, (m, o) in law.items()),
                )
                claimed = stability.shares(N, loss, own_link)
                require(claimed == counted, f"N = {N}, p = {loss}, own link {own_link}: {claimed}, counted {counted}")


def _determinant_claimed(N: int, loss: Fraction, s: Fraction, own_link: stability.OwnLink) -> Fraction:
    a, b, c = stability.coefficients(N, loss, own_link)
    factor = (1 - loss**N) / N if own_link == "lossy" else Fraction(1, N - 1)
    return Fraction(factor * (1 - loss) ** 2 * s * (c - b * s - a * s * s))


def _determinants(largest: int) -> None:
    """det(I - M) by elimination; M is of degree 2 in s, so the determinant of degree 8: 9 points decide."""
    for own_link in OWN_LINKS:
        for N in range(2, largest + 1):
            for loss, s in [(Fraction(i, 7), Fraction(9, 4)) for i in range(1, 7)] + [
                (Fraction(1, 3), Fraction(j, 2)) for j in range(1, 10)
            ]:
                M = stability.second_moments(N, loss, s, stability.shares(N, loss, own_link))
                found, claimed = (
                    second_moments.determinant(second_moments.less(M)),
                    _determinant_claimed(N, loss, s, own_link),
                )
                require(
                    found == claimed, f"N = {N}, p = {loss}, s = {s}, own link {own_link}: {found} is not {claimed}"
                )


def _roots(run: Run) -> str:
    """The float lies within 1e-13 of the root: exact signs on both sides; and a float p says the same as a fraction."""
    for own_link in OWN_LINKS:
        require(stability.stable_step(1, Fraction(1, 3), own_link) == 2, "one rank: the limit is not 2")
        for N in (2, 3, 16, run.pick(40, 200)):
            require(stability.stable_step(N, 0, own_link) == 2, f"N = {N}: without loss the limit is not 2")
            for loss in (Fraction(1, 10**9), Fraction(1, 8), Fraction(1, 2), Fraction(7, 8), 1 - Fraction(1, 2**30)):
                a, b, c = stability.coefficients(N, loss, own_link)
                step = stability.stable_step(N, loss, own_link)
                below, above = (Fraction(step) * (1 + sign * Fraction(1, 10**13)) for sign in (-1, 1))
                require(
                    a * below**2 + b * below < c < a * above**2 + b * above,
                    f"N = {N}, p = {loss}, own link {own_link}: {step} is not the root",
                )
                close = abs(stability.stable_step(N, float(loss), own_link) - step) <= 1e-7 * step
                require(close, f"N = {N}, p = {float(loss)}, own link {own_link}: a float says otherwise")
    return "s* to 13 digits"


# -- enumerated


@D2.rung(
    "enumerated",
    mistakes.DIVIDE_BY_N,
    mistakes.COUNT_PLUS_ONE,
    mistakes.IGNORE_LOSS,
    mistakes.OWN_FOR_ZERO,
    mistakes.ALWAYS_FRESH,
    mistakes.ZERO_FOR_STALE,
    mistakes.INVERTED,
    mistakes.ONE_MASK_FOR_ALL,
    plant("own links swapped", stability, "shares", _other_link),
    *WRONG_MOMENTS,
    *WRONG_COEFFICIENTS[1::2],
    plant("the lossless limit", stability, "stable_step", lambda *args: stability.LOSSLESS),
    mistakes.a_fifth_more(stability, "stable_step"),
)
def _every_pattern(run: Run) -> Evidence:
    largest = run.pick(3, 4)
    for own_link in OWN_LINKS:
        for N in range(2, largest + 1):
            measured = {s: second_moments.Operator(N, own_link, s) for s in (0, 1, 2, 3)}
            points = [Fraction(i, 2 * N + 4) for i in range(1, 2 * N + 4)]  # degree at most 2N + 2 in p
            for loss in points:
                for s in (1, 2, 3):  # with s = 0 below: degree 2 in s
                    _require_row(measured[s], loss, s, own_link)
            for loss in (points[2], points[-3]):
                _require_limit(N, loss, own_link, [measured[s].columns(loss) for s in (0, 1, 2)])
    return Evidence(
        f"all patterns of both phases for N <= {largest}, as polynomials in p and s; the whole operator on covariances "
        "is stable 0.1 % below s* and not 0.1 % above, by exact positive-definiteness"
    )


def _require_row(operator: second_moments.Operator, loss: Fraction, s: int, own_link: stability.OwnLink) -> None:
    N = operator.N
    M = stability.second_moments(N, loss, Fraction(s), stability.shares(N, loss, own_link))
    for start, image in enumerate(
        second_moments.symmetric(N, operator.columns(loss))[: min(N + 1, 4)]
    ):  # N = 2: no two replicas
        for i, j in product(range(N), repeat=2):
            found, claimed = image[i * N + j], M[second_moments.kind(i, j)][start]
            where = f"N = {N}, p = {loss}, s = {s}, own link {own_link}: moment {start} gives"
            require(found == claimed, f"{where} {found} at ({i}, {j}), the recursion {claimed}")


def _require_limit(N: int, loss: Fraction, own_link: stability.OwnLink, at: list[second_moments.Columns]) -> None:
    """The measured operator, of degree 2 in s: its determinant, and on which side of s* it is stable."""
    pairs, symmetric = list(at[0]), [second_moments.symmetric(N, columns) for columns in at]
    kinds = [0, 1, N + 1, N + 2][: min(N + 1, 4)]  # places of x^2, x y, y^2, y_i y_j
    what = f"N = {N}, p = {loss}, own link {own_link}"

    def between(s: Fraction, values: Any) -> Fraction:
        """From the values at s = 0, 1, 2."""
        share = (s - 1) * (s - 2) / 2, -s * (s - 2), s * (s - 1) / 2
        return sum((w * x for w, x in zip(share, values, strict=True)), Fraction(0))

    for s in (Fraction(1, 2), Fraction(7, 3), Fraction(4), Fraction(9)):
        M = [[between(s, [image[k][place] for image in symmetric]) for k in range(len(kinds))] for place in kinds]
        found = second_moments.determinant(second_moments.less(M)) * (
            1 - loss**2 if N == 2 else 1
        )  # N = 2: an eigenvalue p^2 less
        claimed = _determinant_claimed(N, loss, s, own_link)
        require(found == claimed, f"{what}, s = {s}: the determinant is {found}, claimed {claimed}")
    limit = Fraction(stability.stable_step(N, loss, own_link))
    for part, stable in ((999, True), (1001, False)):
        s = limit * Fraction(part, 1000)
        whole = [[(1 + (k != m)) * between(s, [columns[k, m][i * N + j] for columns in at]) for k, m in pairs]
                 for i, j in pairs]  # fmt: skip
        require(
            second_moments.stays_bounded(whole, pairs, N) == stable, f"{what}: {float(s):.4g} is {'un' * stable}stable"
        )


# -- sampled


@cache
def _conserved(M: tuple[tuple[float, ...], ...]) -> Any:
    """The combination of the four moments that one step leaves as it is, if 1 is an eigenvalue; largest entry 1."""
    left = np.linalg.svd(np.eye(4) - np.array(M).T)[2][-1]
    return left / left[np.abs(left).argmax()]


@D2.rung(
    "sampled",
    mistakes.DIVIDE_BY_N,
    mistakes.COUNT_PLUS_ONE,
    mistakes.ALWAYS_FRESH,
    mistakes.INVERTED,
    mistakes.SAME_FOR_ALL_STEPS,
    mistakes.SAME_FOR_ALL_SENDERS,
    mistakes.WORDS_OF_31_BITS,
    mistakes.a_fifth_more(stability, "stable_step"),
    plant("the lossless limit", stability, "stable_step", lambda *args: stability.LOSSLESS),
    plant("own links swapped", stability, "stable_step", lambda N, p, link: _step(
        N, p, "lossy" if link == "reliable" else "reliable")),
)  # fmt: skip
def _many_ranks(run: Run) -> Evidence:
    N, loss, rounds, packets = 12, 0.6, 2, run.pick(4_000, 60_000)
    found = []
    for own_link in OWN_LINKS:
        s = stability.stable_step(N, loss, own_link)
        M = stability.second_moments(N, loss, s, stability.shares(N, loss, own_link))
        weights = _conserved(tuple(tuple(float(x) for x in row) for row in M))
        channel = SimulatedChannel(Arrivals(Bernoulli(loss), [0] * packets, N, run.seed, own_link))
        z_NP = second_moments.step_from(channel, torch.ones(N, packets, dtype=torch.float64), s, rounds)
        x, y_RP = z_NP[0], z_NP[1:]
        total, squares = y_RP.sum(0), y_RP.square().sum(0)
        moments = torch.stack([x**2, x * total / (N - 1), squares / (N - 1), (total**2 - squares) / (N - 1) / (N - 2)])
        value_P = (moments * torch.from_numpy(weights)[:, None]).sum(0).numpy()
        # Copies are 1 and, after a step, 1 - s or 1; so after the second x is within these bounds. The combination is a
        # positive quadratic form.
        largest = max(2 * s - 1, (s - 1) ** 2, 1)
        high = float(np.abs(weights).sum()) * largest**2
        require_mean(
            f"own link {own_link}: what a step at s* conserves", value_P, float(weights.sum()), 0, high, ALPHA / 2
        )
        found.append(f"{own_link} s* = {s:.4g}, {value_P.mean() / weights.sum():.3f}")
    return Evidence(
        f"N = {N}, p = {loss}, {packets} packets: what a step at s* conserves, after {rounds} steps over before: "
        + "; ".join(found),
        ALPHA,
    )


D2.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
