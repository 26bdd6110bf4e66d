"""P4: `attach` on processes, and a cluster shared out among processes, against the cluster in one process.

Legend: N ranks; P packets, Q of one rank; E elements; T steps; S sampled packets.
"""

from __future__ import annotations

import math
from itertools import combinations, product
from typing import Any

import numpy as np
import sympy as sp
import torch

from lossproof.impl.distributed import telemetry
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import processes
from lossproof.proofs_checks.instruments.attached_job import Recipe, Reference
from lossproof.theory import attached, certify
from lossproof.theory.derive import attached as derive
from lossproof.theory.laws import Bernoulli, GilbertElliott

ROUNDING = 1e-9
"""Both sides compute gradients in float64, but sum in different orders; all that is counted or saved must be equal."""
KINDS = ("plain", "accumulated", "clipped", "skipped", "clipped-3", "plain", "plain", "skipped", "plain", "plain")
LOSSLESS = Recipe(Bernoulli(0), ("plain",) * 4)
SAMPLED = 64

P4 = Claim(
    "P4",
    "attach, and a cluster shared out, do in processes what the cluster does in one",
    derive.attachment,
    assumes=(
        "equal law, seed, packet size, own link and rule; for attach the layout of whole tensors",
        "every rank takes the same kind of step: plain, accumulated, clipped by norm, or skipped",
    ),
    not_claimed=(
        "equal digits of parameters: autograd and vmap sum in different orders (p = 0 is C3, bit for bit)",
        "failures of ranks, other transports, and optimizers that look at several tensors in one step",
    ),
    witness="two ranks over gloo, a model of six tensors",
)
P4.derived(
    plant("pairs counted twice", attached, "pairs", lambda N: (N - 1) * (N - 2)),
    plant("the mean of all gaps not taken off", attached, "pair_drift", lambda N, squares, total: (
        2 * squares / (N - 2))),
    plant("a mean over all ranks", attached, "owner_drift", lambda N, squares: squares / N),
    plant("clipped by own norm", attached, "clipped", lambda g, squares, most: most),
)  # fmt: skip


@P4.rung(
    "certified",
    plant("pairs counted twice", attached, "pairs", lambda N: (N - 1) * (N - 2)),
    plant("the mean of all gaps not taken off", attached, "pair_drift", lambda N, squares, total: (
        2 * squares / (N - 2))),
    plant("a mean over all ranks", attached, "owner_drift", lambda N, squares: squares / N),
)  # fmt: skip
def _sums(run: Run) -> Evidence:
    limit = run.pick(5, 8)
    for N in range(3, limit + 1):
        gaps = sp.symbols(f"a:{N - 1}")
        squares, total = sum(a**2 for a in gaps), sum(gaps) ** 2
        pairs = [(a - b) ** 2 for a, b in combinations(gaps, 2)]
        mean = attached.pair_drift(N, squares, total) - sum(pairs) / sp.Integer(len(pairs))
        require(certify.is_zero(mean), f"N = {N}: not the mean over pairs of non-owners")
        require(certify.is_zero(attached.owner_drift(N, squares) - squares / sp.Integer(len(gaps))), f"N = {N}: mean")
        require(attached.pairs(N) == len(pairs), f"N = {N}: {attached.pairs(N)} pairs")
    return Evidence(f"drift from two sums, for all gaps of up to {limit} ranks")


