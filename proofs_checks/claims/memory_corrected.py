"""D6: inverse probability around the last message received.

Legend: N ranks, P packets = patterns or independent runs, E elements, T steps.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import sympy as sp
import torch

from lossproof.impl.channel import SimulatedChannel
from lossproof.impl.loss import Arrivals
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import descent, estimates, memory_rounds, mistakes
from lossproof.proofs_checks.instruments.patterns import Scripted, all_patterns
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import certify, memory_corrected, survivors
from lossproof.theory.derive import memory_corrected as derive
from lossproof.theory.laws import PerSender

p, s, rho = sp.symbols("p s rho", positive=True)
Half, Quarter, Third = Fraction(1, 2), Fraction(1, 4), Fraction(1, 3)
_change, _expected, _term, _follow, _slack, _steady, _remembered = (
    memory_corrected.change, memory_corrected.expected_change, memory_corrected.term, memory_corrected.follow,
    memory_corrected.slack, memory_corrected.steady, memory_rounds.remembered,
)  # fmt: skip

D6 = Claim(
    "D6",
    "Inverse probability around the last message: unbiased; it pays only where gradients change less than they are big",
    derive.around_the_last_message,
    assumes=(
        "(unbiased) a packet arrives with probability q_i > 0 given all that g and h depend on; q_i is known",
        "(spread) independent links",
        "(how much a gradient changes) losses independent over time and of the gradients, whose noise has mean 0, is "
        "independent between ranks and keeps the share rho of itself in a step",
        "(descent) rank i has the loss (x - c_i)^2/2, white noise, all ranks at the same x; steady state, equal losses "
        "and s = eta h below `stable_step`",
        "own link lossy like the others; a reliable one is a link with p_i = 0",
    ),
    not_claimed=(
        "bursts with stationary probabilities (D5): unbiased only with q_i(t) given the link's past",
        "that it trains better: no gain was seen on a LLaMA (paper_figures/memory_llama.py); `impl` has no such rule",
        "curvatures that differ between ranks, or ranks whose parameters are stale",
        "that the best shrink is known in practice: it needs the size of the mean and of the noise",
        "floating point",
    ),
    witness="two ranks, p = 1/2, noise of variance 1: the estimate's spread is 1 around the last message, and "
    "(1 + |mean|^2)/2 by plain inverse probability",
    advice="Add no memory to minibatch training. Inverse probability pays p/q times the size of a gradient, "
    "|mean|^2 + noise; with the memory p/q times twice the noise (less only if noise lasts from step to step), and "
    "owners keep N packets for every packet they own. It pays where a rank's mean gradient is larger than its noise; "
    "against the survivor mean, at small and equal loss, where the ranks' means differ by over (N-2)/N of the noise. "
    "That is full batches on unequal data: there it is the one rule whose error vanishes as the noise does, also under "
    "unequal loss, which leaves the survivor mean a bias at any step size. If in doubt remember beta h, beta the "
    "correlation of successive messages: never worse than no memory. Its stability limit is below 2 (`stable_step`).",
)

NOISE_ONCE = plant("noise paid once", memory_corrected, "change",
                   lambda v, rho, p, m2=0, t=None: _change(v / 2, rho, p, m2, t))  # fmt: skip
NO_LOSSES = plant("memory one step old", memory_corrected, "overlap", lambda rho, p: rho)
AGE_P = plant("age with p for q", memory_corrected, "overlap", lambda rho, p: p * rho / (1 - (1 - p) * rho))
PLAIN_SPREAD = plant("p for p/q", memory_corrected, "spread", lambda changes, losses: sum(
    x * p for x, p in zip(changes, losses, strict=True)) / len(losses) ** 2)  # fmt: skip
ONE_OVER_N = plant("1/N for 1/N^2", memory_corrected, "spread", lambda changes, losses: sum(
    x * p / (1 - p) for x, p in zip(changes, losses, strict=True)) / len(losses))  # fmt: skip
NO_START = plant("starts with a message", memory_corrected, "expected_change", lambda ago, size, p: _expected(
    ago, 0, p))  # fmt: skip
TERM_ONCE = plant("noise of what was remembered forgotten", memory_corrected, "term", lambda p, v, apart: _term(
    p, v, apart - v))  # fmt: skip
TERM_P = plant("p for p/q in a step", memory_corrected, "term", lambda p, v, apart: _term(p, v, apart * (1 - p)))
NO_OWN = plant("what arrives does not move what is remembered of it", memory_corrected, "follow",
               lambda now, losses, s, v: _follow(now, losses, s, v)._replace(xu=tuple(
                   (1 - s) * ((1 - p) * now.xx + p * a) for p, a in zip(losses, now.xu, strict=True))))  # fmt: skip
FIRST_ORDER = plant("steady state to first order", memory_corrected, "steady", lambda N, p, s, v: (
    s * v * (1 + p) / (2 * N * (1 - p)), *_steady(N, p, s, v)[1:]))  # fmt: skip
EVEN_AT_NOISE = plant("pays beyond the noise at any step", memory_corrected, "pays_beyond", lambda N, p, s: 1 + 0 * s)
OTHER_LIMIT = plant("stable up to 2", memory_corrected, "slack", lambda N, p, s: (2 - s) * (1 - p) * (
    N * (1 - p) + s * p * (N - 2)))  # fmt: skip
WHOLE = plant("the whole memory is best", memory_corrected, "shrink", lambda m2, v, rho, p: 1 + 0 * v)
NO_NOISE_SHRINK = plant("shrink without what noise lasts", memory_corrected, "shrink", lambda m2, v, rho, p: (
    m2 / (m2 + v) + 0 * rho))  # fmt: skip
WRONG_CROSSING = plant("crossing without the heterogeneity's own share", memory_corrected, "survivor_crossing",
                       lambda N, p, v=1, rho=0, inverse=None: memory_corrected.change(v, rho, p) - v)  # fmt: skip
PAYS = plant("pays above half the noise", memory_corrected, "pays_above", lambda v, rho, p: v * (
    1 - 2 * rho) / (1 - p * rho))  # fmt: skip

NEVER_REMEMBERS = plant("never remembers", memory_rounds, "remembered", lambda h, g, m: torch.zeros_like(h))
KEEPS_THE_FIRST = plant("keeps the first message", memory_rounds, "remembered", lambda h, g, m: torch.where(
    h == 0, _remembered(h, g, m), h))  # fmt: skip
REMEMBERS_THE_LOST = plant("remembers what was lost", memory_rounds, "remembered", lambda h, g, m: g.clone())
NEXT_SENDERS_MEMORY = plant("remembers under the next sender", memory_rounds, "remembered",
                            lambda h, g, m: _remembered(h, g, m).roll(1, 0))  # fmt: skip
_plain, _survivors = memory_corrected.plain, memory_corrected.survivor_mean
NO_DIFFERENCES = plant("plain inverse probability blind to what ranks differ by", memory_corrected, "plain",
                       lambda N, p, s, v, d2: _plain(N, p, s, v, 0 * d2))  # fmt: skip
SURVIVORS_BIASED = plant("d^2 for the ranks' own spread", memory_corrected, "survivor_mean",
                         lambda N, p, s, v, d2, inverse: _survivors(N, p, s, v, d2 * (N - 1) / N, inverse))  # fmt: skip
D6.derived(PLAIN_SPREAD, NOISE_ONCE, WHOLE, TERM_ONCE, AGE_P, NO_OWN, FIRST_ORDER, EVEN_AT_NOISE, PAYS,
           WRONG_CROSSING, OTHER_LIMIT, ONE_OVER_N, NO_LOSSES, NO_NOISE_SHRINK, TERM_P, NO_DIFFERENCES,
           SURVIVORS_BIASED)  # fmt: skip


# -- certified


@D6.rung("certified", PAYS, EVEN_AT_NOISE, OTHER_LIMIT, WHOLE, TERM_P, FIRST_ORDER, WRONG_CROSSING, NOISE_ONCE,
         NO_NOISE_SHRINK, AGE_P, NO_OWN, NO_START)  # fmt: skip
def _all_parameters(run: Run) -> Evidence:
    _when_it_pays()
    for N, loss, at in product(
        (2, 3, run.pick(5, 9)), (Fraction(1, 10), Half, Fraction(4, 5)), (Quarter, Half, Fraction(1))
    ):
        _floors(N, loss, at)
    N, q = sp.Symbol("N", positive=True), 1 - p
    slack = memory_corrected.slack(N, p, s)
    more = (memory_corrected.pays_beyond(N, p, s) - 1) * slack
    equal = (1 + p) * ((q + s * p) * (N * q * (2 - s) - s * p) - slack) - p * more
    require(certify.is_zero(equal), "not where the floors are equal")
    require(more.free_symbols == {p, s}, f"the ranks must differ by {more}/slack more than the noise")
    require(certify.is_nonnegative(more.subs(s, 2 * s), (p, s)), "no certificate for d^2 > v, 0 < s < 2")
    return Evidence(
        "no lower floor than plain inverse probability's at d^2 <= v, for any loss and stable step; the change is the "
        "size at rho = 1/(2 - p); floors, stability limit and shrinking at exact points, by elimination and Schur-Cohn"
    )


def _when_it_pays() -> None:
    one = sp.Integer(1)
    paid = memory_corrected.change(one, rho, p)
    require(certify.is_zero(memory_corrected.pays_above(one, 1 / (2 - p), p)), "rho = 1/(2 - p) is not where it pays")
    require(certify.is_nonnegative(-sp.diff(paid, rho), (p, rho)), "no certificate: less change for lasting noise")
    require(certify.is_nonnegative(sp.diff(paid, p), (p, rho)), "no certificate: more change for older messages")
    for loss in (Fraction(1, 10), Half):
        for t in range(4):
            ago = [2 * (1 - Third**k) for k in range(1, t + 1)]
            found = memory_corrected.expected_change(ago, Fraction(8), loss)
            claimed = memory_corrected.change(Fraction(1), Third, loss, Fraction(7), t)
            require(found == claimed, f"p = {loss}, t = {t}: a change of {claimed}, by the ages {found}")
            best = memory_corrected.shrink(Fraction(t), Fraction(1), Third, loss)
            least = memory_corrected.shrunk_change(Fraction(t), Fraction(1), Third, loss, best)
            for beta in (Fraction(i, 20) for i in range(21)):
                left = (t + 1) * (1 + beta**2) - 2 * beta * (t + 1 - _by_ages(Fraction(1), Third, loss) / 2)
                what = f"p = {loss}, |mean|^2 = {t}: shrunk by {beta}"
                require(left >= least and (left > least) == (beta != best), f"{what} {left}, by {best} {least}")
        for N in (2, 5):
            inverse = survivors.inverse_count(N, loss)
            apart = memory_corrected.survivor_crossing(N, loss, Fraction(3), Third)
            around = memory_corrected.spread([_by_ages(Fraction(3), Third, loss)] * N, [loss] * N)
            require(around == (apart + 3) * (inverse - Fraction(1, N)), f"N = {N}, p = {loss}: no crossing at {apart}")


def _by_ages(v: Fraction, kept: Fraction, loss: Fraction) -> Fraction:
    """sum_k q p^(k-1) 2v (1 - rho^k), two geometric series."""
    return 2 * v * (1 - loss) * (1 / (1 - loss) - kept / (1 - loss * kept))


def _floors(N: int, loss: Fraction, at: Fraction) -> None:
    """Equal losses, noise 1: the steady moments by elimination, and whether they are approached."""
    where = f"N = {N}, p = {loss}, s = {at}"

    def step(V: Any, A: Any, B: Any, v: Any) -> list[Fraction]:
        one = memory_corrected.Moments(V, (A,) * N, (B,) * N)
        then = memory_corrected.follow(one, (loss,) * N, at, v)
        return [Fraction(x) for x in (then.xx, then.xu[0], then.uu[0])]

    columns = [step(*unit, 0) for unit in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    M = [[columns[j][i] for j in range(3)] for i in range(3)]
    stable = _contracts(M)
    require(stable == (memory_corrected.slack(N, loss, at) > 0), f"{where}: stable is {stable}")
    if abs(at - memory_corrected.stable_step(N, loss)) > 1e-9:
        require(stable == (at < memory_corrected.stable_step(N, loss)), f"{where}: not the stable step")
    if not stable:
        return
    settled = descent.stationary(M, step(0, 0, 0, 1))
    claimed = list(memory_corrected.steady(N, loss, at, Fraction(1)))
    require(settled == claimed, f"{where}: settles at {settled}, claimed {claimed}")
    inverse = survivors.inverse_count(N, loss)
    d2 = memory_corrected.pays_beyond(N, loss, at)
    plain = at * (1 + loss * d2) / (N * (1 - loss) * (2 - at) - at * loss)
    require(plain == settled[0], f"{where}: at d^2 = {d2} the floor is {plain} without memory, {settled[0]} with it")
    d2 = memory_corrected.pays_beyond_survivors(N, loss, at)
    survivor_mean = at * (inverse + (inverse - Fraction(1, N)) * d2 * N / (N - 1)) / (2 - at)
    require(survivor_mean == settled[0], f"{where}: at d^2 = {d2} the survivor mean's is {survivor_mean}")


def _contracts(M: list[list[Fraction]]) -> bool:
    """Whether all eigenvalues lie within the unit circle: Schur-Cohn on the exact characteristic polynomial."""
    row = [Fraction(int(c.p), int(c.q)) for c in sp.Matrix(M).charpoly().all_coeffs()]
    while len(row) > 1:
        first, last = row[0], row[-1]
        if abs(last) >= abs(first):
            return False
        row = [first * a - last * b for a, b in zip(row[:-1], row[:0:-1], strict=True)]
    return True


# -- enumerated


@D6.rung(
    "enumerated",
    mistakes.DIVIDE_BY_N,
    NEVER_REMEMBERS,
    TERM_ONCE,
    mistakes.NEXT_SENDERS_PROBABILITY,
    REMEMBERS_THE_LOST,
    PLAIN_SPREAD,
    KEEPS_THE_FIRST,
    NO_OWN,
    mistakes.PROBABILITY_IGNORED,
    NEXT_SENDERS_MEMORY,
    mistakes.SELF_NORMALISED,
    NO_START,
    ONE_OVER_N,
    TERM_P,
    mistakes.IGNORE_LOSS,
)
def _every_pattern(run: Run) -> Evidence:
    limit, steps = run.pick((4, 4), (5, 5))
    for ranks in range(1, limit + 1):
        _one_step(ranks)
    for ranks, T in ((1, steps), (2, steps), (3, steps - 1)):
        _histories(ranks, T)
    for losses, T in (((Half,), steps), ((Half, Fraction(3, 4)), run.pick(2, 3))):
        _descents(losses, T)
    return Evidence(
        f"any memory and gradients, all patterns for N <= {limit} under unequal loss and dependent links; all "
        f"histories of {steps} steps; descent with every sign of the noise: through `aggregate`, the memory outside it"
    )


def _arrival(losses: Any, packets: int) -> torch.Tensor:
    return torch.tensor([[float(1 - x)] * packets for x in losses], dtype=torch.float64)


def _unequal(ranks: int) -> list[Fraction]:
    return [Half, Fraction(3, 4), Fraction(0), Fraction(7, 8), Half][:ranks]  # 1/q_i is exact in floats


def _one_step(ranks: int) -> None:
    """Any memory: the estimate is linear in g and h, so a basis of both shows its mean; two general vectors, spread."""
    arrived_NP, losses = all_patterns(ranks), _unequal(ranks)
    scale, E = 2 * ranks if ranks != 3 else 3, 2 * ranks + 1  # multiples of N: the mean of the memory is exact
    g_NE, h_NE = torch.zeros(ranks, E), torch.zeros(ranks, E)
    for i in range(ranks):
        g_NE[i, i] = h_NE[i, ranks + i] = scale
        g_NE[i, -1], h_NE[i, -1] = scale * (1 + i * i), scale * (3 - 2 * i)
    P = arrived_NP.shape[1]
    estimate_PE = memory_rounds.estimates(
        Scripted(ranks, arrived_NP[None]), estimates.payload(g_NE, P)[None], _arrival(losses, P),
        estimates.payload(h_NE, P),
    )[0]  # fmt: skip
    law = estimates.product_law(arrived_NP, losses)
    for e in range(E):
        gbar = Fraction(int(g_NE[:, e].sum()), ranks)
        found = estimates.mean(estimate_PE[:, e] * ranks, law) / ranks
        require(found == gbar, f"N = {ranks}, element {e}: mean {found}, gbar {gbar}")
        if ranks > 1 and not {losses[0], losses[1]} & {0, 1}:  # links 0 and 1 as dependent as may be: A4 within
            tilt = [w * (1 if a == b else -1) for w, a, b in zip(law, *arrived_NP[:2].tolist(), strict=True)]
            even = [w / (losses[0] if not a else 1 - losses[0]) / (losses[1] if not b else 1 - losses[1])
                    for w, a, b in zip(tilt, *arrived_NP[:2].tolist(), strict=True)]  # fmt: skip
            joint = [w + t * Fraction(1, 16) for w, t in zip(law, even, strict=True)]
            found = estimates.mean(estimate_PE[:, e] * ranks, joint) / ranks
            require(found == gbar, f"N = {ranks}, element {e}, dependent links: mean {found}, gbar {gbar}")
        changes = [Fraction(int(x)) ** 2 for x in (g_NE - h_NE)[:, e]]
        spread_P = (estimate_PE[:, e] * ranks - float(gbar * ranks)).square()
        spread, claimed = estimates.mean(spread_P, law) / ranks**2, memory_corrected.spread(changes, losses)
        require(spread == claimed, f"N = {ranks}, element {e}: spread {spread}, claimed {claimed}")


def _histories(ranks: int, steps: int) -> None:
    """Gradients that change from step to step, from an empty memory: means and spreads of every step's estimate."""
    losses, masks_TNP = _unequal(ranks), all_patterns(ranks * steps).view(steps, ranks, -1)
    P = masks_TNP.shape[2]
    scale = 2 * ranks if ranks != 3 else 3
    g_TN = torch.tensor([[scale * ((1 + i) * (2 + t * t) - 4 * t) for i in range(ranks)] for t in range(steps)])
    found_TP = memory_rounds.estimates(
        Scripted(ranks, masks_TNP), g_TN.double()[:, :, None, None].expand(-1, -1, P, 1), _arrival(losses, P)
    )[..., 0]
    law = estimates.product_law(masks_TNP.reshape(steps * ranks, P), losses * steps)
    for t in range(steps):
        gbar, now = Fraction(int(g_TN[t].sum()), ranks), [int(x) for x in g_TN[t]]
        mean = estimates.mean(found_TP[t] * ranks, law) / ranks
        require(mean == gbar, f"N = {ranks}, step {t}: mean {mean}, gbar {gbar}")
        spread = estimates.mean((found_TP[t] - float(gbar)).square() * ranks**2, law) / ranks**2
        changes = []
        for i, loss in enumerate(losses):
            ago = [Fraction(now[i] - int(g_TN[t - k, i])) ** 2 for k in range(1, t + 1)]
            changes.append(memory_corrected.expected_change(ago, Fraction(now[i]) ** 2, loss))
        claimed = memory_corrected.spread(changes, losses)
        require(spread == claimed, f"N = {ranks}, step {t}: spread {spread}, claimed {claimed}")


