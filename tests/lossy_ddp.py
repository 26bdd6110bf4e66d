"""Small DDP trainings for tests, plain or attached: models, optimizers, batches, and loops as users write them.

All of it is seeded and runs the same on every rank but for the batches.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lossproof.impl.distributed import attach
from lossproof.impl.optimizers import MuonAndAdamW

Step = Callable[["Job", int], torch.Tensor]


class Tied(nn.Module):
    """Embedding and output share their weight; a frozen matrix; a branch that odd ranks take in odd steps only."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.frozen, self.inner = nn.Linear(5, 5).requires_grad_(False), nn.Linear(5, 5)
        self.branch, self.never = nn.Linear(5, 5), nn.Linear(3, 3)
        self.register_buffer("scale", torch.tensor([2.0]))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        hidden = torch.tanh(self.inner(self.frozen(self.embed(x)))) * self.scale
        if self.calls % 2 and dist.get_rank() % 2:
            hidden = hidden + self.branch(hidden)
        return self.head(hidden)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 17), nn.Tanh(), nn.Linear(17, 11), nn.Tanh(), nn.Linear(11, 3))


def linear() -> nn.Module:
    return nn.Linear(6, 3, bias=False)  # one tensor: all ranks but one own nothing


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def llama(tied: bool = False) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=19, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=tied,
        )
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp, "linear": linear, "conv": conv, "tied": Tied, "llama": llama, "tied llama": partial(llama, tied=True)
}  # fmt: skip


def batch(model: str, step: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    if model in ("mlp", "linear", "conv"):
        shape = (4, 2, 4, 4) if model == "conv" else (4, 6)
        return torch.randn(shape, generator=generator, dtype=torch.get_default_dtype())
    return torch.randint(0, 7, (3, 5), generator=generator)


def loss_of(model: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
    if x.is_floating_point():
        flat = x.reshape(len(x), -1)
        return (model(x) - flat[:, :3].square()).square().mean()
    logits = getattr(found := model(x), "logits", found)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())


def grouped(named: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    biases = [p for n, p in named if n.endswith("bias")]
    others = [p for n, p in named if not n.endswith("bias")]
    return torch.optim.SGD([{"params": biases, "lr": 0.02}, {"params": others, "weight_decay": 0.1}], lr=0.05)


def of(kind: Any, **options: Any) -> Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]:
    return lambda named: kind([p for _, p in named], **options)


OPTIMIZERS: dict[str, Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]] = {
    "SGD": of(torch.optim.SGD, lr=0.05, momentum=0.9),
    "AdamW": of(torch.optim.AdamW, lr=0.01, foreach=False),
    "foreach AdamW": of(torch.optim.AdamW, lr=0.01, foreach=True),
    "fused AdamW": of(torch.optim.AdamW, lr=0.01, fused=True),
    "Adafactor": of(torch.optim.Adafactor, lr=0.01),
    "Muon": partial(MuonAndAdamW, lr=0.01),
    "groups": grouped,
}


@dataclass
class Job:
    """One DDP model in training on this rank; `law` None is plain DDP."""

    model: str = "mlp"
    optimizer: str = "SGD"
    law: Any = None
    ddp: dict[str, Any] = field(default_factory=dict)
    attach: dict[str, Any] = field(default_factory=dict)
    seed: int = 5
    device: str = "cpu"

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.rank = dist.get_rank()
        self.module = MODELS[self.model]().to(self.device)
        self.wrapped = DistributedDataParallel(self.module, **self.ddp)
        named = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        self.opt = OPTIMIZERS[self.optimizer](named)
        self.lossy = None
        if self.law is not None:
            options = {"packet_bytes": 32, "log_every": 0} | self.attach
            self.lossy = attach(self.wrapped, self.opt, self.law, **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        self.losses: list[float] = []

    def loss(self, step: int) -> torch.Tensor:
        return loss_of(self.wrapped, batch(self.model, step, self.rank).to(self.device))

    def train(self, steps: int, one: Step | None = None, start: int = 0) -> Job:
        for step in range(start, start + steps):
            self.losses.append((one or plain)(self, step).item())
        return self

    def state(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}


def plain(job: Job, step: int) -> torch.Tensor:
    job.opt.zero_grad()
    loss = job.loss(step)
    loss.backward()
    job.opt.step()
    return loss


def decayed(job: Job, step: int) -> torch.Tensor:
    """The learning rate falls, on the ranks that still step."""
    for group in job.opt.param_groups:
        group["lr"] = 0.05 / (1 + step % 100)
    return plain(job, step)


def zeros_kept(job: Job, step: int) -> torch.Tensor:
    """`zero_grad(set_to_none=False)`, after the step."""
    loss = job.loss(step)
    loss.backward()
    job.opt.step()
    job.opt.zero_grad(set_to_none=False)
    return loss


def accumulated(job: Job, step: int) -> torch.Tensor:
    job.opt.zero_grad()
    for part in range(3):
        with ExitStack() as stack:
            if part < 2:
                stack.enter_context(job.wrapped.no_sync())
            loss = job.loss(10 * step + part) / 3
            loss.backward()
    job.opt.step()
    return loss


def clipped(job: Job, step: int, **options: Any) -> torch.Tensor:
    job.opt.zero_grad()
    job.loss(step).backward()
    norm = nn.utils.clip_grad_norm_(job.wrapped.parameters(), 0.05 + 0.1 * (step % 3), **options)
    job.opt.step()
    return norm


def clipped_otherwise(job: Job, step: int) -> torch.Tensor:
    """Norms other than L2; the attached job calls the attachment."""
    job.opt.zero_grad()
    job.loss(step).backward()
    kind = (1.0, 3.0, float("inf"))[step % 3]
    clip = job.lossy.clip_grad_norm_ if job.lossy else partial(nn.utils.clip_grad_norm_, job.wrapped.parameters())
    norm = clip(0.05, kind)
    job.opt.step()
    return norm


def clipped_by_value(job: Job, step: int) -> torch.Tensor:
    job.opt.zero_grad()
    loss = job.loss(step)
    loss.backward()
    nn.utils.clip_grad_value_(job.wrapped.parameters(), 0.01)
    job.opt.step()
    return loss


def scaled(job: Job, step: int, clip: bool = True) -> torch.Tensor:
    """GradScaler and autocast; one rank overflows every fourth step, so that all must skip it."""
    job.opt.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = job.loss(step)
    if step % 4 == 1 and job.rank == 1:
        loss = loss * float("inf")
    job.scaler.scale(loss).backward()
    if clip:
        job.scaler.unscale_(job.opt)
        nn.utils.clip_grad_norm_(job.wrapped.parameters(), 0.1)
    job.scaler.step(job.opt)
    job.scaler.update()
    return torch.tensor(job.scaler.get_scale())
