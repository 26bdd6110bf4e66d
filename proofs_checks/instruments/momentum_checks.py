"""D1 by exact arithmetic: the mean map, means over ages, weights by counting, the corrections."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, product
from math import comb
from typing import get_args

import sympy as sp

from lossproof.proofs_checks.claim import require
from lossproof.theory import bursts, certify, momentum, stability, staleness

p, s, beta, u, z = sp.symbols("p s beta u z", positive=True)
OWNER, STALE = sp.symbols("omega_o omega_s", positive=True)
OWN_LINKS: tuple[stability.OwnLink, ...] = get_args(stability.OwnLink)


def paths(steps: int) -> None:
    """The linear map of the means of x, y and the optimizer's buffer v against what it is said to come to."""
    q, of = 1 - p, momentum.of_weights(OWNER, STALE, p)
    v = sp.Matrix([[s * OWNER, s * STALE, beta]])  # of (x, y, v); v in units of x
    x = sp.Matrix([[1, 0, 0]]) - v
    M = sp.Matrix.vstack(x, q * x + sp.Matrix([[0, p, 0]]), v)
    claimed = z**3 - momentum.mean_step(of, (z**2, z, 1), (s * z**2, s * z), beta)
    require(certify.is_zero((z * sp.eye(3) - M).det() - claimed), "not the characteristic polynomial of the mean map")
    state, path = sp.Matrix([1, 1, 0]), momentum.trajectory(of, lambda at: s * at, steps, sp.Integer(1), beta)
    for k, claimed in enumerate(path):
        require(certify.is_zero(state[0] - claimed), f"E x_{k} is not that of the mean map")
        state = (M * state).expand()
    # As heavy ball it is stable up to s = 2 (1+p)/(1-p), D2's limit for N to infinity: there (-1)^t solves it.
    limit = 2 * (1 + p) / (1 - p)
    alternating = momentum.mean_step(momentum.server(1, p), (1, -1, 1), (limit, -limit))
    require(certify.is_zero(alternating + 1), "the mean's limit for N to infinity is not D2's")


def of_ages(steps: int) -> None:
    """Gilbert-Elliott of mean burst 1/u: every step is the mean over ages, sum over a of P(A_t = a) g_(t-a)."""
    g = sp.symbols(f"g:{steps}")
    of, tail = momentum.bursty(p, 1 / u), [1, *(bursts.gilbert_tail(k, p, 1 / u) for k in range(1, steps + 1))]
    given = iter([g[0], *g])  # asked for the start of the buffer, then at every step
    x = momentum.trajectory(of, lambda _: next(given), steps, sp.Integer(0))
    ages = [a - b for a, b in pairwise(tail)]
    for t in range(steps):
        mean = sum((ages[a] * g[t - a] for a in range(t)), tail[t] * g[0])
        require(certify.is_zero(x[t] - x[t + 1] - mean), f"step {t} is not the mean over the ages of a replica")
    for a in range(steps):
        free = sp.sympify(ages[a]).subs(u, 1 - p) - staleness.age_pmf(a, p)
        require(certify.is_zero(free), "L = 1/(1-p): not the ages of B1")
    require(certify.is_zero(momentum.lag(of) - bursts.gilbert_owner(p, 1 / u)), "the delay is not the mean age pL")


def counted(largest: int) -> None:
    """Rate and share by counting survivors; polynomials in p_g of degree N once cleared: 2N + 1 points decide."""
    for N in range(2, largest + 1):
        for loss in (Fraction(i, 2 * N + 2) for i in range(1, 2 * N + 2)):
            for own_link, surely in zip(OWN_LINKS, (1, 0), strict=True):
                owner = stale = Fraction(0)
                for sent, K in product(range(surely, 2), range(N)):  # the owner's packet, and how many others arrived
                    chance = comb(N - 1, K) * (1 - loss) ** K * loss ** (N - 1 - K)
                    if not surely:
                        chance *= 1 - loss if sent else loss
                    owner += chance * Fraction(sent, max(K + sent, 1))
                    stale += chance * Fraction(K, max(K + sent, 1))
                claimed = momentum.cluster(N, loss, p, own_link)
                found = momentum.QuasiHyperbolic(owner + stale, p, stale / (owner + stale))
                require(claimed == found, f"N = {N}, p_g = {loss}, own link {own_link}: {claimed}, counted {found}")
    alpha = sp.Symbol("alpha", positive=True)
    require(momentum.server(alpha, p) == (alpha, p, 1), "a parameter server is not heavy ball")


def corrections() -> None:
    """The slow mode to second order in its gain g; the momentum that leaves it as it is without loss."""
    rate, share, wanted, e = sp.symbols("r nu beta_0 e", positive=True)
    of = momentum.QuasiHyperbolic(rate, p, share)
    for loss in (of, momentum.NO_LOSS):
        z, delay, step = 1 - e, beta / (1 - beta) + momentum.lag(loss), (1 - beta) / loss.rate
        off = z**3 - momentum.mean_step(loss, (z**2, z, 1), (s * z**2, s * z), beta)
        of_g = sp.Poly(sp.expand(off), e, s).coeff_monomial  # e = g + delay g^2 and s = step g
        first, second = of_g(e) + of_g(s) * step, of_g(e**2) + of_g(e * s) * step + of_g(s**2) * step**2
        for k, term in enumerate((of_g(1), first, second + of_g(e) * delay)):
            require(certify.is_zero(sp.cancel(term)), f"{loss}: no slow mode of delay {delay} up to g^{k}")
    delay = sp.Symbol("d", positive=True)
    own, factor = momentum.corrected(wanted, delay), momentum.corrected_step(wanted, delay, rate)
    require(certify.is_zero(own / (1 - own) + delay - wanted / (1 - wanted)), "corrected: not the delay without loss")
    require(certify.is_zero(rate * factor / (1 - own) - 1 / (1 - wanted)), "corrected: not the gain without loss")
    plain = momentum.corrected_step(wanted, delay)
    require(certify.is_zero(rate * factor - plain), "corrected: not the step of rate 1")
    lossy = momentum.corrected(wanted, momentum.lag(momentum.server(1, wanted * u)))  # p = u beta_0, 0 < u < 1
    for bound, what in (
        (lossy, "0 <= beta"),
        (lossy - wanted * (1 - u), "beta_0 - p <= beta"),
        (wanted - lossy, "beta <= beta_0"),
    ):
        require(certify.is_nonnegative(bound, (wanted, u)), f"no certificate for {what} where p <= beta_0")
