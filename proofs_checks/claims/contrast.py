"""B10: sharing updates instead of parameters, run by the same two stages with another broadcast.

Legend: P packets, E elements of a packet, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import sympy as sp
import torch

from lossproof.impl.channel import Channel, SimulatedChannel
from lossproof.impl.loss import Arrivals
from lossproof.impl.round import Round
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import histories, mistakes
from lossproof.proofs_checks.instruments.other_rounds import SharingUpdates
from lossproof.proofs_checks.instruments.patterns import expectation, play, require_identical
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import certify, contrast, correlated, drift
from lossproof.theory.derive import contrast as derive
from lossproof.theory.laws import Bernoulli

p = sp.Symbol("p", positive=True)


def _updates(channel: Channel, packets: int, elements: int) -> Round:
    start_PE = torch.zeros(packets, elements, dtype=torch.float64)
    return SharingUpdates.in_process(start_PE, torch.zeros(packets, dtype=torch.int64), channel)


B10 = Claim(
    "B10",
    "Sharing updates instead of parameters: 2p(1-p) sum E|u_s|^2 between replicas, without bound",
    derive.updates,
    assumes=(
        "parameter packets are lost independently in time and between links, with probability p, independent of the "
        "past and of the step they carry",
        "common start: all copies equal at t = 0",
        "receivers add every update that arrives; a lost one is never repeated",
        "to the owner: steps independent of all masks (pairwise they may depend on past losses)",
    ),
    not_claimed=(
        "that sharing updates is worse from the start: it is above all that sharing parameters reaches (B2) only after "
        "1/((1-p)^2 (1+p)) steps; at high loss both replicas miss the same steps at first",
        "this package's protocol: nothing in it shares updates",
        "floating point",
    ),
    witness="constant steps at p = 1/2: t/2 after t steps, where sharing parameters stays below 4 (B5)",
)
HALF = plant("p(1-p)", contrast, "updates_pair", lambda p, S: p * (1 - p) * S)
NOT_BOTH = plant("2p", contrast, "updates_pair", lambda p, S: 2 * p * S)
NO_SUM = plant("owner without the sum", contrast, "updates_owner", lambda p, S, T: p * S)
EARLY = plant("overtakes early", contrast, "updates_overtake", lambda p: 1 / ((1 - p) * (1 + p)))
WORST_EARLY = plant("overtakes the worst case early", contrast, "updates_overtake_worst", lambda p: 1 / (1 - p) ** 2)
PARAMETERS = plant("shares parameters after all", SharingUpdates, "broadcast", Round.broadcast)

B10.derived(HALF, NOT_BOTH, NO_SUM, EARLY, WORST_EARLY)


@B10.rung(
    "certified",
    NOT_BOTH,
    NO_SUM,
    EARLY,
    WORST_EARLY,
    plant("bounded in S", contrast, "updates_pair", lambda p, S: 2 * p * (1 - p) * S / (1 + S)),
)
def _no_bound(run: Run) -> Evidence:
    S, T, u2, x = sp.symbols(
        "S T u2 x"
    )  # sum of |u_s|^2, |sum of u_s|^2, |u|^2 of one more step, its product with the sum
    pair, owner = contrast.updates_pair, contrast.updates_owner
    passes, passes_worst = contrast.updates_overtake(p), contrast.updates_overtake_worst(p)
    for what, expression in {
        "pair, t = 0": pair(p, 0),
        "pair, growth in a step": pair(p, S + u2) - pair(p, S) - 2 * p * (1 - p) * u2,
        "to the owner, t = 0": owner(p, 0, 0),
        "to the owner, growth in a step": owner(p, S + u2, T + 2 * x + u2) - owner(p, S, T) - p * (2 * p * x + u2),
        "to the owner, two losses": owner(p, 0, 1) - p**2,
        "to the owner, one loss": owner(p, 1, 1) - p,
        "passes B2": pair(p, passes) - drift.pair(p),
        "passes B5": pair(p, passes_worst) - correlated.pair_worst(p),
    }.items():
        require(certify.is_zero(expression), f"{what}: not zero for all p")
    slope = 2 * p * (1 - p)  # what a step adds: positive, so the drift is unbounded as the sum is
    require(certify.is_nonnegative(slope, (p,)) and not certify.is_zero(slope), "no certificate of growth")
    require(certify.is_nonnegative(passes_worst - passes, (p,)), "no certificate that B5 is passed after B2")
    return Evidence("grows by 2p(1-p) E|u|^2 in every step; passes B2 and B5 where claimed, for all p")


@B10.rung(
    "enumerated",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.INVERTED,
    mistakes.ONE_MASK_FOR_ALL,
    mistakes.BROADCAST_FIRST,
    PARAMETERS,
    HALF,
    NOT_BOTH,
    NO_SUM,
)
def _every_update(run: Run) -> Evidence:
    steps = run.pick(4, 5)
    arrived_BP = histories.links(steps)
    channel = histories.two_replicas(arrived_BP, steps)
    P = arrived_BP.shape[1]
    # Steps e_1, ..., e_T: the gaps show which were lost; both drifts of fixed steps are quadratic forms in them.
    # All are polynomials of degree <= 2 T.
    lost_PT, apart_PT = histories.gaps(play(_updates(channel, P, steps), histories.orthonormal(steps)))
    for k in range(steps):
        for l in range(k + 1):
            one = int(k == l)
            apart = expectation(apart_PT[:, k] * apart_PT[:, l], arrived_BP)
            lost = expectation(lost_PT[:, k] * lost_PT[:, l], arrived_BP)
            require_identical(f"pair, {k}, {l}", apart, lambda loss: contrast.updates_pair(loss, one), steps + 1)
            require_identical(f"owner, {k}, {l}", lost, lambda loss: contrast.updates_owner(loss, one, 1), steps + 1)
    # Steps that react to past losses: u = 1 + twice the gap so far.
    round_ = _updates(channel, P, 1)
    squares: list[Callable[[Fraction], Fraction]] = []
    for _ in range(steps):
        u_P1 = 1 + 2 * histories.gaps(round_)[1]
        squares.append(expectation(u_P1.squeeze(-1) ** 2, arrived_BP))
        play(round_, [u_P1])
    require_identical(
        "pair, steps that react to losses",
        expectation(histories.gaps(round_)[1].squeeze(-1) ** 2, arrived_BP),
        lambda loss: contrast.updates_pair(loss, sum((f(loss) for f in squares), Fraction(0))),
        steps + 2,
    )
    return Evidence(f"all masks over {steps} steps, every pair of steps and a closed loop, as polynomials in p")


@B10.rung(
    "sampled",
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.SAME_FOR_ALL_RECEIVERS,
    mistakes.SAME_FOR_ALL_STEPS,
    PARAMETERS,
    HALF,
    NOT_BOTH,
    NO_SUM,
)
def _many_updates(run: Run) -> Evidence:
    steps, loss, packets = 20, 0.5, run.pick(4_000, 20_000)
    step_TE = torch.cat([torch.ones(steps, 1), torch.eye(steps)], 1).double()  # constant, and orthonormal
    channel = SimulatedChannel(Arrivals(Bernoulli(loss), [0] * packets, 3, run.seed))
    lost, apart = histories.gaps(play(_updates(channel, packets, steps + 1), list(step_TE)))
    constant, white = apart[:, 0].square().numpy(), apart[:, 1:].square().sum(-1).numpy()
    claimed = contrast.updates_pair(loss, steps)
    require_mean("pair, constant steps", constant, claimed, 0, steps**2, ALPHA / 3)
    require_mean("pair, orthonormal steps", white, claimed, 0, steps, ALPHA / 3)
    claimed = contrast.updates_owner(loss, steps, steps**2)
    require_mean("owner, constant steps", lost[:, 0].square().numpy(), claimed, 0, steps**2, ALPHA / 3)
    return Evidence(
        f"{packets} pairs at p = {loss} after {steps} steps: {constant.mean():.3f} and {white.mean():.3f}; sharing "
        f"parameters stays below {correlated.pair_worst(loss):.3f} and {drift.pair(loss):.3f}",
        ALPHA,
    )


B10.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
