"""C3: no loss is lossless training.

A *path* is a way to train: today the cluster in one process and the job on top of it. Each is a function from a
recipe to parameters, so that another path (processes, a transport) is another function beside `in_process`.

Legend: N ranks; P packets; E elements; T steps; B sequences of C tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import sympy as sp
import torch
from torch.func import functional_call, grad_and_value, vmap

from lossproof.impl import aggregate as stage_1
from lossproof.impl import corpus, optimizers
from lossproof.impl import round as round_module
from lossproof.impl.cluster import Cluster
from lossproof.impl.corpus import Corpus
from lossproof.proofs_checks.claim import Claim, Evidence, Refuted, Run, plant, require
from lossproof.proofs_checks.instruments import mistakes, plain_job, plain_text, processes
from lossproof.theory import certify, protocol
from lossproof.theory.derive import protocol as derive
from lossproof.theory.laws import Bernoulli

U = Fraction(1, 2**24)
"""The relative error of one float32 operation, rounded to nearest."""
WHOLE_TENSORS = ("adafactor", "muon")
BY_ELEMENT = ("adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "rprop", "sgd")
RATES = {"adam": 0.001, "adamw": 0.001, "muon": 0.001, "sgd": 0.1}

C3 = Claim(
    "C3",
    "No loss is lossless training",
    derive.lossless,
    assumes=(
        "p = 0, the survivor mean",
        "(bit for bit) the gradients of all replicas are computed alike, and their mean is summed in rank order",
    ),
    not_claimed=(
        "the order in which other libraries sum: then a mean differs by its rounding, and training amplifies that",
        "UDP on links that lose: what is lost there is not p = 0",
    ),
    witness="two ranks: one addition, which has one order",
)
C3.derived(
    plant("a word of 0 is lost", protocol, "threshold", lambda p: p * 2**32 // 1 + 1),
    plant("one rounding too few", protocol, "mean_rounding", lambda N, u: (1 + u) ** (N - 1) - 1),
    plant("rounding grows with N only", protocol, "mean_rounding", lambda N, u: N * u),
    plant("an arrival leaves the gap", protocol, "gap", lambda m, before, u: before + u),
)


@C3.rung(
    "certified",
    plant("one rounding too few", protocol, "mean_rounding", lambda N, u: (1 + u) ** (N - 1) - 1),
    plant("first order only", protocol, "mean_rounding", lambda N, u: N * u),
    plant("half of it", protocol, "mean_rounding", lambda N, u: ((1 + u) ** N - 1) / 2),
)
def _rounding(run: Run) -> Evidence:
    N, u, X = sp.Symbol("N", integer=True, positive=True), sp.Symbol("u", positive=True), sp.Symbol("X")
    e, grown = protocol.mean_rounding(N, u), protocol.mean_rounding(N + 1, u)
    require(certify.is_zero(protocol.mean_rounding(0, u)), "no operation, and yet an error")
    require(certify.is_zero(grown - (e * (1 + u) + u), {(1 + u) ** N: X}), "not one more relative error of u")
    require(certify.is_zero(protocol.mean_rounding(1, u) - u), "one operation is not off by u")
    # In exact arithmetic with rounding to b bits, whole numbers in every order: the bound holds, and orders differ.
    bits, worst = 3, Fraction(0)
    for ranks in (2, 3, 4):
        bound = protocol.mean_rounding(ranks, Fraction(1, 2**bits))
        for numbers in _some_integers(ranks, run.pick(60, 600)):
            off = abs(_rounded_mean(numbers, bits) - Fraction(sum(numbers), ranks))
            size = Fraction(sum(map(abs, numbers)), ranks)
            require(off <= bound * size, f"the mean of {numbers} in {bits} bits is off by {off}")
            worst = max(worst, off / size / bound if size else Fraction(0))
    return Evidence("(1+u)^N - 1 for all N and u by induction", tightness=round(float(worst), 3))


def _some_integers(ranks: int, number: int) -> list[list[int]]:
    return [[(k * (i + 3) * 7 + i * k * k) % 33 - (16 if k % 2 else 0) for i in range(ranks)] for k in range(number)]


def _rounded_mean(numbers: list[int], bits: int) -> Fraction:
    """Rank order, each operation rounded to nearest at `bits` significant bits."""

    def rounded(value: Fraction) -> Fraction:
        if not value:
            return value
        unit = Fraction(2) ** (math.frexp(float(value))[1] - bits)
        return round(value / unit) * unit

    total = Fraction(numbers[0])
    for number in numbers[1:]:
        total = rounded(rounded(total) + rounded(Fraction(number)))
    return rounded(total / len(numbers))


# -- a recipe, the ordinary way to follow it, and the paths that must come out the same


@dataclass(frozen=True)
class Recipe:
    """A small network on fixed data."""

    optimizer: str
    ranks: int
    steps: int
    bias: bool = True

    def model(self) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return torch.nn.Sequential(
                torch.nn.Linear(3, 5, self.bias), torch.nn.Tanh(), torch.nn.Linear(5, 2, self.bias)
            )

    def batches(self) -> torch.Tensor:
        return torch.randn(self.steps, self.ranks, 4, 3, generator=torch.Generator().manual_seed(self.ranks))


def objective(model: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = (model(x) - x[:, :2].square()).square().mean()
    return loss


def ordinary_optimizer(name: str, named: dict[str, torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
    """What the documentation promises by a name: torch's own, at a rate for small models; Muon for matrices."""
    rate: dict[str, Any] = {"lr": RATES[name]} if name in RATES else {}
    if name == "muon":
        matrices = [p for p in named.values() if p.ndim == 2]
        rest = [p for p in named.values() if p.ndim != 2]
        parts: list[torch.optim.Optimizer] = [torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **rate)]
        return [*parts, torch.optim.AdamW(rest, **rate)] if rest else parts
    (kind,) = (kind for kind_name, kind in vars(torch.optim).items() if kind_name.lower() == name)
    return [kind(named.values(), **rate)]


