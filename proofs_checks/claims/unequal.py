"""A4 and A6: what unequal links do to the mean, and inverse probability, which does not mind.

Legend: N ranks, P packets = patterns, E elements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations, product
from typing import Any

import numpy as np
import sympy as sp
import torch

from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import estimates, mistakes, unequal_checks
from lossproof.proofs_checks.instruments.patterns import Scripted, all_patterns
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import aggregation, certify, survivors, unequal
from lossproof.theory.aggregation import divide
from lossproof.theory.derive import survivors as derive
from lossproof.theory.laws import Draw, Mask, Memory, PerSender

Half, Quarter, Eighth = Fraction(1, 2), Fraction(1, 4), Fraction(1, 8)
FLOATS = "floating point: the sums are exact here, rounded to nearest in training"


def _symbols(name: str, count: int) -> list[sp.Symbol]:
    return [sp.Symbol(f"{name}{i}", positive=True) for i in range(count)]


A4 = Claim(
    "A4",
    "Inverse probability is unbiased under any dependence between links",
    derive.inverse_probability,
    assumes=(
        "q_i > 0 is the probability that sender i's packet arrives, given all that the gradients depend on",
        "the links may depend on each other in any way",
    ),
    not_claimed=(
        "the same with the stationary marginal where gradients depend on past losses: that is biased (enumerated here)",
        "a smaller error than the survivor mean (A5)",
        FLOATS,
    ),
    witness="two links that always lose together, q = (1/2, 1/2)",
)
WRONG_INVERSE = (
    plant("without 1/N", survivors, "inverse_probability", lambda g, q, a=None: sum(
        divide(x * y, z) for x, y, z in zip(g, q, a or q, strict=True))),
    plant("probabilities squared", survivors, "inverse_probability", lambda g, q, a=None: divide(sum(
        divide(x * y, z**2) for x, y, z in zip(g, q, a or q, strict=True)), len(g))),
    plant("probabilities ignored", survivors, "inverse_probability", lambda g, q, a=None: divide(sum(
        x * y for x, y in zip(g, q, strict=True)), len(g))),
    plant("always gbar", survivors, "inverse_probability", lambda g, q, a=None: divide(sum(g), len(g))),
)  # fmt: skip
A4.derived(*WRONG_INVERSE)


@A4.rung("certified", *WRONG_INVERSE)
def _all_joint_laws(run: Run) -> Evidence:
    # A joint law with marginals q is the product law mu times 1 + sum of a_S prod_(j in S) (m_j - q_j) over |S| >= 2:
    # these functions are a basis, orthogonal under mu, and those of single links would move a marginal. E m_i ignores
    # them all, as some other link j of S contributes the factor E[m_j - q_j] = 0, for all N and S:
    q = sp.Symbol("q", positive=True)
    other = q * (1 - q) + (1 - q) * (0 - q)
    own = q * 1 * (1 - q) + (1 - q) * 0 * (0 - q)
    require(certify.is_zero(other) and not certify.is_zero(own), "a link's deviation from its marginal has a mean")
    limit = run.pick(3, 4)
    for ranks in range(1, limit + 1):
        g, arrival, assumed = (_symbols(name, ranks) for name in "gqa")
        total = sp.Integer(0)
        for pattern in product((0, 1), repeat=ranks):
            weight = sp.prod([q if arrived else 1 - q for q, arrived in zip(arrival, pattern, strict=True)])
            total += weight * sum(arrived * x / a for x, arrived, a in zip(g, pattern, assumed, strict=True)) / ranks
        require(
            certify.is_zero(sp.expand(total) - survivors.inverse_probability(g, arrival, assumed)),
            f"N = {ranks}: not the sum over patterns",
        )
        gbar = aggregation.survivor_mean(g)
        require(certify.is_zero(survivors.inverse_probability(g, arrival) - gbar), f"N = {ranks}: biased")
    return Evidence(f"for all q and g at N <= {limit}; dependence drops out for all N")


@A4.rung(
    "enumerated",
    mistakes.DIVIDE_BY_N,
    mistakes.NEXT_SENDERS_PROBABILITY,
    mistakes.PROBABILITY_IGNORED,
    mistakes.SELF_NORMALISED,
    mistakes.SURVIVORS_FOR_INVERSE,
    mistakes.NEXT_SENDERS_MASK,
    mistakes.NOT_ZEROED,
    *WRONG_INVERSE,
)
def _every_joint_law(run: Run) -> Evidence:
    limit = run.pick(4, 6)
    for ranks in range(1, limit + 1):
        arrived_NP = all_patterns(ranks)
        assumed = [Half, Quarter, Fraction(1), Eighth, Half, Quarter][:ranks]  # powers of two: 1/q is exact
        columns = estimates.basis(ranks)
        estimate_PE = estimates.of_patterns(
            arrived_NP,
            columns,
            rule="inverse_probability",
            arrival_probability_NQ=torch.tensor([float(a) for a in assumed]),
        )
        true = [Fraction(2 + i, 5 + 2 * i) for i in range(ranks)]
        for element, g in enumerate(columns.T.tolist()):
            values = estimate_PE[:, element]
            mean = estimates.mean(values, estimates.product_law(arrived_NP, [1 - q for q in true]))
            claimed = survivors.inverse_probability(g, true, assumed)
            require(
                mean == claimed, f"N = {ranks}, g = {g}, q = {true}, assumed {assumed}: mean {mean}, claimed {claimed}"
            )
        independent = estimates.product_law(arrived_NP, [1 - q for q in assumed])
        for size in (0, *range(2, ranks + 1)):  # all joint laws with these marginals, see the certified rung
            for S in combinations(range(ranks), size):
                law = [
                    weight * _product((arrived_NP[i, j].item() - assumed[i]) for i in S)
                    for j, weight in enumerate(independent)
                ]
                for element, g in enumerate(columns.T.tolist()):
                    mean = estimates.mean(estimate_PE[:, element], law)
                    claimed = 0 if S else survivors.inverse_probability(g, assumed)
                    require(mean == claimed, f"N = {ranks}, g = {g}, dependence {S}: {mean}, claimed {claimed}")
    bias = _memory()
    return Evidence(
        f"all joint laws with given marginals for N <= {limit}; links with memory: 0, and bias {bias} by the marginal"
    )


def _product(factors: Any) -> Fraction:
    result = Fraction(1)
    for factor in factors:
        result *= factor
    return result


def _memory() -> Fraction:
    """Two links in a common state (1 good: q = 1/2; 0 bad: 1/8), which the gradients depend on through past losses."""
    bits = all_patterns(3)  # state, arrival of sender 0, of sender 1
    state_P, arrived_NP = bits[0], bits[1:]
    chance = {True: Fraction(1, 3), False: Fraction(2, 3)}
    q = {True: Half, False: Eighth}
    marginal = sum(chance[s] * q[s] for s in chance)  # 1/4
    gradients = {True: [2, 6], False: [10, 4]}
    payload_NPE = torch.tensor([gradients[bool(s)] for s in state_P]).double().T[..., None].contiguous()
    law = [chance[bool(s)] * w for s, w in zip(state_P, _given(arrived_NP, state_P, q), strict=True)]
    found = []
    for assumed in (q, {True: marginal, False: marginal}):
        probability_NP = torch.tensor([[float(assumed[bool(s)]) for s in state_P]] * 2)
        estimate_PE, _ = estimates.estimate(
            Scripted(2, arrived_NP[None]), payload_NPE, rule="inverse_probability",
            arrival_probability_NQ=probability_NP,
        )  # fmt: skip
        bias = estimates.mean(estimate_PE[:, 0] - payload_NPE.mean(0)[:, 0], law)
        claimed = sum(
            chance[s] * (survivors.inverse_probability(g, [q[s]] * 2, [assumed[s]] * 2) - Fraction(sum(g), 2))
            for s, g in gradients.items()
        )  # fmt: skip
        require(bias == claimed, f"links with memory, probabilities {assumed}: bias {bias}, claimed {claimed}")
        found.append(bias)
    require(found[0] == 0, f"the conditional marginal is biased by {found[0]}")
    require(found[1] != 0, "the stationary marginal is not biased: no control")
    return found[1]


def _given(arrived_NP: torch.Tensor, state_P: torch.Tensor, q: dict[bool, Fraction]) -> list[Fraction]:
    return [
        _product(q[bool(s)] if arrived else 1 - q[bool(s)] for arrived in column)
        for column, s in zip(arrived_NP.T.tolist(), state_P, strict=True)
    ]


@dataclass(frozen=True)
class OneWord:
    """Unequal losses by one word: where a sender loses, all of higher loss do too. As dependent as links can be."""

    losses: tuple[Fraction, ...]

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        return self.losses[src]

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return self.losses[src] ** k

    def sample(self, draw: Draw, memory: Memory) -> tuple[Mask, Memory]:
        words = draw.words()
        return np.broadcast_to(words[:1], words.shape) < np.array([float(p) for p in self.losses])[
            draw.src
        ] * 2**32, memory


@A4.rung(
    "sampled",
    mistakes.DIVIDE_BY_N,
    mistakes.NEXT_SENDERS_PROBABILITY,
    mistakes.SELF_NORMALISED,
    mistakes.SURVIVORS_FOR_INVERSE,
    mistakes.WORDS_OF_31_BITS,
    mistakes.own_link("reliable"),
    WRONG_INVERSE[0],
)
def _dependent_links(run: Run) -> Evidence:
    ranks, packets = 24, run.pick(8_000, 80_000)
    losses = tuple(Fraction(3 + i % 4 * 4, 20) for i in range(ranks))  # 0.15, 0.35, 0.55, 0.75
    arrival = [float(1 - p) for p in losses]
    gradients = [1.0, *[0.0] * (ranks - 2), 1.0]
    high = sum(g / q for g, q in zip(gradients, arrival, strict=True)) / ranks
    for name, law in (("independent", PerSender(losses)), ("one word for all", OneWord(losses))):
        estimate_PE, _ = estimates.of_law(
            law, ranks, packets, run.seed, torch.tensor(gradients)[:, None],
            rule="inverse_probability", arrival_probability_NQ=torch.tensor(arrival, dtype=torch.float64),
        )  # fmt: skip
        claimed = survivors.inverse_probability(gradients, arrival)
        require_mean(f"{name}: E[estimate]", estimate_PE[:, 0], claimed, 0, high * (1 + 1e-12), ALPHA / 2)
    return Evidence(f"N = {ranks}, four losses, independent and fully dependent links, {packets} packets each", ALPHA)


A6 = Claim(
    "A6",
    "Unequal links bias the survivor mean towards the senders that lose less",
    derive.weights,
    assumes=(
        "independent links, sender i loses with probability p_i",
        "own link lossy like the others, or p_owner = 0 (A3)",
    ),
    not_claimed=(
        "dependent unequal links",
        "the probabilities p_i in practice: measure them; A4 then removes the bias",
        FLOATS,
    ),
    witness="two senders, p = (0, 1/2): weights 3/4 and 1/4",
)


def _weights(integral: Any, of_q: Any = lambda q: q) -> Any:
    def weights(losses: Any) -> list[Any]:
        others = [survivors.counts([*losses[:i], *losses[i + 1 :]]) for i in range(len(losses))]
        return [of_q(1 - p) * integral(law) for p, law in zip(losses, others, strict=True)]

    return weights


_counts, _unequal_bias = survivors.counts, survivors.unequal_bias
WRONG_WEIGHTS = (
    plant("without q_i", survivors, "weights",
          _weights(lambda law: sum(divide(c, k + 1) for k, c in enumerate(law)), lambda q: 1)),
    plant("divided by K, not 1 + K of the others", survivors, "weights",
          _weights(lambda law: sum(divide(c, k or 1) for k, c in enumerate(law)))),
    plant("weights q_i / N", survivors, "weights", lambda losses: [divide(1 - p, len(losses)) for p in losses]),
    plant("losses for arrivals", survivors, "counts", lambda losses: _counts([1 - p for p in losses])),
)  # fmt: skip
WRONG_BIAS = (
    plant("bias of the other sign", survivors, "unequal_bias", lambda g, p: -_unequal_bias(g, p)),
    plant("bias not given a survivor", survivors, "unequal_bias", lambda g, p: sum(
        (w - divide(1, len(p))) * x for w, x in zip(survivors.weights(p), g, strict=True))),
)  # fmt: skip
_quadrature = unequal.sender_weights


def _all_fields(change: Any) -> Any:
    def sender_weights(ranks: Any, own_link: Any) -> Any:
        return {p: change(p, w, ranks) for p, w in _quadrature(ranks, own_link).items()}

    return sender_weights


WRONG_QUADRATURE = (
    plant("own links swapped", unequal, "sender_weights",
          lambda ranks, link: _quadrature(ranks, "lossy" if link == "reliable" else "reliable")),
    plant("weights as arrivals are", unequal, "sender_weights", _all_fields(lambda p, w, ranks: replace(
        w, weight=float((1 - p) / sum((1 - x) * n for x, n in ranks.items()))))),
    plant("not given a survivor", unequal, "sender_weights", _all_fields(lambda p, w, ranks: replace(
        w, weight=w.weight * (1 - w.no_survivor), inverse_count=w.kappa + 1e-9))),
)  # fmt: skip
A6.derived(*WRONG_WEIGHTS, *WRONG_BIAS)


@A6.rung("certified", *WRONG_WEIGHTS, *WRONG_QUADRATURE)
def _monotone(run: Run) -> Evidence:
    limit = run.pick(3, 4)
    small, large = Fraction(1, 10**6), 1 - Fraction(1, 10**6)
    for losses in ([Half], [Fraction(0), Half], [small, large], [large, large - small], [Fraction(0), large, large],
                   [Fraction(1, 10)] * run.pick(24, 90) + [Half] * 16):  # fmt: skip
        unequal_checks.from_counts(losses)
    for loss in (0.125, 0.5, 0.99):
        unequal_checks.many_alike(10**6, loss)
    for ranks in range(1, limit + 1):
        losses = _symbols("p", ranks)
        weights = [sp.expand(w) for w in survivors.weights(losses)]
        require(
            certify.is_zero(sum(weights) - 1 + sp.prod(losses)), f"N = {ranks}: the weights do not sum to P(K >= 1)"
        )
        own = certify.bernstein(certify.coefficients(-sp.diff(weights[0], losses[0]), tuple(losses)), ranks)
        for lost, slope in own.items():  # multilinear: the coefficients are the values at the corners of the box
            claimed = Fraction(1, ranks - sum(lost[1:]))
            require(slope == claimed, f"N = {ranks}: slope in q_i {slope} where {lost} are lost, not {claimed}")
        for j in range(1, ranks):
            falls = certify.is_nonnegative(sp.diff(weights[0], losses[j]), tuple(losses))
            ahead = sp.cancel((weights[0] - weights[j]) / (losses[j] - losses[0]))
            require(falls, f"N = {ranks}: no certificate that a weight does not grow with another's q")
            require(
                certify.is_nonnegative(ahead, tuple(losses)), f"N = {ranks}: no certificate that less loss weighs more"
            )
    # For all N: w_i = q_i E[1/(1+K')], K' of the others; the slope E[1/(1+K')] lies in [1/N, 1] since 0 <= K' <= N - 1.
    for ranks in range(1, run.pick(6, 9) + 1):
        for sure in range(1, ranks + 1):
            corner = survivors.weights([0] * sure + [1] * (ranks - sure))
            expected = [Fraction(1, sure)] * sure + [0] * (ranks - sure)
            require(corner == expected, f"N = {ranks}, {sure} surely arrive and the rest never: weights {corner}")
        p = sp.Symbol("p")
        equal, reliable = survivors.weights([p] * ranks)[0], survivors.weights([0] + [p] * (ranks - 1))[0]
        some = 1 - aggregation.no_survivor(ranks, p)
        require(
            certify.is_zero(equal - some * aggregation.survivor_weight(ranks)), f"N = {ranks}: not A1 for equal losses"
        )
        require(
            certify.is_zero(reliable - aggregation.owner_weight(ranks, p)),
            f"N = {ranks}: not A3 for a reliable own link",
        )
    return Evidence(
        f"sum, strict growth in q_i (slope in [1/N, 1]), order by loss, for all losses at N <= {limit}; A1, A3 within"
    )


@A6.rung(
    "enumerated",
    mistakes.DIVIDE_BY_N,
    mistakes.COUNT_PLUS_ONE,
    mistakes.NEXT_SENDERS_MASK,
    mistakes.IGNORE_LOSS,
    *WRONG_WEIGHTS,
    *WRONG_BIAS,
    *WRONG_QUADRATURE,
)
def _every_pattern(run: Run) -> Evidence:
    limit = run.pick(3, 5)
    for ranks in range(1, limit + 1):
        arrived_NP, columns = all_patterns(ranks), estimates.basis(ranks)
        estimate_PE = estimates.of_patterns(arrived_NP, columns)
        scale = int(columns[0, 0])
        # Multilinear in the losses: two values for each decide it. The third point shows that the claim is, too.
        points = [*product(*[(Fraction(1, 3 + i), Fraction(4, 5)) for i in range(ranks)]), (Fraction(1, 7),) * ranks]
        for losses in points:
            law = estimates.product_law(arrived_NP, losses)
            weights = survivors.weights(losses)
            means = [estimates.mean(estimate_PE[:, e], law) for e in range(ranks + 1)]
            for i in range(ranks):
                require(
                    means[i] == scale * weights[i],
                    f"losses {losses}: weight {i} is {means[i] / scale}, not {weights[i]}",
                )
            g = [int(x) for x in columns[:, -1]]
            bias = means[-1] / sum(law[1:]) - aggregation.survivor_mean(g)  # pattern 0 has no survivor
            claimed = survivors.unequal_bias(g, losses)
            require(bias == claimed, f"losses {losses}, g = {g}: bias {bias}, claimed {claimed}")
        for losses in (
            (Fraction(1, 3), Fraction(4, 5), Fraction(0), Half, Fraction(1, 7)),
            (Fraction(99, 100), Fraction(1, 50), Half),
        ):
            unequal_checks.from_patterns(losses[:ranks])
    return Evidence(f"all patterns for N <= {limit}; all losses, as multilinear functions; by quadrature to 12 digits")


@A6.rung(
    "sampled",
    mistakes.DIVIDE_BY_N,
    mistakes.COUNT_PLUS_ONE,
    mistakes.WORDS_OF_31_BITS,
    mistakes.SAME_FOR_ALL_SENDERS,
    mistakes.own_link("reliable"),
    WRONG_WEIGHTS[0],
    WRONG_WEIGHTS[2],
    WRONG_BIAS[0],
)
def _many_senders(run: Run) -> Evidence:
    ranks, packets = 20, run.pick(20_000, 200_000)
    losses = tuple(Fraction(4, 5) if i % 2 else Fraction(49, 50) for i in range(ranks))
    columns = torch.zeros(ranks, 2)
    columns[1, 0], columns[::2, 1] = 1, 1
    estimate_PE, count_P = estimates.of_law(PerSender(losses), ranks, packets, run.seed, columns)
    floats = [float(p) for p in losses]
    require(bool(count_P.any()), "no packet has a survivor")
    weight = survivors.weights(floats)[1]
    require_mean("a sender's weight", estimate_PE[:, 0], weight, 0, 1, ALPHA / 2)
    g = columns[:, 1].tolist()
    claimed = sum(g) / ranks + survivors.unequal_bias(g, floats)
    require_mean("E[survivor mean | K >= 1]", estimate_PE[count_P > 0, 1], claimed, 0, 1, ALPHA / 2)
    return Evidence(f"N = {ranks}, losses 0.8 and 0.98, {packets} packets: mean {claimed:.4f}, gbar 0.5", ALPHA)


for claim in (A4, A6):
    claim.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
