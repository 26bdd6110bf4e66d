"""A kernel with its arguments: the one description that is launched, interpreted and compiled ahead of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lossproof.impl.kernels.optional import tl

_WARP, _MOST_WARPS, _VECTOR = 32, 4, 16  # threads; warps; bytes that a thread moves at once
OPTIONS = {
    "num_stages": 1,  # the loops over a group are unrolled: all their loads are in flight at once
    "maxnreg": 128,  # all that the loads of a group need: left alone, ptxas trades them for occupancy and spills
    "enable_fp_fusion": False,  # no fused multiply-add: the digits of the plain body
}


@dataclass(frozen=True)
class Launch:
    """`programs` copies of a Triton kernel. Triton derives the specialisation (types, divisibility by 16, values of 1)
    from the arguments, so whoever compiles this object compiles what a launch would run."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    warps: int = 1

    @property
    def options(self) -> dict[str, Any]:
        return OPTIONS | {"num_warps": self.warps}

    def run(self, device: torch.device) -> None:
        if self.programs == 0:
            return
        with torch.cuda.device(device if device.type == "cuda" else -1):  # -1: no change
            self.kernel[(self.programs,)](**self.arguments, **self.options)

    def compile(self) -> Any:
        """The compiled kernel for the active driver's target; nothing runs, and no device is needed."""
        return self.kernel.warmup(grid=(self.programs,), **self.arguments, **self.options)


@dataclass(frozen=True)
class Tile:
    """What one program computes: a packet, or `elements` of it, 16 bytes for each thread where a packet is that long.

    One packet only: whether it arrived is then a single bit that all threads share, at no cost.
    """

    elements: int
    columns: int
    """Programs that share a packet."""
    warps: int

    @classmethod
    def of(cls, elements: int, itemsize: int) -> Tile:
        in_a_warp = _WARP * _VECTOR // itemsize
        width = min(_MOST_WARPS * in_a_warp, _power_of_two(elements))
        return cls(width, -(-elements // width), max(1, width // in_a_warp))


def group(rows: int, most: int) -> int:
    """How many rows a program finds the arrivals of together, and has on their way from memory together."""
    return min(most, _power_of_two(rows))


def sum_type(dtype: torch.dtype) -> tuple[torch.dtype, Any]:
    """What a payload of this dtype is summed in, for torch and for Triton."""
    return (torch.float64, tl.float64) if dtype == torch.float64 else (torch.float32, tl.float32)


def rows_of_elements(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the elements of a packet side by side, as every kernel reads them; other strides are free."""
    return tensor if tensor.shape[-1] < 2 or tensor.stride(-1) == 1 else tensor.contiguous()


def _power_of_two(at_least: int) -> int:
    return 1 << max(0, at_least - 1).bit_length()
