"""A cluster against N ordinary models, one after another, and the round in plain floats.

Every element of the model goes its own way, so that gradients round alike however replicas are vectorised: bit for bit.

Legend: N ranks; P packets; E elements of a packet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from inspect import signature
from itertools import groupby
from math import prod
from typing import Any

import torch

from lossproof.impl import aggregate as stage_1
from lossproof.impl.cluster import Cluster
from lossproof.impl.loss import Arrivals
from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments import scalar_layouts
from lossproof.proofs_checks.instruments.scalar_masks import Masks
from lossproof.proofs_checks.instruments.scalar_round import ScalarRound, descend

SHAPES = {"weight": (4, 3), "tail": (5,)}
RATE = 0.125


class Elementwise(torch.nn.Module):
    """Every element by itself, so that gradients round alike however replicas are vectorised; some of it frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(12, dtype=torch.float64).view(4, 3) / 8)
        self.scale = torch.nn.Parameter(torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64), requires_grad=False)
        self.tail = torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
        self.shift: torch.Tensor
        self.register_buffer("shift", torch.tensor(0.25, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([(self.weight * x * self.scale + self.shift).flatten(), self.tail * x.flatten()[:5]])


def squares(model: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return model(x).square().sum() / 2


DEFAULTS: dict[Any, dict[str, Any]] = {
    Arrivals: {"seed": 0, "own_link": "reliable", "receiver": None},
    Cluster: {
        "seed": 0, "own_link": "reliable", "rule": "survivor_mean", "no_survivor": "zero", "layout": "tensors",
        "packet_bytes": 1024, "chunk": None,
    },
    stage_1.aggregate: {
        "rule": "survivor_mean", "no_survivor": "zero", "arrival_probability_N": None, "previous_PE": None,
        "owner": None, "non_finite": "raise",
    },
}  # fmt: skip
"""What is documented to hold unless said otherwise."""


def require_defaults() -> None:
    for what, documented in DEFAULTS.items():
        found = {n: x.default for n, x in signature(what).parameters.items() if x.default is not x.empty}
        require(found == documented, f"{what.__name__}: {found} unless said, not {documented}")


class PlainCluster:
    """N models of their own, at their replicas' parameters; the masks and the round in plain Python."""

    def __init__(self, E: int, how: dict[str, Any]) -> None:
        law, ranks, shapes = how["law"], how["ranks"], tuple(SHAPES.values())
        self.E, self.ranks = E, ranks
        self.places = scalar_layouts.places(how["layout"], shapes, ranks, E)
        self.owners = scalar_layouts.packet_owners(how["layout"], shapes, ranks, E)
        self.masks = Masks(law, self.owners, ranks, how["seed"], how["own_link"])
        lossy = how["own_link"] == "lossy"
        q_NP = [[float(1 - law.marginal(i, o)) if i != o or lossy else 1.0 for o in self.owners] for i in range(ranks)]
        start = Elementwise()
        self.round = ScalarRound(
            self._packed([start.weight, start.tail]), self.owners, ranks, how["rule"], how["no_survivor"], q_NP
        )

    def step(self, t: int, batch_N: torch.Tensor) -> list[float]:
        gradients, losses = [], []
        for theta, x in zip(self.round.theta, batch_N, strict=True):
            model = self.model_at(theta)
            loss = squares(model, x)
            loss.backward()  # type: ignore[no-untyped-call]
            gradients.append(self._packed([model.weight.grad, model.tail.grad]))
            losses.append(loss.item())
        sent, broadcast = (self.masks.arrived(phase, t) for phase in ("gradients", "parameters"))
        self.round.step(
            gradients, sent, broadcast, lambda x, by: descend(x, [[RATE * value for value in row] for row in by])
        )
        return losses

    def model_at(self, packets: list[list[float]]) -> Elementwise:
        model = Elementwise()
        with torch.no_grad():
            for at in self.places:
                (model.weight, model.tail)[at.parameter].view(-1)[at.element] = packets[at.packet][at.offset]
        return model

    def _packed(self, parameters: list[Any]) -> list[list[float]]:
        flat = [value for parameter in parameters for value in parameter.detach().flatten().tolist()]
        packets = [[0.0] * self.E for _ in self.owners]
        for value, at in zip(flat, self.places, strict=True):
            packets[at.packet][at.offset] = value
        return packets

    def piece_names(self) -> list[str]:
        """What an optimizer is told: the parameter, and which part of it, unless it is all."""
        names = []
        for (parameter, _), run in groupby(self.places, lambda at: (at.parameter, at.owner)):
            elements = [at.element for at in run]
            name, shape = list(SHAPES.items())[parameter]
            names.append(name if len(elements) == prod(shape) else f"{name}[{elements[0]}:{elements[-1] + 1}]")
        return names


def require_cluster(*, packet_bytes: int, chunk: int | None, **how: Any) -> None:
    """Refutes unless parameters, replicas, counts are the same bit for bit; from a saved state on, too."""
    what = f"cluster, N = {how['ranks']}, {how['layout']}, {how['rule']}, {how['no_survivor']}, chunk {chunk}"
    steps, resumed_at = 4, 2

    def new() -> Cluster:
        sgd = partial(torch.optim.SGD, lr=RATE)
        return Cluster(Elementwise(), squares, sgd, packet_bytes=packet_bytes, chunk=chunk, **how)

    plain, cluster = PlainCluster(packet_bytes // 8, how), new()
    names = cluster.optimizer.param_groups[0]["param_names"]
    require(names == plain.piece_names(), f"{what}: the optimizer is given {names}")
    generator = torch.Generator().manual_seed(how["ranks"])
    batches = torch.randint(-2, 3, (steps, how["ranks"], 4, 3), generator=generator).double()
    saved: dict[str, Any] = {}
    for t, batch in enumerate(batches):
        if t == resumed_at:
            saved = cluster.state_dict()
        losses = plain.step(t, batch)
        _require_close(f"{what}: losses of step {t}", cluster.step(batch), losses)
        _require_same(f"{what}, step {t}", cluster, plain.round)
    resumed = new()
    resumed.load_state_dict(saved)
    for batch in batches[resumed_at:]:
        resumed.step(batch)
    _require_same(f"{what}, resumed", resumed, plain.round)
    final, model = plain.model_at(plain.round.x), cluster.owners_model()
    same = list(model) == list(SHAPES) and all(torch.equal(model[name], getattr(final, name)) for name in SHAPES)
    require(same, f"{what}: the owners' model")
    x = batches[0, 0]
    evaluated = [squares(plain.model_at(at), x).item() for at in (*plain.round.theta, plain.round.x)]
    _require_close(f"{what}: evaluation", cluster.evaluate(x), evaluated)


def _require_same(what: str, cluster: Cluster, scalar: ScalarRound) -> None:
    require(cluster.fresh_PE.tolist() == scalar.x, f"{what}: the owners' packets")
    require(cluster.replicas_NPE.tolist() == scalar.theta, f"{what}: the replicas")
    require(asdict(cluster.round.counts) == scalar.counts, f"{what}: counts {cluster.round.counts}")


def _require_close(what: str, got: torch.Tensor, wanted: list[float]) -> None:
    """Sums of fewer than 32 squares, each relatively within 32 2^-53 whatever their order."""
    close = all(abs(a - b) <= 2.0**-47 * b for a, b in zip(got.tolist(), wanted, strict=True))
    require(close, f"{what}: {got.tolist()}, not {wanted}")
