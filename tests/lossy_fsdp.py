"""Small FSDP2 trainings for tests, plain or attached: wrapped unit by unit, seeded, alike on every rank but for the
batches, which are those of `lossy_ddp`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from lossy_ddp import MODELS, OPTIMIZERS, batch, loss_of
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lossproof.impl.distributed import attach

Step = Callable[["Job", int], torch.Tensor]


def wrap(model: nn.Module, mesh: Any, each: Callable[[nn.Module], bool], **options: Any) -> FSDPModule:
    for module in list(model.modules()):
        if module is not model and each(module):
            fully_shard(module, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def blocks(module: nn.Module) -> bool:
    """What a user would wrap: the decoder layers of a LLaMA, two of the three linear layers of `mlp`."""
    return type(module).__name__ == "LlamaDecoderLayer" or (
        type(module) is nn.Linear and module.in_features in (17, 11)
    )


@dataclass
class Job:
    """One FSDP2 model in training on this rank; `law` None is plain FSDP2."""

    model: str = "mlp"
    optimizer: str = "SGD"
    law: Any = None
    fsdp: dict[str, Any] = field(default_factory=dict)
    attach: dict[str, Any] = field(default_factory=dict)
    mesh: tuple[int, ...] = ()
    seed: int = 5
    before: Callable[[nn.Module], None] | None = None  # the model is wrapped
    after: Callable[[nn.Module], None] | None = None

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.rank, shape = dist.get_rank(), self.mesh or (dist.get_world_size(),)
        names = ("inside", "between")[-len(shape) :]
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        module = MODELS[self.model]()
        if self.before:
            self.before(module)
        self.module = wrap(module, mesh, blocks, **self.fsdp)
        if self.after:
            self.after(self.module)
        self.opt = OPTIMIZERS[self.optimizer]([(n, p) for n, p in self.module.named_parameters() if p.requires_grad])
        self.lossy = None
        if self.law is not None:
            options = {"packet_bytes": 32, "log_every": 0} | self.attach
            self.lossy = attach(self.module, self.opt, self.law, **options)
        self.losses: list[float] = []

    def loss(self, step: int) -> torch.Tensor:
        return loss_of(self.module, batch("mlp" if self.model == "idle" else self.model, step, self.rank))

    def train(self, steps: int, one: Step | None = None, start: int = 0) -> Job:
        for step in range(start, start + steps):
            self.losses.append((one or plain)(self, step).item())
        return self

    def owners(self) -> dict[str, torch.Tensor]:
        """The owners' model, whole."""
        return {
            name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
            for name, value in self.module.state_dict().items()
        }

    def replica(self) -> dict[str, torch.Tensor]:
        """What this rank computes its gradients at, as its own modules see it while they are gathered."""
        units = [module for module in self.module.modules() if isinstance(module, FSDPModule)]
        for unit in units:
            unit.unshard()
        found = {name: parameter.detach().clone() for name, parameter in self.module.named_parameters()}
        for unit in units:
            unit.reshard()
        return found


class Idle(nn.Module):
    """A unit that takes part in every third forward pass only, the first one included."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.idle, self.last = nn.Linear(6, 17), nn.Linear(17, 17), nn.Linear(17, 3)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        if self.calls % 3 == 0:
            hidden = hidden + self.idle(hidden)
        self.calls += 1
        return self.last(hidden)


MODELS["idle"] = Idle


def plain(job: Job, step: int) -> torch.Tensor:
    job.opt.zero_grad()
    loss = job.loss(step)
    loss.backward()
    job.opt.step()
    return loss


def accumulated(job: Job, step: int) -> torch.Tensor:
    """Gradients stay whole on every rank until the last part."""
    job.opt.zero_grad()
    for part in range(3):
        job.module.set_requires_gradient_sync(part == 2)
        job.module.set_is_last_backward(part == 2)
        loss = job.loss(10 * step + part) / 3
        loss.backward()
    job.opt.step()
    return loss


def reduced_by_parts(job: Job, step: int) -> torch.Tensor:
    """Gradients are reduced after every part and accumulate in the shards."""
    job.opt.zero_grad()
    for part in range(3):
        loss = job.loss(10 * step + part) / 3
        loss.backward()
    job.opt.step()
    return loss


def clip_at(step: int) -> float:
    return 0.05 + 0.1 * (step % 3)


def clipped(job: Job, step: int) -> torch.Tensor:
    job.opt.zero_grad()
    job.loss(step).backward()
    norm = nn.utils.clip_grad_norm_(job.module.parameters(), clip_at(step))
    job.opt.step()
    return norm.full_tensor()


def skipping(job: Job, step: int) -> torch.Tensor:
    """In every fourth step the optimizer is not called, as a GradScaler does after an overflow."""
    job.opt.zero_grad()
    loss = job.loss(step)
    loss.backward()
    if step % 4 != 1:
        job.opt.step()
    return loss


HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16)


# What is done to a model before it is wrapped, or after


def freeze(module: nn.Module) -> None:
    """The second linear layer's weight, which shares its unit, whose gather it needs twice; and all of the last."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    layers[1].weight.requires_grad_(False)
    layers[-1].requires_grad_(False)


def with_unused(module: FSDPModule) -> None:
    module.set_reduce_scatter_unused_params(True)


def prefetch(module: FSDPModule) -> None:
    """Every unit gathers the next one early, in both directions."""
    units = [unit for unit in module.modules() if isinstance(unit, FSDPModule)]
    for unit, following in pairwise(units):
        unit.set_modules_to_forward_prefetch([following])
        following.set_modules_to_backward_prefetch([unit])


FACTOR = 3.0


def divided(module: FSDPModule) -> None:
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.set_gradient_divide_factor(FACTOR)
            unit.set_force_sum_reduction_for_comms(True)
