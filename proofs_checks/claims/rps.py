"""B11: RPS, averaging of models: a round whose gradients are the models and whose update replaces the parameters.

Legend: N ranks, H hosted (all of them), P packets, E elements of a packet, B links.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product
from math import lcm
from typing import Any

import sympy as sp
import torch

from lossproof.impl.channel import Channel, SimulatedChannel
from lossproof.impl.loss import Arrivals
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import mistakes
from lossproof.proofs_checks.instruments.other_rounds import Averaging
from lossproof.proofs_checks.instruments.patterns import Scripted, all_patterns, expectation, require_identical
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import aggregation, certify, rps
from lossproof.theory.derive import rps as derive
from lossproof.theory.laws import Bernoulli

p, r = sp.symbols("p p_p", positive=True)
N = sp.Symbol("N", integer=True, positive=True)
X, W, s, z, w2 = sp.symbols("X W s z w2")
POWERS = {p**N: X}
RIGHT = {name: getattr(rps, name) for name in ("spread", "shift", "among_others", "owner_to_others", "contraction")}


def _mix(channel: Channel, owner_P: torch.Tensor, models_NPE: torch.Tensor, round_number: int = 0) -> torch.Tensor:
    """One round of RPS: models in, models out."""
    round_ = Averaging.in_process(torch.zeros_like(models_NPE[0]), owner_P, channel)
    round_.step_number = round_number
    return round_.average(models_NPE)


def _every_pattern(ranks: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every owner and loss pattern: owner_P, the masks (N, P) of both phases (True for the owner), the bits (B, P)."""
    others, patterns = ranks - 1, 4 ** (ranks - 1)
    owner_P = torch.arange(ranks).repeat_interleave(patterns)
    bits_BP = all_patterns(2 * others).repeat(1, ranks)
    masks = torch.ones(2, ranks, ranks * patterns, dtype=torch.bool)
    for owner in range(ranks):
        rows = torch.arange(ranks) != owner
        at = owner_P == owner
        masks[:, rows.nonzero(), at] = bits_BP[:, at].view(2, others, -1)
    return owner_P, masks[0], masks[1], bits_BP


