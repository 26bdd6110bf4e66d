"""Stage 2: what a receiver keeps of a parameter broadcast. The one body; every path calls it."""

from __future__ import annotations

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
    if kernels.serve(stale_PE, fresh_PE):
        from lossproof.impl.kernels import stage2

        return stage2.retain(stale_PE, fresh_PE, arrived_P)
    return torch.where(arrived_P.unsqueeze(-1), fresh_PE, stale_PE)
