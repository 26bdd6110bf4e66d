"""A small DDP job under `attach`, with every kind of step, as a rank plays it; and the same on the in-process cluster.

Legend: N ranks; P packets, Q of one rank; E elements; T steps; B rows of a batch.
"""

from __future__ import annotations

import io
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from lossproof.impl.cluster import Cluster
from lossproof.impl.distributed import attach
from lossproof.impl.distributed.cluster import HostedCluster
from lossproof.theory.laws import Law

PARTS = 3
"""Batches that an accumulated step takes."""
MOST = 0.05
"""The norm that gradients are clipped to."""


@dataclass(frozen=True)
class Recipe:
    """`steps` are plain, accumulated, clipped, clipped-3 (another norm) and skipped ones."""

    law: Law
    steps: tuple[str, ...]
    optimizer: str = "sgd"
    seed: int = 0
    packet_bytes: int = 8
    resync_every: int = 0
    drift_every: int = 2
    options: dict[str, Any] = field(default_factory=dict)

    def model(self) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return torch.nn.Sequential(
                torch.nn.Linear(4, 11), torch.nn.Tanh(), torch.nn.Linear(11, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)
            ).double()

    def make(self, named: list[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        parameters = [parameter for _, parameter in named]
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        return torch.optim.AdamW(parameters, lr=0.02)

    def batch(self, step: int, rank: int, part: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step * 1000 + rank * 10 + part)
        return torch.randn(3, 4, generator=generator, dtype=torch.float64)


def objective(model: Any, x_B4: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = (model(x_B4) - x_B4[:, :2].square()).square().mean()
    return loss


# -- a rank


class Job:
    def __init__(self, recipe: Recipe, **more: Any) -> None:
        self.recipe, self.rank = recipe, dist.get_rank()
        self.module = recipe.model()
        self.model = DistributedDataParallel(self.module, bucket_cap_mb=1e-4)  # several buckets
        self.optimizer = recipe.make(list(self.module.named_parameters()))
        self.attachment = attach(
            self.model, self.optimizer, recipe.law, seed=recipe.seed, packet_bytes=recipe.packet_bytes, log_every=0,
            resync_every=recipe.resync_every, drift_every=recipe.drift_every, **recipe.options, **more,
        )  # fmt: skip
        self.norms: list[float] = []

    def packed(self) -> torch.Tensor:
        return self.attachment.layout.pack([p.detach() for p in self.attachment.parameters]).clone()

    def step(self, step: int) -> None:
        kind, parts = self.recipe.steps[step], 1
        self.optimizer.zero_grad()
        if kind == "accumulated":
            parts = PARTS
        for part in range(parts):
            with self.model.no_sync() if part < parts - 1 else nullcontext():
                torch.autograd.backward(objective(self.model, self.recipe.batch(step, self.rank, part)) / parts)
        if kind == "clipped":
            self.norms.append(float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), MOST)))
        elif kind == "clipped-3":
            self.norms.append(float(self.attachment.clip_grad_norm_(MOST, 3.0)))
        if kind != "skipped":
            self.optimizer.step()


def played(recipe: Recipe) -> dict[str, Any]:
    """What a rank sees of all steps, and what its attachment says of them."""
    job, masks, replicas = Job(recipe), [], []
    for step in range(len(recipe.steps)):
        job.step(step)
        masks.append({phase: mask.clone() for phase, mask in job.attachment.stages.arrived.items()})
        replicas.append(job.packed())
    at = job.attachment
    totals, owners = at.telemetry.gather(), at.owners_model()
    found = {
        "masks": masks, "replicas": torch.stack(replicas), "own": at.exchange.own_Q, "owner": at.exchange.owner_P,
        "norms": job.norms, "totals": totals, "owners": owners, "steps": list(at.telemetry.steps),
        "drift": [tuple(vars(drift).values()) for drift in at.telemetry.drift], "skipped": at.telemetry.skipped,
        "no_survivor": at.telemetry.no_survivor, "names": at.names,
    }  # fmt: skip
    job.optimizer.zero_grad()
    at.detach()
    found["detached"] = job.packed()
    found["states"] = {name: deepcopy(job.optimizer.state[p]) for name, p in job.module.named_parameters()}
    job.optimizer.zero_grad()  # plain DDP again: equal replicas stay equal
    torch.autograd.backward(objective(job.model, recipe.batch(99, job.rank)))
    job.optimizer.step()
    found["after"] = job.packed()
    return found


