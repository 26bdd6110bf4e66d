"""The owner's mean over every loss history, through the code that trains; rank 0 owns where one rank does.

Gradients are those of a quadratic, or a function of the copy; the optimizer is torch's SGD. Copies start at a common
multiple of what the means of survivors divide by, so that all values are exact.

Legend: N ranks, P packets = histories, T steps, D tensors, G and B links of the two phases over all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from itertools import product
from math import lcm, prod
from typing import Any, Literal

import torch

from lossproof.impl.aggregate import Rule
from lossproof.impl.cluster import Cluster
from lossproof.impl.loss import OwnLink
from lossproof.impl.round import Round
from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments.patterns import Scripted, all_patterns
from lossproof.theory.laws import Bernoulli, Law

Model = Literal["server", "reliable", "lossy"]
"""A parameter server, all of whose senders lose both ways; or ranks that own what they send, by their own link."""


class Means:
    """E x_0, ..., E x_T of D tensors as polynomials in both losses: sums over the histories by what they lost."""

    def __init__(
        self, x_TDP: torch.Tensor, start: int, lost: tuple[torch.Tensor, torch.Tensor], links: tuple[int, int]
    ):
        self.links, self.start = links, start
        kind_P = lost[0] * (links[1] + 1) + lost[1]
        sums = torch.zeros(*x_TDP.shape[:2], (links[0] + 1) * (links[1] + 1), dtype=torch.float64)
        self._sums = sums.index_add(2, kind_P, x_TDP).tolist()

    def __call__(self, p_gradients: Fraction, p: Fraction) -> list[list[Fraction]]:
        """[t][tensor], in units of the start."""
        first, second = (
            [loss**k * (1 - loss) ** (links - k) for k in range(links + 1)]
            for loss, links in zip((p_gradients, p), self.links, strict=True)
        )
        chances = [a * b / self.start for a, b in product(first, second)]
        return [[sum((c * Fraction(x) for c, x in zip(chances, row, strict=True) if x), Fraction(0)) for row in at_t]
                for at_t in self._sums]  # fmt: skip

    @property
    def grid(self) -> list[tuple[Fraction, Fraction]]:
        """Polynomials of degree <= `links` in the two losses that agree on these points are one."""
        first, second = ([Fraction(i + 1, links + 2) for i in range(links + 1)] for links in self.links)
        return list(product(first, second))


def masks(model: Model, N: int, steps: int, tensors: int = 1) -> tuple[torch.Tensor, torch.Tensor, Any, Any]:
    """All histories: gradients (T, N, D, P), parameters (T, N, D, P), what each lost, links.

    Tensor d is owned by rank d. What the last broadcast loses is never seen: it loses nothing here.
    """
    sent, kept = N - (model == "reliable"), N - (model != "server")
    G, B = steps * sent * tensors, (steps - 1) * kept * tensors
    arrived_BP = all_patterns(G + B)
    P = arrived_BP.shape[1]
    found = []
    for drawn, times, rows in ((arrived_BP[:G], steps, sent), (arrived_BP[G:], steps - 1, kept)):
        mask = torch.ones(steps, N, tensors, P, dtype=torch.bool)
        drawn = drawn.view(times, rows, tensors, P)
        for d in range(tensors):
            others = [i for i in range(N) if rows == N or i != d]
            mask[:times, others, d] = drawn[:, :, d]
        found.append(mask)
    return found[0], found[1], ((~arrived_BP[:G]).sum(0), (~arrived_BP[G:]).sum(0)), (G, B)


def server(
    N: int,
    gradients_TNP: torch.Tensor | None,
    parameters_TNP: torch.Tensor,
    gradient: Callable[[torch.Tensor], torch.Tensor],
    rate: float,
    start: int,
    momentum: float = 0,
    rule: Rule = "survivor_mean",
) -> torch.Tensor:
    """x_0, ..., x_T (T + 1, P) of a parameter server, through `Round`: every rank loses in both phases."""
    T, _, P = parameters_TNP.shape
    round_ = Round.in_process(
        torch.full((P, 1), start, dtype=torch.float64), torch.zeros(P, dtype=torch.long),
        Scripted(N, gradients_TNP, parameters_TNP), rule=rule,
    )  # fmt: skip
    owned = torch.nn.Parameter(round_.fresh_QE)
    optimizer = torch.optim.SGD([owned], lr=rate, momentum=momentum)

    def update(estimate_PE: torch.Tensor) -> None:
        owned.grad = estimate_PE
        optimizer.step()

    path = [round_.fresh_QE[:, 0].clone()]
    for _ in range(T):
        round_.step(gradient(round_.replicas_HPE), update)
        path.append(round_.fresh_QE[:, 0].clone())
    return torch.stack(path)


class Quadratic(torch.nn.Module):
    """D tensors of P numbers, one problem for each of the P; its loss is x' H x / 2."""

    def __init__(self, start: float, packets: int, hessian: Sequence[Sequence[float]] = ((1.0,),)) -> None:
        super().__init__()
        self.hessian = torch.tensor(hessian, dtype=torch.float64)
        self.tensors = torch.nn.ParameterList(
            torch.nn.Parameter(torch.full((packets,), start, dtype=torch.float64)) for _ in hessian
        )

    def forward(self, noise_P: torch.Tensor) -> torch.Tensor:
        x_DP = torch.stack(tuple(self.tensors))
        return (x_DP * (self.hessian @ x_DP)).sum() / 2 + (noise_P * x_DP).sum()