@P4.rung(
    "enumerated",
    *map(processes.planting, (
        "STAND_IN_SQUARED", "STAND_IN_MAX", "SKIP_COUNTED", "SKIP_NUMBERED_TWICE", "GATHERED_BY_OWNER",
        "SENDERS_REVERSED", "COUNT_OTHER_LINK", "COUNT_ARRIVALS", "COUNTS_NOT_SAVED", "STATE_NOT_GATHERED",
        "RESYNC_FROM_REPLICA", "DRIFT_OF_REPLICAS", "STALE_IS_FRESH", "JOINED_IN_HALF", "HOSTED_BATCH",
        "HOSTED_SENDERS", "HOSTED_RECEIVERS", "HOSTED_COUNTS",
    )),
)  # fmt: skip
def _every_kind_of_step(run: Run) -> Evidence:
    bursty = Recipe(GilbertElliott(0.3, 3), KINDS, "adamw", (run.seed + 4) % 2**64, 24, resync_every=5, drift_every=3,
                    options={"own_link": "lossy", "no_survivor": "hold"})  # fmt: skip
    plain = Recipe(Bernoulli(0.3), KINDS, "sgd", run.seed)
    for ranks in (3, 4, 5):
        _require_pairs(ranks)
    for law, ranks in run.pick(
        ((GilbertElliott(0.3, 3, "packet"), 4),),
        tuple(product((Bernoulli(0.3), GilbertElliott(0.3, 3, "packet")), (4, 6))),
    ):
        _require_hosted(Recipe(law, ("plain",) * 4, "adamw", run.seed, 24, options={
            "own_link": "lossy", "no_survivor": "hold", "layout": "flat"}), ranks)  # fmt: skip
    for ranks in run.pick((2,), (2, 3)):
        for recipe in (plain, bursty):
            found = processes.attached(ranks, "played", recipe)
            _require_same(recipe, found, Reference(recipe, ranks).play())
        _require_joined(ranks)
        for recipe, consolidated in run.pick(
            ((bursty, True), (plain, False)), tuple(product((bursty, plain), (True, False)))
        ):
            for rank, differ in enumerate(processes.attached(ranks, "resumed", recipe, 5, consolidated)):
                require(not differ, f"rank {rank}, consolidated: {consolidated}: {'; '.join(differ)}")
    return Evidence(
        f"{len(KINDS)} steps of all kinds, Bernoulli and Gilbert-Elliott: masks, counts, drift, parameters; resumed "
        "bit for bit; uneven inputs; a cluster of two ranks or more in each of two processes"
    )


class _Given:
    """Some ranks' packets, as rank 0 would gather them; rank 0 owns all."""

    def __init__(self, replicas_NPE: torch.Tensor) -> None:
        self.ranks, self.rank, self.replicas_NPE = len(replicas_NPE), 0, replicas_NPE
        self.owner_P = torch.zeros(replicas_NPE.shape[1], dtype=torch.long)

    def every(self, values: torch.Tensor) -> torch.Tensor:
        return self.replicas_NPE

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return values


def _require_pairs(ranks: int) -> None:
    """Drift between more non-owners than two processes have."""
    start, every = torch.arange(6.0).view(3, 2), torch.arange(6.0 * ranks).view(ranks, 3, 2).square() % 11
    measured = telemetry.Telemetry(_Given(every), None, torch.arange(3), drift_every=1)  # type: ignore[arg-type]
    measured.measure(0, start)
    measured.measure(1, every[0])
    gaps = (every[1:] - every[0]).double()
    squares, total = float(gaps.square().sum()) / 3, float(gaps.sum(0).square().sum()) / 3
    moved = float((every[0] - start).square().sum()) / 3
    wanted = (1, float(attached.pair_drift(ranks, squares, total)), float(attached.owner_drift(ranks, squares)), moved)
    for found in measured.drift:
        good = np.allclose(list(vars(found).values()), wanted, 1e-12)
        require(good, f"{ranks} ranks: {found}, not {wanted}")
    require(len(measured.drift) == 1, f"{len(measured.drift)} measurements of drift, not 1")


def _require_hosted(recipe: Recipe, ranks: int) -> None:
    """Two processes that share the ranks of a cluster: the masks and the counts of one process, and its numbers."""
    reference = Reference(recipe, ranks).play()
    cluster, found = reference.cluster, processes.attached(2, "hosted", recipe, ranks)
    owner_P = torch.tensor(cluster.owner_P)
    every = sorted(rank for part in found for rank in part["hosted"])
    require(every == [*range(ranks)], f"the processes host ranks {every} of {ranks}")
    for part in found:
        what = f"ranks {part['hosted']} of {ranks} in one process"
        own_P = torch.isin(owner_P, torch.tensor(part["hosted"]))
        for step, (mine, wanted) in enumerate(zip(part["masks"], reference.masks, strict=True)):
            same = mine["gradients"].equal(wanted["gradients"][:, own_P])
            require(same, f"{what}, step {step}: another mask of gradients than the cluster's")
            same = mine["parameters"].equal(wanted["parameters"][part["hosted"]])
            require(same, f"{what}, step {step}: another mask of parameters than the cluster's")
            replicas_HPE = reference.replicas[step][part["hosted"]]
            _require_close(f"{what}, step {step}: replicas", part["replicas"][step], replicas_HPE)
        require(part["counts"] == vars(cluster.counts), f"{what}: {part['counts']}, not {vars(cluster.counts)}")
        for name, value in cluster.owners_model().items():
            _require_close(f"{what}: the owners' {name}", part["owners"][name], value)
        _require_close(f"{what}: evaluation", part["evaluated"], cluster.evaluate(recipe.batch(99, 0)))


