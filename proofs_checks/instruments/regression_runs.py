"""Least squares by minibatch SGD through the code that trains: every batch and loss, or drawn ones.

Legend: N ranks, P problems or patterns, n rows, B rows of a batch, D coordinates, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from math import lcm
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lossproof.impl.round import Round
from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments import quadratic_runs
from lossproof.proofs_checks.instruments.patterns import Scripted, all_patterns
from lossproof.proofs_checks.instruments.regression_data import Regression
from lossproof.theory.dynamics import Model


class LeastSquares(torch.nn.Module):
    """P copies of a regression, each with its own parameters; the input names the rows of its batch (P, B)."""

    def __init__(self, data: Regression, problems: int) -> None:
        super().__init__()
        self.features_nD, self.target_n = (torch.from_numpy(x) for x in (data.features_nD, data.target_n))
        self.x_PD = torch.nn.Parameter(torch.from_numpy(data.solution_D).repeat(problems, 1))

    def forward(self, rows_PB: torch.Tensor) -> torch.Tensor:
        predicted_PB = (self.features_nD[rows_PB] * self.x_PD[:, None]).sum(-1)
        return (predicted_PB - self.target_n[rows_PB]).square().mean(-1).sum() / 2


def drawn(
    data: Regression, N: int, loss: float, model: Model, eta: float, B: int, problems: int, steps: int, seed: int
) -> NDArray[np.float64]:
    """The excess risk (P,) of independent runs from the solution; all coordinates in one packet."""
    D = len(data.solution_D)
    trained = quadratic_runs.cluster(
        LeastSquares(data, problems), lambda model, rows: model(rows), N, loss, model, eta, D, seed
    )
    rows = torch.Generator().manual_seed(seed % 2**63)
    for _ in range(steps):
        trained.step(torch.randint(0, len(data.target_n), (trained.ranks, problems, B), generator=rows))
    off_PD = trained.fresh_PE.reshape(problems, -1).numpy() - data.solution_D
    return np.asarray(((off_PD @ data.hessian) * off_PD).sum(-1) / 2)


def every_risk(
    features: Sequence[Sequence[int]],
    residual: Sequence[int],
    N: int,
    model: Model,
    steps: int,
    p_g: Fraction,
    p: Fraction,
) -> Fraction:
    """The mean of x'Hx/2 after some steps with eta = 1 from the solution, all losses and all batches of one row."""
    x_nD, e_n = (torch.tensor(values, dtype=torch.float64) for values in (features, residual))
    n, D = x_nD.shape
    sent, kept = N - (model == "reliable"), N - (model != "server")
    bits_BP = all_patterns((sent + kept) * steps)
    rows_XP = torch.tensor(list(product(range(n), repeat=N * steps))).T
    many = rows_XP.shape[1]
    P = bits_BP.shape[1] * many
    masks = []
    for bits, links in ((bits_BP[: sent * steps], sent), (bits_BP[sent * steps :], kept)):
        mask = torch.ones(steps, N, P, dtype=torch.bool)
        mask[:, N - links :] = bits.view(steps, links, -1).repeat_interleave(many, -1)
        masks.append(mask)
    rows_TNP = rows_XP.repeat(1, bits_BP.shape[1]).view(steps, N, P)
    round_ = Round.in_process(
        torch.zeros(P, D, dtype=torch.float64), torch.zeros(P, dtype=torch.long), Scripted(N, *masks)
    )
    scale = lcm(*range(1, N + 1)) ** steps

    def sgd(estimate_PE: torch.Tensor) -> None:
        round_.fresh_QE.sub_(estimate_PE)

    for rows_NP in rows_TNP:
        at_NPD = x_nD[rows_NP]
        error_NP = (at_NPD * round_.replicas_HPE).sum(-1) - scale * e_n[rows_NP]
        round_.step(at_NPD * error_NP[..., None], sgd)
    risk_P = (round_.fresh_QE @ x_nD.T).square().sum(-1)
    lost = [(~bits).sum(0).repeat_interleave(many) for bits in (bits_BP[: sent * steps], bits_BP[sent * steps :])]
    G, K = sent * steps, kept * steps
    kinds = lost[0] * (K + 1) + lost[1]
    sums: Any = torch.bincount(kinds, risk_P, (G + 1) * (K + 1))
    require(float(risk_P.sum()) < 2**53, "the sums of an enumeration are not exact")
    weights = [p_g**i * (1 - p_g) ** (G - i) * p**j * (1 - p) ** (K - j)
               for i in range(G + 1) for j in range(K + 1)]  # fmt: skip
    total: Fraction = sum((w * Fraction(v) for w, v in zip(weights, sums.tolist(), strict=True)), Fraction(0))
    return Fraction(total / (2 * n * many * scale**2))