class Matrices:
    """E[WW'] and E[WAW'] of one round from all patterns, for each owner: polynomials in p_g and p_p, exact."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self._scale = ranks, lcm(*range(1, ranks + 1))
        owner_P, up_NP, down_NP, _ = _every_pattern(ranks)
        P = len(owner_P)
        basis_NPE = self._scale * torch.eye(ranks, dtype=torch.float64)[:, None].expand(ranks, P, ranks).contiguous()
        W_Pmk = _mix(Scripted(ranks, up_NP[None], down_NP[None]), owner_P, basis_NPE).permute(1, 2, 0)
        rows_Pm = W_Pmk.sum(2)
        self._tables = {}
        for name, product_Pmm in (("WW'", W_Pmk @ W_Pmk.mT), ("WAW'", rows_Pm[:, :, None] * rows_Pm[:, None])):
            lost = torch.zeros(
                ranks, ranks, ranks, ranks, ranks, dtype=torch.float64
            )  # owner, lost up, lost down, m, m
            lost.index_put_((owner_P, (~up_NP).sum(0), (~down_NP).sum(0)), product_Pmm, accumulate=True)
            self._tables[name] = lost

    def symmetric(self, name: str) -> bool:
        """Whether the sum over owners has one value on its diagonal and one off it, whatever p_g and p_p."""
        table = self._tables[name].sum(0)
        diagonal = table.diagonal(dim1=-2, dim2=-1)
        off = table[..., ~torch.eye(self.ranks, dtype=torch.bool)]
        return bool((diagonal == diagonal[..., :1]).all() and (off == off[..., :1]).all())

    def entry(self, name: str, i: int, j: int, p_g: Fraction, p_p: Fraction, owner: int | None = None) -> Fraction:
        """An entry of the expectation; owner = None averages over all owners."""
        table = self._tables[name]
        coefficients = (table[:, :, :, i, j].sum(0) if owner is None else table[owner, :, :, i, j]).tolist()
        links, total = self.ranks - 1, Fraction(0)
        for up, down in product(range(self.ranks), repeat=2):
            chance = p_g**up * (1 - p_g) ** (links - up) * p_p**down * (1 - p_p) ** (links - down)
            total += Fraction(coefficients[up][down]) * chance
        scale = self._scale**2 * (self.ranks if owner is None else 1) * (self.ranks if name == "WAW'" else 1)
        return total / scale

    def contraction(self, i: int, j: int, p_g: Fraction, p_p: Fraction, owner: int) -> Fraction:
        """An entry of E[W(I-A)W'] for a fixed owner."""
        return self.entry("WW'", i, j, p_g, p_p, owner) - self.entry("WAW'", i, j, p_g, p_p, owner)


def _grid(ranks: int) -> list[tuple[Fraction, Fraction]]:
    """Both sides are polynomials of degree <= max(N - 1, 2) in p_g and in p_p: N + 1 values of each are all."""
    values = [Fraction(k, ranks + 2) for k in range(1, ranks + 2)]
    return list(product(values, values))


def _distance(models_NPE: torch.Tensor) -> torch.Tensor:
    """sum over ranks of |x_k - mean|^2, (P,)."""
    return (models_NPE - models_NPE.mean(0)).square().sum((0, 2))


def _plus(name: str, extra: Callable[..., Any]) -> Callable[..., Any]:
    """A closed form with something added."""
    return lambda N, p_g, p_p, *rest: RIGHT[name](N, p_g, p_p, *rest) + extra(N, p_g, p_p)


B11 = Claim(
    "B11",
    "RPS: E[WW'] = a1 I + (1-a1) A and E[WAW'] = a2 I + (1-a2) A; distance to consensus contracts by a1 - a2 per round",
    derive.round_,
    assumes=(
        "all links lose independently, models on their way to the owner with p_g, averages on their way back with p_p",
        "a rank's packet to itself always arrives",
        "the owner of the block is uniformly random in every round, N >= 2; or, for the second part, fixed, N >= 3",
    ),
    not_claimed=(
        "local steps between the rounds",
        "one contraction for a fixed owner: it depends on the direction, so N blocks with a fixed owner each contract "
        "by a1 - a2 together only while they are alike up to the numbering of ranks",
        "floating point",
    ),
    witness="p_g = p_p = 1/2, N = 3: a1 - a2 = 3/8; a fixed owner: 43/96 among the others, 29/96 owner against others",
)
B11.derived(
    plant(
        "a1 of N receivers", rps, "spread", lambda N, p_g, p_p: 1 - N * (1 - aggregation.owner_weight(N, p_g)) / (N - 1)
    ),
    plant("a2 of W1 = 1", rps, "shift", lambda N, p_g, p_p: 0 * N),
    plant(
        "a1 + a2", rps, "contraction", lambda N, p_g, p_p: RIGHT["spread"](N, p_g, p_p) + RIGHT["shift"](N, p_g, p_p)
    ),
    plant("E[M]^2 for E[M^2]", rps, "received_square", lambda N, p_p: rps.received(N, p_p) ** 2),
    plant(
        "one contraction for all", rps, "among_others", lambda N, p_g, p_p, w2=None: RIGHT["contraction"](N, p_g, p_p)
    ),
)


@B11.rung(
    "certified",
    plant(
        "a1 of N receivers", rps, "spread", lambda N, p_g, p_p: 1 - N * (1 - aggregation.owner_weight(N, p_g)) / (N - 1)
    ),
    plant("a2 too large", rps, "shift", _plus("shift", lambda N, p_g, p_p: p_p / N)),
    plant(
        "a1 + a2", rps, "contraction", lambda N, p_g, p_p: RIGHT["spread"](N, p_g, p_p) + RIGHT["shift"](N, p_g, p_p)
    ),
    plant("E[M]^2 for E[M^2]", rps, "received_square", lambda N, p_p: rps.received(N, p_p) ** 2),
    plant("E[1/S]^2 for E[1/S^2]", rps, "inverse_square", lambda N, p_g: aggregation.owner_weight(N, p_g) ** 2),
    plant(
        "one contraction for all", rps, "among_others", lambda N, p_g, p_p, w2=None: RIGHT["contraction"](N, p_g, p_p)
    ),
)
def _all_ranks(run: Run) -> Evidence:
    w, M, M2 = aggregation.owner_weight(N, p), rps.received(N, r), rps.received_square(N, r)
    require(
        certify.is_zero(rps.received(1, r) - 1) and certify.is_zero(rps.received_square(1, r) - 1), "N = 1: M is not 1"
    )
    require(certify.is_zero(rps.received(N + 1, r) - M - (1 - r)), "one more rank does not add 1 - p_p receivers")
    require(
        certify.is_zero(rps.received_square(N + 1, r) - M2 - (1 - r) * (2 * M + 1)), "E[M^2]: not the induction on N"
    )
    trace = w + (N - 1) * (r + (1 - r) * w)
    require(certify.is_zero(1 + (N - 1) * rps.spread(N, p, r) - trace, POWERS), "a1 is not that of the trace of WW'")
    trace = M2 * w + 2 * (1 - w) * r * rps.received(N - 1, r) + N - M
    require(certify.is_zero(N * (1 + (N - 1) * rps.shift(N, p, r)) - trace, POWERS), "a2 is not that of |W1|^2")
    # E[1/S] lies in [1/N, 1]: N E[1/S] = 1 + p + ... + p^(N-1). Everything is linear in it: W = 1/N + (1 - 1/N) z.

    def all_p(expression: Any) -> Any:
        named = sp.cancel(sp.together(sp.sympify(expression).subs(p**N, 1 - N * (1 - p) * W)))
        return sp.cancel(named.subs(W, 1 / N + (1 - 1 / N) * z).subs(N, 2 + s / (1 - s)))

    a1, a2 = rps.spread(N, p, r), rps.shift(N, p, r)
    require(certify.is_zero(a1 - a2 - rps.contraction(N, p, r), POWERS), "the contraction is not a1 - a2")
    for bound in (a2, a1 - a2, 1 - a1):
        require(certify.is_nonnegative(all_p(bound), (r, z, s)), "no certificate for 0 <= a2 <= a1 <= 1")
    for ranks in range(2, run.pick(5, 9) + 1):
        series = sum(
            sp.binomial(ranks - 1, k) * (1 - p) ** k * p ** (ranks - 1 - k) / sp.Integer(k + 1) ** 2
            for k in range(ranks)
        )
        require(certify.is_zero(series - rps.inverse_square(ranks, p)), f"N = {ranks}: not the binomial sum of 1/S^2")
    # A fixed owner, y = e_i - e_j, W for E[1/S]: b - c = E[s_i/S^2] - E[s_i s_j/S^2].
    apart = (W - w2) / (N - 1) - (1 - 3 * W + 2 * w2) / ((N - 1) * (N - 2))
    among = (M * apart + r) - (M2 * apart + r * (1 - r)) / N
    claimed = rps.among_others(N, p, r, w2).subs(p**N, 1 - N * (1 - p) * W)
    require(certify.is_zero(sp.together(claimed) - sp.together(among)), "not the contraction among the others")
    both = (N - 2) * rps.among_others(N, p, r, w2) + rps.owner_to_others(N, p, r, w2)
    require(
        certify.is_zero(both - (N - 1) * rps.contraction(N, p, r), POWERS), "the contractions do not sum to the trace"
    )
    for ranks in range(3, run.pick(4, 8) + 1):
        apart = rps.among_others(ranks, p, r) - rps.owner_to_others(ranks, p, r)
        require(not certify.is_zero(apart), f"N = {ranks}: a fixed owner contracts all directions alike")
    return Evidence(
        "a1 and a2 for all N, p_g, p_p, with 0 <= a2 <= a1 <= 1; a fixed owner's two contractions, which differ"
    )


@B11.rung(
    "enumerated",
    mistakes.DIVIDE_BY_N,
    mistakes.IGNORE_LOSS,
    mistakes.NEXT_SENDERS_MASK,
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.INVERTED,
    plant("a2 too large", rps, "shift", _plus("shift", lambda N, p_g, p_p: p_p * (1 - p_p) / N)),
    plant("E[M]^2 for E[M^2]", rps, "received_square", lambda N, p_p: rps.received(N, p_p) ** 2),
    plant("E[1/S]^2 for E[1/S^2]", rps, "inverse_square", lambda N, p_g: aggregation.owner_weight(N, p_g) ** 2),
    plant(
        "one contraction for all",
        rps,
        "owner_to_others",
        lambda N, p_g, p_p, w2=None: RIGHT["contraction"](N, p_g, p_p),
    ),
)
def _every_matrix(run: Run) -> Evidence:
    largest = run.pick(4, 5)
    for ranks in range(2, largest + 1):
        matrices = Matrices(ranks)
        for name, form in (("WW'", rps.spread), ("WAW'", rps.shift)):
            require(matrices.symmetric(name), f"N = {ranks}: E[{name}] is not of the form a I + b A")
            for p_g, p_p in _grid(ranks):
                a = form(ranks, p_g, p_p)
                for j, claimed in ((0, a + (1 - a) / ranks), (1, (1 - a) / ranks)):
                    entry = matrices.entry(name, 0, j, p_g, p_p)
                    require(
                        entry == claimed,
                        f"N = {ranks}, p_g = {p_g}, p_p = {p_p}: E[{name}]_0{j} = {entry}, claimed {claimed}",
                    )
    for ranks in range(2, largest):
        matrices = Matrices(ranks)
        # The directions of a fixed owner, rank 0: owner against others, and differences among the others.
        directions = [([ranks - 1] + [-1] * (ranks - 1), rps.owner_to_others)]
        directions += [([0, 1, -1] + [0] * (ranks - 3), rps.among_others)] if ranks > 2 else []
        for (p_g, p_p), (y, form) in product(_grid(ranks), directions):
            for i in range(ranks):
                image = sum(matrices.contraction(i, j, p_g, p_p, owner=0) * y[j] for j in range(ranks) if y[j])
                require(
                    image == form(ranks, p_g, p_p) * y[i],
                    f"N = {ranks}, owner 0, p_g = {p_g}, p_p = {p_p}: {y} contracts otherwise",
                )
    ranks = 3
    owner_P, up_NP, down_NP, bits_BP = _every_pattern(ranks)
    first, second = (
        grid.flatten() for grid in torch.meshgrid(torch.arange(len(owner_P)), torch.arange(len(owner_P)), indexing="ij")
    )
    models = (lcm(*range(1, ranks + 1)) ** 2 * torch.eye(ranks, dtype=torch.float64))[:, None].expand(
        ranks, len(first), ranks
    )
    start = _distance(models)[0]
    for at in (first, second):
        models = _mix(Scripted(ranks, up_NP[None, :, at], down_NP[None, :, at]), owner_P[at], models.contiguous())
    after = expectation(_distance(ranks * models), torch.cat([bits_BP[:, first], bits_BP[:, second]]))  # whole numbers
    require_identical("N = 3, two rounds", lambda loss: after(loss) / ranks**4 / Fraction(start.item()),
                      lambda loss: rps.contraction(ranks, loss, loss) ** 2, 6)  # fmt: skip
    return Evidence(
        f"all owners and loss patterns for N <= {largest}, as polynomials in p_g and p_p; two rounds at N = 3; a fixed "
        f"owner's directions for N < {largest}"
    )


@B11.rung(
    "sampled",
    mistakes.DIVIDE_BY_N,
    mistakes.IGNORE_LOSS,
    mistakes.ZERO_FOR_STALE,
    mistakes.ALWAYS_FRESH,
    mistakes.own_link("lossy"),
    plant("contracts by a1", rps, "contraction", lambda N, p_g, p_p: RIGHT["spread"](N, p_g, p_p)),
    plant(
        "one contraction for all", rps, "among_others", lambda N, p_g, p_p, w2=None: RIGHT["contraction"](N, p_g, p_p)
    ),
)
def _many_blocks(run: Run) -> Evidence:
    ranks, loss, blocks, rounds = 8, 0.5, run.pick(8_000, 40_000), 2
    draw = torch.Generator().manual_seed(run.seed % 2**63)
    models = torch.linspace(0, 1, ranks, dtype=torch.float64)[:, None, None].expand(ranks, blocks, 1).contiguous()
    start = float(_distance(models)[0])
    for number in range(rounds):
        owner_P = torch.randint(ranks, (blocks,), generator=draw)
        models = _mix(SimulatedChannel(Arrivals(Bernoulli(loss), owner_P, ranks, run.seed)), owner_P, models, number)
    left = _distance(models).numpy()
    high = ranks / 4 * (1 + 1e-9)  # of N numbers in [0, 1]
    claimed = rps.contraction(ranks, loss, loss) ** rounds * start
    require_mean("distance to consensus, random owner", left, claimed, 0, high, ALPHA / 3)
    for what, values, form in (
        ("owner against others", [1.0] + [0.0] * (ranks - 1), rps.owner_to_others),
        ("among the others", [0.5, 1.0, 0.0] + [0.5] * (ranks - 3), rps.among_others),
    ):
        owner_P = torch.zeros(blocks, dtype=torch.long)
        models = torch.tensor(values, dtype=torch.float64)[:, None, None].expand(ranks, blocks, 1).contiguous()
        claimed = form(ranks, loss, loss) * float(_distance(models)[0])
        models = _mix(SimulatedChannel(Arrivals(Bernoulli(loss), owner_P, ranks, run.seed)), owner_P, models, rounds)
        require_mean(f"fixed owner, {what}", _distance(models).numpy(), claimed, 0, high, ALPHA / 3)
    return Evidence(
        f"{blocks} blocks at N = {ranks}, p = {loss}: {left.mean() / start:.3f} of the distance left, {rounds} rounds",
        ALPHA,
    )


B11.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
