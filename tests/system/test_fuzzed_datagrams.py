"""A million fuzzed datagrams, none of them taken: the long version of the test in `test_udp_wire.py`."""

from __future__ import annotations

import pytest
from test_udp_wire import refuse_fuzzed


@pytest.mark.parametrize("algorithm", ["blake2b", "gmac"])
def test_of_a_million_fuzzed_datagrams_none_is_taken(algorithm: str) -> None:
    assert sum(refuse_fuzzed(algorithm, 500, seed) for seed in range(11)) > 500_000
