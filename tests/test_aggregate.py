"""Stage 1 against its formulas in fractions, its bitwise promises, and what it refuses.

Payloads of whole numbers that are multiples of lcm(1..N) keep every mean whole, so "equal" needs no tolerance.

Legend: N senders, P packets, E elements of a packet.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossproof.impl.aggregate import NonFiniteGradient, _numbers, aggregate
from lossproof.proofs_checks import arrivals, payloads

RULES = ["survivor_mean", "inverse_probability", "zero_fill"]
FALLBACKS = ["zero", "hold", "own"]
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NAN, INF = float("nan"), float("inf")


@dataclass
class Case:
    payload_NPE: torch.Tensor
    arrived_NP: torch.Tensor
    probability_NP: torch.Tensor
    previous_PE: torch.Tensor
    owner_P: torch.Tensor

    def run(self, rule: Any, no_survivor: Any = "zero", **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
        given = vars(self) | changes
        return aggregate(
            given["payload_NPE"],
            given["arrived_NP"],
            rule,
            no_survivor=no_survivor,
            arrival_probability_N=given["probability_NP"],
            previous_PE=given["previous_PE"],
            owner=given["owner_P"],
        )


@st.composite
def cases(draw: st.DrawFn, dtypes: Any = FLOATS, least_packets: int = 0) -> Case:
    """Whole numbers that every dtype represents; probabilities whose inverses are whole."""
    N, P, E = draw(st.integers(1, 5)), draw(st.integers(least_packets, 4)), draw(st.integers(1, 3))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(dtypes))
    payload, arrived = draw(payloads(N, P, E, dtype)), draw(arrivals(N, P))
    probability = 0.5 ** torch.randint(0, 3, (N, P), generator=random).double()
    previous = torch.randint(-16, 17, (P, E), generator=random)
    owner = torch.randint(0, N, (P,), generator=random)
    return Case(payload, arrived, probability, previous.to(dtype), owner)


def expected(case: Case, rule: str, no_survivor: str) -> tuple[torch.Tensor, list[int]]:
    if case.arrived_NP.shape[1] == 0:
        return torch.zeros_like(case.previous_PE), []
    estimate, count = oracles.aggregate(
        [[[Fraction(x) for x in row] for row in rank] for rank in case.payload_NPE.tolist()],
        case.arrived_NP.tolist(),
        rule,
        no_survivor,
        [[Fraction(q) for q in row] for row in case.probability_NP.tolist()],
        case.previous_PE.tolist(),
        case.owner_P.tolist(),
    )
    assert all(x == int(x) for row in estimate for x in row)
    return torch.tensor([[int(x) for x in row] for row in estimate]).to(case.payload_NPE.dtype), count


@given(cases(), st.sampled_from(RULES), st.sampled_from(FALLBACKS))
def test_every_rule_is_its_formula(case: Case, rule: str, no_survivor: str) -> None:
    estimate, count = case.run(rule, no_survivor)
    expected_estimate, expected_count = expected(case, rule, no_survivor)
    assert estimate.dtype == case.payload_NPE.dtype
    assert count.dtype == torch.int64
    assert torch.equal(estimate, expected_estimate)
    assert count.tolist() == expected_count


@given(cases(least_packets=1), st.sampled_from(RULES), st.sampled_from(FALLBACKS), st.sampled_from([NAN, INF, -INF]))
def test_what_lies_in_a_lost_slot_never_reaches_the_estimate(
    case: Case, rule: str, no_survivor: str, garbage: float
) -> None:
    lost_NP = ~case.arrived_NP
    if no_survivor == "own":  # the owner's own gradient needs no network
        lost_NP[case.owner_P, torch.arange(len(case.owner_P))] = False
    dirty = case.payload_NPE.masked_fill(lost_NP.unsqueeze(-1), garbage)
    assert torch.equal(case.run(rule, no_survivor, payload_NPE=dirty)[0], case.run(rule, no_survivor)[0])


@given(cases(least_packets=1), st.sampled_from(RULES), st.sampled_from(FALLBACKS))
def test_the_arguments_are_left_alone(case: Case, rule: str, no_survivor: str) -> None:
    before = {name: tensor.clone() for name, tensor in vars(case).items()}
    estimate, _ = case.run(rule, no_survivor)
    estimate.fill_(77)  # and the estimate is nobody's memory
    assert all(torch.equal(tensor, before[name]) for name, tensor in vars(case).items())


@given(
    cases(least_packets=1), st.sampled_from(RULES), st.sampled_from(FALLBACKS), st.sampled_from(["NEP", "PNE", "2E"])
)
def test_a_payload_may_lie_in_memory_as_it_likes(case: Case, rule: str, no_survivor: str, order: str) -> None:
    payload = case.payload_NPE
    scattered = {
        "NEP": payload.transpose(1, 2).contiguous().transpose(1, 2),
        "PNE": payload.transpose(0, 1).contiguous().transpose(0, 1),
        "2E": payload.repeat_interleave(2, -1)[..., ::2],
    }[order]
    mask = case.arrived_NP.T.contiguous().T
    result = case.run(rule, no_survivor, payload_NPE=scattered, arrived_NP=mask)
    assert torch.equal(result[0], case.run(rule, no_survivor)[0])


def in_rank_order(payload_NPE: torch.Tensor, arrived_NP: torch.Tensor, divide_by_N: bool) -> torch.Tensor:
    """The promise in full: one addition after another in rank order, in float32 at least, then one division."""
    N, P, E = payload_NPE.shape
    dtype = torch.promote_types(payload_NPE.dtype, torch.float32)
    rows = []
    for p in range(P):
        total = None
        for i in range(N):
            if arrived_NP[i, p]:
                term = payload_NPE[i, p].to(dtype)
                total = term.clone() if total is None else total + term
        divisor = N if divide_by_N else max(int(arrived_NP[:, p].sum()), 1)
        rows.append(torch.zeros(E, dtype=dtype) if total is None else total / divisor)
    return torch.stack(rows).to(payload_NPE.dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("N", [1, 2, 3, 4, 7, 16, 33])
@pytest.mark.parametrize(("P", "E"), [(1, 1), (3, 7), (2, 257)])
def test_sums_run_in_rank_order_and_end_in_one_division(N: int, P: int, E: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(N)
    payload = torch.randn(N, P, E, generator=random).to(dtype)
    for arrived in (torch.ones(N, P, dtype=torch.bool), torch.rand(N, P, generator=random) < 0.6):
        assert torch.equal(aggregate(payload, arrived)[0], in_rank_order(payload, arrived, False))
        assert torch.equal(aggregate(payload, arrived, "zero_fill")[0], in_rank_order(payload, arrived, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("N", [1, 2, 3, 4])
def test_without_loss_it_is_the_ordinary_mean_bit_for_bit(N: int, dtype: torch.dtype) -> None:
    """Up to four ranks; beyond, torch's own mean adds in another order that depends on the shape (claim C3)."""
    payload = torch.randn(N, 5, 100, dtype=dtype, generator=torch.Generator().manual_seed(N))
    everything = torch.ones(N, 5, dtype=torch.bool)
    for rule in ("survivor_mean", "zero_fill"):
        assert torch.equal(aggregate(payload, everything, rule)[0], payload.mean(0))  # type: ignore[arg-type]
    ones = torch.ones(N)
    estimate, _ = aggregate(payload, everything, "inverse_probability", arrival_probability_N=ones)
    assert torch.equal(estimate, payload.mean(0))