def _require_joined(ranks: int) -> None:
    reference = Reference(LOSSLESS, ranks, tuple(range(2, 2 * ranks + 1, 2)))
    reference.recipe = Recipe(LOSSLESS.law, ("plain",) * (2 * ranks))
    wanted = reference.play().replicas[-1][0]
    recipe = reference.recipe
    for rank, replica in enumerate(processes.attached(ranks, "uneven", recipe, 2)):
        _require_close(f"rank {rank} after uneven inputs", replica, wanted)


def _require_close(what: str, got: torch.Tensor, wanted: torch.Tensor) -> None:
    off = float((got - wanted).abs().max())
    require(off < ROUNDING, f"{what}: {off:.3g} from the cluster's")


def _require_same(recipe: Recipe, found: list[dict[str, Any]], reference: Reference) -> None:
    cluster, ranks = reference.cluster, len(found)
    owner_P = torch.tensor(cluster.owner_P)
    every_TNPE = torch.stack([one["replicas"] for one in found], dim=1)
    for rank, one in enumerate(found):
        require(one["owner"].equal(owner_P), f"rank {rank}: owners {one['owner'].tolist()}")
        require(one["own"].equal((owner_P == rank).nonzero()[:, 0]), f"rank {rank}: own packets")
        for step, (mine, wanted) in enumerate(zip(one["masks"], reference.masks, strict=True)):
            same = mine["gradients"].equal(wanted["gradients"][:, one["own"]])
            require(same, f"rank {rank}, step {step}: another mask of gradients than the cluster's")
            if _travels(recipe, step):
                same = mine["parameters"].equal(wanted["parameters"][rank : rank + 1])
                require(same, f"rank {rank}, step {step}: another mask of parameters than the cluster's")
        for step, wanted_NPE in enumerate(reference.replicas):
            _require_close(f"{recipe.steps[step]}, rank {rank}, step {step}", every_TNPE[step, rank], wanted_NPE[rank])
        off = max(abs(a - b) for a, b in zip(one["norms"], reference.norms, strict=True))
        require(off < ROUNDING, f"rank {rank}: norms {one['norms']}, not {reference.norms}")
        for name, value in cluster.owners_model().items():
            _require_close(f"rank {rank}, the owners' {name}", one["owners"][name], value)
        _require_close(f"rank {rank}, detached", one["detached"], cluster.fresh_PE)
        _require_states(rank, one["states"], cluster)
    require(not any((one["detached"] != found[0]["detached"]).any() for one in found), "replicas differ, detached")
    for one in found:  # DDP's own all-reduce: the same model went on everywhere
        require(one["after"].equal(found[0]["after"]), "plain DDP after detach: replicas differ")
    _require_counts(recipe, found, reference, owner_P.numpy(), ranks)
    _require_drift(recipe, found, every_TNPE, owner_P)


def _travels(recipe: Recipe, step: int) -> bool:
    return recipe.steps[step] != "skipped" and not _reliable(recipe, step)


def _reliable(recipe: Recipe, step: int) -> bool:
    due = recipe.resync_every and (step + 1) % recipe.resync_every == 0
    return bool(due) and recipe.steps[step] != "skipped"


