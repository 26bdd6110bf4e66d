"""Stage 1 on a GPU: one pass over the payload, with the arrival mask read or drawn on the way.

A program computes a packet of the estimate, or a part of it, and walks through the senders in rank order. A packet that
was lost is not read: its loads are masked off.

Legend: N senders, P packets, E elements of a packet.
"""

# Triton is untyped, and so are its kernels.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, attr-defined"

from __future__ import annotations

import torch

from lossproof.impl.kernels.launch import Launch, Tile, group, rows_of_elements, sum_type
from lossproof.impl.kernels.masks import UNSPECIALISED, Draw, arrival_bits, read
from lossproof.impl.kernels.optional import tl, triton


@triton.jit(do_not_specialize=UNSPECIALISED)
def stage1_kernel(
    payload_ptr, estimate_ptr, count_ptr, first_bad_ptr, weight_ptr, previous_ptr, own_ptr, N, P, E, columns,
    payload_stride_n, payload_stride_p, weight_stride_n, weight_stride_p,
    arrived_ptr, arrived_stride_r, arrived_stride_p, threshold_ptr, owner_ptr, packet_ptr,
    key_low: tl.uint32, key_high: tl.uint32, step: tl.uint32, first: tl.int32, every: tl.int32,
    OWN_ARRIVES: tl.constexpr, SURVIVORS_DIVIDE: tl.constexpr, SUM: tl.constexpr,
    GROUP: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    # 64 bits from the start: N P E exceeds 2^31 elements long before the memory of a GPU is full
    packet = (tl.program_id(0) // columns).to(tl.int64)
    column = tl.program_id(0) % columns
    element = column.to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = element < E
    payload_ptr += packet * payload_stride_p

    total = tl.zeros((ELEMENTS,), dtype=SUM)
    count = 0
    for base in range(0, N, GROUP):
        sender = tl.to_tensor(base).to(tl.int64)
        bits = arrival_bits(
            sender, packet, N, P, arrived_ptr, arrived_stride_r, arrived_stride_p,
            threshold_ptr, owner_ptr, packet_ptr, key_low, key_high, step, first, every, OWN_ARRIVES, 0, GROUP,
        )  # fmt: skip
        for j in tl.static_range(GROUP):
            arrived = ((bits >> j) & 1) != 0
            gradient = tl.load(payload_ptr + (sender + j) * payload_stride_n + element, mask=inside & arrived, other=0)
            gradient = gradient.to(SUM)
            if weight_ptr is not None:
                weight_at = weight_ptr + (sender + j) * weight_stride_n + packet * weight_stride_p
                gradient *= tl.load(weight_at, mask=arrived, other=0)
            total += gradient  # a sum that starts at +0 is never -0: adding the 0 of a lost packet changes no bit
            count += (bits >> j) & 1

    divisor = tl.maximum(count, 1) if SURVIVORS_DIVIDE else N
    divisor = tl.zeros((ELEMENTS,), dtype=SUM) + divisor
    estimate = tl.div_rn(total, divisor) if SUM == tl.float32 else total / divisor  # noqa: SIM300 `/` is approximate

    empty = count == 0
    if own_ptr is not None:
        owner = tl.load(own_ptr + packet)
        own = tl.load(payload_ptr + owner * payload_stride_n + element, mask=inside & empty, other=0).to(SUM)
        estimate = tl.where(empty, own, estimate)
    elif previous_ptr is not None:
        previous = tl.load(previous_ptr + packet * E + element, mask=inside & empty, other=0).to(SUM)
        estimate = tl.where(empty, previous, estimate)

    result = estimate.to(estimate_ptr.dtype.element_ty)
    tl.store(estimate_ptr + packet * E + element, result, mask=inside)
    tl.store(count_ptr + packet, count.to(tl.int64), mask=column == 0)
    if first_bad_ptr is not None:
        bad = inside & ((tl.abs(result.to(SUM)) < float("inf")) == 0)  # NaN is not below anything
        tl.atomic_min(first_bad_ptr, packet, mask=tl.max(bad.to(tl.int32), axis=0) != 0)


def stage1_launch(
    payload_NPE: torch.Tensor,
    mask: torch.Tensor | Draw,
    *,
    survivors_divide: bool,
    weight_NP: torch.Tensor | None = None,
    previous_PE: torch.Tensor | None = None,
    own_P: torch.Tensor | None = None,
    first_bad: torch.Tensor | None = None,
) -> tuple[Launch, torch.Tensor, torch.Tensor]:
    """The launch, and what it fills: the estimate (P, E) and the counts (P,)."""
    payload_NPE = rows_of_elements(payload_NPE)
    N, P, E = payload_NPE.shape
    estimate_PE = payload_NPE.new_empty(P, E)
    count_P = torch.empty(P, dtype=torch.int64, device=payload_NPE.device)
    tile = Tile.of(E, payload_NPE.element_size())
    weight_strides = (0, 0) if weight_NP is None else weight_NP.stride()
    arguments = {
        "payload_ptr": payload_NPE,
        "estimate_ptr": estimate_PE,
        "count_ptr": count_P,
        "first_bad_ptr": first_bad,
        "weight_ptr": weight_NP,
        "previous_ptr": None if previous_PE is None else previous_PE.contiguous(),
        "own_ptr": None if own_P is None else own_P.contiguous(),
        "N": N,
        "P": P,
        "E": E,
        "columns": tile.columns,
        "payload_stride_n": payload_NPE.stride(0),
        "payload_stride_p": payload_NPE.stride(1),
        "weight_stride_n": weight_strides[0],
        "weight_stride_p": weight_strides[1],
        "SURVIVORS_DIVIDE": survivors_divide,
        "SUM": sum_type(payload_NPE.dtype)[1],
        "GROUP": group(N, most=16),
        "ELEMENTS": tile.elements,
    }
    masks = mask.arguments() if isinstance(mask, Draw) else read(mask)
    return Launch(stage1_kernel, P * tile.columns, arguments | masks, tile.warps), estimate_PE, count_P


def aggregate(
    payload_NPE: torch.Tensor,
    mask: torch.Tensor | Draw,
    *,
    survivors_divide: bool,
    weight_NP: torch.Tensor | None = None,
    previous_PE: torch.Tensor | None = None,
    own: int | torch.Tensor | None = None,
    find_non_finite: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """`impl.aggregate.aggregate` for arguments that it has checked.

    Args:
        payload_NPE: float16, bfloat16, float32 or float64, any strides (copied if elements are not side by side).
        mask: bool (N, P) or a `Draw`.
        survivors_divide: divide by the count, else by N.
        weight_NP: the factor of each gradient, in the dtype of the sum.
        previous_PE: the estimate of a packet that has no survivor; or
        own: the owner, whose gradient it is.
        find_non_finite: look for estimates that are not finite. The answer waits for the device.

    Returns:
        The estimate (P, E), the counts (P,), and the first packet whose estimate is not finite, or P.
    """
    P, device = payload_NPE.shape[1], payload_NPE.device
    first_bad = torch.full((1,), P, dtype=torch.int64, device=device) if find_non_finite else None
    launch, estimate_PE, count_P = stage1_launch(
        payload_NPE,
        mask,
        survivors_divide=survivors_divide,
        weight_NP=weight_NP,
        previous_PE=None if previous_PE is None else previous_PE.to(payload_NPE.dtype),
        own_P=None if own is None else torch.as_tensor(own, dtype=torch.int64, device=device).expand(P),
        first_bad=first_bad,
    )
    launch.run(device)
    return estimate_PE, count_P, P if first_bad is None else int(first_bad)
