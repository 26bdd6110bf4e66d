"""Second moments of owner and replicas: one step of the code that trains as a linear operator, and exact elimination.

Legend: N ranks, P packets = pairs of a start and a pattern of losses, B links; matrices as rows of fractions.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations_with_replacement
from math import lcm
from typing import Any

import torch

from lossproof.impl.channel import Channel
from lossproof.impl.loss import OwnLink
from lossproof.impl.round import Round
from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments.patterns import Scripted, all_patterns

Matrix = list[list[Fraction]]
Columns = dict[tuple[int, int], list[Fraction]]


class Operator:
    """E[z z'] after one step for z z' before it, z = (x, y_1, ..., y_(N-1)): measured through `Round`, not reduced.

    Every covariance is a combination of z z' for z = e_i and e_i + e_j. Curvature 1, SGD with rate s; whole numbers.
    """

    def __init__(self, N: int, own_link: OwnLink, s: int) -> None:
        self.N, self.scale = N, lcm(*range(1, N + 1))
        self.index = {ij: k for k, ij in enumerate(combinations_with_replacement(range(N), 2))}
        eye = torch.eye(N, dtype=torch.float64)
        starts = torch.stack([eye[i] if i == j else eye[i] + eye[j] for i, j in self.index], 1) * self.scale
        sent = N - (own_link == "reliable")
        arrived_BP = all_patterns(sent + N - 1)
        surely = torch.ones(1, arrived_BP.shape[1], dtype=torch.bool)
        gradients = torch.cat([surely, arrived_BP[:sent]]) if own_link == "reliable" else arrived_BP[:sent]
        parameters = torch.cat([surely, arrived_BP[sent:]])
        z_NP = starts.repeat_interleave(arrived_BP.shape[1], 1)
        masks = (mask.repeat(1, starts.shape[1])[None] for mask in (gradients, parameters))
        after_NP = step_from(Scripted(N, *masks), z_NP, float(s)).view(N, starts.shape[1], -1)
        lost_P = (~arrived_BP).sum(0)
        self.links = arrived_BP.shape[0]
        self.by_lost = []
        for lost in range(self.links + 1):
            some = after_NP[:, :, lost_P == lost]
            products = torch.einsum("iap,jap->aij", some, some)
            self.by_lost.append([[int(x) for x in row] for row in products.flatten(1).tolist()])

    def covariance(self, start: int, loss: Fraction) -> list[Fraction]:
        """E[z z'] after the step from one start, row by row."""
        weights = [loss**k * (1 - loss) ** (self.links - k) / self.scale**2 for k in range(self.links + 1)]
        return [sum(w * x for w, x in zip(weights, column, strict=True))
                for column in zip(*(sums[start] for sums in self.by_lost), strict=True)]  # fmt: skip

    def columns(self, loss: Fraction) -> Columns:
        """Where (e_i e_j' + e_j e_i')/2 go: by polarisation."""
        raw = {ij: self.covariance(k, loss) for ij, k in self.index.items()}
        return {(i, j): [(x - y - z) / 2 for x, y, z in zip(raw[i, j], raw[i, i], raw[j, j], strict=True)]
                if i != j else raw[i, i] for i, j in self.index}  # fmt: skip


def step_from(channel: Channel, z_NP: torch.Tensor, s: float, rounds: int = 1) -> torch.Tensor:
    """Owner's and replicas' scalars after some steps of the code that trains; rank 0 owns, its copy is x."""
    P = z_NP.shape[1]
    round_ = Round.in_process(torch.zeros(P, 1, dtype=torch.float64), torch.zeros(P, dtype=torch.long), channel)
    round_.fresh_QE.copy_(z_NP[0, :, None])
    round_.replicas_HPE = z_NP[..., None].clone()

    def sgd(estimate_PE: torch.Tensor) -> None:
        round_.fresh_QE.sub_(s * estimate_PE)

    for _ in range(rounds):
        round_.step(round_.replicas_HPE.clone(), sgd)
    require(torch.equal(round_.replicas_HPE[0], round_.fresh_QE), "the owner's copy is stale")
    return round_.replicas_HPE[..., 0]


def symmetric(N: int, columns: Columns) -> list[list[Fraction]]:
    """Where the four moments go: for each, the covariance with this one 1 and the others 0, summed over the ranks."""
    parts = [[Fraction(0)] * N * N for _ in range(4)]
    for (i, j), column in columns.items():
        start = kind(i, j)
        parts[start] = [x + (1 + (i != j)) * y for x, y in zip(parts[start], column, strict=True)]
    return parts


def kind(i: int, j: int) -> int:
    """Which of the four moments z_i z_j is."""
    return 0 if i == j == 0 else 1 if 0 in (i, j) else 2 if i == j else 3


# -- exact linear algebra


def less(M: Any) -> Matrix:
    """I - M in fractions."""
    return [[Fraction(i == j) - x for j, x in enumerate(row)] for i, row in enumerate(M)]


def determinant(matrix: Matrix) -> Fraction:
    value = Fraction(1)
    for pivot, row in eliminated([list(row) for row in matrix]):
        value *= pivot * (-1 if row else 1)
    return value


def eliminated(rows: Matrix) -> list[tuple[Fraction, bool]]:
    """Gaussian elimination in place: the pivots, and whether rows were exchanged for them."""
    pivots = []
    for i in range(len(rows)):
        at = next((k for k in range(i, len(rows)) if rows[k][i]), i)
        rows[i], rows[at] = rows[at], rows[i]
        pivots.append((rows[i][i], at != i))
        for k in range(i + 1, len(rows)):
            if rows[k][i]:
                factor = rows[k][i] / rows[i][i]
                rows[k] = [x - factor * y for x, y in zip(rows[k], rows[i], strict=True)]
    return pivots


def stays_bounded(operator: Matrix, pairs: list[tuple[int, int]], N: int) -> bool:
    """Whether the spectral radius is below 1: iff Z = operator(Z) + I has a positive definite solution.

    The operator maps covariances to covariances. Then sum operator^k (I) converges to such a Z, or there is none.
    """
    rows = [[*row, Fraction(i == j)] for row, (i, j) in zip(less(operator), pairs, strict=True)]
    eliminated(rows)
    solution: dict[int, Fraction] = {}
    for i in reversed(range(len(pairs))):
        solution[i] = (rows[i][-1] - sum(rows[i][k] * solution[k] for k in range(i + 1, len(pairs)))) / rows[i][i]
    Z = [[solution[pairs.index((min(i, j), max(i, j)))] for j in range(N)] for i in range(N)]
    return all(pivot > 0 and not exchanged for pivot, exchanged in eliminated(Z))
