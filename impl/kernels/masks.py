"""Arrival masks on the device: drawn from Philox counters inside the kernels, or read.

Training reads them: `Arrivals` has each mask drawn once into memory, which at a byte a packet is below 1 % of what the
stages move for packets of 1 KiB, and whoever counts the lost needs it anyway. To draw inside a stage is for callers
that need no mask.

Legend: R rows of a mask, the remote ends of the links to a packet's owner: senders of gradients, receivers of
parameters. P packets.
"""

# Triton is untyped, and so are its kernels.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, attr-defined"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from lossproof.impl.kernels.launch import Launch, group
from lossproof.impl.kernels.optional import tl, triton
from lossproof.impl.philox import split_seed

PHASES = ("gradients", "parameters")


@dataclass(frozen=True)
class Draw:
    """Independent losses as a kernel draws them: bit for bit the masks of `impl.loss.Arrivals`.

    Args:
        seed: 64 bits. step: in [0, 2^32).
        threshold_N: int64 by sender, floor(p 2^32): a packet is lost iff word 0 of its draw is below.
        owner_P: int64, the owner of each packet. packet_P: int64, its number in the layout.
        own_arrives: whether an owner's messages to itself need no network (always true for parameters).
        first, every: row r is rank first + r every.
    """

    seed: int
    step: int
    threshold_N: torch.Tensor
    owner_P: torch.Tensor
    packet_P: torch.Tensor
    own_arrives: bool = True
    first: int = 0
    every: int = 1

    def arguments(self) -> dict[str, Any]:
        if not 0 <= self.step < 1 << 32:
            raise ValueError(f"step must lie in [0, 2^32), got {self.step}")
        low, high = split_seed(self.seed)
        return read(None) | {
            "threshold_ptr": self.threshold_N.contiguous(),
            "owner_ptr": self.owner_P.contiguous(),
            "packet_ptr": self.packet_P.contiguous(),
            "key_low": low,
            "key_high": high,
            "step": self.step,
            "first": self.first,
            "every": self.every,
            "OWN_ARRIVES": self.own_arrives,
        }


def read(arrived_RP: torch.Tensor | None) -> dict[str, Any]:
    """The arguments of a kernel that reads its mask; None stands for one that draws it."""
    strides = (0, 0) if arrived_RP is None else arrived_RP.stride()
    return {
        "arrived_ptr": None if arrived_RP is None else arrived_RP.view(torch.uint8),
        "arrived_stride_r": strides[0],
        "arrived_stride_p": strides[1],
        "threshold_ptr": None,
        "owner_ptr": None,
        "packet_ptr": None,
        "key_low": 0,
        "key_high": 0,
        "step": 0,
        "first": 0,
        "every": 1,
        "OWN_ARRIVES": False,
    }


UNSPECIALISED = [
    "key_low",
    "key_high",
    "step",
    "first",
    "every",
]  # they change from run to run, and no address depends on them


