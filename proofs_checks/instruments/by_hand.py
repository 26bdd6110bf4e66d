"""Patterns, estimates and histories counted by plain loops, against the instruments that run them through `impl`.

Legend: N ranks, P packets, B links, E elements, T steps.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import prod

import torch

from lossproof.impl.loss import Arrivals, OwnLink
from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments import estimates, histories, patterns
from lossproof.proofs_checks.instruments.known import refuses
from lossproof.theory.laws import Bernoulli

THIRD = Fraction(1, 3)


def _replicas(mask_TNP: torch.Tensor, steps: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """The owner's copy (P) and the replicas (N, P) after steps (T, P): a replica is what it last received."""
    T, ranks, packets = mask_TNP.shape
    fresh, replicas = [0] * packets, [[0] * packets for _ in range(ranks)]
    for t, j in product(range(T), range(packets)):
        fresh[j] += steps[t][j]
        for i in range(ranks):
            if mask_TNP[t, i, j]:
                replicas[i][j] = fresh[j]
    return fresh, replicas


def require_patterns() -> None:
    for bits in range(5):
        columns = patterns.all_patterns(bits).T.tolist()
        require(sorted(columns) == sorted(map(list, product((False, True), repeat=bits))), f"not all 2^{bits} patterns")
    arrived_BP = patterns.all_patterns(3)
    values = [3, 1, 4, 1, 5, 9, 2, 6]
    for what, chosen in (("1", [1] * 8), ("a value of each pattern", values)):
        measured = patterns.expectation(torch.tensor(chosen).double(), arrived_BP)
        for loss in (THIRD, Fraction(4, 5)):
            weights = [prod(1 - loss if bit else loss for bit in column) for column in arrived_BP.T.tolist()]
            by_hand = sum(v * w for v, w in zip(chosen, weights, strict=True))
            require(measured(loss) == by_hand, f"E[{what}] at p = {loss}: {measured(loss)}, by hand {by_hand}")
    require(patterns.exact_sum(torch.full((3,), 0.1, dtype=torch.float64)) == 3 * Fraction(0.1), "the sum is rounded")
    for degree in range(4):
        seen: list[Fraction] = []

        def watched(loss: Fraction, seen: list[Fraction] = seen) -> Fraction:
            seen.append(loss)
            return loss

        patterns.require_identical("", watched, lambda loss: loss, degree)
        require(len(set(seen)) == 2 * degree + 1 and all(0 < loss < 1 for loss in seen), f"degree {degree}: at {seen}")
        for odd in seen:
            rest = [loss for loss in seen if loss != odd]
            apart = refuses(lambda: patterns.require_identical(
                "", lambda loss: loss + prod(loss - r for r in rest), lambda loss: loss, degree))  # fmt: skip
            require(apart, f"degree {degree}: what differs at p = {odd} alone passes")


def require_estimates() -> None:
    ranks, scale = 3, 6
    arrived_NP, columns_NE = patterns.all_patterns(ranks), estimates.basis(ranks)
    require(
        columns_NE.tolist() == [[6, 0, 0, 6], [0, 6, 0, 12], [0, 0, 6, 30]], "not a basis of multiples of lcm(1..3)"
    )
    estimate_PE = estimates.of_patterns(arrived_NP, columns_NE)
    for j, column in enumerate(arrived_NP.T.tolist()):
        weights = [scale * Fraction(bit, max(1, sum(column))) for bit in column]
        require(estimate_PE[j, :ranks].tolist() == weights, f"pattern {column}: weights {estimate_PE[j]}")
    losses = [Fraction(1, 2), THIRD, Fraction(1, 5)]
    law = estimates.product_law(arrived_NP, losses)
    for weight, column in zip(law, arrived_NP.T.tolist(), strict=True):
        by_hand = prod(1 - loss if bit else loss for bit, loss in zip(column, losses, strict=True))
        require(weight == by_hand, f"pattern {column} weighs {weight}, by hand {by_hand}")
    mean = sum((w * int(v) for v, w in zip(estimate_PE[:, 0].tolist(), law, strict=True)), Fraction(0))
    require(estimates.mean(estimate_PE[:, 0], law) == mean, "not the mean")
    masks_TNP = torch.tensor([[[True, True], [False, True]], [[False, False], [False, True]]])
    payload_NPE = estimates.payload(torch.tensor([[2], [8]]), 2)
    held_TPE, count_P = estimates.over_rounds(2, patterns.Scripted(2, masks_TNP), payload_NPE, no_survivor="hold")
    require(held_TPE.flatten().tolist() == [2, 5, 2, 8] and count_P.tolist() == [0, 1], f"two rounds: {held_TPE}")