def resumed(recipe: Recipe, at_step: int, consolidated: bool) -> list[str]:
    """How two runs differ on this rank: one that goes on after saving, and one from the saved state."""
    job = Job(recipe)
    for step in range(at_step):
        job.step(step)
    at, whole, differ = job.attachment, 1, []
    if consolidated:
        before = at.owners_model()
        at.consolidate(to=whole)
        for name, value in job.module.state_dict().items():
            if not value.equal(before[name]):
                differ.append(f"{name} is not the owners' after consolidation")
        if at.exchange.rank == whole and len(job.optimizer.state) != len(at.parameters):
            differ.append(f"the optimizer holds the state of {len(job.optimizer.state)} tensors")
    file = io.BytesIO()
    torch.save({"model": job.module.state_dict(), "optimizer": job.optimizer.state_dict()}, file)
    files: list[Any] = [file.getvalue()]
    if consolidated:
        dist.broadcast_object_list(files, src=whole)
    ends = []
    again = Job(recipe)
    state = torch.load(io.BytesIO(files[0]), weights_only=True)
    again.module.load_state_dict(state["model"])
    again.optimizer.load_state_dict(state["optimizer"])
    for one in (job, again):
        for step in range(at_step, len(recipe.steps)):
            one.step(step)
        totals = {name: value.tolist() for name, value in one.attachment.telemetry.gather().items()}
        telemetry = one.attachment.telemetry
        ends.append((one.packed(), totals, telemetry.skipped, telemetry.no_survivor, one.attachment.stages.step_number))
    (replica, *rest), (other, *others) = ends
    if not replica.equal(other):
        differ.append(f"replicas are {float((replica - other).abs().max()):.3g} apart after resuming")
    return differ + [f"{a} against {b} after resuming" for a, b in zip(rest, others, strict=True) if a != b]


def uneven(recipe: Recipe, own: int) -> torch.Tensor:
    """The replica after `Join`: rank r has `own` (r + 1) batches."""
    job = Job(recipe)
    with Join([job.model, job.attachment]):
        for step in range(own * (job.rank + 1)):
            job.step(step)
    return job.packed()


def hosted(recipe: Recipe, ranks: int) -> dict[str, Any]:
    """What a process sees of a cluster of which it hosts some ranks; plain steps only."""
    cluster = HostedCluster(
        recipe.model(), objective, recipe.make, recipe.law, ranks, seed=recipe.seed, packet_bytes=recipe.packet_bytes,
        **recipe.options,
    )  # fmt: skip
    masks, replicas = [], []
    for step in range(len(recipe.steps)):
        cluster.step(torch.stack([recipe.batch(step, rank) for rank in range(ranks)]))
        masks.append({phase: mask.clone() for phase, mask in cluster.round.arrived.items()})
        replicas.append(cluster.replicas_HPE.clone())
    return {"hosted": list(cluster.hosted), "masks": masks, "replicas": replicas, "counts": asdict(cluster.counts),
            "owners": cluster.owners_model(), "evaluated": cluster.evaluate(recipe.batch(99, 0))}  # fmt: skip


# -- the same in one process


class Reference:
    """The cluster, driven through the same kinds of steps; `batches` of each rank, None for as many as there are."""

    def __init__(self, recipe: Recipe, ranks: int, batches: tuple[int, ...] | None = None) -> None:
        self.recipe, self.ranks, self.batches = recipe, ranks, batches
        self.cluster = Cluster(
            recipe.model(), objective, recipe.make, recipe.law, ranks, seed=recipe.seed,
            packet_bytes=recipe.packet_bytes, **recipe.options,
        )  # fmt: skip
        self.norms: list[float] = []
        self.masks: list[dict[str, torch.Tensor]] = []
        self.replicas: list[torch.Tensor] = []

    def play(self) -> Reference:
        for step, kind in enumerate(self.recipe.steps):
            self._step(step, kind)
            self.masks.append({phase: mask.clone() for phase, mask in self.cluster.round.arrived.items()})
            self.replicas.append(self.cluster.replicas_NPE.clone())
        return self

    def _step(self, step: int, kind: str) -> None:
        parts, payload_NPE = PARTS if kind == "accumulated" else 1, torch.zeros_like(self.cluster.replicas_NPE)
        for part in range(parts):
            batch = torch.stack([self.recipe.batch(step, rank, part) for rank in range(self.ranks)])
            payload_NPE += self.cluster.gradients(batch)[0] / parts
        if self.batches:
            payload_NPE[[rank for rank, number in enumerate(self.batches) if step >= number]] = 0
        before_NPE = self.cluster.replicas_NPE.clone()

        def update(estimate_PE: torch.Tensor) -> None:
            if kind.startswith("clipped"):
                norm = estimate_PE.abs().pow(power := 3 if kind == "clipped-3" else 2).sum() ** (1 / power)
                self.norms.append(float(norm))
                estimate_PE = estimate_PE * (MOST / (norm + 1e-6)).clamp(max=1)
            if kind != "skipped":
                self.cluster._update(estimate_PE)

        self.cluster.round.step(payload_NPE, update)
        if kind == "skipped":
            self.cluster.replicas_NPE.copy_(before_NPE)
        elif self.recipe.resync_every and (step + 1) % self.recipe.resync_every == 0:
            self.cluster.replicas_NPE.copy_(self.cluster.fresh_PE.expand_as(self.cluster.replicas_NPE))