@triton.jit
def philox_word(c0, c1, c2, c3, key_low, key_high):
    """Word 0 of Philox 4x32-10, as in `impl.philox`; uint32 throughout."""
    for _ in tl.static_range(10):
        product_0 = c0.to(tl.uint64) * 0xD2511F53
        product_1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product_1 >> 32).to(tl.uint32) ^ c1 ^ key_low
        c2 = (product_0 >> 32).to(tl.uint32) ^ c3 ^ key_high
        c1 = product_1.to(tl.uint32)
        c3 = product_0.to(tl.uint32)
        key_low = (key_low.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        key_high = (key_high.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return c0


@triton.jit
def drawn(
    row, packet, inside, threshold_ptr, owner_ptr, packet_ptr, key_low, key_high, step, first, every,
    OWN_ARRIVES: tl.constexpr, PHASE: tl.constexpr,
):  # fmt: skip
    """bool, of the shape of `inside`; `row` and `packet` broadcast to it."""
    owner = tl.load(owner_ptr + tl.broadcast_to(packet, inside.shape), mask=inside, other=0)
    number = tl.load(packet_ptr + tl.broadcast_to(packet, inside.shape), mask=inside, other=0).to(tl.uint32)
    remote = tl.broadcast_to(row * every + first, inside.shape)
    src = remote if PHASE == 0 else owner
    dst = owner if PHASE == 0 else remote
    link = ((src << 16) | dst).to(tl.uint32)
    zero = tl.zeros_like(link)
    word = philox_word(
        number, link, zero + PHASE, zero + step.to(tl.uint32), key_low.to(tl.uint32), key_high.to(tl.uint32)
    )
    arrived = word.to(tl.int64) >= tl.load(threshold_ptr + src, mask=inside, other=0)
    return arrived | (src == dst) if OWN_ARRIVES else arrived


@triton.jit
def arrivals(
    row, packet, rows, packets, arrived_ptr, arrived_stride_r, arrived_stride_p,
    threshold_ptr, owner_ptr, packet_ptr, key_low, key_high, step, first, every,
    OWN_ARRIVES: tl.constexpr, PHASE: tl.constexpr,
):  # fmt: skip
    """bool (rows, packets) for int64 `row` (rows,) and `packet` (packets,); nothing arrives outside of the mask."""
    inside = (row < rows)[:, None] & (packet < packets)[None, :]
    if arrived_ptr is not None:
        at = row[:, None] * arrived_stride_r + packet[None, :] * arrived_stride_p
        arrived = tl.load(arrived_ptr + at, mask=inside, other=0) != 0
    else:
        arrived = drawn(
            row[:, None], packet[None, :], inside, threshold_ptr, owner_ptr, packet_ptr,
            key_low, key_high, step, first, every, OWN_ARRIVES, PHASE,
        )  # fmt: skip
    return arrived & inside


@triton.jit
def arrival_bits(
    base, packet, rows, packets, arrived_ptr, arrived_stride_r, arrived_stride_p,
    threshold_ptr, owner_ptr, packet_ptr, key_low, key_high, step, first, every,
    OWN_ARRIVES: tl.constexpr, PHASE: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """int32: bit j says whether the packet arrived for row base + j. One draw serves a whole packet, and the threads
    draw for different rows instead of all for the same one."""
    j = tl.arange(0, GROUP)
    arrived = arrivals(
        base + j, packet + tl.zeros((1,), dtype=tl.int64), rows, packets,
        arrived_ptr, arrived_stride_r, arrived_stride_p,
        threshold_ptr, owner_ptr, packet_ptr, key_low, key_high, step, first, every, OWN_ARRIVES, PHASE,
    )  # fmt: skip
    return tl.sum(tl.sum(arrived.to(tl.int32) << j[:, None], axis=1), axis=0)


@triton.jit(do_not_specialize=UNSPECIALISED)
def draw_kernel(
    mask_ptr, rows, packets, arrived_ptr, arrived_stride_r, arrived_stride_p,
    threshold_ptr, owner_ptr, packet_ptr,
    key_low: tl.uint32, key_high: tl.uint32, step: tl.uint32, first: tl.int32, every: tl.int32,
    OWN_ARRIVES: tl.constexpr, PHASE: tl.constexpr, ROWS: tl.constexpr, PACKETS: tl.constexpr,
):  # fmt: skip
    columns = tl.cdiv(packets, PACKETS)
    row = (tl.program_id(0) // columns).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    packet = (tl.program_id(0) % columns).to(tl.int64) * PACKETS + tl.arange(0, PACKETS)
    arrived = arrivals(
        row, packet, rows, packets, arrived_ptr, arrived_stride_r, arrived_stride_p,
        threshold_ptr, owner_ptr, packet_ptr, key_low, key_high, step, first, every, OWN_ARRIVES, PHASE,
    )  # fmt: skip
    inside = (row < rows)[:, None] & (packet < packets)[None, :]
    tl.store(mask_ptr + row[:, None] * packets + packet[None, :], arrived.to(tl.uint8), mask=inside)


def draw_launch(draw: Draw, phase: Literal["gradients", "parameters"], rows: int) -> tuple[Launch, torch.Tensor]:
    """The mask (rows, P) by itself, for whoever needs it in memory."""
    P = draw.owner_P.numel()
    mask_RP = torch.empty(rows, P, dtype=torch.bool, device=draw.owner_P.device)
    height, width = group(rows, most=4), 64
    sizes = {"rows": rows, "packets": P, "PHASE": PHASES.index(phase), "ROWS": height, "PACKETS": width}
    arguments = {"mask_ptr": mask_RP.view(torch.uint8)} | draw.arguments() | sizes
    return Launch(draw_kernel, -(-rows // height) * -(-P // width), arguments, warps=4), mask_RP


def draw(draw: Draw, phase: Literal["gradients", "parameters"], rows: int) -> torch.Tensor:
    launch, mask_RP = draw_launch(draw, phase, rows)
    launch.run(mask_RP.device)
    return mask_RP
