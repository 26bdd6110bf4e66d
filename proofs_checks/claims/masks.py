"""P1: which packets are lost is a function of (seed, step, phase, src, dst, packet) and of nothing else.

Legend: N ranks, P packets; L rows of links.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from inspect import signature
from itertools import product
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import sympy as sp
import torch

from lossproof.impl import corpus, loss, philox
from lossproof.proofs_checks.claim import Claim, Evidence, Mutant, Run, plant, require
from lossproof.proofs_checks.instruments import mistakes, scalar_masks
from lossproof.proofs_checks.instruments.laws_by_definition import age_tail, marginal, shipped_laws
from lossproof.proofs_checks.instruments.mask_checks import (
    require_arrivals,
    require_edges,
    require_logs,
    require_refused,
)
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_probability
from lossproof.theory import certify, laws, protocol
from lossproof.theory.derive import protocol as derive
from lossproof.theory.laws import bursty, law, renewal

PUBLISHED = (  # Random123, kat_vectors: counter, key, words of Philox4x32-10
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),  # the digits of pi
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
PHASES = scalar_masks.PHASES
_philox = philox.philox4x32


def _counter(description: str, change: Callable[..., Any]) -> Mutant:
    """Draws at another counter: `change(packet, link, phase, step)`."""
    return Mutant(description, loss, "philox4x32", lambda counter, key: _philox(change(*counter), key))


P1 = Claim(
    "P1",
    "Masks are a function of (seed, step, phase, src, dst, packet)",
    derive.masks,
    assumes=("at most 2^16 ranks, 2^32 packets and 2^32 steps", "a law with memory is asked in order, or resumed"),
    not_claimed=(
        "that Philox is random: that its words are independent and uniform is tested here, not proved",
        "more than 2^32 packets, which nothing refuses",
    ),
    witness="two ranks that never spoke compute the same mask from the same seed",
)
P1.derived(
    plant("floor(p 2^32) + 1", protocol, "threshold", lambda p: p * 2**32 // 1 + 1),
    plant("words of 31 bits", protocol, "sampled_loss", lambda p: p * 2**31 // 1 / 2**32),
    plant("links overlap", protocol, "link", lambda src, dst: src * (2**16 - 1) + dst),
    plant("link without dst", protocol, "link", lambda src, dst: src * 2**16),
)


def _counters(job: Callable[[], Any], where: Any = loss) -> list[tuple[Any, ...]]:
    """The (counter, key) of every draw of a job."""
    asked: list[tuple[Any, ...]] = []

    def spy(counter: Any, key: Any) -> Any:
        asked.append((*counter, key))
        return (np.zeros(np.broadcast_shapes(*map(np.shape, counter)), dtype=np.int64),) * 4

    with mock.patch.object(where, "philox4x32", spy):
        job()
    return asked


@P1.rung(
    "certified",
    plant("floor(p 2^32) + 1", law, "threshold", lambda p: p.numerator * 2**32 // p.denominator + 1),
    plant("rounds to nearest", law, "threshold", lambda p: round(p * 2**32)),
    plant("reads a float in binary", law, "exact", lambda value: Fraction(value)),
    plant("one phase for both", loss, "_PHASE_NUMBER", {"gradients": 0, "parameters": 0}),
    plant("the text drawn like a loss", corpus, "_DATA", 1),
    plant("links overlap", protocol, "link", lambda src, dst: src * (2**16 - 1) + dst),
    plant("age tail from 1", laws.Bernoulli, "age_tail", lambda self, k, src=0, dst=1, ticks=1: law.exact(self.loss)),
    plant("burst of the good state", bursty.GilbertElliott, "transitions", (Fraction(1, 4), Fraction(1, 4))),
)
def _counters_and_thresholds(run: Run) -> Evidence:
    # p = a/b and a 2^32 = T b + r with 0 <= r < b, for all T, r and b:
    T, b, r, i, j = sp.symbols("T b r i j", nonnegative=True)
    off = (T * b + r) / (b * 2**32) - T / protocol.WORD
    require(certify.is_zero(off - r / b / 2**32), "p less T/2^32 is not the fraction r/b of 2^-32")
    for k in sorted({0, 1, 2, 2**31, 2**32 - 1, *(3**n for n in range(21)), *(2**n for n in range(32))}):
        for p, wanted in (
            (Fraction(k, 2**32), k),
            (Fraction(2 * k + 1, 2**33), k),
            (Fraction(3 * k + 2, 3 * 2**32), k),
            (Fraction(k + 1, 2**32) - Fraction(1, 2**99), k),
        ):
            both = law.threshold(p), protocol.threshold(p)
            require(both == (wanted, wanted), f"the threshold of {p} is {both}, not {wanted}")
    for value, decimal in (
        (0.1, Fraction(1, 10)),
        (1e-9, Fraction(1, 10**9)),
        (Fraction(1, 3), Fraction(1, 3)),
        (0, 0),
    ):
        read = law.exact(value), law.probability("p", value)
        require(read == (decimal, decimal), f"{value!r} is read as {read}")
    require(certify.is_zero(protocol.link(i, j) - 2**16 * i - j), "the link's word is not 2^16 src + dst")
    most = protocol.link(protocol.RANKS - 1, protocol.RANKS - 1)
    require(most == protocol.WORD - 1, "links do not fill a word: it is not one to one, or overflows")
    # The code's counters, every sender, owners with every bit; a bitwise or of disjoint bits is a sum.
    ranks, owners = protocol.RANKS, [0, ranks_less_1 := protocol.RANKS - 1, *(2**bit for bit in range(16))]
    last = protocol.WORD - 1
    arrivals = loss.Arrivals(laws.CommonOutage(0.5, 0.25), owners, ranks, seed=last + 1)
    draws = {phase: _counters(lambda: getattr(arrivals, phase)(last)) for phase in PHASES}
    rank_N1, owner_P = np.arange(ranks)[:, None], np.array(owners)
    numbers = []
    for phase, (src, dst) in zip(PHASES, ((rank_N1, owner_P), (owner_P, rank_N1)), strict=True):
        own, common = draws[phase]
        require(np.array_equal(own[1], protocol.link(src, dst)), f"{phase}: the counter's link is not src 2^16 + dst")
        for packet, _, number, step, key in (own, common):
            require(np.array_equal(np.ravel(packet), range(len(owners))), f"{phase}: packets are not numbered from 0")
            require((step, key) == (last, (0, 1)), f"{phase}: step or key is {step}, {key}")
            numbers.append(number)
        require(not common[1].any(), f"{phase}: what links have in common depends on a link")
    text = corpus.Corpus("", np.zeros(9, np.uint8), np.zeros(9, np.uint8))
    ((*_, number, _, _),) = _counters(lambda: text.batch(0, 2, 1, 4, 0), corpus)
    numbers.append(number)
    require(numbers == [0, 2, 1, 3, int("64617461", 16)], f"phase numbers are {numbers}: not those documented")
    for beyond in (lambda: arrivals.gradients(last + 1), lambda: loss.Arrivals(laws.Bernoulli(0), [0], ranks + 1)):
        require_refused(beyond, "a step or a rank beyond the counter's range")
    for a, b, clock in ((0.3, 0.6, "step"), (0.9, 0.8, "packet"), (1, 1, "packet")):
        four = laws.GilbertElliott.from_transitions(a, b, 0.05, 0.9, clock)  # type: ignore[arg-type]
        into, out = law.exact(a), law.exact(b)
        four_of: tuple[Any, ...] = (four.clock, *four.transitions)
        loss_of = (out * Fraction(1, 20) + into * Fraction(9, 10)) / (into + out)
        require(four_of == (clock, into, out) and four.loss == loss_of, f"four parameters: {four_of}, loss {four.loss}")
    for wrong in (-1, 1):
        require_refused(lambda: law.probability("p", wrong), f"a probability of {wrong}")
    require(law.probability("p", 1, one=True) == 1, "a probability of 1 is refused where it is allowed")
    for kind in (laws.Law, *map(type, shipped_laws(3).values())):
        for method, defaults in (("marginal", [0, 1]), ("age_tail", [0, 1, 1])):
            got = [x.default for x in signature(getattr(kind, method)).parameters.values() if x.default is not x.empty]
            require(got == defaults, f"{kind.__name__}.{method}: from rank 0 to 1, one tick, unless said: {got}")
    for kind, method in product((laws.Draw, loss.PhiloxDraw), ("words", "common")):
        require(signature(getattr(kind, method)).parameters["k"].default == 0, f"{kind.__name__}.{method}: not word 0")
    for name, shipped in shipped_laws(3).items():
        require(shipped in {shipped}, f"{name} has no hash")
        alone = getattr(shipped, "independent_links", True)
        require(alone == (name != "CommonOutage"), f"{name}: says of its links that they are independent: {alone}")
        for i_, j_ in product(range(3), repeat=2):
            require(shipped.marginal(i_, j_) == marginal(shipped, i_, j_), f"{name}: P(lost) of {i_} to {j_}")
            for k, ticks in ((0, 1), (1, 1), (2, 1), (3, 2), (4, 3)):
                tail, defined = shipped.age_tail(k, i_, j_, ticks), age_tail(shipped, k, i_, j_, ticks)
                require(tail == defined, f"{name}: P(A >= {k}) is {tail}, by definition {defined}")
    return Evidence(
        f"0 <= p - P(lost) < 2^-32 for all p; counters one to one up to {ranks_less_1 + 1} ranks; age tails"
    )


_init = loss.Arrivals.__init__


def _own_link_reliable(
    self: Any, law: Any, owner_P: Any, ranks: int, seed: int = 0, own_link: Any = "", receiver: int | None = None
) -> None:
    _init(self, law, owner_P, ranks, seed, "reliable", receiver)


def _dropping_high_half(seed: int) -> tuple[int, int]:
    return seed % 2**32, 0


@P1.rung(
    "enumerated",
    plant("nine rounds", philox, "_ROUNDS", 9),
    plant("another multiplier", philox, "_MULTIPLIER_1", 0xCD9E8D55),
    plant("another Weyl constant", philox, "_WEYL_0", 0x9E3779BB),
    plant("the seed's high half lost", loss, "split_seed", _dropping_high_half),
    plant("phases swapped", loss, "_PHASE_NUMBER", {"gradients": 1, "parameters": 0}),
    _counter("packets numbered from 1", lambda k, link, ph, s: (k + 1, link, ph, s)),
    _counter("link as dst, src", lambda k, link, ph, s: (k, (link & 0xFFFF) << 16 | link >> 16, ph, s)),
    _counter("step and phase swapped", lambda k, link, ph, s: (k, link, s, ph)),
    plant("own link always reliable", loss.Arrivals, "__init__", _own_link_reliable),
    plant("word 1 decides the loss", laws.Bernoulli, "sample",
          lambda self, draw, memory: (draw.words(1) < law.threshold(law.exact(self.loss)), memory)),
    plant("lost at the threshold too", laws.Bernoulli, "sample",
          lambda self, draw, memory: (draw.words() <= law.threshold(law.exact(self.loss)), memory)),
    plant("bursts one too long", renewal, "_heavy_residual", lambda words: (1 << 32) // (words + 1) + 1),
)  # fmt: skip
def _word_for_word(run: Run) -> Evidence:
    _philox_is_published(run)
    shipped, cases = shipped_laws(3), 0
    require_arrivals("Bernoulli", laws.Bernoulli(0.3), run.seed ^ 1 << 63, "lossy", 2)  # most mistakes show here
    for name, one in shipped.items():
        require_edges(name, one, run)
    require_logs()
    jobs: tuple[Any, ...] = ((run.seed, "reliable"), (run.seed // 7 ^ 0xDEADBEEF << 32, "lossy"))
    for (name, one), (seed, own_link) in product(shipped.items(), jobs):
        cases += require_arrivals(name, one, seed, own_link, run.pick(4, 8))
    return Evidence(f"published vectors; {cases} masks of {len(shipped)} laws; words at every threshold of each")


def _philox_is_published(run: Run) -> None:
    random = Random(run.seed)
    drawn = [
        tuple(random.choice((0, 1, 2**31, 2**32 - 1, random.getrandbits(32))) for _ in range(6)) for _ in range(99)
    ]
    for published, key, words in PUBLISHED:
        require(scalar_masks.philox(published, key) == words, "the scalar Philox is not the published one")
        drawn.append((*published, *key))
    for *counter, low, high in drawn:
        wanted = scalar_masks.philox(tuple(counter), (low, high))
        for make in (np.array, torch.tensor):
            columns: Any = tuple(make([c]) for c in counter)
            got = tuple(int(word[0]) for word in philox.philox4x32(columns, (low, high)))
            require(got == wanted, f"Philox of {counter}, {(low, high)} in {make.__module__}: {got}, not {wanted}")
    for seed in (0, 1, 2**32, 2**32 + 5, 2**64 - 1, run.seed):
        require(philox.split_seed(seed) == scalar_masks.key_of(seed), f"the key of seed {seed}")


@P1.rung(
    "sampled",
    mistakes.SAME_FOR_ALL_RECEIVERS,
    mistakes.SAME_FOR_ALL_SENDERS,
    mistakes.SAME_FOR_ALL_STEPS,
    mistakes.WORDS_OF_31_BITS,
    _counter("the same for both phases", lambda k, link, ph, s: (k, link, 0, s)),
    _counter("the same for two packets", lambda k, link, ph, s: (k >> 1, link, ph, s)),
    plant("the seed's high half lost", loss, "split_seed", _dropping_high_half),
    plant("the seed's low half lost", loss, "split_seed", lambda seed: (0, seed >> 32)),
    mistakes.a_fifth_more(protocol, "sampled_loss"),
)
def _frequencies(run: Run) -> Evidence:
    packets, checks = run.pick(6_000, 30_000), 0
    level = ALPHA / 60  # more checks than there are
    p = 0.3
    q = 1 - protocol.sampled_loss(p)
    masks, masks_of_0 = _drawn(run.seed, packets, p), _drawn(run.seed, packets, p, owner=0)
    others = [_drawn(seed, packets, p) for seed in (run.seed ^ 1, run.seed ^ 1 << 32)]
    first = masks["gradients", 0]
    pairs = {
        "links (by sender)": (masks["gradients", 0][0], masks["gradients", 0][1]),
        "links (by receiver)": (masks["parameters", 0][0], masks["parameters", 0][1]),
        "phases": (masks["gradients", 0][0], masks_of_0["parameters", 0][1]),  # both from 0 to 2
        "steps": (first, masks["gradients", 1]),
        "distant steps": (first, masks["gradients", 2**31]),
        "packets": (first[:, 0::2], first[:, 1::2]),
        "distant packets": (first[:, : packets // 2], first[:, packets // 2 :]),
        "seeds, low half": (first, others[0]["gradients", 0]),
        "seeds, high half": (first, others[1]["gradients", 0]),
    }
    for what, (one, other) in pairs.items():
        agree = int((one == other).sum())
        require_probability(f"agreement between {what}", agree, one.numel(), q**2 + (1 - q) ** 2, level)
        checks += 1
    for (phase, step), mask in masks.items():
        require_probability(f"arrivals, {phase} of step {step}", int(mask.sum()), mask.numel(), q, level)
        checks += 1
    for name, one in shipped_laws(4).items():
        if getattr(one, "clock", "step") == "packet":
            continue  # packets of a link are not independent there: B8 has their age
        arrivals = loss.Arrivals(one, [3] * packets, 4, run.seed)
        for step in (0, 1, 2):
            lost = int((~arrivals.gradients(step)[2]).sum())
            exact = float(protocol.sampled_loss(marginal(one, 2, 3)))
            require_probability(f"{name}: losses of step {step}", lost, packets, exact, level)
            checks += 1
    require(checks <= 60, "more checks than the level allows for")
    return Evidence(f"{checks} exact binomial tests on {packets} packets of 3 links", ALPHA)


def _drawn(seed: int, packets: int, p: float, owner: int = 2) -> dict[tuple[str, int], torch.Tensor]:
    """Masks of the links between the owner of all packets and the other ranks."""
    arrivals = loss.Arrivals(laws.Bernoulli(p), [owner] * packets, 4, seed, "lossy")
    others = [rank for rank in range(4) if rank != owner]
    moments = (("gradients", 0), ("parameters", 0), ("gradients", 1), ("gradients", 2**31))
    return {(phase, step): getattr(arrivals, phase)(step)[others] for phase, step in moments}


P1.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