def _require_states(rank: int, states: dict[str, Any], cluster: Any) -> None:
    by_name = dict(zip(cluster._owned_names(), cluster._owned, strict=True))
    for name, state in states.items():
        wanted = cluster.optimizer.state[by_name[name]]
        require(state.keys() == wanted.keys(), f"rank {rank}: the optimizer's state of {name} has {list(state)}")
        for key, value in wanted.items():
            _require_close(f"rank {rank}, the optimizer's {key} of {name}", state[key], value)


def _require_counts(recipe: Recipe, found: Any, reference: Reference, owner_P: Any, ranks: int) -> None:
    """By step, phase, sender and receiver, from the cluster's masks."""
    offered, lost = np.zeros((2, len(recipe.steps), 2, ranks, ranks), dtype=np.int64)
    alone = np.zeros((len(recipe.steps), ranks), dtype=np.int64)
    for step, masks in enumerate(reference.masks):
        gradients, parameters = masks["gradients"].numpy(), masks["parameters"].numpy()
        for packet, home in enumerate(owner_P.tolist()):
            alone[step, home] += not gradients[:, packet].any()
            for other in {*range(ranks)} - {home}:
                offered[step, 0, other, home] += 1
                lost[step, 0, other, home] += not gradients[other, packet]
                if _travels(recipe, step):
                    offered[step, 1, home, other] += 1
                    lost[step, 1, home, other] += not parameters[other, packet]
    for rank, one in enumerate(found):
        for name, wanted in (("offered", offered), ("lost", lost)):
            got = one["totals"][name]
            require(np.array_equal(got, wanted.sum(0)), f"rank {rank}: {name} {got.tolist()}, not {wanted.sum(0)}")
        for step, record in enumerate(one["steps"]):
            said = record.step, record.no_survivor, record.reliable
            right = step, alone[step, rank], _reliable(recipe, step)
            require(said == right, f"rank {rank}, step {step}: {said}, not {right}")
            for name, wanted in (("offered", offered), ("lost", lost), ("arrived", offered - lost)):
                got = getattr(record, f"{name}_2N")
                require(np.array_equal(got, wanted[step, :, :, rank]), f"rank {rank}, step {step}: {name} {got}")
        require(len(one["steps"]) == len(recipe.steps), f"rank {rank}: {len(one['steps'])} steps recorded")
        total = one["skipped"], one["no_survivor"]
        wanted_total = recipe.steps.count("skipped"), int(alone[:, rank].sum())
        require(total == wanted_total, f"rank {rank}: {total} steps skipped and without a survivor, not {wanted_total}")


def _require_drift(recipe: Recipe, found: Any, every_TNPE: torch.Tensor, owner_P: torch.Tensor) -> None:
    """Mean squares by their definition, packet by packet, of packets spread evenly."""
    P, ranks = len(owner_P), len(found)
    sample = [int(k * (P - 1) / (SAMPLED - 1)) for k in range(SAMPLED)] if P > SAMPLED else list(range(P))
    wanted: list[tuple[float, ...]] = []
    moved: list[float] = []
    before = None
    for step, replicas_NPE in enumerate(every_TNPE):
        if recipe.steps[step] == "skipped":
            continue
        fresh = [replicas_NPE[owner_P[s], s] for s in sample]
        if before is not None:
            moved.append(sum(float((x - y).square().sum()) for x, y in zip(fresh, before, strict=True)) / len(sample))
        before = fresh
        if step % recipe.drift_every or not moved:
            continue
        gaps, pairs = [], []
        for s, x in zip(sample, fresh, strict=True):
            others = [replicas_NPE[rank, s] for rank in range(ranks) if rank != owner_P[s]]
            gaps += [float((x - y).square().sum()) for y in others]
            pairs += [float((y - z).square().sum()) for y, z in combinations(others, 2)]
        pair = float(np.mean(pairs)) if pairs else math.nan
        wanted.append((step, pair, float(np.mean(gaps)), float(np.mean(moved))))
        moved = []
    for rank, one in enumerate(found):
        good = len(one["drift"]) == len(wanted) and np.allclose(one["drift"], wanted, 1e-9, 1e-15, equal_nan=True)
        require(good, f"rank {rank}: drift is said to be {one['drift']}, not {wanted}")


P4.leave_out("sampled", "not applicable", "nothing is random but masks, which are compared one by one")
P4.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