# -- the same thing said differently


@given(cases(least_packets=1), st.sampled_from(RULES), st.sampled_from(FALLBACKS), st.randoms())
def test_relabelling_ranks_changes_nothing(case: Case, rule: str, no_survivor: str, random: Any) -> None:
    order = list(range(case.payload_NPE.shape[0]))
    random.shuffle(order)
    new_name = torch.tensor([order.index(old) for old in range(len(order))])
    relabelled = Case(
        case.payload_NPE[order],
        case.arrived_NP[order],
        case.probability_NP[order],
        case.previous_PE,
        new_name[case.owner_P],
    )
    assert torch.equal(relabelled.run(rule, no_survivor)[0], case.run(rule, no_survivor)[0])


@given(cases(least_packets=1), st.sampled_from(RULES), st.sampled_from(FALLBACKS), st.data())
def test_shards_may_be_merged_or_taken_apart(case: Case, rule: str, no_survivor: str, data: st.DataObject) -> None:
    P = case.arrived_NP.shape[1]
    cut = data.draw(st.integers(0, P))
    parts = [
        Case(c[:, a:b], m[:, a:b], q[:, a:b], previous[a:b], owner[a:b]).run(rule, no_survivor)
        for c, m, q, previous, owner in [tuple(vars(case).values())]
        for a, b in ((0, cut), (cut, P))
    ]
    whole = case.run(rule, no_survivor)
    assert torch.equal(torch.cat([estimate for estimate, _ in parts]), whole[0])
    assert torch.equal(torch.cat([count for _, count in parts]), whole[1])


