"""C2 by exact arithmetic: the inequalities of one step, the step sizes, weights by counting, quadratics."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from math import comb
from typing import Any

import sympy as sp

from lossproof.proofs_checks.claim import Refuted, Run, require
from lossproof.proofs_checks.instruments import descent
from lossproof.theory import certify, convergence, drift, stability

p, z, r, tau, s, theta, alpha, eta, L, D = sp.symbols(r"p z r \tau s \theta \alpha \eta L D", positive=True)
Half, Third = Fraction(1, 2), Fraction(1, 3)


def inequalities() -> None:
    """The terms of one step, put together once more by hand."""
    rate = p + (1 - p) * z  # all of (p, 1)
    square = sp.Matrix([[rate / p - 1, 1], [1, convergence.stretch(p, rate) - 1]])
    require(certify.is_zero(square.det()) and certify.is_nonnegative(square[0, 0], (p, z)), "Young: not a square")
    none = convergence.stretch(p, z).subs(p, 0)
    require(convergence.stretch(0, z) == none, f"stretch without loss of parameters: not {none}")
    for K in range(2, 6):
        b = sp.symbols(f"b:{K}")
        pairs = sum((x - y) ** 2 for i, x in enumerate(b) for y in b[:i])
        require(certify.is_zero(K * sum(x**2 for x in b) - sum(b) ** 2 - pairs), f"K = {K}: not a sum of squares")
    of = convergence.Weights(alpha, 1, theta)
    worth = convergence.price(eta, L, theta, rate)
    of_gap, of_drive, of_noise = (convergence.gap(p, rate, *(int(i == k) for i in range(3))) for k in range(3))
    for what, left in (
        ("what D costs", worth * of_gap + eta * L**2 * theta / 2 - worth),
        ("what G costs", L * eta - 1 + 2 * worth * of_drive * eta + convergence.slack(L * eta, theta, p, rate)),
        ("the noise", L * eta**2 / 2 + worth * of_noise * eta**2
         - eta * alpha / 2 * convergence.floor(L * eta, of, p, rate)),
        ("the start", eta * alpha / 2 * convergence.start(D, 3, eta, alpha) * 3 - D),
        ("the theorem", convergence.bound(D, 3, Fraction(1, 24), 3, 7, of._replace(kappa=s, theta=1), Third, Half)
         - convergence.start(D, 3, Fraction(1, 24), alpha)
         - 7 * s * convergence.floor(Fraction(1, 8), of._replace(theta=1), Third, Half)),  # L eta = 1/8
    ):  # fmt: skip
        require(certify.is_zero(left), f"{what} does not add up: {sp.factor(left)}")
    above = convergence.stale_noise(p, rate) - drift.owner(p)
    require(certify.is_nonnegative(above, (p, z)), "the mean gap is below that of white steps")
    more = certify.is_nonnegative(sp.diff(convergence.stale_noise(p, s), s), (p, s))
    require(more, "the floor does not grow with the rate")


def step_sizes() -> None:
    """p = r^2, theta = tau^2; s = z times the largest that is claimed; tau below 1, and above, as 1/tau."""
    for name, root_theta in (("theta <= 1", tau), ("theta >= 1", 1 / tau)):
        simple = convergence.simple_step(r, root_theta)
        left = convergence.slack(z * simple, root_theta**2, r**2, convergence.simple_rate(r))
        require(certify.is_nonnegative(sp.cancel(left), (z, r, tau)), f"{name}: the simple step is not allowed")
    require(
        certify.is_nonnegative(convergence.simple_step(r, tau) - (1 - r), (r, tau)), "simple step below 1 - sqrt(p)"
    )
    require(certify.is_zero(convergence.simple_step(r, 1) - (1 - r)), "theta = 1: the simple step is not 1 - sqrt(p)")
    of = convergence.Weights(alpha, 1, theta)
    share = convergence.floor(z * (1 - r), of, r**2, r) - z * (1 - r) / alpha * (1 + theta * r**2)
    require(certify.is_nonnegative(-share, (z, r, theta, alpha)), "staleness adds more than the share theta p")
    for rate in (r**2 + (r - r**2) * z, r + (1 - r) * z):  # below sqrt(p), and above it
        left = convergence.slack(s, theta, r**2, convergence.simple_rate(r)) - convergence.slack(s, theta, r**2, rate)
        require(certify.is_nonnegative(sp.factor(left) / (r * s * z) ** 2, (r, z, theta)), "another rate allows more")


def counted(largest: int) -> None:
    """alpha, kappa and theta from the law of the number of survivors."""
    for N in range(1, largest + 1):
        for loss in (Fraction(i, N + 2) for i in range(1, N + 2)):
            lossy = {K: comb(N, K) * (1 - loss) ** K * loss ** (N - K) for K in range(1, N + 1)}
            own = {K + 1: comb(N - 1, K) * (1 - loss) ** K * loss ** (N - 1 - K) for K in range(N)}
            w, one = sum(c / K for K, c in own.items()), sum(c * Fraction(K - 1, K) for K, c in own.items())
            for found, claimed in (
                ((sum(lossy.values()), sum(c / K for K, c in lossy.items()), sum(lossy.values()) * Fraction(N - 1, N)),
                 convergence.weights(N, loss, "lossy")),
                ((1, w, one), convergence.weights(N, loss, "reliable", 1)),
                ((1, w, (N - 1) * max(w, one / max(N - 1, 1))), convergence.weights(N, loss, "reliable", N)),
                ((1, w, (N - 1) * w), convergence.weights(N, loss)),  # unless said otherwise, the larger
            ):  # fmt: skip
                require(found == claimed, f"N = {N}, p = {loss}: {claimed}, counted {found}")


def rates(run: Run) -> None:
    """Floats on the right side of the root: exact signs."""
    tiny = Fraction(1, 10**9)
    for root in (Fraction(1, 100), Third, Half, Fraction(9, 10)):
        for size in (Fraction(1, 10), Fraction(3, 4), Fraction(1), Fraction(5, 2)):
            top = Fraction(convergence.largest_step(float(size), float(root**2)))
            _refused(float(root**2), float(size))
            left = [convergence.slack(top * (1 + sign * tiny), size, root**2, root) for sign in (-1, 1)]
            require(left[0] > 0 > left[1], f"p = {root**2}, theta = {size}: {float(top)} is not the largest step")
            for share in (Fraction(1, 20), Half, Fraction(99, 100)):
                rate = Fraction(convergence.best_rate(share * top, size, root**2))
                left = [
                    convergence.slack(share * top, size, root**2, rate * (1 + sign * tiny / 1000)) for sign in (-1, 1)
                ]
                require(left[0] < 0 < left[1], f"p = {root**2}, theta = {size}: {float(rate)} is not the least rate")


def _refused(loss: float, size: float) -> None:
    """Step sizes and rates that the theorem does not allow get no bound."""
    top, of = convergence.largest_step(size, loss), convergence.Weights(1, 1, size)
    for s in (0.0, -0.1, top * (1 + 1e-9)):
        with suppress(ValueError):
            convergence.best_rate(s, size, loss)
            raise Refuted(f"p = {loss}, theta = {size}: a rate for L eta = {s}, the largest is {top}")
    for s, rate in ((top / 2, loss), (top / 2, 0.0), (top / 2, 1.0), (top / 2, 1.5), (top * (1 + 1e-9), loss**0.5)):
        with suppress(ValueError):
            convergence.bound(1, 1, s / 2, 2, 1, of, loss, rate)
            raise Refuted(f"p = {loss}, theta = {size}: a bound for L eta = {s} at the rate {rate}")


def quadratics(run: Run) -> list[tuple[Fraction, str]]:
    """f = L x^2/2 and one packet: steady states by the second moments of D2, never above; measured over bound."""
    found = []
    for own_link in ("lossy", "reliable"):
        for N in run.pick((2, 16), (2, 3, 16, 64)):
            for lost in (Fraction(1, 100), Fraction(1, 10), Half):
                for root in (Fraction(1, 20), Third, Fraction(4, 5)):
                    of = convergence.weights(N, lost, own_link, 1)
                    top = Fraction(convergence.largest_step(float(of.theta), float(root**2)))
                    for share in (Fraction(1, 100), Half, 1 - Fraction(1, 10**6)):
                        x2 = _steady(N, lost, root**2, share * top, own_link, of.kappa)
                        bound = convergence.bound(0, 1, share * top, 1, 1, of, root**2, root)
                        best = convergence.bound(0, 1, share * top, 1, 1, of, float(root**2))
                        where = (
                            f"N = {N}, p_g = {lost}, p_p = {root**2}, s = {float(share * top):.3g}, own link {own_link}"
                        )
                        require(
                            x2 <= best <= bound * (1 + 1e-12), f"{where}: {float(x2)}, bounds {best}, {float(bound)}"
                        )
                        found.append((Fraction(x2 / Fraction(best)), where))
            steady = _steady(N, lost, Fraction(0), Fraction(1), own_link, of.kappa)
            bound = convergence.bound(0, 1, 1, 1, 1, of, 0, 0)
            best = convergence.bound(0, 1, 1, 1, 1, of, 0)
            require(
                abs(best - bound) <= 1e-12, f"N = {N}: the best rate without parameter loss gives {best}, not {bound}"
            )
            require(steady == bound, f"N = {N}, own link {own_link}: without parameter loss {steady}, not {bound}")
    return found


def _steady(N: int, lost: Fraction, p_p: Fraction, step: Fraction, own_link: Any, kappa: Fraction) -> Fraction:
    """E x^2 for curvature 1 and noise of variance 1."""
    M = stability.second_moments(N, p_p, step, stability.shares(N, lost, own_link))
    noise, q = step**2 * kappa, 1 - p_p
    return descent.stationary(M, [noise, q * noise, q * noise, q**2 * noise])[0]