def _descents(losses: tuple[Fraction, ...], steps: int) -> None:
    """x_T^2 over all masks and signs of the noise, from x = 5, for ranks that differ."""
    N, noise, centres = len(losses), 2, [(-1) ** i * (len(losses) - 1) for i in range(len(losses))]
    bits = all_patterns(2 * N * steps).view(2, steps, N, -1)
    law = estimates.product_law(bits.reshape(2 * steps * N, -1), [*list(losses) * steps, *[Half] * (N * steps)])
    found_P = memory_rounds.squares(
        Scripted(N, bits[0]), 5.0, [float(c) for c in centres], (2.0 * bits[1] - 1) * noise, float(Quarter),
        _arrival(losses, bits.shape[-1]),
    )  # fmt: skip
    start = [Fraction(c) for c in centres]  # h = 0, and the gradient at the optimum is -c_i
    now = memory_corrected.Moments(Fraction(25), tuple(5 * c for c in start), tuple(c * c for c in start))
    for _ in range(steps):
        now = memory_corrected.follow(now, losses, Quarter, Fraction(noise) ** 2)
    found = estimates.mean(found_P, law)
    require(found == now.xx, f"losses {losses}, {steps} steps: E x^2 = {found}, by the recursion {now.xx}")


# -- sampled


@D6.rung(
    "sampled",
    mistakes.DIVIDE_BY_N,
    NEVER_REMEMBERS,
    mistakes.SAME_FOR_ALL_SENDERS,
    NOISE_ONCE,
    NEXT_SENDERS_MEMORY,
    mistakes.WORDS_OF_31_BITS,
    ONE_OVER_N,
)
def _many_ranks(run: Run) -> Evidence:
    ranks, steps, packets, losses = 16, 3, run.pick(3_000, 60_000), (Half, Fraction(1, 10)) * 8
    mean_N1 = torch.tensor([[float(i % 4)] for i in range(ranks)], dtype=torch.float64)
    drawn = torch.Generator().manual_seed((run.seed + 6) % 2**63)
    sign_TNP = 2.0 * torch.randint(2, (steps, ranks, packets), generator=drawn).double() - 1
    channel = SimulatedChannel(Arrivals(PerSender(losses), [0] * packets, ranks, run.seed, "lossy"))
    g_TNP = mean_N1 + sign_TNP
    found_P = memory_rounds.estimates(channel, g_TNP[..., None], _arrival(losses, packets))[-1, :, 0]
    off_P = (found_P - g_TNP[-1].mean(0)).numpy()
    price = [float(x / (1 - x)) for x in losses]  # |1/q - 1| or 1, times the largest change of each rank
    high = sum(max(1.0, r) * max(2.0, m + 1) for r, m in zip(price, mean_N1[:, 0].tolist(), strict=True)) / ranks
    require_mean("bias", off_P, 0.0, -high, high, ALPHA / 2)
    changes = [memory_corrected.change(1.0, 0.0, float(x), m * m, steps - 1)
               for x, m in zip(losses, mean_N1[:, 0].tolist(), strict=True)]  # fmt: skip
    claimed = memory_corrected.spread(changes, [float(x) for x in losses])
    require_mean("spread", off_P**2, claimed, 0, high**2, ALPHA / 2)
    sizes = [1 + m * m for m in mean_N1[:, 0].tolist()]
    plain = memory_corrected.spread(sizes, [float(x) for x in losses])
    return Evidence(
        f"N = {ranks}, losses 1/2 and 1/10, {packets} packets in step {steps}: spread {(off_P**2).mean():.4f} of "
        f"{claimed:.4f}; without memory {plain:.4f}",
        ALPHA,
    )


D6.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
