"""Second moments of SGD on any quadratic, any packets and any owners: exact, and without any symmetry (claim C1).

As `lossproof.theory.dynamics`, in D coordinates with Hessian H, the optimum at 0; each coordinate travels in a packet,
each packet has an owner and masks of its own. State: the covariance of all copies. A packet's weights are one and the
same random vector for its coordinates and independent of another packet's, so whole matrices close.

Legend: M copies (rank i's; for a server one more in front, the x, which sends nothing), D coordinates, so C_MDMD =
E y_(i,a) y_(j,b); the owner's copy of its own coordinates is x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossproof.theory import dynamics
from lossproof.theory.aggregation import divide
from lossproof.theory.dynamics import Model

Array = Any
"""NumPy, of floats or of fractions."""


@dataclass(frozen=True)
class Coupled:
    """A deployment: `packet_D[a]` is the packet of coordinate a, `owner_D[a]` its owner (0 for a server).

    Coordinates of one packet have one owner. `hessian` is eta H and `noise` eta^2 times the covariance of the noise of
    one rank's gradient, both D x D; N, p_gradients, p, model as in `dynamics`.
    """

    N: int
    p_gradients: Any
    p: Any
    model: Model
    hessian: Array
    noise: Array
    packet_D: Sequence[int]
    owner_D: Sequence[int]

    def start(self, x_D: Sequence[Any]) -> Array:
        """The covariance of a common start."""
        M = dynamics.copies(self.N, self.model)
        z_MD = np.array([list(x_D)] * M)
        return np.multiply.outer(z_MD, z_MD)

    def weights(self) -> tuple[Array, Array]:
        """E[m_i/K] as (D, M), each coordinate's own; E[m_i m_j/K^2] over two coordinates as (D, D, M, M)."""
        M = dynamics.copies(self.N, self.model)
        of = dynamics.shares(self.N, self.p_gradients, self.model)
        D, others = len(self.owner_D), M - 1
        single, double = np.full((D, M), divide(of.others, others)), np.full((D, M, M), 0 * of.pairs)
        if M > 2:
            double += divide(of.pairs, others * (others - 1))
        for a, owner in enumerate(self.owner_D):
            single[a, owner] = of.owner
            double[a, owner, :] = double[a, :, owner] = divide(of.with_owner, others)
            double[a, range(M), range(M)] = divide(of.squares, others)
            double[a, owner, owner] = of.owner_square
        apart = np.einsum("ai,bj->abij", single, single)
        same = np.equal.outer(self.packet_D, self.packet_D)[:, :, None, None]
        return single, np.where(same, double[:, None], apart)

    def after(self, C_MDMD: Array) -> Array:
        """The covariance after one step."""
        single_DM, double_DDMM = self.weights()
        M, D = C_MDMD.shape[:2]
        a = np.arange(D)
        own = np.array(self.owner_D)
        seen = np.einsum("ac,icjb->iajb", self.hessian, C_MDMD)  # eta H y_i against y_j
        both = np.einsum("iajc,bc->iajb", seen, self.hessian)
        moved = np.einsum("ai,iajb->ajb", single_DM, seen)  # eta (estimate) against y_j
        square = np.einsum("abij,iajb->ab", double_DDMM, both) + np.einsum("abii,ab->ab", double_DDMM, self.noise)
        x_DMD = C_MDMD[own, a]
        x_DD, cross = x_DMD[:, own, a], moved[:, own, a]
        fresh = x_DD - cross - cross.T + square
        stale = x_DMD - moved  # x' against y_j
        q_MD = np.where(np.arange(M)[:, None] == own, 0 * self.p + 1, 1 - self.p)  # chance of being fresh
        got = np.multiply.outer(q_MD, q_MD)
        one_mask = (
            np.equal.outer(np.arange(M), np.arange(M))[:, None, :, None]
            & np.equal.outer(self.packet_D, self.packet_D)[:, None]
        )
        got = np.where(one_mask, q_MD[:, :, None, None], got)
        first = q_MD[:, :, None, None] - got  # the one on the left alone
        second = q_MD - got
        kept = 1 - first - second - got
        after = (
            got * fresh[:, None] + first * stale[None] + second * stale.transpose(1, 2, 0)[:, :, None] + kept * C_MDMD
        )
        return (after + after.transpose(2, 3, 0, 1)) / 2  # the rest holds for symmetric ones, and rounding grows

    def risk(self, C_MDMD: Array) -> Any:
        """E[x' (eta H) x] / 2."""
        a, own = np.arange(len(self.owner_D)), np.array(self.owner_D)
        return (self.hessian * C_MDMD[own, a][:, own, a]).sum() / 2
