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

from lossproof.impl.retain import retain
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
