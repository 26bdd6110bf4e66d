"""What the compiler makes of the kernels for three generations of GPUs, without one: registers, loads, stores, offsets.

`kernels_ahead_of_time.py` compiles what a launch would run, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="not run: Triton is not installed")
FILE = Path(__file__).with_name("kernels_ahead_of_time.py")
STAGE_1, STAGE_2, WEIGHTS = "stage 1, float32, drawn", "stage 2, float32, drift", "stage 1, float32, weights"


def compiled(folder: Path, architecture: int, *mistakes: str) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(FILE), str(architecture), *mistakes],
        env=environment | {"TRITON_CACHE_DIR": str(folder)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def count(operations: dict[str, int], *starts: str) -> int:
    return sum(number for name, number in operations.items() if name.startswith(starts))


def check(name: str, found: dict[str, Any]) -> None:
    usage, loop, everywhere, group = found["usage"], found["loop"], found["everywhere"], found["group"]
    assert usage["STACK"] == usage["LOCAL"] == count(everywhere, "LDL", "STL") == 0, "registers spill to local memory"
    assert usage["REG"] <= 128
    assert found["offsets"] == ["i64"], "an offset of fewer than 64 bits"
    assert found["fused"] == 0, "multiplications and additions are fused"
    if "drawn" in name:
        assert found["wide products"] >= 20 - 9, "two a round; the first rounds of what is known are folded"
    if name == "mask":
        return
    # One load an element and sender: 16 bytes a thread, or where nothing is known of the alignment, an element.
    loads, stores, pieces = ("LDG.E.128", "STG.E.128", 1)
    if "ragged" in name:
        loads, stores, pieces = ("LDG.E", "STG.E", found["vector"])
        loop = {name: number for name, number in loop.items() if name in (loads, stores)}
        everywhere = {name: number for name, number in everywhere.items() if name in (loads, stores)}
    in_loop, all_loads, all_stores = loop.get(loads, 0), everywhere.get(loads, 0), everywhere.get(stores, 0)
    assert in_loop == group * pieces, "each element of the payload is read once"
    if name.startswith("stage 1"):
        fallback = "own" in name or "hold" in name
        assert all_loads == (group + fallback) * pieces
        assert (loop.get(stores, 0), all_stores) == (0, pieces), "each element of the estimate is written once"
    else:
        shared = "own copies" not in name
        assert all_loads == (group + shared) * pieces, "the shared packet is read once, before the loop"
        assert loop.get(stores, 0) == group * pieces, "each element of the replicas is written once"
        sums = 2 if name.endswith("ragged") else 0  # the drift's partial sums are single numbers too
        assert all_stores == group * pieces + sums


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_nothing_spills_and_every_byte_moves_once(architecture: int, tmp_path: Path) -> None:
    found = compiled(tmp_path, architecture)
    assert len(found) == 14
    for name, what in found.items():
        try:
            check(name, what)
        except AssertionError as error:
            raise AssertionError(f"{name} for sm_{architecture}: {what}") from error


MISTAKES = {
    "32-bit sender": (
        STAGE_1, ("stage1", "tl.to_tensor(base).to(tl.int64)", "tl.to_tensor(base)"), "fewer than 64 bits"),
    "32-bit element": (
        STAGE_2, ("stage2", "column.to(tl.int64) * ELEMENTS", "column * ELEMENTS"), "fewer than 64 bits"),
    "other elements are read too": (STAGE_1, (
        "stage1", "gradient = gradient.to(SUM)",
        "gradient = gradient.to(SUM) + tl.load(payload_ptr + (sender + j) * payload_stride_n + (element + ELEMENTS))"),
        "read once"),
    "alignment unknown": (STAGE_1, (
        "stage1", "@triton.jit(do_not_specialize=UNSPECIALISED)",
        '@triton.jit(do_not_specialize=[*UNSPECIALISED, "E"])'), "read once"),
    "fused": (WEIGHTS, ("launch", '"enable_fp_fusion": False', '"enable_fp_fusion": True'), "are fused"),
    "too few registers": (STAGE_1, ("launch", '"maxnreg": 128', '"maxnreg": 32'), "spill"),
}  # fmt: skip


def test_planted_mistakes_are_caught(tmp_path: Path) -> None:
    """In launches that pass the test above as they are."""
    found = compiled(tmp_path, 90, json.dumps([(launch, mistake) for launch, mistake, _ in MISTAKES.values()]))
    for (launch, _, reason), what in zip(MISTAKES.values(), found, strict=True):
        with pytest.raises(AssertionError, match=reason):
            check(launch, what)
