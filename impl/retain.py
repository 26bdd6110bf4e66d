"""Stage 2: what a receiver keeps of a parameter broadcast. The one body; every path calls it.

Legend: H replicas, P packets, E elements of a packet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lossproof.impl import kernels


def retain(stale_PE: torch.Tensor, fresh_PE: torch.Tensor, arrived_P: torch.Tensor) -> torch.Tensor:
    r"""The replica after a broadcast: the fresh value of every packet that arrived, the stale one of every other.

    .. math:: \theta_{i,t} = m_{i,t}\, x_t + (1 - m_{i,t})\, \theta_{i,t-1}

    Args:
        stale_PE: the replica before, floats (..., P, E); leading dimensions hold several replicas.
        fresh_PE: what was received, (P, E) or the same shape as `stale_PE`; slots of lost packets may hold anything.
        arrived_P: bool (..., P), one row for each replica.

    Returns:
        A new tensor of the shape and dtype of `stale_PE`.

    Raises:
        TypeError, ValueError: dtypes or shapes that disagree.

    >>> retain(torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([True, False]))
    tensor([[1.],
            [0.]])

    Reference: the bounded-drift parameter broadcast of arXiv 2507.07114; claims B1 to B4.
    """
    _check(stale_PE, fresh_PE, arrived_P)
    if kernels.serve(stale_PE, fresh_PE):
        from lossproof.impl.kernels import stage2

        return stage2.retain(stale_PE, fresh_PE, arrived_P)
    return torch.where(arrived_P.unsqueeze(-1), fresh_PE, stale_PE)


@dataclass(frozen=True)
class DriftSums:
    """What the drift of H replicas needs, by packet: with a the gap of a replica to the owner's packet,

    `square_P` = sum over replicas of |a|^2 and `square_of_sum_P` = |sum over replicas of a|^2. Sums of squares need no
    list of pairs, and where all ranks are hosted the owner's own gap is 0, so it need not be left out.
    """

    square_P: torch.Tensor
    square_of_sum_P: torch.Tensor

    def to_owner(self, ranks: int) -> torch.Tensor:
        """(P,) mean over the non-owners of the squared gap to the owner; 0 where there is none."""
        return self.square_P / max(1, ranks - 1)

    def between_pairs(self, ranks: int) -> torch.Tensor:
        """(P,) mean over pairs of non-owners of their squared distance; 0 where there is none."""
        others = max(1, ranks - 1)
        return 2 * (self.square_P - self.square_of_sum_P / others) / max(1, ranks - 2)


def drift_sums(replicas_HPE: torch.Tensor, fresh_PE: torch.Tensor) -> DriftSums:
    """The gaps of replicas (H, P, E) to the owners' packets (P, E), summed in float64.

    >>> drift_sums(torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]]), torch.zeros(1, 2))
    DriftSums(square_P=tensor([14.], dtype=torch.float64), square_of_sum_P=tensor([20.], dtype=torch.float64))
    """
    fresh_PE = fresh_PE.double()
    total_PE = torch.zeros_like(fresh_PE)
    square_P = total_PE.sum(-1)
    for replica_PE in replicas_HPE:  # one at a time: a float64 copy of all would double the job
        gap_PE = replica_PE.double() - fresh_PE
        square_P += gap_PE.square().sum(-1)
        total_PE += gap_PE
    return DriftSums(square_P, total_PE.square().sum(-1))


@torch.no_grad()
def retain_and_measure(
    stale_HPE: torch.Tensor, fresh_PE: torch.Tensor, arrived_HP: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, DriftSums]:
    """`retain` for replicas that share the owners' packets, and the drift that it leaves; on a GPU in the same pass.

    Args:
        stale_HPE, arrived_HP: as in `retain`, with one leading dimension.
        fresh_PE: the owners' packets; a replica with its own copy of them does not know what it missed.

    Returns:
        replicas_HPE; count_P, how many replicas each packet arrived at; and the sums of the gaps: in float64, or on a
        GPU in float32 (float64 for float64 replicas).

    Raises:
        TypeError, ValueError: dtypes or shapes that disagree.

    >>> stale, fresh, arrived = torch.zeros(2, 1, 1), torch.ones(1, 1), torch.tensor([[True], [False]])
    >>> replicas, count, drift = retain_and_measure(stale, fresh, arrived)
    >>> count, drift.to_owner(ranks=2)
    (tensor([1]), tensor([1.], dtype=torch.float64))
    """
    _check(stale_HPE, fresh_PE, arrived_HP)
    if stale_HPE.ndim != 3 or fresh_PE.ndim != 2:
        raise ValueError(
            "stale_HPE and fresh_PE must have shapes (H, P, E) and (P, E), "
            f"got {tuple(stale_HPE.shape)} and {tuple(fresh_PE.shape)}"
        )
    if kernels.serve(stale_HPE, fresh_PE):
        from lossproof.impl.kernels import stage2

        replica_HPE, count_P, square_P, square_of_sum_P = stage2.retain_and_measure(stale_HPE, fresh_PE, arrived_HP)
        return replica_HPE, count_P, DriftSums(square_P, square_of_sum_P)
    replica_HPE = retain(stale_HPE, fresh_PE, arrived_HP)
    return replica_HPE, arrived_HP.sum(0), drift_sums(replica_HPE, fresh_PE)


def _check(stale_PE: torch.Tensor, fresh_PE: torch.Tensor, arrived_P: torch.Tensor) -> None:
    if arrived_P.dtype != torch.bool:
        raise TypeError(f"arrived_P must be bool, got {arrived_P.dtype}")
    if fresh_PE.dtype != stale_PE.dtype:
        raise TypeError(f"fresh_PE must have the dtype of stale_PE, {stale_PE.dtype}, got {fresh_PE.dtype}")
    if stale_PE.ndim < 2:
        raise ValueError(f"stale_PE must have shape (..., P, E), got {tuple(stale_PE.shape)}")
    if fresh_PE.shape not in (stale_PE.shape, stale_PE.shape[-2:]):
        raise ValueError(
            f"fresh_PE must have the shape of stale_PE {tuple(stale_PE.shape)} or of one replica of it, "
            f"got {tuple(fresh_PE.shape)}"
        )
    if arrived_P.shape != stale_PE.shape[:-1]:
        raise ValueError(f"arrived_P must have shape {tuple(stale_PE.shape[:-1])}, got {tuple(arrived_P.shape)}")
