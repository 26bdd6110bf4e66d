"""What the compiler makes of the kernels for three generations of GPUs, without one: registers, loads, stores, offsets.

`kernels_ahead_of_time.py` compiles what a launch would run, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
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


def check(found: dict[str, Any]) -> None:
    usage, loop, everywhere = found["usage"], Counter(found["loop"]), Counter(found["everywhere"])
    spills = sum(number for operation, number in everywhere.items() if operation.startswith(("LDL", "STL")))
    assert usage["STACK"] == usage["LOCAL"] == spills == 0, "registers spill to local memory"
    assert usage["REG"] <= 128
    assert found["offsets"] == ["i64"], "an offset of fewer than 64 bits"
    # one 32-bit product may lie below an address: that of the remainder that says which part of a packet is meant
    assert found["narrow products"] == found["remainders"], "an address made of a product of fewer than 64 bits"
    assert found["fused"] == 0, "multiplications and additions are fused"
    given, group = set(found["given"]), found["group"]
    if "threshold_ptr" in given and group:
        assert found["wide products"] >= 20 - 9, "two a round; the first rounds of what is known are folded"
    if group:
        check_bytes(found, given, group, loop, everywhere)


def check_bytes(found: Any, given: set[str], group: int, loop: Counter[str], everywhere: Counter[str]) -> None:
    """All that is loaded and stored, by instruction: the elements of every row once, and per packet what finds it.

    A thread moves 16 bytes at once, or where nothing is known of the alignment, an element. So many instructions of
    that width as its elements have bytes is the lower bound of what must move.
    """
    width, suffix = (16, ".128") if found["aligned"] else (4, "")
    row = found["elements a thread"] * found["itemsize"] // width
    assert row * width == found["elements a thread"] * found["itemsize"]
    load, store = f"LDG.E{suffix}", f"STG.E{suffix}"
    # the arrivals of a group: a byte of the mask each; or the threshold, the owner and the low half of the number
    arrivals = Counter({"LDG.E.U8": 1} if "arrived_ptr" in given else {"LDG.E.64": 2, "LDG.E": 1})
    if "weight_ptr" in given:
        arrivals += Counter({"LDG.E": group})
    stage_1 = "payload_ptr" in given
    loads = Counter({operation: number for operation, number in loop.items() if operation.startswith("LD")})
    assert loads == Counter({load: group * row}) + arrivals, "each element of the payload is read once"
    assert loop - loads == (Counter() if stage_1 else Counter({store: group * row})), "written once"
    first_store = next(
        (i for i, operation in enumerate(found["loop"]) if operation.startswith("ST")), len(found["loop"])
    )
    assert not any(operation.startswith("LD") for operation in found["loop"][first_store:]), "loads wait for stores"
    if stage_1:
        outside = Counter({store: row, "STG.E.64": 1})  # the estimate, and the count
        if given & {"previous_ptr", "own_ptr"}:
            outside += Counter({load: row})
        if "own_ptr" in given:
            outside += Counter({"LDG.E.64": 1})
        outside += Counter({"ATOMG.E.MIN.S64.STRONG.GPU": 1})
    else:
        outside = Counter({load: row} if found["shared"] else {})
        if "square_ptr" in given:
            outside += Counter({"STG.E": 2, "STG.E.64": 1})  # two partial sums, and the count
    assert everywhere - loop == outside, "what is outside the loop moves once"
    assert loop - everywhere == Counter()


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_nothing_spills_and_every_byte_moves_once(architecture: int, tmp_path: Path) -> None:
    found = compiled(tmp_path, architecture)
    assert len(found) == 15
    for name, what in found.items():
        try:
            check(what)
        except AssertionError as error:
            raise AssertionError(f"{name} for sm_{architecture}: {what}") from error


MISTAKES = {
    "32-bit sender": (
        STAGE_1, ("stage1", "tl.to_tensor(base).to(tl.int64)", "tl.to_tensor(base)"), "fewer than 64 bits"),
    "32-bit element": (
        STAGE_2, ("stage2", "column.to(tl.int64) * ELEMENTS", "column * ELEMENTS"), "an offset of fewer than 64 bits"),
    "widened too late": (STAGE_1, (
        "stage1", "tl.load(payload_ptr + (sender + j) * payload_stride_n + element,",
        "tl.load(payload_ptr + ((base + j) * payload_stride_n).to(tl.int64) + element,"), "a product of fewer than 64"),
    "other elements are read too": (STAGE_1, (
        "stage1", "gradient = gradient.to(SUM)",
        "gradient = gradient.to(SUM) + tl.load(payload_ptr + (sender + j) * payload_stride_n + (element + ELEMENTS))"),
        "read once"),
    "the fresh packet is read for every replica": (STAGE_2, (
        "stage2", "replica = tl.where(((bits >> j) & 1) != 0, shared, kept[j])",
        "replica = tl.where(((bits >> j) & 1) != 0, tl.load(fresh_ptr + element, mask=hosted, other=0), kept[j])"),
        "read once"),
    "a replica is written twice": (STAGE_2, (
        "stage2", "            if square_ptr is not None:\n                gap",
        "            tl.debug_barrier()\n"
        "            tl.store(replica_ptr + (row + j) * replica_stride_h + element, replica, mask=hosted)\n"
        "            if square_ptr is not None:\n                gap"), "written once"),
    "stores between loads": (STAGE_2, (
        "stage2", "other=0),)\n        for j in tl.static_range(GROUP):\n            hosted = inside",
        "other=0),)\n            hosted = inside"), "loads wait for stores"),
    "alignment unknown": (STAGE_1, (
        "stage1", "@triton.jit(do_not_specialize=UNSPECIALISED)",
        '@triton.jit(do_not_specialize=[*UNSPECIALISED, "E"])'), "read once"),
    "fused": (WEIGHTS, ("launch", '"enable_fp_fusion": False', '"enable_fp_fusion": True'), "are fused"),
    "too few registers": (STAGE_1, ("launch", '"maxnreg": 128', '"maxnreg": 32'), "spill"),
}  # fmt: skip


def test_planted_mistakes_are_caught(tmp_path: Path) -> None:
    """In launches that pass the test above as they are."""
    found = compiled(tmp_path, 90, json.dumps([(launch, mistake) for launch, mistake, _ in MISTAKES.values()]))
    for (_, _, reason), what in zip(MISTAKES.values(), found, strict=True):
        with pytest.raises(AssertionError, match=reason):
            check(what)
