"""Compiles the kernels for one architecture without a device, and prints what is in them, as JSON.

    python kernels_ahead_of_time.py ARCHITECTURE ['[[LAUNCH, [MODULE, RIGHT, WRONG]], ...]']

With mistakes, one launch of a copy of the kernels for each, instead of all launches.

Triton derives the specialisation of a launch from its arguments; here it gets the very same `Launch`, under a driver
that only names an architecture. `test_kernels_compiled.py` runs this file, in a process without TRITON_INTERPRET.

Legend: N ranks, P packets, E elements of a packet.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from kernel_copies import original, with_mistake
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

TOOLS = Path(str(triton.__file__)).parent / "backends" / "nvidia" / "bin"
F32, BF16 = torch.float32, torch.bfloat16


class NoDevice:
    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


def launches(k: Any) -> dict[str, Any]:
    """By name: what launches would run, for packets of 1 KiB and longer, and for packets of an odd length."""
    N, P = 16, 32
    owner, mask = torch.zeros(P, dtype=torch.int64), torch.ones(N, P, dtype=torch.bool)
    draw = k.masks.Draw(5, 0, torch.zeros(N, dtype=torch.int64), owner, torch.arange(P))
    bad = torch.zeros(1, dtype=torch.int64)

    def payload(E: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(N, P, E, dtype=dtype)

    def stage_1(E: int, dtype: torch.dtype, mask: Any, **options: Any) -> Any:
        return k.stage1.stage1_launch(payload(E, dtype), mask, survivors_divide=True, first_bad=bad, **options)[0]

    def stage_2(E: int, dtype: torch.dtype, mask: Any, one_for_all: bool = True, drift: bool = False) -> Any:
        stale = payload(E, dtype)
        return k.stage2.stage2_launch(stale, stale[0] if one_for_all else stale, mask, drift)[0]

    return {
        "stage 1, float32, read": stage_1(256, F32, mask),
        "stage 1, float32, drawn": stage_1(256, F32, draw),
        "stage 1, float32, weights": stage_1(1024, F32, draw, weight_NP=torch.ones(N, P)),
        "stage 1, float32, hold": stage_1(256, F32, draw, previous_PE=torch.zeros(P, 256)),
        "stage 1, bfloat16, own": stage_1(512, BF16, draw, own_P=owner),
        "stage 1, bfloat16, read": stage_1(4096, BF16, mask),
        "stage 1, float32, ragged": stage_1(333, F32, mask),
        "stage 1, float64, read": stage_1(256, torch.float64, mask),
        "stage 2, float32, read": stage_2(256, F32, mask),
        "stage 2, float32, drawn": stage_2(1024, F32, draw),
        "stage 2, float32, own copies": stage_2(256, F32, mask, one_for_all=False),
        "stage 2, float32, drift": stage_2(1024, F32, draw, drift=True),
        "stage 2, bfloat16, drift": stage_2(512, BF16, mask, drift=True),
        "stage 2, float32, ragged": stage_2(333, F32, mask, drift=True),
        "mask": k.masks.draw_launch(draw, "gradients", N)[0],
    }


def tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], check=True, capture_output=True, text=True).stdout


def memory_operations(lines: list[str]) -> list[str]:
    """The instructions that load or store global or local memory, in order."""
    names = r"\b((?:LD|ST)(?:G|L)?\.[A-Z0-9.]+|LDL|STL|ATOMG?\.[A-Z0-9.]+|REDG?\.[A-Z0-9.]+)"
    return [name for line in lines for name in re.findall(names, line)]


def slice_of_addresses(ptx: str) -> list[str]:
    """The instructions that some global address is computed by, from the arguments on."""
    made_by: dict[str, list[tuple[str, list[str]]]] = {}
    wanted: set[str] = set()
    for line in ptx.splitlines():
        if match := re.match(r"\s*(?:@!?%p\d+ )?([a-z][a-z0-9_.:]*)\s+(.*);", line):
            operation, operands = match.groups()
            if ".global" in operation:
                wanted |= set(re.findall(r"\[ ?(%rd\d+)", operands))
            elif registers := re.findall(r"%[a-z]+\d+", operands):
                made_by.setdefault(registers[0], []).append((operation, registers[1:]))
    found, seen = [], set()
    while wanted - seen:
        seen.add(register := (wanted - seen).pop())
        for operation, sources in made_by.get(register, []):
            found.append(operation)
            wanted |= {source for source in sources if source.startswith(("%r", "%rd"))}
    return found


def loops(sass: str) -> list[list[str]]:
    """The instructions between a label and a later jump back to it."""
    lines, at, found = sass.splitlines(), {}, []
    for number, line in enumerate(lines):
        if label := re.match(r"(\.L_x_\d+):", line.strip()):
            at[label[1]] = number
        jump = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
        if jump and jump[1] in at and number - at[jump[1]] > 1:  # the last BRA of a kernel jumps to itself
            found.append(lines[at[jump[1]] : number])
    return found


def contents(launch: Any) -> dict[str, Any]:
    kernel = launch.compile()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(kernel.asm["cubin"])
        binary.flush()
        usage = tool("cuobjdump", "-res-usage", binary.name)
        sass = tool("nvdisasm", "-c", binary.name)
    ttir, ptx = kernel.asm["ttir"], kernel.asm["ptx"]
    arguments = launch.arguments
    payload = arguments.get("payload_ptr", arguments.get("stale_ptr"))
    return {
        "usage": {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", usage)},
        "loop": memory_operations(max(loops(sass), key=len, default=[])),
        "everywhere": memory_operations(sass.splitlines()),
        "offsets": sorted(set(re.findall(r"tt\.addptr .*, (?:tensor<[0-9x]*x)?(i\d+)>? ", ttir))),
        "narrow products": sum(bool(re.match(r"(mul|mad)\.lo\.[su]32", name)) for name in slice_of_addresses(ptx)),
        "remainders": ttir.count("arith.remsi"),
        "fused": len(re.findall(r"\bfma\.", ptx)),
        "wide products": len(re.findall(r"\bmul\.wide\.u32", ptx)),
        "itemsize": 0 if payload is None else payload.element_size(),
        "elements a thread": arguments.get("ELEMENTS", 0) // (32 * launch.warps),
        "group": arguments.get("GROUP", 0),
        "aligned": payload is not None and arguments["E"] * payload.element_size() % 16 == 0,
        "shared": arguments.get("SHARED", False),
        "given": [name for name, value in arguments.items() if isinstance(value, torch.Tensor)],
    }


def main() -> None:
    driver.set_active(NoDevice(int(sys.argv[1])))
    found: Any
    if len(sys.argv) > 2:
        found = [contents(launches(with_mistake(*mistake))[name]) for name, mistake in json.loads(sys.argv[2])]
    else:
        found = {name: contents(launch) for name, launch in launches(original()).items()}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
