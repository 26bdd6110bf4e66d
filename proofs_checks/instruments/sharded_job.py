"""FSDP2 models for claims on real processes: wrapped unit by unit, read whole, and what can be wrong with them.

FSDP2 is imported where it is used: half a second that other claims need not wait for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from lossproof.proofs_checks.claim import Mutant


def wrapped(net: torch.nn.Sequential) -> Any:
    """Every layer with parameters is a unit of its own but the first, which the root takes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in list(net)[1:]:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """All of a parameter that is kept in shards, or the parameter itself."""
    full = getattr(parameter, "full_tensor", None)
    found: torch.Tensor = full() if full else parameter
    return found.detach()


@dataclass(frozen=True)
class ShardedMistake(Mutant):
    """`owner` is the name of a class in `impl.distributed.fsdp.comms`, or empty for the module.

    What is `wrong` is called with what is right, and then with the arguments.
    """

    def planted(self) -> Any:
        from lossproof.impl.distributed.fsdp import comms

        owner = getattr(comms, self.owner) if self.owner else comms
        right = getattr(owner, self.name)
        return mock.patch.object(owner, self.name, lambda *args: self.wrong(right, *args))


def _late(gather: Any, unit: Any, output: torch.Tensor, *rest: Any) -> None:
    gather(unit, output, *rest)
    before, unit.late = getattr(unit, "late", output), output.clone()
    output.copy_(before.clone())


def _regathered(gather: Any, unit: Any, output: torch.Tensor, *rest: Any) -> None:
    again = not unit.due
    gather(unit, output, *rest)
    if again:
        output.mul_(0.5)


SHARDED_SUM = ShardedMistake("a sum for a mean", "", "_of_mean", lambda right, op, ranks, factor: ranks)
SHARDED_LATE = ShardedMistake("the gather before this one", "UnitStages", "gather", _late)
SHARDED_REGATHERED = ShardedMistake("other parameters in the backward pass", "UnitStages", "gather", _regathered)
