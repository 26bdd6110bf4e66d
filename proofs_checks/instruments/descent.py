"""SGD on small functions through the code that trains: one step from any state, or some from a common start, exactly.

Legend: N ranks, Q packets of the parameters, P = patterns of losses and of the signs of the noise, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from lossproof.impl.channel import Channel
from lossproof.impl.cluster import Cluster
from lossproof.impl.loss import OwnLink
from lossproof.impl.round import Round
from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments import second_moments
from lossproof.proofs_checks.instruments.patterns import Scripted, all_patterns
from lossproof.theory import convergence
from lossproof.theory.laws import Bernoulli

Function = tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]
"""f and its gradient: (..., Q) -> (...) and (..., Q)."""
Mean = Callable[[Fraction, Fraction], Fraction]
"""An expectation as a function of the losses of gradients and of parameters."""


def quadratic(rows: Sequence[Sequence[float]]) -> Function:
    """x'Hx/2."""
    H = torch.tensor(rows, dtype=torch.float64)
    return lambda x: (x @ H * x).sum(-1) / 2, lambda x: x @ H


def double_well() -> Function:
    """Two parabolas around -2 and 2 with another one, upside down, in between: 1-smooth, not convex; f* = 0."""

    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.abs() < 1, 1 - x**2 / 2, (x.abs() - 2) ** 2 / 2).sum(-1)

    return f, lambda x: torch.where(x.abs() < 1, -x, x - 2 * x.sign())


def _sgd(round_: Round, eta: float) -> Callable[[torch.Tensor], None]:
    def update(estimate_PE: torch.Tensor) -> None:
        round_.fresh_QE.sub_(eta * estimate_PE)

    return update


