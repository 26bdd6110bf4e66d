"""Stage 2 on a GPU: one pass over the replicas, which measures their drift on the way if asked to.

A program makes a packet, or a part of it, for one replica after another. Of the fresh and the stale value of an element
it reads the one that it keeps; a fresh packet that all replicas share, it reads once.

Legend: H replicas, P packets, E elements of a packet.
"""

# Triton is untyped, and so are its kernels.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, attr-defined, assignment"

from __future__ import annotations

import torch

from lossproof.impl.kernels.launch import Launch, Tile, group, rows_of_elements, sum_type
from lossproof.impl.kernels.masks import UNSPECIALISED, Draw, arrival_bits, read
from lossproof.impl.kernels.optional import tl, triton


@triton.jit(do_not_specialize=UNSPECIALISED)
def stage2_kernel(
    stale_ptr, fresh_ptr, replica_ptr, count_ptr, square_ptr, square_of_sum_ptr, H, P, E, columns,
    stale_stride_h, stale_stride_p, fresh_stride_h, fresh_stride_p, replica_stride_h,
    arrived_ptr, arrived_stride_r, arrived_stride_p, threshold_ptr, owner_ptr, packet_ptr,
    key_low: tl.uint32, key_high: tl.uint32, step: tl.uint32, first: tl.int32, every: tl.int32,
    OWN_ARRIVES: tl.constexpr, SHARED: tl.constexpr, SUM: tl.constexpr, GROUP: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    packet = (tl.program_id(0) // columns).to(tl.int64)  # 64 bits from the start, as in stage 1
    column = tl.program_id(0) % columns
    element = column.to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = element < E
    stale_ptr += packet * stale_stride_p
    fresh_ptr += packet * fresh_stride_p
    replica_ptr += packet * E

    if SHARED:
        shared = tl.load(fresh_ptr + element, mask=inside, other=0)
    if square_ptr is not None:
        square = tl.zeros((ELEMENTS,), dtype=SUM)
        gaps = tl.zeros((ELEMENTS,), dtype=SUM)
        count = 0
    for base in range(0, H, GROUP):
        row = tl.to_tensor(base).to(tl.int64)
        bits = arrival_bits(
            row, packet, H, P, arrived_ptr, arrived_stride_r, arrived_stride_p,
            threshold_ptr, owner_ptr, packet_ptr, key_low, key_high, step, first, every, OWN_ARRIVES, 1, GROUP,
        )  # fmt: skip
        kept = ()  # all loads of a group before its stores: for all the compiler knows, these change what those read
        for j in tl.static_range(GROUP):
            arrived = ((bits >> j) & 1) != 0
            hosted = inside & (row + j < H)
            source = stale_ptr + (row + j) * stale_stride_h
            if SHARED:
                hosted &= arrived == 0
            else:
                source = tl.where(arrived, fresh_ptr + (row + j) * fresh_stride_h, source)
            kept += (tl.load(source + element, mask=hosted, other=0),)
        for j in tl.static_range(GROUP):
            hosted = inside & (row + j < H)
            replica = tl.where(((bits >> j) & 1) != 0, shared, kept[j]) if SHARED else kept[j]
            tl.store(replica_ptr + (row + j) * replica_stride_h + element, replica, mask=hosted)
            if square_ptr is not None:
                gap = tl.where(hosted, replica.to(SUM) - shared.to(SUM), 0)
                square += gap * gap
                gaps += gap
                count += (bits >> j) & 1

    if square_ptr is not None:  # one partial sum a program: no atomics, so equal runs give equal digits
        slot = packet * columns + column
        tl.store(square_ptr + slot, tl.sum(square, axis=0))
        tl.store(square_of_sum_ptr + slot, tl.sum(gaps * gaps, axis=0))
        tl.store(count_ptr + packet, count.to(tl.int64), mask=column == 0)


def stage2_launch(
    stale_HPE: torch.Tensor, fresh_PE: torch.Tensor, mask: torch.Tensor | Draw, drift: bool = False
) -> tuple[Launch, torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None]:
    """The launch, and what it fills: the replicas (H, P, E), and counts (P,), partial sums and partial sums of sums."""
    stale_HPE, fresh_PE = rows_of_elements(stale_HPE), rows_of_elements(fresh_PE)
    H, P, E = stale_HPE.shape
    replica_HPE = torch.empty_like(stale_HPE, memory_format=torch.contiguous_format)
    tile = Tile.of(E, stale_HPE.element_size())
    sum_dtype, SUM = sum_type(stale_HPE.dtype)
    one_for_all = fresh_PE.ndim == 2
    sums = None
    if drift:
        count_P = torch.empty(P, dtype=torch.int64, device=stale_HPE.device)
        square_PC = torch.empty(P, tile.columns, dtype=sum_dtype, device=stale_HPE.device)
        sums = (count_P, square_PC, torch.empty_like(square_PC))
    arguments = {
        "stale_ptr": stale_HPE,
        "fresh_ptr": fresh_PE,
        "replica_ptr": replica_HPE,
        "count_ptr": sums[0] if sums else None,
        "square_ptr": sums[1] if sums else None,
        "square_of_sum_ptr": sums[2] if sums else None,
        "H": H,
        "P": P,
        "E": E,
        "columns": tile.columns,
        "stale_stride_h": stale_HPE.stride(0),
        "stale_stride_p": stale_HPE.stride(1),
        "fresh_stride_h": 0 if one_for_all else fresh_PE.stride(0),
        "fresh_stride_p": fresh_PE.stride(-2),
        "replica_stride_h": replica_HPE.stride(0),
        "SHARED": drift or (one_for_all and H > 1),  # a single replica needs no fresh packet that was lost
        "SUM": SUM,
        "GROUP": group(H, most=8),
        "ELEMENTS": tile.elements,
    }
    masks = mask.arguments() if isinstance(mask, Draw) else read(mask)
    programs = P * tile.columns if H else 0
    return Launch(stage2_kernel, programs, arguments | masks, tile.warps), replica_HPE, sums


def retain(stale_PE: torch.Tensor, fresh_PE: torch.Tensor, mask: torch.Tensor | Draw) -> torch.Tensor:
    """`impl.retain.retain` for arguments that it has checked; or with a `Draw`, whose rows are the replicas."""
    stale_HPE = stale_PE[None] if stale_PE.ndim == 2 else stale_PE.flatten(0, -3)
    fresh_PE = fresh_PE if fresh_PE.ndim == 2 else fresh_PE.flatten(0, -3)
    if not isinstance(mask, Draw):
        mask = mask[None] if mask.ndim == 1 else mask.flatten(0, -2)
    launch, replica_HPE, _ = stage2_launch(stale_HPE, fresh_PE, mask)
    launch.run(stale_HPE.device)
    return replica_HPE.view(stale_PE.shape)


def retain_and_measure(
    stale_HPE: torch.Tensor, fresh_PE: torch.Tensor, mask: torch.Tensor | Draw
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`retain`, and in the same pass what `impl.retain.retain_and_measure` measures, in the dtype of the sums: the
    replicas, how many each packet arrived at, and the two sums of the gaps."""
    launch, replica_HPE, sums = stage2_launch(stale_HPE, fresh_PE, mask, drift=True)
    launch.run(stale_HPE.device)
    assert sums is not None
    count_P, square_PC, square_of_sum_PC = sums
    if launch.programs == 0:
        for partial in sums:
            partial.zero_()
    return replica_HPE, count_P, square_PC.sum(-1), square_of_sum_PC.sum(-1)
