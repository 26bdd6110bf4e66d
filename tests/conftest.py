"""What holds for every test: reproducible examples in CI, one thread for each worker, and no silent skip."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest
import torch
from hypothesis import settings

CI = bool(os.environ.get("LOSSPROOF_CI") or os.environ.get("CI"))
EVERYTHING_MUST_RUN = os.environ.get("LOSSPROOF_CI") == "1"

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", deadline=None)  # a shared machine is no place for deadlines
settings.load_profile("ci" if CI else "explore")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("device"):
                item.add_marker(pytest.mark.skip(reason="not run: no device here"))


def _fail_if_skipped(report: Any) -> None:
    if EVERYTHING_MUST_RUN and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"skipped, and LOSSPROOF_CI=1 demands that it runs: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if not item.get_closest_marker("device"):
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    report = yield
    _fail_if_skipped(report)  # a whole file that skips itself, as with importorskip
    return report
