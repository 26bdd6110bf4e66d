"""Real processes: DistributedDataParallel and FSDP2 go lossy with `attach`, the HF Trainer with `LossyCallback`."""

from __future__ import annotations

from typing import Any

from lossproof.impl.distributed.attachment import Attachment, attach
from lossproof.impl.distributed.exchange import RankLost
from lossproof.impl.distributed.telemetry import Drift, LossNotInjected, StepRecord, Telemetry

__all__ = [
    "Attachment", "Drift", "LossNotInjected", "LossyCallback", "RankLost", "ShardedAttachment", "StepRecord",
    "Telemetry", "attach",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "LossyCallback":  # needs transformers
        from lossproof.impl.distributed.trainer import LossyCallback

        return LossyCallback
    if name == "ShardedAttachment":  # imports FSDP2
        from lossproof.impl.distributed.fsdp.attachment import ShardedAttachment

        return ShardedAttachment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
