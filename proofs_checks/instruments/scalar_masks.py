"""Which packets are lost, once more: plain Python integers, one packet at a time, from the documented counters.

Written from the documentation of the laws and of Philox, not from their code; it shares nothing with them. A law is a
function of a state (a dictionary), the packet's place and its words; `THRESHOLDS` notes what words were held against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from math import isqrt
from typing import Any

from lossproof.theory import laws

WORD = 2**32
PHASES = ("gradients", "parameters")
_GOLDEN = (isqrt(5 * WORD**2) - WORD) // 2  # Weyl constants: the fractions of the golden ratio and of sqrt 3
_ROOT_3 = isqrt(3 * WORD**2) - WORD
_M0, _M1 = 3528531795, 3449720151
THRESHOLDS: set[int] = set()


@lru_cache(maxsize=200_000)
def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox 4x32-10, its paper's equations: each round's key is the first plus so many Weyl constants."""
    x = counter
    for r in range(10):
        a, b = _M0 * x[0], _M1 * x[2]
        x = (
            b // WORD ^ x[1] ^ (key[0] + r * _GOLDEN) % WORD,
            b % WORD,
            a // WORD ^ x[3] ^ (key[1] + r * _ROOT_3) % WORD,
            a % WORD,
        )
    return x


def key_of(seed: int) -> tuple[int, int]:
    return seed % WORD, seed // WORD


@dataclass(frozen=True)
class Packet:
    """One packet on one link, and its words: its own, and those common to all links."""

    phase: str
    src: int
    dst: int
    number: int
    word: Callable[[int], int]
    common: Callable[[int], int]
    among: tuple[int, int] = (0, 1)
    """Which packet it is of those that its link carries in this phase of a step, and of how many."""


@lru_cache
def decimal(value: Any) -> Fraction:
    """A number as it prints."""
    return Fraction(str(value))


def below(word: int, p: Fraction) -> bool:
    limit = p.numerator * WORD // p.denominator
    THRESHOLDS.add(limit)
    return word < limit


def longest(word: int, tail: Callable[[int], Fraction]) -> int:
    """The largest j >= 0 with word < floor(tail(j) 2^32), for a tail that falls to 0: doubling, then bisection."""
    low, high = 0, 1
    while word < int(tail(high) * WORD):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if word < int(tail(middle) * WORD) else (low, middle)
    for j in (low, low + 1):
        THRESHOLDS.add(int(tail(j) * WORD))
    return low


def is_lost(law: Any, packet: Packet, state: dict[Any, Any]) -> bool:
    """Whether a packet is lost. Packets come in the order of sending; a shipped law's class names its body below."""
    return bool(_LAWS[type(law)](law, packet, state))


def _bernoulli(law: laws.Bernoulli, at: Packet, state: dict[Any, Any]) -> bool:
    return below(at.word(0), decimal(law.loss))


def _per_sender(law: laws.PerSender, at: Packet, state: dict[Any, Any]) -> bool:
    return below(at.word(0), decimal(law.losses[at.src]))


def _name(law: Any, at: Packet) -> tuple[Any, ...]:
    """Whose clock ticks: the link's, or that of a packet number in one phase."""
    return (at.src, at.dst) if getattr(law, "clock", "step") == "packet" else (at.src, at.dst, at.number, at.phase)


@lru_cache
def chain(law: laws.GilbertElliott) -> tuple[Fraction, Fraction, Fraction, Fraction, Fraction]:
    """(P(good to bad), P(bad to good), share of bad, loss in good, loss in bad) from loss and mean stay in bad.

    loss = share bad + (1 - share) good, leave = 1/burst, and what enters is what leaves.
    """
    good, bad = decimal(law.loss_good), decimal(law.loss_bad)
    share = (decimal(law.loss) - good) / (bad - good)
    leave = 1 / decimal(law.burst)
    return share * leave / (1 - share), leave, share, good, bad


def _gilbert_elliott(law: laws.GilbertElliott, at: Packet, state: dict[Any, Any]) -> bool:
    enter, leave, share, good, bad = chain(law)
    name, move = _name(law, at), at.word(1)
    if name not in state:
        state[name] = below(move, share)
    else:
        state[name] = not below(move, leave) if state[name] else below(move, enter)
    return below(at.word(0), bad if state[name] else good)


def strings(law: laws.Trace, src: int, dst: int, *phase: str) -> list[str]:
    """What was recorded on a link, or in a phase of it: one string, or one of each packet."""
    if isinstance(law.recorded, str):
        return [law.recorded]
    found: list[str] = []
    for link, recorded in law.recorded:
        if link[:2] == (src, dst) and (len(link) == 2 or not phase or phase == link[2:]):
            found += [recorded] if isinstance(recorded, str) else recorded
    return found or ["0"] * (src == dst)