def require_histories() -> None:
    arrived_BP = histories.links(2, 2)
    require(histories.links(2).tolist() == patterns.all_patterns(4).tolist(), "not all masks")
    require(arrived_BP.tolist() == torch.cat([patterns.all_patterns(4)] * 2, 1).tolist(), "not all masks, twice")
    packets = arrived_BP.shape[1]
    masks_TNP = torch.cat([torch.ones(2, 1, packets, dtype=torch.bool), arrived_BP.view(2, 2, packets)], 1)
    steps = [[1 + j for j in range(packets)], [5] * packets]
    played = [torch.tensor(steps[0]).double()[:, None], torch.tensor([5.0]).double()]
    round_ = histories.run(histories.two_replicas(arrived_BP, 2), [0] * packets, played)
    fresh, replicas = _replicas(masks_TNP, steps)
    require(round_.fresh_QE.squeeze(-1).tolist() == fresh, "another owner's copy")
    require(round_.replicas_HPE.squeeze(-1).tolist() == replicas, "other replicas")
    to_owner, apart = ([a - b for a, b in zip(*pair, strict=True)] for pair in ((fresh, replicas[1]), replicas[1:]))
    measured = histories.scripted_gaps(arrived_BP, played)
    for what, gap_PE, by_hand in (("to the owner", measured[0], to_owner), ("apart", measured[1], apart)):
        require(gap_PE.squeeze(-1).tolist() == by_hand, f"gaps {what}")
        require(histories.square(gap_PE).tolist() == [g * g for g in by_hand], f"squared gaps {what}")
    require(histories.owner_gaps(round_)[1].tolist() == [g * g for g in to_owner], "squared gaps to the owner")
    require(histories.pair_gaps(round_, 1, 2).tolist() == [g * g for g in apart], "squared gaps of the pair")
    other = histories.scripted(~masks_TNP[:, 1:], played)
    require(bool((other.replicas_HPE == round_.replicas_HPE).all()), "lost is not the opposite of arrived")
    summed_E = torch.stack([(s + 1) * u_E for s, u_E in enumerate(histories.orthonormal(3))]).sum(0)
    require(int(summed_E.square().sum()) == 14, "steps are not orthonormal")
    require(histories.weighted(torch.tensor([2, 3]), [THIRD, Fraction(1, 2)]) == Fraction(13, 6), "another mean")


def require_drawn(seed: int) -> None:
    """Drawn histories and estimates are those of the masks of the same seed."""
    ranks, packets, rounds = 3, 40, 3
    owner_P = [j % ranks for j in range(packets)]
    masks = Arrivals(Bernoulli(0.5), owner_P, ranks, seed)
    masks_TNP = torch.stack([masks.parameters(step) for step in range(rounds)])
    _, replicas = _replicas(masks_TNP, [[1 + step] * packets for step in range(rounds)])
    ones = [torch.tensor([1.0 + step]).double() for step in range(rounds)]
    round_ = histories.drawn(Bernoulli(0.5), owner_P, ranks, seed, ones)
    require(round_.replicas_HPE.squeeze(-1).tolist() == replicas, "drawn histories are not those of their masks")
    gap_PE = histories.drawn_gaps(seed, 0.5, packets, ones)[1]
    round_ = histories.drawn(Bernoulli(0.5), [0] * packets, ranks, seed, ones)
    require(gap_PE.tolist() == (round_.replicas_HPE[1] - round_.replicas_HPE[2]).tolist(), "gaps of other ranks")
    own_links: tuple[OwnLink, ...] = ("lossy", "reliable")
    for own_link in own_links:
        masks = Arrivals(Bernoulli(0.5), [0] * packets, ranks, seed, own_link)
        masks_TNP = torch.stack([masks.gradients(step) for step in range(rounds)])
        arrived_NP = masks_TNP[-1]
        estimate_PE, count_P = estimates.of_law(
            Bernoulli(0.5), ranks, packets, seed, estimates.basis(ranks), own_link=own_link, rounds=rounds
        )
        require(count_P.tolist() == arrived_NP.sum(0).tolist(), f"own link {own_link}: other counts than the masks'")
        by_hand = estimates.of_patterns(arrived_NP, estimates.basis(ranks))
        first, _ = estimates.of_law(Bernoulli(0.5), ranks, packets, seed, estimates.basis(ranks), own_link=own_link)
        only = estimates.of_patterns(masks_TNP[0], estimates.basis(ranks))
        require(first.tolist() == only.tolist(), f"own link {own_link}: another round than the first")
        require(estimate_PE.tolist() == by_hand.tolist(), f"own link {own_link}: other estimates than the masks'")