def ordinary(recipe: Recipe) -> dict[str, torch.Tensor]:
    """One model, one optimizer; the gradient is the mean over ranks, summed in rank order."""
    model = recipe.model()
    named = dict(model.named_parameters())
    parts = ordinary_optimizer(recipe.optimizer, named)

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return objective(lambda x: functional_call(model, parameters, (x,)), x)

    for batch in recipe.batches():
        copies = {name: p.detach().expand(recipe.ranks, *p.shape).clone() for name, p in named.items()}
        gradients, _ = vmap(grad_and_value(loss))(copies, batch)
        for name, p in named.items():
            total = torch.zeros_like(p)
            for gradient in gradients[name]:
                total += gradient
            p.grad = total / recipe.ranks
        for part in parts:
            part.step()
    return {name: p.detach() for name, p in named.items()}


def in_process(recipe: Recipe, layout: Any, resume_at: int | None = None) -> tuple[dict[str, torch.Tensor], Cluster]:
    """The cluster; if asked, stopped after some steps, and a new one goes on from its state."""

    def new() -> Cluster:
        make, _ = optimizers.make_optimizer(recipe.optimizer, layout=layout)
        return Cluster(recipe.model(), objective, make, Bernoulli(0), recipe.ranks, layout=layout, packet_bytes=16)

    cluster = new()
    for t, batch in enumerate(recipe.batches()):
        if t == resume_at:
            state, cluster = cluster.state_dict(), new()
            cluster.load_state_dict(state)
        cluster.step(batch)
    return cluster.owners_model(), cluster


def _late(self: Cluster, estimate_PE: torch.Tensor) -> None:
    _update(self, self.__dict__.pop("late", torch.zeros_like(estimate_PE)))
    self.__dict__["late"] = estimate_PE.clone()


_update = Cluster._update
_aggregate = stage_1.aggregate


def _summed_from_the_end(payload: torch.Tensor, arrived: torch.Tensor, *args: Any, **options: Any) -> Any:
    return _aggregate(payload.flip(0), arrived.flip(0), *args, **options)


