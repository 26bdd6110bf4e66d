"""What the files that run kernels in Triton's interpreter share: memory with an end, equality, planted mistakes.

`test_kernels.py` runs them in a process of their own, because Triton decides at its import whether it interprets.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_copies import original, with_mistake

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_kernels.py"

KERNELS = original()
RULES = ["survivor_mean", "inverse_probability", "zero_fill"]
FALLBACKS = ["zero", "hold", "own"]
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NAN = float("nan")
FAR = (1 << 30) + 16
"""Elements between rows of `Spread`: the third row lies beyond 2^31."""
Check = Callable[[Any], None]
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_PAGE = mmap.PAGESIZE
_NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python 3.11 does not name


def place(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that ends where memory ends: whoever reads or writes behind it dies."""
    size = -(-max(1, tensor.nbytes) // _PAGE) * _PAGE
    memory = mmap.mmap(-1, size + _PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + size), _PAGE, 0) == 0
    start = size - tensor.nbytes
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=start).view(tensor.shape)
    return copy.copy_(tensor)


def spread(rows: torch.Tensor) -> list[torch.Tensor]:
    """The rows, `FAR` elements apart, in memory that is reserved but hardly used."""
    far, size = FAR * rows.element_size(), (len(rows) - 1) * FAR * rows.element_size() + rows.nbytes
    memory = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    parts = [
        torch.frombuffer(memory, dtype=rows.dtype, count=row.numel(), offset=i * far) for i, row in enumerate(rows)
    ]
    return [part.view(row.shape).copy_(row) for part, row in zip(parts, rows, strict=True)]


def run(launch: Any, **changes: Any) -> None:
    """The launch with some of its arguments exchanged."""
    replace(launch, arguments=launch.arguments | changes).run(torch.device("cpu"))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kind = _BITS[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def ulps(a: torch.Tensor, b: torch.Tensor) -> int:
    """How many representable numbers lie between two tensors of 16-bit floats, at most."""
    a, b = (x.view(torch.int16).int() for x in (a, b))
    a, b = (torch.where(x < 0, -(x & 0x7FFF), x) for x in (a, b))
    return int((a - b).abs().max()) if a.numel() else 0


def fate(check: Check, k: Any) -> str:
    """What becomes of a check, in a process that may die of what the kernel does to memory."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        try:
            check(k)
        except AssertionError:
            os._exit(1)
        except BaseException:
            os._exit(2)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return {0: "passed", 1: "refuted", 2: "crashed"}[os.WEXITSTATUS(status)]


def require_caught(check: Check, module: str, right: str, wrong: str) -> None:
    """The check refutes a copy of the kernels with this mistake, or dies of what it does to memory."""
    found = fate(check, with_mistake(module, right, wrong))
    assert found in ("refuted", "signal 7", "signal 11"), found


def both_tests(mistakes: dict[str, tuple[Check, str, str, str]]) -> tuple[Callable[..., None], Callable[..., None]]:
    """Two tests: each planted mistake is caught by its check, and without a mistake the same checks pass."""

    @pytest.mark.parametrize("mistake", mistakes)
    def caught(mistake: str) -> None:
        require_caught(*mistakes[mistake])

    checks = sorted({mistake[0] for mistake in mistakes.values()}, key=lambda check: check.__name__)

    @pytest.mark.parametrize("check", checks)
    def passes(check: Check) -> None:
        assert fate(check, KERNELS) == "passed"

    return caught, passes
