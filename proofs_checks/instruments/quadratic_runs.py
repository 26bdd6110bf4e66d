"""SGD on quadratics through the code that trains: every loss history and sign of the noise, or many drawn ones.

Legend: N ranks, M copies (the ranks', for a server its x in front), D coordinates, Q packets of a problem, P problems:
one a history, or independent ones; T steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import partial
from itertools import product
from math import lcm
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lossproof.impl.channel import Channel, SimulatedChannel
from lossproof.impl.cluster import Cluster
from lossproof.impl.loss import Arrivals
from lossproof.impl.round import Round
from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments.histories import Through
from lossproof.proofs_checks.instruments.patterns import Scripted, all_patterns
from lossproof.theory.coupled import Coupled
from lossproof.theory.dynamics import Model
from lossproof.theory.laws import Bernoulli


class Histories:
    """All histories of T steps from a common start: the covariance C_MDMD of all copies after each, exactly.

    `hessian` in whole numbers, eta = 1; the noise of a rank's gradient is +-noise_D. Coordinate a is in packet
    packet_D[a], which rank owners_Q[...] owns (0 for a server); packets are equally long. Every packet of gradients
    and of parameters is sent `copies` times; losses are those of a copy.
    """

    def __init__(
        self, N: int, model: Model, steps: int, hessian: Sequence[Sequence[int]], start_D: Sequence[int],
        noise_D: Sequence[int], owners_Q: Sequence[int] = (0,), copies: tuple[int, int] = (1, 1),
    ) -> None:  # fmt: skip
        D, Q = len(hessian), len(owners_Q)
        self.N, self.model, self.hessian, self.start_D, self.noise_D = N, model, hessian, start_D, noise_D
        self.owners_Q, self.scale = owners_Q, lcm(*range(1, N + 1)) ** steps
        others_NQ = torch.arange(N)[:, None] != torch.tensor(owners_Q)
        all_NQ = torch.ones(N, Q, dtype=torch.bool)
        sent_NQ = others_NQ if model == "reliable" else all_NQ
        kept_NQ = all_NQ if model == "server" else others_NQ
        free = sent_NQ, kept_NQ
        sizes = [int(sent_NQ.sum()) * copies[0], int(kept_NQ.sum()) * copies[1], N if any(noise_D) else 0] * steps
        parts = torch.split(all_patterns(sum(sizes)), sizes)
        P = parts[0].shape[1]
        masks = [
            torch.stack([_spread(bits.view(-1, copies[k], P).any(1), free[k]) for bits in parts[k::3]]) for k in (0, 1)
        ]
        self.links = sum(sizes[0::3]), sum(sizes[1::3])
        lost_P = [(~torch.cat(parts[k::3])).sum(0) for k in (0, 1)]
        self._kind_P = lost_P[0] * (self.links[1] + 1) + lost_P[1]
        self._histories = 2 ** sum(sizes[2::3])
        H, noise = torch.tensor(hessian, dtype=torch.float64), torch.tensor(noise_D, dtype=torch.float64) * self.scale
        start_PD = torch.tensor(start_D, dtype=torch.float64).expand(P, D) * self.scale
        round_ = Round.in_process(start_PD.reshape(P * Q, -1), torch.tensor(owners_Q).repeat(P), Scripted(N, *masks))

        def sgd(estimate_PE: torch.Tensor) -> None:
            round_.fresh_QE.sub_(estimate_PE)

        self._sums = [self._covariance(round_)]
        for signs_NP in parts[2::3]:
            xi = (signs_NP[..., None] * 2.0 - 1) * noise if any(noise_D) else 0.0
            payload = round_.replicas_HPE.view(N, P, D) @ H + xi
            round_.step(payload.reshape(N, P * Q, -1), sgd)
            self._sums.append(self._covariance(round_))

    def _covariance(self, round_: Round) -> list[list[list[int]]]:
        """Sums of products of copies over the histories that lost as much, in both phases."""
        P = len(self._kind_P)
        y_NPD, x_PD = round_.replicas_HPE.view(self.N, P, -1), round_.fresh_QE.view(P, -1)
        z_PX = torch.cat([x_PD[None], y_NPD] if self.model == "server" else [y_NPD]).transpose(0, 1).reshape(P, -1)
        kinds = (self.links[0] + 1) * (self.links[1] + 1)
        products = torch.zeros(kinds, z_PX.shape[1], z_PX.shape[1], dtype=torch.float64)
        products.index_add_(0, self._kind_P, z_PX[:, :, None] * z_PX[:, None])
        require(float(products.abs().max()) < 2**53, "the sums of an enumeration are not exact")
        return [[[int(v) for v in row] for row in kind] for kind in products.tolist()]

    @property
    def grid(self) -> list[tuple[Fraction, Fraction]]:
        """Polynomials in the two losses, of the degrees of the number of links, are one if they agree here."""
        first, second = ([Fraction(i + 1, n + 2) for i in range(n + 1)] for n in self.links)
        return list(product(first, second))

    def covariance(self, t: int, p_gradients: Fraction, p: Fraction) -> NDArray[Any]:
        """E[z z'] after t steps, as a matrix of fractions over copy and coordinate."""
        G, B = self.links
        weights = [p_gradients**i * (1 - p_gradients) ** (G - i) * p**j * (1 - p) ** (B - j)
                   for i in range(G + 1) for j in range(B + 1)]  # fmt: skip
        scale = self._histories * self.scale**2
        kinds = np.array(self._sums[t], dtype=object)
        return np.asarray(np.tensordot(np.array([w / scale for w in weights], dtype=object), kinds, 1))

    def predicted(self, p_gradients: Fraction, p: Fraction) -> Coupled:
        """The same deployment in theory."""
        D, Q = len(self.start_D), len(self.owners_Q)
        packet_D = [a * Q // D for a in range(D)]
        noise = np.multiply.outer(*[np.array([Fraction(x) for x in self.noise_D])] * 2)
        hessian = np.array([[Fraction(x) for x in row] for row in self.hessian])
        owner_D = [self.owners_Q[k] for k in packet_D]
        return Coupled(self.N, p_gradients, p, self.model, hessian, noise, packet_D, owner_D)


def _spread(bits_BP: torch.Tensor, free_NQ: torch.Tensor) -> torch.Tensor:
    """Masks (N, P*Q): those of the links that may lose, True for the others."""
    mask = torch.ones(*free_NQ.shape, bits_BP.shape[1], dtype=torch.bool)
    mask[free_NQ] = bits_BP
    return mask.transpose(1, 2).reshape(free_NQ.shape[0], -1)


class Problems(torch.nn.Module):
    """P problems of D coordinates each; their loss is the sum of x'Hx/2 + noise'x."""

    def __init__(self, x_PD: torch.Tensor, hessian: torch.Tensor) -> None:
        super().__init__()
        self.hessian = hessian
        self.x_PD = torch.nn.Parameter(x_PD)

    def forward(self, noise_PD: torch.Tensor) -> torch.Tensor:
        return (self.x_PD @ self.hessian * self.x_PD).sum() / 2 + (noise_PD * self.x_PD).sum()


class NoOwnGradient(Through):
    """Rank 0 sends no gradient: the other ranks are the senders of a server."""

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        received, arrived_NP = super().gradients(step, payload_HPE)
        arrived_NP = arrived_NP.clone()
        arrived_NP[0] = False
        return received, arrived_NP


class Redundant(Through):
    """Every packet is sent several times; it arrives if a copy does."""

    def __init__(self, channels: Sequence[Channel], copies: tuple[int, int]) -> None:
        super().__init__(channels[0])
        self._channels, self._copies = channels, copies

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return payload_HPE, _any(each.gradients(step, payload_HPE)[1] for each in self._channels[: self._copies[0]])

    def parameters(self, step: int, fresh_QE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return fresh_QE, _any(each.parameters(step, fresh_QE)[1] for each in self._channels[: self._copies[1]])


def _any(masks: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(masks)).any(0)


def cluster(
    module: torch.nn.Module, objective: Any, N: int, loss: float, model: Model, eta: float, packet: int, seed: int
) -> Cluster:
    """A running cluster, rank 0 the owner of all packets of `packet` numbers; of N + 1 ranks for a server."""
    ranks, own_link = (N + 1, "lossy") if model == "server" else (N, model)
    trained = Cluster(module, objective, partial(torch.optim.SGD, lr=eta), Bernoulli(loss), ranks, seed=seed,
                      own_link=own_link, packet_bytes=8 * packet)  # type: ignore[arg-type]  # fmt: skip
    require(not any(trained.owner_P), "rank 0 does not own all packets")
    if model == "server":
        channel: Channel = NoOwnGradient(trained.round.channel)
        trained.round.channel = channel
    return trained


def drawn(
    N: int, loss: float, model: Model, hessian: NDArray[np.float64], start_D: Sequence[float],
    noise_DD: NDArray[np.float64], problems: int, steps: int, seed: int, packet: int, copies: tuple[int, int] = (1, 1),
) -> NDArray[np.float64]:  # fmt: skip
    """The risk x'Hx/2 (P,) of independent problems after some steps with eta = 1; noise_DD times random signs."""
    H, noise = torch.from_numpy(hessian), torch.from_numpy(noise_DD)
    start_PD = torch.tensor(start_D, dtype=torch.float64).repeat(problems, 1)
    trained = cluster(Problems(start_PD, H), lambda model, noise: model(noise), N, loss, model, 1.0, packet, seed)
    if copies != (1, 1):
        own_link: Any = model
        drawn = [
            Arrivals(Bernoulli(loss), trained.owner_P, N, (seed + k) % 2**64, own_link) for k in range(max(copies))
        ]
        trained.round.channel = Redundant([SimulatedChannel(each) for each in drawn], copies)
    coins = torch.Generator().manual_seed(seed % 2**63)
    for _ in range(steps):
        signs = torch.randint(0, 2, (trained.ranks, *start_PD.shape), generator=coins).double() * 2 - 1
        trained.step(signs @ noise.T)
    x_PD = trained.fresh_PE.reshape(problems, -1)
    return np.asarray((x_PD @ H * x_PD).sum(-1) / 2)


def largest(start: float, s: float, noise: float, steps: int) -> float:
    """A bound on |x| after some steps from a common start, whatever is lost: intervals of x and of the copies."""
    x, y = (start, start), (start, start)
    for _ in range(steps):
        x = x[0] - max(s * y[1] + noise, 0), x[1] - min(s * y[0] - noise, 0)
        y = min(x[0], y[0]), max(x[1], y[1])
    return max(-x[0], x[1])
