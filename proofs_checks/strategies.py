"""Hypothesis strategies for whatever the protocol handles: laws, masks of arrivals, payloads, whole rounds.

Every argument that stands for a size or a choice may be a value or a strategy; what is left out is drawn. Examples
shrink towards few ranks, nothing lost and zeros.

    from hypothesis import given
    from lossproof.proofs_checks import rounds

    @given(rounds())
    def test_mine(case):
        my_round = MyRound(case.start_PE, case.owner_P, case.arrivals())

Legend: N ranks, P packets, E elements of a packet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import lcm
from typing import Any, TypeAlias, TypeVar, get_args

import torch
from hypothesis import strategies as st

from lossproof.impl.aggregate import NoSurvivor, Rule
from lossproof.impl.channel import SimulatedChannel
from lossproof.impl.loss import Arrivals, OwnLink
from lossproof.impl.round import Round
from lossproof.theory.laws import Bernoulli, CommonOutage, GilbertElliott, HeavyTailed, Law, PerSender, Renewal, Trace

T = TypeVar("T")
OneOf: TypeAlias = T | st.SearchStrategy[T]
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _drawn(draw: st.DrawFn, given: Any, otherwise: st.SearchStrategy[Any]) -> Any:
    chosen = otherwise if given is None else given
    return draw(chosen) if isinstance(chosen, st.SearchStrategy) else chosen


def losses(most: Fraction = Fraction(9, 10)) -> st.SearchStrategy[Fraction]:
    """Loss probabilities: exact rationals in [0, most], simple shares of `most`."""
    return st.fractions(0, 1, max_denominator=20).map(lambda share: share * most)


@st.composite
def laws(draw: st.DrawFn, ranks: int | None = None, independent_links: bool = False) -> Law:
    """A shipped law of any kind with exact parameters.

    Args:
        ranks: N; without it, laws that name ranks (`PerSender`, `Trace` by link) are left out.
        independent_links: only laws whose links lose independently of each other.

    >>> from hypothesis import given
    >>> @given(laws(ranks=3))
    ... def test(law):
    ...     assert law.age_tail(1, 0, 2) == law.marginal(0, 2)
    >>> test()
    """
    kinds = ["bernoulli", "gilbert-elliott", "transitions", "trace", "renewal", "heavy tail"]
    kinds += ["per sender", "trace by link"] if ranks else []
    kinds += [] if independent_links else ["outage"]
    clock: Any = st.sampled_from(["step", "packet"])
    match draw(st.sampled_from(kinds)):
        case "bernoulli":
            return Bernoulli(draw(losses()))
        case "gilbert-elliott":
            p = draw(losses())
            shortest = max(Fraction(1), p / (1 - p))
            return GilbertElliott(p, shortest + draw(st.fractions(0, 8, max_denominator=4)), draw(clock))
        case "transitions":
            moves = st.fractions(Fraction(1, 8), 1, max_denominator=8)
            good = draw(st.fractions(0, Fraction(1, 2), max_denominator=8))
            bad = draw(st.fractions(Fraction(5, 8), 1, max_denominator=8))
            return GilbertElliott.from_transitions(draw(moves), draw(moves), good, bad, draw(clock))
        case "trace":
            return Trace(draw(_logs()), draw(clock))
        case "renewal":
            shares = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any))
            lengths = tuple(Fraction(share, sum(shares)) for share in shares)
            mean = sum(((i + 1) * chance for i, chance in enumerate(lengths)), Fraction(0))
            return Renewal(draw(losses(mean / (1 + mean))), lengths)
        case "heavy tail":
            return HeavyTailed(draw(losses(Fraction(2, 3))))
        case "per sender":
            assert ranks
            return PerSender(tuple(draw(st.lists(losses(), min_size=ranks, max_size=ranks))))
        case "trace by link":
            links = [(i, j) for i in range(ranks or 0) for j in range(ranks or 0) if i != j] or [(0, 0)]
            return Trace(tuple((link, draw(_logs())) for link in links), draw(clock))
        case _:
            p = draw(losses())
            return CommonOutage(p, p * draw(st.fractions(0, 1, max_denominator=4)))


def _logs() -> st.SearchStrategy[str]:
    return st.text("01", min_size=1, max_size=9).filter(lambda bits: "0" in bits)


@st.composite
def arrivals(
    draw: st.DrawFn,
    ranks: OneOf[int] | None = None,
    packets: OneOf[int] | None = None,
    survivors: int = 0,
) -> torch.Tensor:
    """Masks arrived_NP, bool; any pattern, all and nothing arrived among them.

    Args:
        ranks, packets: N (1 to 5 if left out) and P (0 to 4).
        survivors: how many gradients of every packet arrive at least, at most N.

    >>> from hypothesis import given
    >>> @given(arrivals(ranks=3, survivors=1))
    ... def test(arrived_NP):
    ...     assert arrived_NP.any(0).all()
    >>> test()
    """
    N, P = _drawn(draw, ranks, st.integers(1, 5)), _drawn(draw, packets, st.integers(0, 4))
    any_column = st.lists(st.booleans().map(lambda lost: not lost), min_size=N, max_size=N)
    # all arrived comes first, because an example shrinks to that; nobody's is no rare case, as N grows
    columns = st.one_of(st.just([True] * N), any_column, st.just([False] * N))
    columns = columns.filter(lambda column: sum(column) >= survivors)
    mask = draw(st.lists(columns, min_size=P, max_size=P))
    return torch.tensor(mask, dtype=torch.bool).reshape(P, N).T.contiguous()


@st.composite
def payloads(
    draw: st.DrawFn,
    ranks: OneOf[int] | None = None,
    packets: OneOf[int] | None = None,
    elements: OneOf[int] | None = None,
    dtype: OneOf[torch.dtype] | None = None,
    most: int = 16,
) -> torch.Tensor:
    """Payloads payload_NPE of whole numbers that are multiples of lcm(1..N), so that every mean of them is whole.

    "Equal" then needs no tolerance. All numbers are exact in the dtype; from N = 9 on, bfloat16 holds none but 0.

    Args:
        ranks, packets, elements: N (1 to 5 if left out), P (0 to 4), E (1 to 3).
        dtype: float64, float32, bfloat16 or float16 if left out.
        most: the largest multiple.

    >>> from hypothesis import given
    >>> @given(payloads(ranks=3, packets=2))
    ... def test(payload_NPE):
    ...     assert (payload_NPE.double() % 6 == 0).all()
    >>> test()
    """
    N, P = _drawn(draw, ranks, st.integers(1, 5)), _drawn(draw, packets, st.integers(0, 4))
    E, kind = _drawn(draw, elements, st.integers(1, 3)), _drawn(draw, dtype, st.sampled_from(FLOATS))
    values = draw(st.lists(_whole(lcm(*range(1, N + 1)), most, kind), min_size=N * P * E, max_size=N * P * E))
    return torch.tensor(values, dtype=torch.float64).reshape(N, P, E).to(kind)


@cache
def _whole(unit: int, most: int, dtype: torch.dtype) -> st.SearchStrategy[int]:
    """Multiples of `unit` that a dtype represents, the simplest first."""
    multiples = [k * unit for k in range(1, most + 1) if torch.tensor(float(k * unit)).to(dtype).item() == k * unit]
    return st.sampled_from([0, *(sign * value for value in multiples for sign in (1, -1))])


@dataclass(frozen=True)
class RoundCase:
    """Everything that a job over lossy links is made of, and the gradients of its first steps.

    `arrivals()` and `round()` build ours; a second implementation is held against them.
    """

    ranks: int
    law: Law
    owner_P: list[int]
    seed: int
    own_link: OwnLink
    rule: Rule
    no_survivor: NoSurvivor
    start_PE: torch.Tensor
    payloads_TNPE: Sequence[torch.Tensor]

    def arrivals(self, receiver: int | None = None) -> Arrivals:
        """The masks of this job, all of them or only what one rank receives."""
        return Arrivals(self.law, self.owner_P, self.ranks, self.seed, self.own_link, receiver)

    def round(self) -> Round:
        """A new round that hosts all ranks, over simulated links."""
        arrivals = self.arrivals()
        return Round.in_process(
            self.start_PE,
            torch.tensor(self.owner_P),
            SimulatedChannel(arrivals),
            rule=self.rule,
            no_survivor=self.no_survivor,
            arrival_probability_NQ=arrivals.gradient_probability(),
        )


@st.composite
def rounds(
    draw: st.DrawFn,
    ranks: OneOf[int] | None = None,
    law: OneOf[Law] | None = None,
    own_link: OneOf[OwnLink] | None = None,
    rule: OneOf[Rule] | None = None,
    no_survivor: OneOf[NoSurvivor] | None = None,
    steps: OneOf[int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> RoundCase:
    """Whole rounds: ranks, owners, law, seed, rule, start and the payloads of some steps, whole numbers throughout.

    Args:
        ranks: N (1 to 4 if left out). law: any of `laws(N)`. own_link, rule: any.
        no_survivor: zero, hold or own. steps: 1 to 5. dtype: of parameters and payloads.

    >>> from hypothesis import given
    >>> @given(rounds(law=Bernoulli(0)))
    ... def test(case):
    ...     round_ = case.round()
    ...     for payload_NPE in case.payloads_TNPE:
    ...         count_P = round_.step(payload_NPE, lambda estimate: round_.fresh_QE.sub_(estimate))
    ...         assert (count_P == case.ranks).all()
    >>> test()
    """
    N = _drawn(draw, ranks, st.integers(1, 4))
    owner_P = draw(st.lists(st.integers(0, N - 1), min_size=1, max_size=4))
    E, T = draw(st.integers(1, 2)), _drawn(draw, steps, st.integers(1, 5))
    start = draw(st.lists(st.integers(-3, 3), min_size=len(owner_P) * E, max_size=len(owner_P) * E))
    return RoundCase(
        N,
        _drawn(draw, law, laws(N)),
        owner_P,
        draw(st.integers(0, 2**64 - 1)),
        _drawn(draw, own_link, st.sampled_from(get_args(OwnLink))),
        _drawn(draw, rule, st.sampled_from(get_args(Rule))),
        _drawn(draw, no_survivor, st.sampled_from(["zero", "hold", "own"])),
        torch.tensor(start, dtype=dtype).reshape(-1, E),
        [draw(payloads(N, len(owner_P), E, dtype)) for _ in range(T)],
    )
