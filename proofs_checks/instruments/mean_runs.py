"""Means of runs drawn from the shipped laws, at sizes beyond enumeration; see `mean_paths` for all histories.

Legend: N ranks, P packets, E elements, H hosted ranks (all), Q packets owned here (all).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from lossproof.impl.channel import SimulatedChannel
from lossproof.impl.loss import Arrivals, OwnLink
from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments import histories, mean_paths
from lossproof.proofs_checks.instruments.statistics import require_mean
from lossproof.theory import momentum, survivors
from lossproof.theory.laws import Bernoulli, GilbertElliott


class Server(histories.Through):
    """Rank 0 is the server: it owns all packets and sends no gradient."""

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        received, arrived_NP = super().gradients(step, payload_HPE)
        arrived_NP[0] = False
        return received, arrived_NP


def cluster(seed: int, packets: int, own_link: OwnLink, alpha: float) -> str:
    """A cluster that trains, at a size beyond enumeration, with noisy gradients and momentum of its own."""
    N, loss, steps, rate, own, noise = 8, 0.6, 4, 0.5, 0.5, 0.1
    quadratic = mean_paths.Quadratic(1.0, packets)
    trained = mean_paths.cluster(quadratic, N, rate, own, law=Bernoulli(loss), own_link=own_link, seed=seed)
    signs = torch.from_numpy(np.random.default_rng([seed, N]).choice([-noise, noise], (steps, N, packets)))
    low, high, v_low, v_high = [1.0], [1.0], 0.0, 0.0  # x and the buffer stay within these
    for t in range(steps):
        trained.step(signs[t])
        v_low, v_high = own * v_low + min(0.0, *low) - noise, own * v_high + max(high) + noise
        low.append(low[-1] - rate * v_high)
        high.append(high[-1] - rate * v_low)
    x = trained.fresh_PE[:, 0].numpy()
    of = momentum.cluster(N, loss, loss, own_link)
    mean = momentum.trajectory(of, lambda at: rate * at, steps, 1.0, own)[-1]
    require_mean(f"own link {own_link}: x_{steps}", x, mean, low[-1], high[-1], alpha)
    return f"cluster of {N}, p = {loss}, own link {own_link}, {packets} packets: x_{steps} {x.mean():.4f}, E {mean:.4f}"


def near_its_limit(seed: int, ranks: int, alpha: float) -> str:
    """A server whose links lose in bursts, f = log cosh: within the stated distance of the limit of many ranks."""
    loss, burst, steps, rate, packets = 0.4, 6, 5, 0.5, 40
    law = GilbertElliott(loss, burst)
    channel = Server(SimulatedChannel(Arrivals(law, [0] * packets, ranks + 1, seed, "lossy")))
    round_ = histories.at_rest(channel, [0] * packets, 1)
    for copies in (round_.fresh_QE, round_.replicas_HPE):
        copies.fill_(1.5)
    limit = momentum.trajectory(momentum.bursty(loss, burst), lambda x: rate * np.tanh(x), steps, 1.5)
    ages = [1.0, *(float(law.age_tail(k)) for k in range(1, steps + 1))]
    kappa, empty = survivors.kappa(ranks, loss), 1 - survivors.some_survivor(ranks, loss)
    off, largest = torch.zeros(packets, dtype=torch.float64), 0.0

    def update(estimate_PE: torch.Tensor) -> None:
        round_.fresh_QE.sub_(rate * estimate_PE)

    for t in range(steps):
        weights = [*(a - b for a, b in pairwise(ages[: t + 1])), ages[t]]
        slopes = np.tanh(limit[t::-1])
        mean = float(np.dot(weights, slopes))
        variance = float(np.dot(weights, (slopes - mean) ** 2))
        largest = max(largest, momentum.spread(kappa, variance, empty, mean**2))
        round_.step(round_.replicas_HPE.tanh(), update)
        off = torch.maximum(off, (round_.fresh_QE[:, 0] - limit[t + 1]).abs())
    bound = momentum.distance(steps, rate, 1.0) ** 2 * largest
    share = off.square().numpy() / bound
    # If the mean share is at most 1, so is that of the product of 1 + (share - 1)/2, which are >= 0: Markov.
    log_e = float(np.log1p((share - 1) / 2).sum())
    what = f"{share.mean() ** 0.5:.3f} of the claimed {bound**0.5:.4f} off the limit"
    require(log_e < np.log(1 / alpha), f"bursts, N = {ranks}: {what}")
    return f"log cosh, p = {loss}, L = {burst}, N = {ranks}, {packets} packets: {what}"
