"""Saving and loading under FSDP2: each rank's part of the protocol's state, in a form that
`torch.distributed.checkpoint` takes.

It loads into what `state_dict` of a new attachment returns, so the keys and the shapes of tensors are the same from the
start; all else is one sequence of bytes.
"""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from lossproof.impl.checkpoint import check_same

if TYPE_CHECKING:
    from lossproof.impl.distributed.fsdp.attachment import ShardedAttachment


def state(at: ShardedAttachment) -> dict[str, Any]:
    protocol = {
        "settings": at.settings,
        "step_number": at.step_number,
        "measured": at._measured,
        "arrivals": at.arrivals.state_dict(),
        "telemetry": at.telemetry.state_dict(),
        "gradients": at.masks.gradients_NQ,  # of a step that was skipped, which the next backward pass will find out
        "fingerprint": fingerprint(at),
        "units": [
            {"stages": unit.stages.state_dict(), "due": unit.due, "delivered": unit.delivered, "kept": unit.started,
             "arrived": unit.channel.arrived_1P}
            for unit in at.units
        ],
    }  # fmt: skip
    file = io.BytesIO()
    torch.save(protocol, file)
    copies = {f"stale{number}": unit.kept() for number, unit in enumerate(at.units)}
    return {f"rank{at.exchange.rank}": {"protocol": file.getvalue(), **copies}}


def load(at: ShardedAttachment, state: dict[str, Any]) -> None:
    problem, part, protocol = None, state.get(f"rank{at.exchange.rank}"), {}
    try:
        if part is None:
            raise ValueError(f"state must hold the part of rank {at.exchange.rank}, got those of {', '.join(state)}")
        protocol = torch.load(io.BytesIO(part["protocol"]), weights_only=True)
        check_same(protocol["settings"], at.settings)
    except ValueError as error:
        problem = str(error)
    problems = [found for found in at.exchange.objects(problem) if found]
    if problems:
        raise ValueError(problems[0])
    assert part is not None
    at.step_number, at._measured = protocol["step_number"], protocol["measured"]
    at.arrivals.load_state_dict(protocol["arrivals"])
    at.masks.gradients_NQ = protocol["gradients"]
    at.telemetry.load_state_dict(protocol["telemetry"])
    at.telemetry.resume_log(at.step_number)
    at.expected = protocol["fingerprint"]
    for number, (unit, own) in enumerate(zip(at.units, protocol["units"], strict=True)):
        unit.unit.module.reshard()
        unit.stages.load_state_dict(own["stages"])
        unit.due, unit.delivered, unit.channel.arrived_1P = own["due"], own["delivered"], own["arrived"]
        unit.finite, unit.problem = None, ""
        unit.keep(part[f"stale{number}"] if own["kept"] else None)


def fingerprint(at: ShardedAttachment) -> int:
    """A checksum of the parameters that this rank owns."""
    found = 0
    for parameter in at.parameters:
        assert isinstance(parameter, DTensor)
        local = parameter.to_local().detach().cpu().contiguous()
        found = zlib.crc32(local.view(torch.uint8).numpy().tobytes(), found) if local.numel() else found
    return found
