"""Which law does a measured loss log follow? Bernoulli, Gilbert-Elliott, or neither, with intervals and exact tests.

>>> import numpy as np
>>> losses = np.random.default_rng(0).random(10_000) < 0.1
>>> found = fit(Recorded.from_columns(np.zeros(10_000), np.ones(10_000), losses))
>>> found.verdict, found.law()
('bernoulli', Bernoulli(loss=0.1033))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lossproof.theory.goodness import Outcome, homogeneity, independence, one_step_of_memory
from lossproof.theory.laws import Bernoulli, Clock, GilbertElliott, PerSender
from lossproof.theory.likelihood import Estimate, LinkFit, binomial_high, maximise
from lossproof.theory.recorded import Recorded

Verdict = Literal["bernoulli", "gilbert-elliott", "neither"]
Ints = NDArray[np.int64]
SCHEMA = 1


@dataclass(frozen=True)
class Equality:
    """p-values of "all links lose alike", "the links of a sender do", "all links have equal transitions"."""

    bernoulli: float
    of_a_sender: float
    gilbert_elliott: float


@dataclass(frozen=True)
class Fit:
    """What a log says: see `fit`. Shows itself in a notebook."""

    source: str
    clock: Clock
    links: tuple[LinkFit, ...]
    pooled: LinkFit
    chains: int
    tests: tuple[Outcome, Outcome]
    equality: Equality
    level: float
    confidence: float
    seed: int

    @property
    def p_values(self) -> tuple[float, float]:
        """Of Bernoulli and of Gilbert-Elliott, each to be compared with `level`."""
        independent, memory = (test.p_value for test in self.tests)
        return min(1.0, 2 * independent, 2 * memory), min(1.0, 2 * memory)

    @property
    def verdict(self) -> Verdict:
        bernoulli, gilbert = self.p_values
        if bernoulli > self.level:
            return "bernoulli"
        return "gilbert-elliott" if gilbert > self.level and self.pooled.burst else "neither"

    @property
    def equal_links(self) -> bool:
        """Whether one set of parameters may hold on all links, at the same level."""
        p_value = self.equality.bernoulli if self.verdict == "bernoulli" else self.equality.gilbert_elliott
        return p_value > self.level

    @property
    def at_most(self) -> float:
        """An exact one-sided bound on the loss; without a loss in n packets, about 3/n (the rule of three)."""
        return binomial_high(self.pooled.lost, self.pooled.packets, 1 - self.confidence)

    @property
    def ranks(self) -> int:
        return 1 + max(max(link.src, link.dst) for link in self.links)

    def law(self) -> Bernoulli | GilbertElliott | PerSender | None:
        """The law of all links, or None: neither family, links that differ, or nothing but losses."""
        losses = self.sender_losses()
        if losses is not None:
            return PerSender(losses)
        if self.verdict == "neither" or not self.equal_links or self.pooled.lost == self.pooled.packets:
            return None
        if self.verdict == "bernoulli" or self.pooled.loss is None or self.pooled.burst is None:
            return Bernoulli(_digits(self.pooled.bernoulli.value, math.floor))
        loss, burst = _digits(self.pooled.loss.value, math.floor), _digits(self.pooled.burst.value, math.ceil)
        return GilbertElliott(loss, burst, self.clock)

    def sender_losses(self) -> tuple[float, ...] | None:
        """The loss of each sender, where Bernoulli links differ by sender only and every sender can be heard."""
        if self.verdict != "bernoulli" or self.equal_links or self.equality.of_a_sender <= self.level:
            return None
        shares = self.shares()
        return None if None in shares or 1 in shares else tuple(share for share in shares if share is not None)

    def shares(self) -> tuple[float | None, ...]:
        """The share of each sender's packets that was lost, whatever the verdict; None for a rank that sent nothing."""
        sent, lost = np.zeros((2, self.ranks), dtype=int)
        for link in self.links:
            sent[link.src] += link.packets
            lost[link.src] += link.lost
        return tuple(
            _digits(k / n, math.floor) if n else None for n, k in zip(sent.tolist(), lost.tolist(), strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; infinite bounds are null."""
        p_bernoulli, p_gilbert = self.p_values
        pooled = self.pooled
        return {
            "schema": SCHEMA,
            "log": self.source,
            "clock": self.clock,
            "verdict": self.verdict,
            "law": None if self.law() is None else repr(self.law()),
            "packets": pooled.packets,
            "lost": pooled.lost,
            "chains": self.chains,
            "ranks": self.ranks,
            "bernoulli": {"loss": pooled.bernoulli.to_json(), "at_most": self.at_most, "p_value": p_bernoulli},
            "gilbert_elliott": None
            if pooled.loss is None or pooled.burst is None
            else {"loss": pooled.loss.to_json(), "burst": pooled.burst.to_json(), "p_value": p_gilbert},
            "tests": [vars(test) for test in self.tests],
            "equal_links": vars(self.equality),
            "links": [
                {k: v.to_json() if isinstance(v, Estimate) else v for k, v in vars(link).items()} for link in self.links
            ],
            "level": self.level,
            "confidence": self.confidence,
            "seed": self.seed,
        }

    def rows(self) -> list[tuple[str, str, str, str]]:
        """A table: family, loss, mean burst, p-value."""
        pooled, (bernoulli, gilbert) = self.pooled, self.p_values
        burst = "no change in the log" if pooled.burst is None else str(pooled.burst)
        return [
            ("bernoulli", str(pooled.bernoulli), "", f"{bernoulli:.3g}"),
            ("gilbert-elliott", "" if pooled.loss is None else str(pooled.loss), burst, f"{gilbert:.3g}"),
        ]

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("family", "loss", "mean burst", "p-value"))
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows())
        law = f"<code>{escape(repr(self.law()))}</code>" if self.law() else "no single law"
        return (
            f"<p><b>{self.verdict}</b>: {law}; {self.pooled.lost} of {self.pooled.packets} packets lost, "
            f"{len(self.links)} links</p><table><tr>{head}</tr>{body}</table>"
        )


def fit(
    log: Recorded | str | Path,
    clock: Clock | None = None,
    level: float = 0.01,
    confidence: float = 0.95,
    seed: int = 0,
    simulations: int | None = None,
) -> Fit:
    r"""Fits Bernoulli and Gilbert-Elliott to a loss log and says which of them the log allows.

    With n_ij the transitions from i to j (1 is lost) and s_i the first packets over all chains, p the loss and
    1/b the mean burst, the likelihood of Gilbert-Elliott is that of the stationary chain:

    .. math:: p^{s_1} (1-p)^{s_0} a^{n_{01}} (1-a)^{n_{00}} b^{n_{10}} (1-b)^{n_{11}}, \quad a = b p / (1-p)

    Intervals: Clopper-Pearson (exact) for Bernoulli; profile likelihood for loss and burst of Gilbert-Elliott.

    The verdict. Two tests, exact at any size, each at half the level: `one_step_of_memory` holds for both families,
    `independence` for Bernoulli only. Under either family that family is rejected with probability at most `level`.
    Links are taken to lose independently of each other. Whether all links share their parameters is tested apart:
    exactly for Bernoulli, asymptotically for the transitions of Gilbert-Elliott (Anderson and Goodman 1957).

    Args:
        log: a log or the path of one, see `Recorded`. clock: of a file, what the chains run along; None for what its
            header says.
        level: of the verdict, and of the test for equal links. confidence: of each interval.
        seed: of the random logs that the tests compare with.
        simulations: how many random logs, at least 2/level; by default 999, for more than 50 000 packets 199 or so.

    Raises:
        ValueError: an argument or a log that cannot be used.
    """
    for name, value in (("level", level), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie in (0, 1), got {value!r}")
    least = math.ceil(2 / level)  # so that a half of the level can be reached
    if simulations is not None and (isinstance(simulations, bool) or simulations < least):
        raise ValueError(f"simulations must be at least 2/level = {least}, got {simulations!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer from 0, got {seed!r}")
    source = "the log" if isinstance(log, Recorded) else str(log)
    if not isinstance(log, Recorded):
        log = Recorded.from_csv(log, clock)
    rng = np.random.default_rng(seed)
    counts = np.zeros((len(log.links), 6), dtype=np.int64)
    np.add.at(counts, log.link_C, log.transitions())
    packets, lost = counts.sum(axis=1), counts[:, [1, 3, 5]].sum(axis=1)
    if simulations is None:
        simulations = max(least, 999 if len(log.lost_n) <= 50_000 else 199)
    tests = independence(log, rng, simulations), one_step_of_memory(log, rng, simulations)
    equal = _equal(log.links, counts, packets, lost, rng, simulations)
    every = maximise([*log.links, (-1, -1)], np.r_[counts, counts.sum(axis=0)[None]], confidence)
    return Fit(source, log.clock, tuple(every[:-1]), every[-1], log.chains, tests, equal, level, confidence, seed)


def _equal(
    links: tuple[tuple[int, int], ...], counts: Ints, packets: Ints, lost: Ints, rng: np.random.Generator, times: int
) -> Equality:
    """Each p-value is 1 where there is but one link."""
    if len(links) == 1:
        return Equality(1.0, 1.0, 1.0)
    src = np.array([link[0] for link in links])
    senders = [(packets[src == s], lost[src == s]) for s in np.unique(src)]
    moves = [(counts[:, i] + counts[:, i + 1], counts[:, j]) for i, j in ((0, 1), (2, 2))]  # leaving good, leaving bad
    groups = ([(packets, lost)], senders, moves)
    return Equality(*(homogeneity(group, rng, times) for group in groups))


def _digits(value: float, towards: Callable[[float], int]) -> float:
    """Six significant digits, rounded one way: the loss down and the burst up keep each other possible."""
    if value == 0:
        return 0.0
    places = 5 - math.floor(math.log10(abs(value)))
    decimal = round(towards(round(value * 10.0**places, 6)) / 10.0**places, max(0, places))
    return float(decimal)