@C3.rung(
    "enumerated",
    mistakes.NOT_ZEROED,
    mistakes.COUNT_PLUS_ONE,
    mistakes.INVERTED,
    plant("summed from the last rank", round_module, "aggregate", _summed_from_the_end),
    plant("gradients one step late", Cluster, "_update", _late),
    plant("another learning rate", optimizers, "_LR", {**RATES, "adam": 0.002}),
    plant("Muon with torch's own scale", optimizers, "MuonAndAdamW", lambda named, lr: torch.optim.Muon(
        [(n, p) for n, p in named if p.ndim == 2], lr=lr)),
    plant("the state without the optimizer", Cluster, "load_state_dict",
          lambda self, state: self.round.load_state_dict(state["round"])),
)  # fmt: skip
def _every_optimizer(run: Run) -> Evidence:
    names = sorted({name.lower() for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
                   - {"optimizer", "lbfgs", "sparseadam"})  # fmt: skip
    require(names == sorted(optimizers._OFFERED), f"optimizers offered: {sorted(optimizers._OFFERED)}")
    paths = 0
    for number, name in enumerate(names):
        recipe = Recipe(name, ranks=(3, 2, 5, 4)[number % 4], steps=run.pick(3, 8))
        expected = ordinary(recipe)
        for layout in ("tensors",) if name in WHOLE_TENSORS else ("tensors", "flat", "dim0"):
            got, cluster = in_process(recipe, layout, resume_at=(None, 1, 2)[paths % 3] if layout == "tensors" else 1)
            _require_equal(f"{name}, N = {recipe.ranks}, {layout}", got, expected)
            replicas = cluster.replicas_NPE
            require(torch.equal(replicas, cluster.fresh_PE.expand_as(replicas)), f"{name}, {layout}: a stale replica")
            lost = cluster.round.counts.gradients_lost, cluster.round.counts.parameters_lost
            require(lost == (0, 0), f"{name}: {lost} packets lost at p = 0")
            paths += 1
    for name in WHOLE_TENSORS:
        for layout in ("flat", "dim0"):
            try:
                optimizers.make_optimizer(name, layout=layout)
            except ValueError:
                continue
            raise Refuted(f"{name}, whose update depends on whole tensors, is allowed with the layout {layout}")
    largest = _estimates_are_means(run)
    return Evidence(
        f"{len(names)} optimizers on all layouts that fit, {paths} runs bit for bit, most resumed; means of up to 33",
        tightness=largest,
    )


def _require_equal(what: str, got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    require(list(got) == list(expected), f"{what}: parameters {list(got)}")
    for name, value in expected.items():
        worst = float((got[name] - value).abs().max())
        require(torch.equal(got[name], value), f"{what}: {name} differs by {worst:.3g} from ordinary training")


def _estimates_are_means(run: Run) -> float:
    """Gradients of any size in float32: the estimate is within the rounding bound of the exact mean, for every N."""
    worst = Fraction(0)
    for ranks in (1, 2, 3, 8, 33):
        generator = torch.Generator().manual_seed(ranks)
        payload = (
            torch.randn(ranks, 1, run.pick(20, 400), generator=generator)
            * 10.0 ** (torch.arange(ranks) % 5)[:, None, None]
        )
        estimate, _ = stage_1.aggregate(payload, torch.ones(ranks, 1, dtype=torch.bool))
        for got, column in zip(estimate[0].tolist(), payload[:, 0].T.tolist(), strict=True):
            exact = [Fraction(value) for value in column]
            off, size = abs(Fraction(got) - sum(exact, Fraction(0)) / ranks), sum(map(abs, exact), Fraction(0)) / ranks
            bound = protocol.mean_rounding(ranks, U) * size
            require(off <= bound, f"N = {ranks}: the mean is off by {float(off):.3g}, more than {float(bound):.3g}")
            worst = max(worst, Fraction(off / bound) if bound else worst)
    return round(float(worst), 3)


_batch, _windows, _library_windows = Corpus.batch, corpus._windows, Corpus.validation_batches


@C3.rung(
    "sampled",
    plant("the text of the next step", Corpus, "batch", lambda self, step, *rest: _batch(self, step + 1, *rest)),
    plant("the text drawn like a loss", corpus, "_DATA", 0),
    plant("one byte late", corpus, "_windows", lambda text, start, length: _windows(
        text, start.clip(max=len(text) - length - 1) + 1, length)),
    plant("a constant learning rate", torch.optim.lr_scheduler, "LambdaLR",
          lambda optimizer, factor: torch.optim.lr_scheduler.ConstantLR(optimizer, 1)),
    plant("the state without the optimizer", Cluster, "load_state_dict",
          lambda self, state: self.round.load_state_dict(state["round"])),
    plant("validated on the training text", Corpus, "validation_batches", lambda self, *sizes: _library_windows(
        Corpus(self.name, self.train, self.train), *sizes)),
    processes.planting("COUNT_PLUS_ONE"),
    processes.planting("INVERTED"),
    processes.planting("NOT_ZEROED"),
    processes.planting("SHARDED_SUM"),
    processes.planting("SHARDED_LATE"),
    processes.planting("SHARDED_REGATHERED"),
    processes.planting("STALE_SLOT"),
    processes.planting("NEIGHBOURS_PAYLOAD"),
)  # fmt: skip
def _the_job(run: Run) -> Evidence:
    plain_text.require_corpus()
    plain_job.require_model()
    for recipe in plain_job.recipes(run.effort):
        plain_job.require_job(recipe)
    if run.effort == "full":
        plain_job.require_llama()
    for name in run.pick(("adamw",), ("sgd", "adamw", "muon")):
        same, gap = processes.lossless(2, name, run.pick(10, 50), run.seed)
        require(same, f"{name}: attach at p = 0 and plain DDP on 2 processes are {gap:.3g} apart")
    for name in run.pick(("adamw",), ("sgd", "adamw")):
        same, gap = processes.lossless(2, name, run.pick(5, 50), run.seed, sharded=True)
        require(same, f"{name}: attach at p = 0 and plain FSDP2 on 2 processes are {gap:.3g} apart")
        same, gap = processes.lossless(2, name, run.pick(5, 50), run.seed, over_udp=True)
        require(same, f"{name}: attach over UDP without loss and plain DDP on 2 processes are {gap:.3g} apart")
    return Evidence(
        "train: text, schedule, steps and report recomputed; stopped, resumed; attach is plain DDP, over UDP "
        "too, and plain FSDP2 bit for bit on 2 processes" + run.pick("", "; a LLaMA")
    )


C3.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
