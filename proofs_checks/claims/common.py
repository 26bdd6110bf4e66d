"""B9: links that share an environment, and two links that only seem to.

Legend: N ranks, R receivers, P packets, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import sympy as sp
import torch

from lossproof.impl.loss import Arrivals
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import histories, mistakes
from lossproof.proofs_checks.instruments.patterns import all_patterns
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean, require_probability
from lossproof.theory import bursts, certify, common, drift
from lossproof.theory.derive import common as derive
from lossproof.theory.laws import Bernoulli, CommonOutage, Trace, exact, threshold

p, c, o = sp.symbols("p c o", positive=True)
t = sp.Symbol("t", integer=True, nonnegative=True)
X, Y = sp.symbols("X Y")
POWERS = {p**t: X, c**t: Y}
EXAMPLE = "010111", "011101"
"""Losses of two links, periodic from a common random start. Both lose 4 steps of 6, 3 of them together: more than 16/6.
But each has a burst of 3 that meets single losses of the other only, so that no two steps in a row are lost by both."""

_moments, _variance = common.moments, common.variance


def _pair_with(half: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    return lambda p, c, t=None, sigma2=1: 2 * sigma2 * half(p, c, t)


def _outages_on_top(self: CommonOutage, draw: Any, memory: Any) -> Any:
    lost, memory = Bernoulli(self.loss).sample(draw, memory)
    return lost | (draw.common() < threshold(exact(self.outage))), memory


B9 = Claim(
    "B9",
    "Links that share an environment: replicas drift less from each other and as before from the owner",
    derive.shared_environment,
    assumes=(
        "given the environment, which may have any memory, the links lose independently and by the same law",
        "losses are stationary and independent of the steps, which are uncorrelated with E|u_t|^2 = sigma^2",
        "closed forms: environments of different steps are independent",
    ),
    not_claimed=(
        "that links whose losses are positively correlated in every step drift less: two of period 6 drift more (none "
        "of a smaller period does); without a common environment use c_k = P(both lost the last k) for all k, by B8",
        "that common outages are harmless: all replicas are stale together (B7's worst age falls, the mean age stays)",
        "floating point",
    ),
    witness="an owner that is cut off in one step of ten, and links that lose by themselves in the others",
)
B9.derived(
    plant("E X for E X^2", common, "moments", lambda w, x: (_moments(w, x)[0], _moments(w, x)[0])),
    plant("half the pairs of environments", common, "variance", lambda w, x: _variance(w, x) / 2),
    plant("overall loss on top of outages", common, "outage_environment", lambda p, o: ((o, 1 - o), (1, p))),
    plant("c squared", common, "pair", _pair_with(lambda p, c, t: common.owner(p, t) - common.owner(c**2, t))),
    plant("outages to the owner", common, "owner", lambda p, t=None, s=1: s * p * (1 - (0 if t is None else p**t))),
)  # fmt: skip


@B9.rung(
    "certified",
    plant("E X for E X^2", common, "moments", lambda w, x: (_moments(w, x)[0], _moments(w, x)[0])),
    plant("half the pairs of environments", common, "variance", lambda w, x: _variance(w, x) / 2),
    plant("overall loss on top of outages", common, "outage_environment", lambda p, o: ((o, 1 - o), (1, p))),
    plant("one sign wrong", common, "pair", _pair_with(lambda p, c, t: common.owner(p, t) + common.owner(c, t))),
    plant("c never counts", common, "pair", _pair_with(lambda p, c, t: common.owner(p, t))),
)  # fmt: skip
def _jensen(run: Run) -> Evidence:
    # E X^2 - (E X)^2 = sum over pairs of w_e w_f (x_e - x_f)^2 if the weights sum to 1.
    limit = run.pick(3, 5)
    for states in range(1, limit + 1):
        x = sp.symbols(f"x:{states}")
        w = sp.symbols(f"w:{states - 1}") if states > 1 else ()
        weights = (*w, 1 - sum(w))
        mean, square = common.moments(weights, x)
        require(
            certify.is_zero(square - mean**2 - common.variance(weights, x)), f"{states} environments: not the variance"
        )
        require(
            certify.is_zero(common.moments(weights, [1] * states)[0] - 1),
            f"{states} environments: the weights do not sum to 1",
        )
    # One more, of weight v, next to others of mean m and variance s, adds v (1-v) (x-m)^2 to (1-v) s: induction.
    v, m, s, x_ = sp.symbols("v m s x")
    more = (1 - v) * (s + m**2) + v * x_**2 - ((1 - v) * m + v * x_) ** 2
    require(certify.is_zero(more - (1 - v) * s - common.variance((1 - v, v), (m, x_))), "the variance does not add up")
    require(certify.is_zero(common.variance((1 - v, v), (m, x_)) - v * (1 - v) * (x_ - m) ** 2), "not a square")

    now, then = common.pair(p, c, t), common.pair(p, c, t + 1)
    step = bursts.pair([p ** (t + 1)], [p ** (t + 1)], [c ** (t + 1)])
    require(certify.is_zero(common.pair(p, c, 0)), "the drift at t = 0 is not 0")
    require(certify.is_zero(then - now - step, POWERS), "not the sum of its tail")
    require(certify.is_zero(common.pair(p, c) - now, dict.fromkeys(POWERS, sp.Integer(0))), "not the limit")
    require(
        certify.is_zero(common.pair(p, p**2, t) - drift.pair(p, t), {p**t: X}), "c = p^2 is not the independent case"
    )
    require(
        certify.is_zero(common.owner(p, t) - drift.owner(p, t), {p**t: X}),
        "to the owner: not as with independent links",
    )

    environment = common.outage_environment(p, o)
    overall, both = common.moments(*environment)
    require(certify.is_zero(overall - p), "a link's loss is not the stated one")
    for given, what in ((both - p**2, "c >= p^2"), (p - both, "c <= p")):  # outages o = pX up to the loss
        require(certify.is_nonnegative(given.subs(o, p * X), (p, X)), f"no certificate for {what}")
    less = common.pair(p, p**2) - common.pair(p, both.subs(o, p * X))
    require(certify.is_nonnegative(less, (p, X)), "no certificate that outages make pairs drift less")
    return Evidence("c_k >= a_k^2 for any environment, as a sum of squares; outages for all loss, outage and t")


# -- enumerated


def _every_environment(steps: int) -> None:
    """A history is the environment of each step and two links; its weight a polynomial in outage and loss."""
    bits = all_patterns(3 * steps).view(steps, 3, -1)
    out_TP, alone_TRP = bits[:, 0], bits[:, 1:]
    round_ = histories.scripted(alone_TRP | out_TP[:, None], histories.orthonormal(steps))
    outages, losses = out_TP.sum(0), alone_TRP.sum((0, 1))
    gaps = {"pair": histories.pair_gaps(round_, 1, 2), "owner": histories.owner_gaps(round_)[1]}
    counts = {
        (which, i, j): int(gap[(outages == i) & (losses == j)].sum())
        for which, gap in gaps.items()
        for i, j in product(range(steps + 1), range(2 * steps + 1))
    }
    # Degrees at most `steps` in the outage and 2 `steps` in the loss within: so many points make an identity.
    for i, j in product(range(1, steps + 2), range(1, 2 * steps + 2)):
        outage, inside = Fraction(i, steps + 3), Fraction(j, 2 * steps + 3)
        loss = outage + (1 - outage) * inside
        both = common.moments(*common.outage_environment(loss, outage))[1]
        closed = {"pair": common.pair(loss, both, steps), "owner": common.owner(loss, steps)}
        for which, claimed in closed.items():
            measured = sum(
                counts[which, a, b]
                * outage**a
                * (1 - outage) ** (steps - a)
                * inside**b
                * (1 - inside) ** (2 * steps - b)
                for a, b in product(range(steps + 1), range(2 * steps + 1))
            )
            require(measured == claimed, f"{which}, outage {outage}, loss {loss}: drift {measured}, claimed {claimed}")
        independent = drift.pair(loss, steps)
        require(closed["pair"] < independent, f"outage {outage}, loss {loss}: not less than independent links")
        require(
            closed["owner"] == drift.owner(loss, steps), f"outage {outage}, loss {loss}: to the owner not as before"
        )


def _runs(bits: Sequence[int]) -> list[int]:
    """How many of the cyclic positions end k losses in a row, k = 1, 2, ..., period - 1."""
    period = len(bits)
    return [sum(all(bits[end - j] for j in range(k)) for end in range(period)) for k in range(1, period)]


def _counterexamples(period: int) -> Iterator[tuple[str, str]]:
    """Links of one age tail that lose together more often than independent ones would, and whose pair drifts more."""
    strings = [bits for bits in product((0, 1), repeat=period) if 0 < sum(bits) < period]
    runs = {bits: _runs(bits) for bits in strings}
    for one, other in product(strings, strings):
        if runs[one] == runs[other]:
            both = _runs([x & y for x, y in zip(one, other, strict=True)])
            if period * both[0] > runs[one][0] ** 2 and period * sum(both) < sum(a * a for a in runs[one]):
                yield "".join(map(str, one)), "".join(map(str, other))


def _correlation_is_not_enough() -> tuple[Fraction, Fraction]:
    """Pairwise drift of the example, measured, and what independent links would drift."""
    period = len(EXAMPLE[0])
    for shorter in range(2, period):
        found = next(_counterexamples(shorter), None)
        require(found is None, f"{found} is a smaller counterexample")
    require(EXAMPLE in set(_counterexamples(period)), f"{EXAMPLE} is no counterexample")
    steps = 2 * period
    lost_TRP = torch.tensor([[[bits[(start + s) % period] == "1" for start in range(period)] for bits in EXAMPLE]
                             for s in range(steps)])  # fmt: skip
    round_ = histories.scripted(lost_TRP, histories.orthonormal(steps))
    even = [Fraction(1, period)] * period
    a = [Trace(EXAMPLE[0], "step").age_tail(k) for k in range(1, period)]
    pair = histories.weighted(histories.pair_gaps(round_, 1, 2), even)
    together = histories.weighted(lost_TRP[-1].all(0), even)
    require(together > a[0] ** 2, f"{EXAMPLE} lose together with {together}, independent links with {a[0] ** 2}")
    independent = bursts.pair_independent(a)
    require(pair > independent, f"{EXAMPLE} drift by {pair}, independent links by {independent}")
    for rank in (1, 2):
        gap = histories.weighted(histories.owner_gaps(round_)[rank], even)
        require(gap == bursts.owner(a), f"replica {rank} drifts from the owner by {gap}, not {bursts.owner(a)}")
    return pair, independent


@B9.rung(
    "enumerated",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.INVERTED,
    mistakes.BROADCAST_FIRST,
    mistakes.ONE_MASK_FOR_ALL,
    plant("E X for E X^2", common, "moments", lambda w, x: (_moments(w, x)[0], _moments(w, x)[0])),
    plant("independent links", common, "pair", lambda p, c, t=None, s=1: drift.pair(p, t, s)),
    plant("overall loss on top of outages", common, "outage_environment", lambda p, o: ((o, 1 - o), (1, p))),
    plant("independent pairs of B8 twice as far", bursts, "pair_independent", lambda a, s=1: 2 * s * sum(a)),
)
def _every_history(run: Run) -> Evidence:
    steps = run.pick(3, 4)
    pair, independent = _correlation_is_not_enough()
    _every_environment(steps)
    return Evidence(
        f"all 2^{3 * steps} histories of an environment and two links, as polynomials; correlation is not enough: "
        f"{EXAMPLE[0]} and {EXAMPLE[1]}, repeated, drift {pair} sigma^2 apart, independent links {independent}; no "
        "shorter period"
    )


# -- sampled


@B9.rung(
    "sampled",
    mistakes.ALWAYS_FRESH,
    mistakes.BROADCAST_FIRST,
    mistakes.SAME_FOR_ALL_STEPS,
    mistakes.SAME_FOR_ALL_RECEIVERS,
    plant("no outage in common", CommonOutage, "sample", lambda self, *args: Bernoulli(self.loss).sample(*args)),
    plant("outages on top of the loss", CommonOutage, "sample", _outages_on_top),
    plant("independent links", common, "pair", lambda p, c, t=None, s=1: drift.pair(p, t, s)),
    plant("E X for E X^2", common, "moments", lambda w, x: (_moments(w, x)[0], _moments(w, x)[0])),
)
def _many_packets(run: Run) -> Evidence:
    loss, outage, ranks, steps, packets = 0.5, 0.25, 4, 8, run.pick(4_000, 40_000)
    law, owner_P = CommonOutage(loss, outage), [0] * packets
    round_ = histories.drawn(law, owner_P, ranks, run.seed, histories.orthonormal(steps))
    both = common.moments(*common.outage_environment(loss, outage))[1]
    pair, owner = histories.pair_gaps(round_, 1, 3), histories.owner_gaps(round_)[2]
    require_mean("pairwise drift", pair.numpy(), common.pair(loss, both, steps), 0, steps, ALPHA / 3)
    require_mean("drift to the owner", owner.numpy(), common.owner(loss, steps), 0, steps, ALPHA / 3)
    last = round_.replicas_HPE[1:, :, -1] == 0  # who lost the last step
    together = int((last[0] & last[1]).sum())
    require_probability("two links lose together", together, packets, float(both), ALPHA / 6)
    own, other = ~Arrivals(law, owner_P, ranks, run.seed, "lossy").gradients(0)[:2]  # the owner's link to itself, too
    together = int((own & other).sum())
    require_probability("two senders lose together", together, packets, float(both), ALPHA / 6)
    return Evidence(
        f"{packets} packets at loss {loss}, outage {outage}: pairwise {pair.mean():.3f} where independent links drift "
        f"{drift.pair(loss, steps):.3f}, to the owner {owner.mean():.3f}",
        ALPHA,
    )


B9.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
