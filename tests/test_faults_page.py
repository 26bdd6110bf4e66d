"""The page of faults is of the recorded run, and the record says what the page claims."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
from pages import generator


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    return generator("faults")


def test_the_page_is_of_the_record(faults: ModuleType) -> None:
    assert faults.PAGE.read_text(encoding="utf-8") == faults.page(
        json.loads(faults.RESULTS.read_text(encoding="utf-8"))
    )


def test_every_fault_of_the_list_was_tried_and_none_took_a_wrong_packet(faults: ModuleType) -> None:
    rows = json.loads(faults.RESULTS.read_text(encoding="utf-8"))["rows"]
    for word in ("killed", "stopped (", "50 ms", "dead in both", "one way", "forged", "receive buffer"):
        assert sum(word in row["fault"] for row in rows) == 1
    for row in rows:
        assert row["wrong"] == 0
        assert row["times"] >= 1
        assert 0 <= row["lost"] <= row["offered"]