@given(cases(least_packets=1), st.sampled_from(RULES), st.sampled_from(FALLBACKS))
def test_packets_that_share_a_fate_may_be_one(case: Case, rule: str, no_survivor: str) -> None:
    N, P, E = case.payload_NPE.shape
    split = Case(
        case.payload_NPE.reshape(N, P * E, 1),
        case.arrived_NP.repeat_interleave(E, 1),
        case.probability_NP.repeat_interleave(E, 1),
        case.previous_PE.reshape(P * E, 1),
        case.owner_P.repeat_interleave(E),
    )
    assert torch.equal(split.run(rule, no_survivor)[0].reshape(P, E), case.run(rule, no_survivor)[0])


@given(cases(least_packets=1))
def test_one_probability_and_one_owner_serve_all_packets(case: Case) -> None:
    q_N, P = case.probability_NP[:, 0], case.arrived_NP.shape[1]
    spread = q_N[:, None].expand(-1, P)
    few = case.run("inverse_probability", "own", probability_NP=q_N, owner_P=0)
    many = case.run("inverse_probability", "own", probability_NP=spread, owner_P=torch.zeros(P, dtype=torch.int64))
    assert torch.equal(few[0], many[0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rule", RULES)
def test_long_packets_are_the_sum_of_their_pieces(rule: Any, dtype: torch.dtype) -> None:
    """Packets of 256, 384, ... elements are summed by 128: equal, bit for bit, to packets cut by hand."""
    for E in (128, 256, 384, 1024):
        random = torch.Generator().manual_seed(E)
        payload = torch.randn(5, 7, E, generator=random).to(dtype)
        arrived = torch.rand(5, 7, generator=random) < 0.6
        arrived[:, 3] = False
        payload[~arrived] = NAN
        q = torch.rand(5, 7, generator=random, dtype=torch.float64) / 2 + 0.5
        estimate, count = aggregate(payload, arrived, rule, arrival_probability_N=q)
        for start in range(0, E, 96):
            piece = payload[..., start : start + 96]
            assert torch.equal(
                estimate[:, start : start + 96], aggregate(piece, arrived, rule, arrival_probability_N=q)[0]
            )
        assert torch.equal(count, arrived.sum(0))
        assert not estimate[3].any()


def test_without_numpy_the_digits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    payload, arrived = torch.randn(5, 7, 256, generator=random), torch.rand(5, 7, generator=random) < 0.6
    expected_PE, _ = aggregate(payload, arrived)
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert torch.equal(aggregate(payload, arrived)[0], expected_PE)


# -- what is not finite


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_arrived_and_is_not_finite_is_refused_or_carried(bad: float, dtype: torch.dtype) -> None:
    payload = torch.ones(3, 4, 2, dtype=dtype)
    payload[1, 2, 1] = bad
    everything = torch.ones(3, 4, dtype=torch.bool)
    for rule in ("survivor_mean", "zero_fill"):
        with pytest.raises(NonFiniteGradient, match="estimate of packet 2 is not finite"):
            aggregate(payload, everything, rule)  # type: ignore[arg-type]
        estimate, _ = aggregate(payload, everything, rule, non_finite="carry")  # type: ignore[arg-type]
        assert estimate.isfinite().tolist() == [[True, True], [True, True], [True, False], [True, True]]
    everything[1, 2] = False
    assert torch.equal(aggregate(payload, everything)[0], torch.ones(4, 2, dtype=dtype))


def test_a_fallback_that_is_not_finite_is_refused() -> None:
    payload, nothing = torch.full((2, 1, 1), NAN), torch.zeros(2, 1, dtype=torch.bool)
    with pytest.raises(NonFiniteGradient):
        aggregate(payload, nothing, no_survivor="own", owner=1)
    with pytest.raises(NonFiniteGradient):
        aggregate(payload, nothing, no_survivor="hold", previous_PE=torch.full((1, 1), INF))


def test_the_first_packet_that_is_not_finite_is_named() -> None:
    payload = torch.ones(2, 4, 2)
    payload[0, 1], payload[1, 3] = INF, NAN
    with pytest.raises(NonFiniteGradient, match="estimate of packet 1 is not finite"):
        aggregate(payload, torch.ones(2, 4, dtype=torch.bool))


def test_rows_are_numbered_in_64_bits_where_32_do_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, arange = [], torch.arange
    monkeypatch.setattr(torch, "arange", lambda n, dtype: asked.append(dtype) or arange(1, dtype=dtype))
    for rows in ((1 << 30) - 1, 1 << 30):
        _numbers.__wrapped__(2, rows)
    assert asked == [torch.int32] * 2 + [torch.int64] * 2


def test_finite_estimates_pass_though_their_sum_overflows() -> None:
    for dtype in FLOATS:
        payload = torch.full((1, 2, 3), torch.finfo(dtype).max, dtype=dtype)
        assert torch.equal(aggregate(payload, torch.ones(1, 2, dtype=torch.bool))[0], payload[0])


def test_a_sum_that_overflows_is_refused() -> None:
    payload = torch.full((2, 1, 1), torch.finfo(torch.float32).max)
    with pytest.raises(NonFiniteGradient):
        aggregate(payload, torch.ones(2, 1, dtype=torch.bool))
    half = torch.full((2, 1, 1), torch.finfo(torch.float16).max, dtype=torch.float16)  # summed in float32: no overflow
    assert torch.equal(aggregate(half, torch.ones(2, 1, dtype=torch.bool))[0], half[0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_large_finite_values_are_finite_though_their_norm_is_not(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    payload = torch.tensor([largest, -largest, largest / 2, largest], dtype=dtype).expand(2, 3, 4)
    assert not torch.linalg.vector_norm(payload[0]).to(dtype).isfinite()
    one = torch.tensor([[True, False, True], [False, True, False]])
    assert torch.equal(aggregate(payload, one)[0], payload[0])
    nobody = torch.zeros_like(one)
    assert torch.equal(aggregate(payload, nobody, no_survivor="own", owner=1)[0], payload[1])
    assert torch.equal(aggregate(payload, nobody, no_survivor="hold", previous_PE=payload[0])[0], payload[0])


def test_no_survivor_may_be_an_error() -> None:
    payload, arrived = torch.ones(2, 3, 1), torch.tensor([[True, False, True], [True, False, False]])
    with pytest.raises(ValueError, match="no survivor for packet 1"):
        aggregate(payload, arrived, no_survivor="raise")
    arrived[0, 1] = True
    assert aggregate(payload, arrived, no_survivor="raise")[1].tolist() == [2, 1, 1]


# -- what is refused. Every survivor is there: whether an argument is usable must not depend on chance.

GOOD: dict[str, Any] = {"payload_NPE": torch.ones(2, 3, 4), "arrived_NP": torch.ones(2, 3, dtype=torch.bool)}


@pytest.mark.parametrize(
    ("name", "error", "changes"),
    [
        ("payload_NPE", TypeError, {"payload_NPE": torch.ones(2, 3, 4, dtype=torch.int64)}),
        ("payload_NPE", TypeError, {"payload_NPE": torch.ones(2, 3, 4, dtype=torch.complex64)}),
        ("payload_NPE", ValueError, {"payload_NPE": torch.ones(2, 3)}),
        ("payload_NPE", ValueError, {"payload_NPE": torch.ones(0, 3, 4), "arrived_NP": torch.ones(0, 3).bool()}),
        ("arrived_NP", TypeError, {"arrived_NP": torch.ones(2, 3)}),
        ("arrived_NP", ValueError, {"arrived_NP": torch.ones(3, 2).bool()}),
        ("arrived_NP", ValueError, {"arrived_NP": torch.ones(2, 1).bool()}),
        ("rule", ValueError, {"rule": "mean"}),
        ("no_survivor", ValueError, {"no_survivor": "ignore"}),
        ("non_finite", ValueError, {"non_finite": "ignore"}),
        ("arrival_probability_N", ValueError, {"rule": "inverse_probability"}),
        *(
            ("arrival_probability_N", ValueError, {"rule": "inverse_probability", "arrival_probability_N": q})
            for q in (torch.ones(3), torch.ones(2, 4), torch.tensor([1.0, 0.0]), torch.tensor([NAN, 1.0]), [1.1, 1.0])
        ),
        ("previous_PE", ValueError, {"no_survivor": "hold"}),
        ("previous_PE", ValueError, {"no_survivor": "hold", "previous_PE": torch.ones(4, 3)}),
        ("owner", ValueError, {"no_survivor": "own"}),
        ("owner", ValueError, {"no_survivor": "own", "owner": 2}),
        ("owner", ValueError, {"no_survivor": "own", "owner": -1}),
        ("owner", ValueError, {"no_survivor": "own", "owner": torch.tensor([0, 1])}),
        ("owner", ValueError, {"no_survivor": "own", "owner": torch.tensor([0, 1, 2])}),
        ("owner", TypeError, {"no_survivor": "own", "owner": 0.5}),
        ("owner", TypeError, {"no_survivor": "own", "owner": True}),
    ],
)
def test_unusable_arguments_are_refused(name: str, error: type[Exception], changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=f"^{name} must"):
        aggregate(**(GOOD | changes))


def test_packets_of_no_elements() -> None:
    estimate, count = aggregate(torch.ones(2, 3, 0), torch.ones(2, 3, dtype=torch.bool))
    assert estimate.shape == (3, 0)
    assert count.tolist() == [2, 2, 2]