def _replayed(law: laws.Trace, at: Packet, state: dict[Any, Any]) -> bool:
    """A log step by step. A link that carries what was recorded replays it; another one from anywhere on the link."""
    name, own, every = _name(law, at), strings(law, at.src, at.dst, at.phase), strings(law, at.src, at.dst)
    if name not in state:
        T, (place, packets) = len(every[0]), at.among
        cells = T * len(every)
        if packets == len(own) and every != ["0"]:
            first = own[place], 0
        else:
            THRESHOLDS.update(-(-i * WORD // cells) for i in range(1, cells))
            first = every[(cell := at.word(1) * cells // WORD) // T], cell % T
        state[name] = first
    else:
        one, step = state[name]
        state[name] = one, (step + 1) % len(one)
    one, step = state[name]
    return bool(one[step] == "1")


def _trace(law: laws.Trace, at: Packet, state: dict[Any, Any]) -> bool:
    if not isinstance(law.recorded, str) and len(law.recorded[0][0]) == 3:
        return _replayed(law, at, state)
    name, (log,) = _name(law, at), strings(law, at.src, at.dst)
    THRESHOLDS.update(-(-i * WORD // len(log)) for i in range(1, len(log)))
    state[name] = (state[name] + 1) % len(log) if name in state else at.word(1) * len(log) // WORD
    return log[state[name]] == "1"


@lru_cache
def burst_tail(law: laws.Renewal | laws.HeavyTailed) -> tuple[Callable[[int], Fraction], Fraction]:
    """(P(T >= j), E T) of a burst's length."""
    if isinstance(law, laws.HeavyTailed):
        return lambda j: Fraction(2, j * (j + 1)) if j else Fraction(1), Fraction(2)
    lengths = [decimal(value) for value in law.lengths]
    mean = sum(((j + 1) * chance for j, chance in enumerate(lengths)), Fraction(0))
    return lambda j: sum(lengths[max(j - 1, 0) :], Fraction(0)), mean


@lru_cache
def residual_tail(law: laws.Renewal | laws.HeavyTailed) -> Callable[[int], Fraction]:
    """P(at least j losses are left of the burst, this one included | in a burst), j >= 1."""
    tail, mean = burst_tail(law)
    if isinstance(law, laws.HeavyTailed):
        return lambda j: Fraction(1, max(j, 1))  # the sum over i >= j of 2/(i(i+1)) is 2/j
    lengths = range(1, len(law.lengths) + 1)
    return lambda j: sum((tail(i) for i in lengths if i >= j), Fraction(0)) / mean


def _renewal(law: laws.Renewal | laws.HeavyTailed, at: Packet, state: dict[Any, Any]) -> bool:
    loss, (tail, mean), name = decimal(law.loss), burst_tail(law), _name(law, at)
    if name not in state:
        left = longest(at.word(2), residual_tail(law)) if below(at.word(1), loss) else 0
    elif state[name]:
        left = state[name] - 1
    else:  # of all ticks (1 - loss) find the link in a run of arrivals, and loss / mean of all ticks begin a burst
        left = longest(at.word(2), tail) if below(at.word(1), loss / mean / (1 - loss)) else 0
    state[name] = left
    return left > 0


def _common_outage(law: laws.CommonOutage, at: Packet, state: dict[Any, Any]) -> bool:
    loss, outage = decimal(law.loss), decimal(law.outage)
    alone = 1 - (1 - loss) / (1 - outage)
    return below(at.common(0), outage) or below(at.word(0), alone)


_LAWS: dict[type, Callable[[Any, Packet, dict[Any, Any]], bool]] = {
    laws.Bernoulli: _bernoulli,
    laws.PerSender: _per_sender,
    laws.GilbertElliott: _gilbert_elliott,
    laws.Trace: _trace,
    laws.Renewal: _renewal,
    laws.HeavyTailed: _renewal,
    laws.CommonOutage: _common_outage,
}


@dataclass
class Masks:
    """The masks of a job, as `impl.loss.Arrivals` documents them: rows of True for what arrived."""

    law: Any
    owners: Sequence[int]
    ranks: int
    seed: int
    own_link: str
    state: dict[Any, Any] = field(default_factory=dict)

    def arrived(self, phase: str, step: int) -> list[list[bool]]:
        mask = [[True] * len(self.owners) for _ in range(self.ranks)]
        for rank, packet in self._places():
            owner = self.owners[packet]
            src, dst = (rank, owner) if phase == "gradients" else (owner, rank)
            number = PHASES.index(phase)
            word = philox((packet, 65536 * src + dst, number, step), key_of(self.seed))
            common = philox((packet, 0, 2 + number, step), key_of(self.seed))
            alike = [number for number, other in enumerate(self.owners) if other == owner]
            at = alike.index(packet), len(alike)
            one = Packet(phase, src, dst, packet, word.__getitem__, common.__getitem__, at)
            lost = is_lost(self.law, one, self.state)
            reliable = rank == owner and (phase == "parameters" or self.own_link == "reliable")
            mask[rank][packet] = reliable or not lost
        return mask

    def _places(self) -> Iterator[tuple[int, int]]:
        for packet in range(len(self.owners)):
            for rank in range(self.ranks):
                yield rank, packet
