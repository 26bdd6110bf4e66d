"""The shipped laws, one of every kind, and what they are as mathematics, computed from their definitions.

P(A >= k) is a walk over all states of the process that `scalar_masks` simulates, in fractions: nothing of the laws'
own `marginal` and `age_tail` is used.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

from lossproof.proofs_checks.instruments.scalar_masks import chain, decimal, residual_tail, strings
from lossproof.theory import laws


def shipped_laws(ranks: int) -> dict[str, Any]:
    """A law of every kind and clock, by a name."""
    unequal = tuple(((i, j), "0110100"[i:] + "01" * j) for i, j in product(range(ranks), repeat=2) if i != j or i == 1)
    unequal += (((0, ranks), "1110"), ((0, ranks + 2), "10"), ((ranks, 0), "1100"))  # of ranks that this job has not
    return {
        "Bernoulli(0)": laws.Bernoulli(0),
        "Bernoulli(1/3)": laws.Bernoulli(Fraction(1, 3)),
        "PerSender": laws.PerSender(tuple(Fraction(2 * rank + 1, 10) for rank in range(ranks))),
        "GilbertElliott": laws.GilbertElliott(0.3, 3),
        "GilbertElliott, four parameters": laws.GilbertElliott(0.4, 2.5, "step", 0.1, 0.9),
        "GilbertElliott by packet": laws.GilbertElliott(0.3, 3, "packet"),
        "GilbertElliott by packet, flips": laws.GilbertElliott.from_transitions(0.9, 0.8, 0.2, 0.95),
        "GilbertElliott, always flips": laws.GilbertElliott.from_transitions(1, 1),
        "GilbertElliott from transitions": laws.GilbertElliott.from_transitions(0.3, 0.6, clock="step"),
        "Trace by packet": laws.Trace("0010110"),
        "Trace by step": laws.Trace("00101", "step"),
        "Trace, unequal links": laws.Trace(unequal),
        "Trace by packet of a job": laws.Trace(recorded_job(ranks), "step"),
        "Renewal": laws.Renewal(0.3, (0.5, 0, 0.2, 0.3)),
        "HeavyTailed": laws.HeavyTailed(0.4),
        "CommonOutage": laws.CommonOutage(0.4, 0.25),
    }


def recorded_job(ranks: int) -> Any:
    """Five steps of a job with a packet on a link for each that its receiver, or in the other phase its sender, owns;
    rank 1 owns none, but another one's gradients to itself were recorded too."""
    owned = [3 * (rank + 1) % 5 if rank != 1 else 0 for rank in range(ranks)]
    owned[0], owned[-1] = 2, 4  # those of `mask_checks.OWNERS` where there are three
    found = []
    for i, j in product(range(ranks), repeat=2):
        for phase, packets in (("gradients", owned[j]), ("parameters", owned[i])):
            if packets and (i != j or (i, phase) == (0, "gradients")):
                bits = (f"{(7 * i + 11 * j + 5 * k + len(phase)) * 37 % 32:05b}" for k in range(packets))
                found.append(((i, j, phase), tuple(bits)))
    return tuple(found)


def marginal(law: Any, src: int, dst: int) -> Fraction:
    """P(one packet is lost)."""
    return age_tail(law, 1, src, dst)


def age_tail(law: Any, k: int, src: int, dst: int, ticks: int = 1) -> Fraction:
    """P(k packets, each `ticks` ticks of a packet clock after the one before, are all lost)."""
    if not k:
        return Fraction(1)
    apart = ticks if getattr(law, "clock", "step") == "packet" else 1
    if isinstance(law, laws.GilbertElliott):
        return _chain_tail(law, k, apart)
    if isinstance(law, laws.Trace):
        seen = [
            "0" not in (one * (k * apart + 1))[start : start + (k - 1) * apart + 1 : apart]
            for one in strings(law, src, dst)
            for start in range(len(one))
        ]
        return Fraction(sum(seen), len(seen))
    if isinstance(law, (laws.Renewal, laws.HeavyTailed)):  # a burst is followed by an arrival: all k are of one burst
        return decimal(law.loss) * residual_tail(law)(k)
    loss: Fraction = decimal(law.losses[src] if isinstance(law, laws.PerSender) else law.loss)
    return loss**k


def _chain_tail(law: laws.GilbertElliott, k: int, apart: int) -> Fraction:
    """Over all paths of the chain: P(path) times P(lost in each state that counts)."""
    enter, leave, share, good, bad = chain(law)
    move = {(False, True): enter, (False, False): 1 - enter, (True, False): leave, (True, True): 1 - leave}
    reached = {True: share, False: 1 - share}  # P(state, all so far lost)
    for tick in range((k - 1) * apart + 1):
        if tick:
            reached = {
                now: sum((reached[was] * move[was, now] for was in (True, False)), Fraction(0)) for now in reached
            }
        if tick % apart == 0:
            reached = {now: chance * (bad if now else good) for now, chance in reached.items()}
    return sum(reached.values(), Fraction(0))
