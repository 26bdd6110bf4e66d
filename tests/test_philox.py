"""Philox 4x32-10: the published vectors, NumPy against torch, both against plain integers."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossproof.impl.philox import philox4x32, split_seed

UINT32 = st.integers(0, 2**32 - 1)
COUNTERS = st.lists(st.tuples(UINT32, UINT32, UINT32, UINT32), min_size=1, max_size=8)
ONES = 0xFFFFFFFF
PUBLISHED = [  # Random123, kat_vectors: counter, key, words
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def words(counters: list[tuple[int, ...]], key: tuple[int, int], kind: str) -> list[tuple[int, ...]]:
    if kind == "numpy":
        columns = tuple(np.array(column, dtype=np.int64) for column in zip(*counters, strict=True))
        result = philox4x32(columns, key)
        assert all(word.dtype == np.int64 for word in result)
    else:
        columns = tuple(torch.tensor(column) for column in zip(*counters, strict=True))
        result = philox4x32(columns, key)
        assert all(word.dtype == torch.int64 for word in result)
    return list(zip(*(word.tolist() for word in result), strict=True))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_published_vectors(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...], kind: str
) -> None:
    assert words([counter], key, kind) == [expected]
    assert oracles.philox(counter, key) == expected


@given(COUNTERS, UINT32, UINT32)
def test_numpy_and_torch_equal_plain_integers(counters: list[tuple[int, ...]], low: int, high: int) -> None:
    expected = [oracles.philox(counter, (low, high)) for counter in counters]
    assert words(counters, (low, high), "numpy") == expected
    assert words(counters, (low, high), "torch") == expected


def test_counters_broadcast() -> None:
    row, column = np.arange(3, dtype=np.int64), np.arange(2, dtype=np.int64)[:, None]
    result = philox4x32((row, column, 1, 2**32 - 1), (5, 6))
    for i, j in np.ndindex(2, 3):
        assert tuple(int(word[i, j]) for word in result) == oracles.philox((j, i, 1, 2**32 - 1), (5, 6))


@given(st.integers(0, 2**64 - 1))
def test_a_seed_is_its_two_halves(seed: int) -> None:
    low, high = split_seed(seed)
    assert 0 <= low < 2**32
    assert 0 <= high < 2**32
    assert high * 2**32 + low == seed


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (2**64, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_a_seed_that_is_none_is_refused(seed: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="seed"):
        split_seed(seed)  # type: ignore[arg-type]