class Steps:
    """T steps of SGD over all patterns of losses, and all signs of a noise of size `noise` on every rank's gradient.

    After them: `x_TPQ` the owners' parameters before every step and at the end, `y_NPQ` the replicas; `mean` turns
    values by pattern into their expectation.
    """

    def __init__(
        self,
        function: Function,
        x_Q: Sequence[float],
        y_NQ: Sequence[Sequence[float]] | None,
        owners_Q: Sequence[int],
        N: int,
        own_link: OwnLink,
        eta: float,
        noise: float,
        steps: int = 1,
    ) -> None:
        Q, owners = len(x_Q), torch.tensor(owners_Q)
        own_NQ = torch.arange(N)[:, None] == owners
        self.stale_NQ = ~own_NQ
        sent_NQ = self.stale_NQ if own_link == "reliable" else torch.ones(N, Q, dtype=torch.bool)
        sizes = [int(sent_NQ.sum()), int(self.stale_NQ.sum()), N * Q if noise else 0] * steps
        parts = torch.split(all_patterns(sum(sizes)), sizes)
        P = parts[0].shape[1]
        gradients_TNP = [self._spread(bits, sent_NQ) for bits in parts[::3]]
        parameters_TNP = [self._spread(bits, self.stale_NQ) for bits in parts[1::3]]
        self.lost = [(~torch.cat(parts[k::3])).sum(0) for k in (0, 1)]
        self.links = sum(sizes[::3]), sum(sizes[1::3])
        self.signs = sum(sizes[2::3])
        channel = Scripted(N, torch.stack(gradients_TNP), torch.stack(parameters_TNP))
        start_PQ = torch.tensor(x_Q, dtype=torch.float64).expand(P, Q)
        round_ = Round.in_process(start_PQ.reshape(-1, 1), owners.repeat(P), channel)
        if y_NQ is not None:
            y = torch.tensor(y_NQ, dtype=torch.float64)
            round_.replicas_HPE = torch.where(own_NQ, start_PQ[0], y)[:, None].repeat(1, P, 1).view(N, P * Q, 1)
        self.x_TPQ = [start_PQ.clone()]
        for signs in parts[2::3]:
            sign_NPQ = (signs.view(N, Q, P).transpose(1, 2) * 2 - 1) * noise if noise else 0.0
            payload = function[1](round_.replicas_HPE.view(N, P, Q)) + sign_NPQ
            round_.step(payload.reshape(N, P * Q, 1), _sgd(round_, eta))
            self.x_TPQ.append(round_.fresh_QE.view(P, Q).clone())
        self.y_NPQ = round_.replicas_HPE.view(N, P, Q)

    @staticmethod
    def _spread(bits_BP: torch.Tensor, free_NQ: torch.Tensor) -> torch.Tensor:
        """Masks (N, P*Q) of the links that may lose, True for the others."""
        mask = torch.ones(*free_NQ.shape, bits_BP.shape[1], dtype=torch.bool)
        mask[free_NQ] = bits_BP
        return mask.transpose(1, 2).reshape(free_NQ.shape[0], -1)

    def gap_P(self) -> torch.Tensor:
        """D: the mean of |x - y_i|^2 over the N - 1 replicas of every packet, summed over packets; times N - 1."""
        squares = (self.y_NPQ - self.x_TPQ[-1]).square() * self.stale_NQ[:, None]
        require(not bool(((self.y_NPQ - self.x_TPQ[-1]) * ~self.stale_NQ[:, None]).any()), "an owner's copy is stale")
        return squares.sum((0, 2))

    def mean(self, values_P: torch.Tensor) -> Mean:
        """The expectation: whole numbers over a power of 2, so that the sums are exact."""
        width = self.links[1] + 1
        sums = torch.bincount(self.lost[0] * width + self.lost[1], values_P, (self.links[0] + 1) * width)
        exact = [(k // width, k % width, Fraction(v)) for k, v in enumerate(sums.tolist()) if v]

        def at(p_g: Fraction, p_p: Fraction) -> Fraction:
            g = [p_g**k * (1 - p_g) ** (self.links[0] - k) for k in range(self.links[0] + 1)]
            p = [p_p**k * (1 - p_p) ** (self.links[1] - k) for k in range(width)]
            return Fraction(sum(v * g[i] * p[j] for i, j, v in exact), 2**self.signs)

        return at


def running(
    channel: Channel, function: Function, packets: int, eta: float, noise: float, steps: int, seed: int
) -> NDArray[np.float64]:
    """(1/T) sum over t of |grad f(x_t)|^2 of independent runs from 0, a packet each, owned by rank 0; random signs."""
    coins = torch.Generator().manual_seed(seed % 2**63)
    start_PE = torch.zeros(packets, 1, dtype=torch.float64)
    round_ = Round.in_process(start_PE, torch.zeros(packets, dtype=torch.long), channel)
    total_P = torch.zeros(packets, dtype=torch.float64)
    for _ in range(steps):
        total_P += function[1](round_.fresh_QE).square().sum(-1)
        signs = torch.randint(0, 2, (channel.ranks, packets, 1), generator=coins).double() * 2 - 1
        payload_NPE = function[1](round_.replicas_HPE) + noise * signs
        round_.step(payload_NPE, _sgd(round_, eta))
    return (total_P / steps).numpy()


_SHARES = np.array([0.95, *2.0 ** -np.arange(1, 15)])


def require_at_most(what: str, samples: NDArray[np.float64], bound: float, alpha: float) -> float:
    """Refutes "independent samples >= 0 have a mean of at most `bound`" at level alpha; returns their mean over it.

    Bets as in `statistics.evidence_against_mean`, on one side; samples need no upper limit.
    """
    require(bool((samples >= 0).all()) and bound > 0, f"{what}: samples and bound must be positive, bound {bound:.4g}")
    logs = np.array([np.log1p(share * (samples / bound - 1)).sum() for share in _SHARES])
    log_e = float(np.logaddexp.reduce(logs) - np.log(logs.size))
    mean = float(samples.mean())
    require(
        log_e < np.log(1 / alpha),
        f"{what}: mean {mean:.4g} of {samples.size} samples, above the bound {bound:.4g} (log e-value {log_e:.3g})",
    )
    return mean / bound


def stationary(M: Sequence[Sequence[Fraction]], added: Sequence[Fraction]) -> list[Fraction]:
    """The fixed point of z -> M z + added, by elimination."""
    rows = [[*row, b] for row, b in zip(second_moments.less(M), added, strict=True)]
    second_moments.eliminated(rows)
    z: list[Fraction] = []
    for i in reversed(range(len(rows))):
        z.insert(0, (rows[i][-1] - sum(c * x for c, x in zip(rows[i][i + 1 : -1], z, strict=True))) / rows[i][i])
    return z


class Committee(torch.nn.Module):
    """A sum of tanh units with fixed signs, on data of its own; smoothness and spread are bounded for all weights.

    Of a loss (out - y)^2/2, |out| <= A: gradients |out - y| |J| and second derivatives |J|^2 + |out - y| |J'|, where
    |J|^2 <= sum a_j^2 |x|^2 and |J'| <= max |a_j| tanh'' |x|^2, tanh'' <= 4/(3 sqrt 3).
    """

    def __init__(self, units: int, inputs: int, samples: int, seed: int) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(seed % 2**63)
        self.inputs = torch.randn(samples, inputs, generator=chance, dtype=torch.float64)
        self.targets = torch.randint(0, 2, (samples,), generator=chance).double() * 2 - 1
        self.units = torch.nn.Parameter(torch.randn(units, inputs, generator=chance, dtype=torch.float64) / 2)
        self.signs = (1 - 2 * (torch.arange(units) % 2)).double() / units**0.5

    def forward(self, chosen: torch.Tensor) -> torch.Tensor:
        """The mean loss over the samples named."""
        out = (self.inputs[chosen] @ self.units.T).tanh() @ self.signs
        loss: torch.Tensor = (out - self.targets[chosen]).square().mean() / 2
        return loss

    def constants(self, batch: int) -> tuple[float, float]:
        """L of the mean loss over all samples, and sigma^2 of a batch drawn with replacement."""
        far = self.signs.abs().sum() + self.targets.abs()
        square = self.inputs.square().sum(1)
        slope = self.signs.square().sum() * square
        bend = far * self.signs.abs().max() * 4 / 27**0.5 * square
        return float((slope + bend).mean()), float((far**2 * slope).mean() / batch)


def trained(ranks: int, loss: float, share: float, steps: int, seed: int) -> tuple[float, float]:
    """(1/T) sum over t of |grad f(x_t)|^2 of a small network in the running cluster, and the bound; s = share of the
    largest step; several owners, own link reliable, batches of 4 of 32 samples."""
    model, batch = Committee(4, 3, 32, seed), 4
    L, sigma2 = model.constants(batch)
    of = convergence.weights(ranks, loss, "reliable", owners=ranks)
    eta = share * convergence.largest_step(of.theta, loss) / L
    cluster = Cluster(
        model,
        lambda model, chosen: model(chosen),
        partial(torch.optim.SGD, lr=eta),
        Bernoulli(loss),
        ranks,
        seed=seed,
        layout="flat",
        packet_bytes=16,
    )
    chance = torch.Generator().manual_seed(seed % 2**63 + 1)
    everything, total = torch.arange(32), 0.0
    probe, first = Committee(4, 3, 32, seed), float(model(everything).detach())
    for _ in range(steps):
        probe.load_state_dict(cluster.owners_model())
        (gradient,) = torch.autograd.grad(probe(everything), probe.units)
        total += float(gradient.square().sum())
        cluster.step(torch.randint(0, 32, (ranks, batch), generator=chance))
    return total / steps, convergence.bound(first, steps, eta, L, sigma2, of, loss)
