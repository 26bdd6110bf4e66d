"""Stage 1: what the owner of a shard makes of the gradient packets that arrived. The one body; every path calls it.

Legend: N senders, P packets, E elements of a packet.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from lossproof.impl import kernels

Rule = Literal["survivor_mean", "inverse_probability", "zero_fill"]
NoSurvivor = Literal["zero", "hold", "own", "raise"]
_PIECE = 128
"""Elements that are summed together: long packets go faster piece by piece (`benchmarks/README.md`)."""


class NonFiniteGradient(ValueError):
    """A gradient that arrived is not finite, or the sum of those that arrived overflows."""


@torch.no_grad()
def aggregate(
    payload_NPE: torch.Tensor,
    arrived_NP: torch.Tensor,
    rule: Rule = "survivor_mean",
    *,
    no_survivor: NoSurvivor = "zero",
    arrival_probability_N: torch.Tensor | None = None,
    previous_PE: torch.Tensor | None = None,
    owner: int | torch.Tensor | None = None,
    non_finite: Literal["raise", "carry"] = "raise",
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""The owner's estimate of the mean gradient from the packets that arrived.

    .. math::
        \text{survivor_mean: } \frac{1}{K}\sum_{i \in S} g_i \qquad
        \text{inverse_probability: } \frac{1}{N}\sum_{i \in S} \frac{g_i}{q_i} \qquad
        \text{zero_fill: } \frac{1}{N}\sum_{i \in S} g_i

    with S the senders whose packet arrived and K = \|S\|. Sums run in rank order and end in one division. A slot whose
    packet was lost is never read, whatever it contains.

    Args:
        payload_NPE: gradients, floats (N, P, E).
        arrived_NP: bool (N, P).
        rule: one of the three above.
        no_survivor: the estimate of a packet with K = 0: zeros; `hold`, `previous_PE`; `own`, the owner's own gradient
            (its message to itself needs no network); or `raise`.
        arrival_probability_N: q_i in (0, 1], (N,) or (N, P); needed by `inverse_probability` only.
        previous_PE: the last estimate (P, E), for `hold`.
        owner: the owner of all packets, or an int64 vector (P,), for `own`.
        non_finite: `raise` if the estimate is not finite, or `carry` it (mixed precision with a loss scaler wants it).

    Returns:
        estimate_PE in the payload's dtype (float16 and bfloat16 are summed in float32) and count_P = K, int64.

    Raises:
        TypeError, ValueError: unusable arguments. NonFiniteGradient: see `non_finite`.

    >>> payload = torch.tensor([[[1.0]], [[3.0]], [[float("nan")]]])
    >>> aggregate(payload, torch.tensor([[True], [True], [False]]))
    (tensor([[2.]]), tensor([2]))

    Reference: the unbiased gradient aggregation of arXiv 2507.07114; claims A1 to A5. `inverse_probability` is the
    Horvitz-Thompson estimator.
    """
    _check(payload_NPE, arrived_NP, rule, no_survivor, non_finite)
    _check_fallback(payload_NPE, no_survivor, previous_PE, owner)
    N, P, E = payload_NPE.shape
    sum_dtype = torch.promote_types(payload_NPE.dtype, torch.float32)
    if kernels.serve(payload_NPE):
        return _on_gpu(
            payload_NPE, arrived_NP, rule, no_survivor, arrival_probability_N, previous_PE, owner, non_finite
        )

    pieces = E // _PIECE if E % _PIECE == 0 and E else 1
    row_A, offset_B, count_P = (index.to(payload_NPE.device) for index in _rows(arrived_NP, pieces))
    weight = None
    if rule == "inverse_probability":
        weight_NP = 1 / _probability(arrival_probability_N, N, P, payload_NPE)
        weight = weight_NP.reshape(-1)[row_A.long() // pieces].to(sum_dtype)
    total_PE = F.embedding_bag(  # a sum over the rows named, reading no other: one pass, and exact for integers
        row_A,
        payload_NPE.reshape(N * P * pieces, E // pieces).to(sum_dtype),
        offset_B,
        mode="sum",
        per_sample_weights=weight,
    ).view(P, E)
    divisor = count_P.clamp(min=1).unsqueeze(-1).to(sum_dtype) if rule == "survivor_mean" else N
    estimate_PE = total_PE.div_(divisor).to(payload_NPE.dtype)

    if no_survivor != "zero" and bool((empty_P := count_P == 0).any()):
        estimate_PE[empty_P] = _fallback(no_survivor, payload_NPE, empty_P, previous_PE, owner)
    # a finite sum has finite terms, and costs a tenth of asking each; a sum that overflowed proves nothing, so then ask
    if non_finite == "raise" and not estimate_PE.sum(dtype=sum_dtype).isfinite():
        bad_P = (~estimate_PE.isfinite()).any(-1)
        if bool(bad_P.any()):
            raise _non_finite(int(bad_P.nonzero()[0]))
    return estimate_PE, count_P


def _rows(arrived_NP: torch.Tensor, pieces: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows of payload.view(N * P * pieces, -1) that arrived, piece by piece, senders in rank order; where the rows
    of each piece begin; and the arrivals of each packet. In NumPy where there is one: twice as quick."""
    N, P = arrived_NP.shape
    row_BN = _numbers(N, P * pieces)
    try:
        import numpy as np
    except ImportError:  # torch does not insist on it
        count_P = arrived_NP.sum(0).cpu()
        end_B = count_P.to(row_BN.dtype).repeat_interleave(pieces).cumsum(0, dtype=row_BN.dtype)
        start_B = torch.cat([end_B.new_zeros(1), end_B])[: P * pieces]
        return row_BN[arrived_NP.T.cpu().repeat_interleave(pieces, 0)], start_B, count_P
    arrived = arrived_NP.cpu().numpy()
    arrived_BN = np.repeat(np.ascontiguousarray(arrived.T), pieces, axis=0)
    row_A = np.compress(arrived_BN.reshape(-1), row_BN.numpy().reshape(-1))
    count = arrived.sum(0, dtype=np.int64)
    start = np.zeros(P * pieces + 1, dtype=row_A.dtype)
    np.cumsum(np.repeat(count, pieces), out=start[1:])
    return torch.from_numpy(row_A), torch.from_numpy(start[:-1]), torch.from_numpy(count)


@lru_cache(maxsize=1)  # a small part of the payload's size; a job calls with the same shape again and again
def _numbers(N: int, B: int) -> torch.Tensor:
    """(B, N), the number of piece b of sender n in a view by sender."""
    dtype = torch.int32 if N * B < 1 << 31 else torch.int64
    return torch.arange(B, dtype=dtype)[:, None] + B * torch.arange(N, dtype=dtype)


def _on_gpu(
    payload_NPE: torch.Tensor,
    arrived_NP: torch.Tensor,
    rule: Rule,
    no_survivor: NoSurvivor,
    arrival_probability_N: torch.Tensor | None,
    previous_PE: torch.Tensor | None,
    owner: int | torch.Tensor | None,
    non_finite: Literal["raise", "carry"],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel in the place of the plain body."""
    from lossproof.impl.kernels import stage1

    N, P, _ = payload_NPE.shape
    weight_NP = None
    if rule == "inverse_probability":
        sum_dtype = torch.promote_types(payload_NPE.dtype, torch.float32)
        weight_NP = (1 / _probability(arrival_probability_N, N, P, payload_NPE)).to(sum_dtype)
    if no_survivor == "raise" and bool((empty_P := ~arrived_NP.any(0)).any()):
        _fallback("raise", payload_NPE, empty_P, None, None)
    estimate_PE, count_P, bad = stage1.aggregate(
        payload_NPE,
        arrived_NP,
        survivors_divide=rule == "survivor_mean",
        weight_NP=weight_NP,
        previous_PE=previous_PE if no_survivor == "hold" else None,
        own=owner if no_survivor == "own" else None,
        find_non_finite=non_finite == "raise",
    )
    if bad < P:
        raise _non_finite(bad)
    return estimate_PE, count_P


def _non_finite(packet: int) -> NonFiniteGradient:
    return NonFiniteGradient(
        f"payload_NPE: the estimate of packet {packet} is not finite; pass non_finite='carry' to keep it"
    )


def _check(payload: torch.Tensor, arrived: torch.Tensor, rule: str, no_survivor: str, non_finite: str) -> None:
    if not payload.is_floating_point():
        raise TypeError(f"payload_NPE must be floating point, got {payload.dtype}")
    if arrived.dtype != torch.bool:
        raise TypeError(f"arrived_NP must be bool, got {arrived.dtype}")
    if payload.ndim != 3 or payload.shape[0] == 0:
        raise ValueError(f"payload_NPE must have shape (N, P, E) with N >= 1, got {tuple(payload.shape)}")
    if arrived.shape != payload.shape[:2]:
        raise ValueError(f"arrived_NP must have shape {tuple(payload.shape[:2])}, got {tuple(arrived.shape)}")
    for name, value, allowed in (
        ("rule", rule, get_args(Rule)),
        ("no_survivor", no_survivor, get_args(NoSurvivor)),
        ("non_finite", non_finite, ("raise", "carry")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _check_fallback(
    payload: torch.Tensor, no_survivor: NoSurvivor, previous: torch.Tensor | None, owner: int | torch.Tensor | None
) -> None:
    """What a fallback needs is demanded in every call: whether it is used depends on chance."""
    N, P, E = payload.shape
    if no_survivor == "hold" and (previous is None or previous.shape != (P, E)):
        shape = None if previous is None else tuple(previous.shape)
        raise ValueError(f"previous_PE must have shape ({P}, {E}) for no_survivor='hold', got {shape}")
    if no_survivor == "own":
        if owner is None:
            raise ValueError("owner must be given for no_survivor='own', got None")
        owner_P = torch.as_tensor(owner)
        if owner_P.dtype == torch.bool or owner_P.is_floating_point() or owner_P.is_complex():
            raise TypeError(f"owner must be an int or an int64 vector, got {owner!r}")
        if owner_P.shape not in ((), (P,)):
            raise ValueError(f"owner must be one rank or have shape ({P},), got {tuple(owner_P.shape)}")
        if not bool(((owner_P >= 0) & (owner_P < N)).all()):
            raise ValueError(f"owner must lie in [0, {N}), got {owner}")


def _probability(given: torch.Tensor | None, N: int, P: int, payload: torch.Tensor) -> torch.Tensor:
    if given is None:
        raise ValueError("arrival_probability_N must be given for the rule inverse_probability, got None")
    probability = torch.as_tensor(given, dtype=torch.float64, device=payload.device)
    if probability.shape not in ((N,), (N, P)):
        raise ValueError(f"arrival_probability_N must have shape ({N},) or ({N}, {P}), got {tuple(probability.shape)}")
    if not bool(((probability > 0) & (probability <= 1)).all()):
        raise ValueError(f"arrival_probability_N must lie in (0, 1], got {probability}")
    return probability.reshape(N, -1).expand(N, P)


def _fallback(
    choice: NoSurvivor,
    payload_NPE: torch.Tensor,
    empty_P: torch.Tensor,
    previous_PE: torch.Tensor | None,
    owner: int | torch.Tensor | None,
) -> torch.Tensor:
    """The rows of the estimate for the packets that nobody's copy of reached the owner."""
    packet = empty_P.nonzero().squeeze(-1)
    if choice == "raise":
        raise ValueError(f"arrived_NP: no survivor for packet {int(packet[0])}, and no_survivor is 'raise'")
    if choice == "hold":
        assert previous_PE is not None
        return previous_PE[packet].to(payload_NPE.dtype)
    assert owner is not None
    owner_P = torch.as_tensor(owner, device=payload_NPE.device).expand(payload_NPE.shape[1])
    return payload_NPE[owner_P[packet], packet]
