"""Gilbert-Elliott losses: a two-state Markov chain on every link."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossproof.theory.laws.law import (
    Clock,
    Draw,
    Links,
    Mask,
    Memory,
    Number,
    check_clock,
    count,
    exact,
    finite,
    probability,
    threshold,
)


@dataclass(frozen=True)
class GilbertElliott:
    """Bursty losses: each link has a good and a bad state, and `loss_good` or `loss_bad` of its packets are lost there.

    `loss` is the overall loss and `burst` the mean stay in the bad state, in ticks. With the defaults (every packet is
    lost in the bad state, none in the good one) `burst` is the mean run of losses and Bernoulli is burst = 1/(1-loss).

    `clock="step"`: a chain for every phase, packet and link that ticks once a step; with the defaults
    P(A >= k) = loss (1 - 1/burst)^(k-1).
    `clock="packet"`: one chain for each link, shared by both phases, that ticks with every packet offered to the link.
    The chain starts in its stationary law. Word 1 of a draw moves the chain, word 0 decides the loss.

    Reference: Gilbert 1960; Elliott 1963.

    >>> GilbertElliott(0.1, burst=4).age_tail(2)
    Fraction(3, 40)
    """

    loss: Number
    burst: Number
    clock: Clock = "step"
    loss_good: Number = 0
    loss_bad: Number = 1

    def __post_init__(self) -> None:
        loss, good = probability("loss", self.loss), probability("loss_good", self.loss_good)
        bad = probability("loss_bad", self.loss_bad, one=True)
        check_clock(self.clock)
        if not good <= loss <= bad or good == bad:
            raise ValueError(
                f"loss must lie between loss_good={self.loss_good} and loss_bad={self.loss_bad}, which must differ, "
                f"got {self.loss!r}"
            )
        burst = finite("burst", self.burst)
        share = self._bad_share
        if share == 1:
            raise ValueError(
                f"loss must be below loss_bad={self.loss_bad} for the good state to exist, got {self.loss!r}"
            )
        shortest = max(Fraction(1), share / (1 - share))
        if burst < shortest:
            raise ValueError(
                f"burst must be at least max(1, b/(1-b)) = {float(shortest):g} ticks, where b = {float(share):g} is "
                f"the share of bad ticks that loss implies, got {self.burst!r}"
            )

    @classmethod
    def from_transitions(
        cls,
        good_to_bad: Number,
        bad_to_good: Number,
        loss_good: Number = 0,
        loss_bad: Number = 1,
        clock: Clock = "packet",
    ) -> GilbertElliott:
        """The four-parameter form: transition probabilities per tick and the loss probability in each state."""
        into = probability("good_to_bad", good_to_bad, one=True)
        out = probability("bad_to_good", bad_to_good, one=True)
        for name, value in (("good_to_bad", into), ("bad_to_good", out)):
            if value == 0:
                raise ValueError(f"{name} must be positive, got 0")
        good, bad = probability("loss_good", loss_good), probability("loss_bad", loss_bad, one=True)
        return cls((out * good + into * bad) / (into + out), 1 / out, clock, loss_good, loss_bad)

    @property
    def _bad_share(self) -> Fraction:
        good, bad = exact(self.loss_good), exact(self.loss_bad)
        return (exact(self.loss) - good) / (bad - good)

    @property
    def transitions(self) -> tuple[Fraction, Fraction]:
        """P(good -> bad) and P(bad -> good) in one tick."""
        leave = 1 / exact(self.burst)
        return leave * self._bad_share / (1 - self._bad_share), leave

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        return exact(self.loss)

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        if count("k", k, 0) == 0:
            return Fraction(1)
        enter, leave = self.transitions
        share, memory = self._bad_share, 1 - enter - leave
        if self.clock == "packet":  # many ticks of a two-state chain are one tick of another with the same shares
            kept = memory ** count("ticks", ticks, 1)
            enter, leave = share * (1 - kept), (1 - share) * (1 - kept)
        good, bad = exact(self.loss_good), exact(self.loss_bad)
        in_good, in_bad = (1 - share) * good, share * bad  # P(state, all lost so far)
        for _ in range(k - 1):
            in_good, in_bad = (
                (in_good * (1 - enter) + in_bad * leave) * good,
                (in_good * enter + in_bad * (1 - leave)) * bad,
            )
        return in_good + in_bad

    def sample(self, draw: Draw, memory: Memory) -> tuple[Mask, Memory]:
        enter, leave = self.transitions
        chain, stationary = draw.words(1), threshold(self._bad_share)
        if_good, if_bad = chain < threshold(enter), chain >= threshold(leave)
        if self.clock == "step":
            before = memory.get(draw.phase)
            bad = chain < stationary if before is None else np.where(before == 1, if_bad, if_good)
            memory = {**memory, draw.phase: bad.astype(np.int64)}
        else:
            links = Links(draw)
            state = memory.get("links", np.full(draw.ranks**2, -1, dtype=np.int64)).copy()
            bad = links.restore(
                _run_chain(
                    links, links.arrange(if_good), links.arrange(if_bad), links.arrange(chain < stationary), state
                )
            )
            memory = {"links": state}
        lost_good, lost_bad = threshold(exact(self.loss_good)), threshold(exact(self.loss_bad))
        return draw.words() < np.where(bad, lost_bad, lost_good), memory


def _run_chain(
    links: Links,
    if_good: NDArray[Any],
    if_bad: NDArray[Any],
    start: NDArray[Any],
    state: NDArray[np.int64],
) -> Mask:
    """Runs a two-state chain along every link at once; `state` (-1: not begun) is advanced in place.

    A tick maps the state before to the state after. A map that is constant forgets the past; the others keep or flip
    it. So the state after a tick is the value at the last constant map, flipped as often as maps since then flip.
    """
    before = state[links.link]
    begun = np.where(before < 0, start, np.where(before == 1, if_bad, if_good))
    constant = links.first | (if_good == if_bad)
    value = np.where(links.first, begun, if_good).astype(np.int64)
    flips = np.cumsum(~constant & (if_good != 0))
    anchor = np.maximum.accumulate(np.where(constant, np.arange(constant.size), 0))
    bad: Mask = (value[anchor] + flips - flips[anchor]) % 2 == 1
    state[links.link[links.last]] = bad[links.last]
    return bad
