"""Stage 2 against a loop, and what it refuses.

Legend: B replicas, P packets, E elements of a packet.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossproof.impl.retain import retain, retain_and_measure
from lossproof.proofs_checks import arrivals


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 3)]))
    P, E = draw(st.integers(0, 4)), draw(st.integers(1, 3))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    stale = torch.randn(*batch, P, E, generator=random).to(dtype)
    fresh = torch.randn(*(batch if draw(st.booleans()) else ()), P, E, generator=random).to(dtype)
    return stale, fresh, draw(arrivals(math.prod(batch), P)).reshape(*batch, P)


@given(cases(), st.sampled_from([float("nan"), float("inf"), 0.0]))
def test_fresh_where_it_arrived_and_stale_elsewhere(case: Any, garbage: float) -> None:
    stale, fresh, arrived = case
    fresh_all = fresh.expand(stale.shape).masked_fill(~arrived.unsqueeze(-1), garbage)  # lost slots hold anything
    replica = retain(stale, fresh_all, arrived)
    assert replica.dtype == stale.dtype
    assert torch.equal(replica, retain(stale, fresh, arrived))
    for *row, packet in torch.cartesian_prod(*map(torch.arange, arrived.shape)).reshape(-1, arrived.ndim).tolist():
        place = (*row, packet)
        source = fresh_all if arrived[place] else stale
        assert torch.equal(replica[place], source[place])


@given(cases())
def test_a_new_tensor_and_nothing_else_changes(case: Any) -> None:
    before = [tensor.clone() for tensor in case]
    retain(*case).fill_(7)
    assert all(torch.equal(a, b) for a, b in zip(case, before, strict=True))


@pytest.mark.parametrize(
    ("name", "error", "changes"),
    [
        ("arrived_P", TypeError, {"arrived_P": torch.ones(3)}),
        ("arrived_P", ValueError, {"arrived_P": torch.ones(4).bool()}),
        ("arrived_P", ValueError, {"arrived_P": torch.ones(2, 3).bool()}),
        ("fresh_PE", TypeError, {"fresh_PE": torch.ones(3, 2, dtype=torch.float64)}),
        ("fresh_PE", ValueError, {"fresh_PE": torch.ones(3, 1)}),
        ("fresh_PE", ValueError, {"fresh_PE": torch.ones(1, 3, 2)}),
        ("stale_PE", ValueError, {"stale_PE": torch.ones(3), "fresh_PE": torch.ones(3)}),
    ],
)
def test_unusable_arguments_are_refused(name: str, error: type[Exception], changes: dict[str, Any]) -> None:
    good = {"stale_PE": torch.zeros(3, 2), "fresh_PE": torch.ones(3, 2), "arrived_P": torch.ones(3).bool()}
    with pytest.raises(error, match=f"^{name} must"):
        retain(**(good | changes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drift_is_measured_on_what_was_kept(dtype: torch.dtype) -> None:
    """Against the definition, a replica and a pair at a time, in float64."""
    N, P = 4, 5
    random = torch.Generator().manual_seed(0)
    owner = torch.tensor([0, 3, 1, 1, 2])
    stale, fresh = (torch.randn(*shape, 3, generator=random).to(dtype) for shape in ((N, P), (P,)))
    arrived = (torch.rand(N, P, generator=random) < 0.5) | (torch.arange(N)[:, None] == owner)
    replicas, count_P, sums = retain_and_measure(stale, fresh, arrived)
    assert torch.equal(replicas, retain(stale, fresh, arrived))
    assert count_P.tolist() == [sum(bool(arrived[i, p]) for i in range(N)) for p in range(P)]
    gap = replicas.double() - fresh.double()
    for p in range(P):
        others = [i for i in range(N) if i != owner[p]]
        to_owner = [float(gap[i, p].square().sum()) for i in others]
        pairs = [float((gap[i, p] - gap[j, p]).square().sum()) for i in others for j in others if i < j]
        assert float(sums.to_owner(N)[p]) == pytest.approx(sum(to_owner) / len(to_owner), rel=1e-12)
        assert float(sums.between_pairs(N)[p]) == pytest.approx(sum(pairs) / len(pairs), rel=1e-12, abs=1e-14)
    with pytest.raises(ValueError, match="fresh_PE must have shapes"):
        retain_and_measure(stale, stale, arrived)
    with pytest.raises(TypeError, match="arrived_P must be bool"):
        retain_and_measure(stale, fresh, arrived.float())
