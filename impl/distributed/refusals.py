"""What cannot be trained over lossy links is refused, with the reason, before training starts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from lossproof.impl.loss import Arrivals
from lossproof.theory.laws import Law

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from typing_extensions import TypeIs


def trainable(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """The trainable parameters by name, tied ones once."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def is_sharded(model: Any) -> TypeIs[FSDPModule]:
    """Whether it went through `fully_shard`; whoever called that has imported FSDP2."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(model, fsdp.FSDPModule)


def check_model(model: Any) -> DistributedDataParallel:
    """Raises TypeError or ValueError unless stage 1 can be carried by a communication hook of this model."""
    if not isinstance(model, DistributedDataParallel):
        raise TypeError(
            f"model must be a DistributedDataParallel or an FSDPModule (fully_shard), got {type(model).__name__}"
        )
    if model.process_group.size() < 2:
        raise ValueError("model must be trained by at least two ranks: a process group of one has no links")
    if model.mixed_precision is not None:
        raise ValueError("model must not use DDP's mixed_precision, which has a hook of its own: use torch.autocast")
    if model._comm_hooks and not hasattr(model, "_lossproof"):
        raise ValueError("model must have no communication hook yet: DDP calls only one, got a model with one")
    if getattr(model, "_delay_all_reduce_params", None):
        raise ValueError("model must not delay the all-reduce of parameters: they would bypass the hook")
    named = trainable(model.module)
    if not named:
        raise ValueError("model must have trainable parameters, got none")
    ignored = [name for name, _ in named if name in model.parameters_to_ignore]
    if ignored:
        raise ValueError(f"model must reduce all its trainable parameters, but ignores {ignored[0]}")
    kinds = sorted({f"{p.dtype} on {p.device}" for _, p in named})
    if len(kinds) != 1:
        raise ValueError(f"model must have trainable parameters of one dtype and device, got {', '.join(kinds)}")
    if not named[0][1].is_floating_point():
        raise ValueError(f"model must have floating-point parameters, got {kinds[0]}")
    for name, module in model.module.named_modules():
        if getattr(module, "sparse", False) and isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag):
            raise ValueError(f"model must have dense gradients, got sparse=True in {name or 'the module itself'}")
    if any(hasattr(p, "_in_backward_optimizers") for _, p in named):
        raise ValueError("model must not be updated inside the backward pass (_apply_optimizer_in_backward)")
    if getattr(getattr(model, "_lossproof", None), "target", None) is not None:
        raise ValueError("model must not be attached already: detach() the other attachment first")
    return model


def check_optimizer(optimizer: Any, named: list[tuple[str, torch.nn.Parameter]]) -> None:
    """Raises TypeError or ValueError unless the optimizer moves these parameters, each whole and once a step."""
    if isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        raise TypeError(f"optimizer must be the torch optimizer itself: pass the .optimizer of {type(optimizer)!r}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        raise ValueError("optimizer must not share out its state itself, got ZeroRedundancyOptimizer: pass the "
                         "optimizer that it wraps; its state lives only at the owners here as well")  # fmt: skip
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("optimizer must take its step without a closure, got LBFGS, which needs one")
    held = {p for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in named if p not in held]
    if missing:
        raise ValueError(f"optimizer must hold all trainable parameters of the model, but lacks {missing[0]} "
                         f"({len(missing)} in all): for two optimizers write one that contains both, as "
                         "lossproof.impl.optimizers.MuonAndAdamW does")  # fmt: skip
    strangers = held - {p for _, p in named}
    if any(p.requires_grad for p in strangers):
        raise ValueError(f"optimizer must hold parameters of this model only, got {len(strangers)} of others: "
                         "give every model its own optimizer")  # fmt: skip


def check_law(law: Law, ranks: int) -> None:
    """Raises what the law raises for so many ranks: a rehearsal of one step with one packet of each owner."""
    rehearsal = Arrivals(law, range(ranks), ranks)
    rehearsal.gradients(0)
    rehearsal.parameters(0)
    rehearsal.gradient_probability()


def check_agreement(settings_N: list[dict[str, Any]]) -> None:
    """Raises ValueError on all ranks if they differ in a setting."""
    for name, value in settings_N[0].items():
        for rank, settings in enumerate(settings_N):
            if settings[name] != value:
                other = f"{settings[name]!r} on rank {rank}"
                raise ValueError(f"{name} must be the same on all ranks, got {value!r} on rank 0 and {other}")
