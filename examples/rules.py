"""Aggregation rules to try: what an owner might make of the gradients that arrived, right and wrong.

    lossproof refute examples/rules.py:survivor_mean
    lossproof refute examples/rules.py:divide_by_qn --loss 0.1

A rule maps payload_NPE, the gradients of N ranks in P packets of E elements, and arrived_NP, a mask, to estimate_PE.
"""

from __future__ import annotations

import torch

ARRIVAL = 0.9  # q, which only `divide_by_qn` must know
OWNER = 0  # whose own gradient needs no network


def _survivors(payload_NPE: torch.Tensor, arrived_NP: torch.Tensor, other: float = 0.0) -> torch.Tensor:
    """The payload with `other` in place of what was lost; a lost slot is not read, whatever it holds."""
    return payload_NPE.masked_fill(~arrived_NP.unsqueeze(-1), other)


def survivor_mean(payload_NPE: torch.Tensor, arrived_NP: torch.Tensor) -> torch.Tensor:
    """The mean of what arrived, zero if nothing did: unbiased given a survivor."""
    return _survivors(payload_NPE, arrived_NP).sum(0) / arrived_NP.sum(0).clamp(min=1).unsqueeze(-1)


def divide_by_n(payload_NPE: torch.Tensor, arrived_NP: torch.Tensor) -> torch.Tensor:
    """What is missing counts as zero: too small by the factor q."""
    return _survivors(payload_NPE, arrived_NP).sum(0) / len(payload_NPE)


def divide_by_qn(payload_NPE: torch.Tensor, arrived_NP: torch.Tensor) -> torch.Tensor:
    """Inverse probability (Horvitz-Thompson): unbiased over all rounds, if q is what it says."""
    return _survivors(payload_NPE, arrived_NP).sum(0) / (ARRIVAL * len(payload_NPE))


def own_gradient(payload_NPE: torch.Tensor, arrived_NP: torch.Tensor) -> torch.Tensor:
    """The survivor mean, and the owner's own gradient where nobody's arrived: unbiased given a survivor only."""
    nobody_P1 = ~arrived_NP.any(0).unsqueeze(-1)
    return torch.where(nobody_P1, payload_NPE[OWNER], survivor_mean(payload_NPE, arrived_NP))


def median(payload_NPE: torch.Tensor, arrived_NP: torch.Tensor) -> torch.Tensor:
    """The middle of what arrived, element by element: not the mean, so biased from three ranks on."""
    middle_PE = _survivors(payload_NPE, arrived_NP, torch.nan).double().nanquantile(0.5, dim=0)
    return middle_PE.nan_to_num(0.0).to(payload_NPE.dtype)


def sign(payload_NPE: torch.Tensor, arrived_NP: torch.Tensor) -> torch.Tensor:
    """The majority of signs: loses the size of the gradients."""
    return _survivors(payload_NPE, arrived_NP).sign().sum(0).sign()


def trimmed_mean(payload_NPE: torch.Tensor, arrived_NP: torch.Tensor) -> torch.Tensor:
    """The mean without the smallest and the largest where three or more arrived: biased from three ranks on."""
    kept, none = _survivors(payload_NPE, arrived_NP), payload_NPE.new_zeros(payload_NPE.shape[1:])
    count_P1 = arrived_NP.sum(0).unsqueeze(-1)
    if not len(payload_NPE):
        return none
    low = _survivors(payload_NPE, arrived_NP, torch.inf).amin(0)
    high = _survivors(payload_NPE, arrived_NP, -torch.inf).amax(0)
    trimmed = (kept.sum(0) - torch.where(count_P1 > 2, low + high, none)) / (count_P1 - 2 * (count_P1 > 2)).clamp(min=1)
    return torch.where(count_P1 > 0, trimmed, none)