def cluster(
    quadratic: Quadratic,
    ranks: int,
    rate: float,
    momentum: float,
    law: Law | None = None,
    own_link: OwnLink = "reliable",
    seed: int = 0,
) -> Cluster:
    """Ranks that train it with torch's SGD; a number a packet, a tensor an owner."""
    optimizer = partial(torch.optim.SGD, lr=rate, momentum=momentum)
    return Cluster(quadratic, lambda model, noise: model(noise), optimizer, law or Bernoulli(0), ranks, seed=seed,
                   own_link=own_link, packet_bytes=8)  # fmt: skip


def means(
    model: Model,
    N: int,
    steps: int,
    rate: int,
    momentum: float = 0,
    hessian: Sequence[Sequence[float]] = ((1.0,),),
    rule: Rule = "survivor_mean",
) -> Means:
    """All histories; the noise of the gradients is 0. A `rule` for the server."""
    D, start = len(hessian), lcm(*range(1, N + 1)) ** steps
    gradients, parameters, lost, links = masks(model, N, steps, D)
    P = gradients.shape[-1]
    if model == "server":
        path = server(N, gradients[:, :, 0], parameters[:, :, 0], lambda y: y.clone(), rate, start, momentum, rule)
        return Means(path[:, None], start, lost, links)
    trained = cluster(Quadratic(start, P, hessian), N, rate, momentum)
    require(trained.owner_P == tuple(d for d in range(D) for _ in range(P)), "tensor d is not owned by rank d")
    trained.round.channel = Scripted(N, gradients.flatten(2), parameters.flatten(2))
    path_TP = [trained.fresh_PE.clone()]
    for _ in range(steps):
        trained.step(torch.zeros(N, P, dtype=torch.float64))
        path_TP.append(trained.fresh_PE.clone())
    return Means(torch.stack(path_TP).view(steps + 1, D, P), start, lost, links)


def many_ranks(
    of_ranks: Sequence[int], steps: int, rate: int, weight: Callable[[Sequence[bool]], Fraction]
) -> Fraction:
    """E x_T of a server whose senders lose no gradients, for N to infinity, from its value at each of `of_ranks`.

    E x_T is a polynomial in 1/N of degree T - 2: T - 1 nested means over independent senders alike, of which only
    equal ones meet. A link's losses of T - 1 parameter packets have probability `weight(lost)`.
    """
    histories = all_patterns(steps - 1)
    weights = [weight(row) for row in (~histories).T.tolist()]
    at: dict[Fraction, Fraction] = {}
    for N in of_ranks:
        start = lcm(*range(1, N + 1)) ** steps
        each_PN = torch.cartesian_prod(*[torch.arange(len(weights))] * N).view(-1, N)
        arrived = histories[:, each_PN].transpose(1, 2)
        arrived_TNP = torch.cat([arrived, torch.ones_like(arrived[:1])])
        x_P = server(N, None, arrived_TNP, lambda y: y.clone(), rate, start)[-1]
        chances = [prod((weights[i] for i in row), start=Fraction(1)) for row in each_PN.tolist()]
        total = sum((c * Fraction(x) for c, x in zip(chances, x_P.tolist(), strict=True)), Fraction(0))
        at[Fraction(1, N)] = total / start
    known = list(at)[: steps - 1]

    def between(u: Fraction) -> Fraction:
        parts = (at[a] * prod(((u - b) / (a - b) for b in known if b != a), start=Fraction(1)) for a in known)
        return sum(parts, Fraction(0))

    for u in list(at)[steps - 1 :]:
        require(between(u) == at[u], f"E x_{steps} at N = {1 / u} is not on the polynomial of the others")
    return between(Fraction(0))


def estimates(model: Model, N: int, fresh: int, stale: int) -> Means:
    """The mean of an estimate and of its square, over copies that are fresh or one step old; the gradient is the copy.

    Everything starts at `stale`; all gradients of a first step arrive and take the owner to `fresh`.
    """
    sent, kept, scale = N - (model == "reliable"), N - (model != "server"), lcm(*range(1, N + 1))
    arrived_BP = all_patterns(sent + kept)
    P = arrived_BP.shape[1]
    gradients, parameters = torch.ones(2, 2, N, P, dtype=torch.bool)
    gradients[1, N - sent :], parameters[0, N - kept :] = arrived_BP[:sent], arrived_BP[sent:]
    zero = torch.zeros(P, dtype=torch.long)
    round_ = Round.in_process(torch.full((P, 1), float(stale * scale), dtype=torch.float64), zero,
                              Scripted(N, gradients, parameters))  # fmt: skip
    found: list[torch.Tensor] = []

    def update(estimate_PE: torch.Tensor) -> None:
        found.append(estimate_PE[:, 0].clone())
        round_.fresh_QE.sub_(estimate_PE)

    round_.step(torch.full((N, P, 1), float(stale - fresh) * scale, dtype=torch.float64), update)
    round_.step(round_.replicas_HPE.clone(), update)
    rows = torch.stack([found[1] * scale, found[1] ** 2])[:, None]
    return Means(rows, scale**2, ((~arrived_BP[:sent]).sum(0), (~arrived_BP[sent:]).sum(0)), (sent, kept))
