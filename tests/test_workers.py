"""Claims checked in several processes: the same outcome, every check heard of, and nothing left behind by Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from lossproof.proofs_checks import judge, verify

CHEAP = ("B1", "P2", "U1")


def test_the_outcome_does_not_depend_on_the_number_of_processes() -> None:
    heard: dict[int, list[tuple[str, int, int]]] = {jobs: [] for jobs in (1, 2)}
    found = [verify(CHEAP, progress=lambda *now, jobs=jobs: heard[jobs].append(now), jobs=jobs) for jobs in (1, 2)]
    assert found[0].results == found[1].results
    assert sorted(what for what, *_ in heard[1]) == sorted(what for what, *_ in heard[2])
    assert [done for _, done, _ in heard[2]] == list(range(len(heard[2])))
    assert {total for *_, total in heard[2]} == {len(heard[2]) - 1}


@pytest.mark.parametrize("jobs", [0, -1])
def test_unusable_numbers_are_refused(jobs: int) -> None:
    with pytest.raises(ValueError, match=f"jobs must be at least 1, got {jobs}"):
        judge.verify(["B1"], jobs=jobs)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_ends_all_processes() -> None:
    code = """
import signal, sys
from lossproof.proofs_checks import verify
signal.signal(signal.SIGINT, signal.default_int_handler)
if __name__ == "__main__":
    verify(["B2", "D1", "P4"], effort="full", jobs=2, progress=lambda *now: print(*now, flush=True))
"""
    job = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert job.stdout is not None
    assert "derived" in job.stdout.readline()
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does
    _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    assert errors.count("Traceback") == 1, errors
    assert "KeyboardInterrupt" in errors
    waited = time.monotonic() + 30
    while _alive(job.pid) and time.monotonic() < waited:
        time.sleep(0.05)
    assert not _alive(job.pid)
