r"""Drift of a real run against its exact expectation, given the steps that the owners took.

B2 gives the mean squared distance of replicas for steps of zero mean; the steps of a real optimizer are correlated, so
the prediction here takes them as they were, packet by packet. A replica of age A lacks the owner's last A steps, so

.. math::
    \text{to the owner: } \sum_{k,l \ge 0} a_{\max(k,l)+1} \langle u_{t-k}, u_{t-l} \rangle \qquad
    \text{pairwise: } \sum_{k,l \ge 0} 2 (a_{\max(k,l)+1} - a_{k+1} a_{l+1}) \langle u_{t-k}, u_{t-l} \rangle

with a_k = P(A >= k) and u_t = 0 before the start. It is exact for steps that do not depend on the parameter masks;
those of training do, through the gradients taken at stale replicas, so measured and predicted agree only nearly.

Legend: N ranks; P packets; E elements of a packet. Pairs are of distinct ranks that do not own the packet.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch

from lossproof.impl import kernels
from lossproof.impl.cluster import Cluster
from lossproof.impl.distributed.cluster import ProcessCluster
from lossproof.impl.retain import DriftSums, drift_sums
from lossproof.theory.laws import Law

_TAIL_TERMS = 6


class DriftMeter:
    r"""Measured and predicted drift, averaged over the packets and steps seen; an observer of `lossproof.impl.train`.

    A geometric tail a_(k+1) = a_1 lam^k makes the double sum a recursion without a history, because then
    a_(max(k,l)+2) = lam a_(max(k,l)+1): with m_t = sum_k a_(k+1) u_(t-k),

    .. math::
        m_t = \lambda m_{t-1} + a_1 u_t, \qquad
        v_t = \lambda v_{t-1} + 2 \lambda \langle m_{t-1}, u_t \rangle + a_1 \|u_t\|^2,

    to the owner v_t, pairwise 2 (v_t - \|m_t\|^2). Other tails get no prediction; the summary says why. The pairwise
    one takes the losses of two receivers to be independent; a law that says `independent_links = False` gets none.

    Args:
        law, owner_P, ranks: see `lossproof.impl.loss.Arrivals`.

    >>> from lossproof.theory.laws import Bernoulli
    >>> meter = DriftMeter(Bernoulli(0.5), owner_P=[0], ranks=3)
    >>> fresh, stale = torch.ones(1, 1), torch.zeros(1, 1)
    >>> meter.add(fresh - stale, fresh, torch.stack([fresh, fresh, stale]))
    >>> meter.summary()["owner"], meter.summary()["pair"]
    ({'measured': 0.5, 'predicted': 0.5, 'ratio': 1.0}, {'measured': 1.0, 'predicted': 0.5, 'ratio': 2.0})
    """

    def __init__(self, law: Law, owner_P: Sequence[int], ranks: int) -> None:
        self.ranks, self.steps = ranks, 0
        tails, self.reason = geometric_tails(law, sorted(set(owner_P)), ranks)
        self.independent = bool(getattr(law, "independent_links", True))
        self._first_P = torch.tensor([tails[owner][0] for owner in owner_P] if tails else [], dtype=torch.float64)
        self._ratio_P = torch.tensor([tails[owner][1] for owner in owner_P] if tails else [], dtype=torch.float64)
        self._mean_PE: torch.Tensor | None = None
        self._square_P = torch.zeros(len(owner_P), dtype=torch.float64)
        self._measured = torch.zeros(2, dtype=torch.float64)  # to the owner, pairwise
        self._predicted = torch.zeros(2, dtype=torch.float64)

    @classmethod
    def of(cls, cluster: Cluster | ProcessCluster) -> DriftMeter:
        """The meter of a cluster that has not begun to train; one that hosts all ranks on a GPU measures in passing."""
        if type(cluster) is Cluster:
            cluster.round.measures = kernels.available(cluster.fresh_PE.device)
        if cluster.law is None:
            raise ValueError("law must be known in order to predict the drift, got None: losses that no law describes")
        return cls(cluster.law, cluster.owner_P, cluster.ranks)

    def observe(self, cluster: Cluster | ProcessCluster, step_PE: torch.Tensor) -> None:
        sums = cluster.round.drift if type(cluster) is Cluster else None
        self.add(step_PE, cluster.fresh_PE, cluster.replicas_NPE, sums)

    @torch.no_grad()
    def add(
        self, step_PE: torch.Tensor, fresh_PE: torch.Tensor, replicas_NPE: torch.Tensor, sums: DriftSums | None = None
    ) -> None:
        """Takes in one step: by how much the owners moved, and where they and all replicas are after it; `sums` if
        somebody has already measured their gaps."""
        self.steps += 1
        sums = sums or drift_sums(replicas_NPE, fresh_PE)
        for i, drift_P in enumerate((sums.to_owner(self.ranks), sums.between_pairs(self.ranks))):
            self._measured[i] += float(drift_P.double().sum()) / max(1, len(drift_P))
        if self.reason is None:
            self._predicted += self._predict(step_PE)

    def _predict(self, step_PE: torch.Tensor) -> torch.Tensor:
        step_PE = step_PE.to("cpu", torch.float64)
        mean_PE = torch.zeros_like(step_PE) if self._mean_PE is None else self._mean_PE
        first_P, ratio_P = self._first_P, self._ratio_P
        cross_P = (mean_PE * step_PE).sum(-1)
        self._square_P = ratio_P * (self._square_P + 2 * cross_P) + first_P * step_PE.square().sum(-1)
        self._mean_PE = ratio_P[:, None] * mean_PE + first_P[:, None] * step_PE
        pair_P = 2 * (self._square_P - self._mean_PE.square().sum(-1))
        return torch.stack([self._square_P.mean(), pair_P.mean()])

    def summary(self) -> dict[str, Any]:
        """`owner`, `pair`: measured and predicted squared distance per packet, and the ratio; None where undefined."""
        parts: dict[str, Any] = {"steps": self.steps, "reason": self.reason}
        for i, (name, least) in enumerate((("owner", 2), ("pair", 3))):
            if self.ranks < least or not self.steps:
                parts[name] = None
                continue
            measured = float(self._measured[i]) / self.steps
            known = self.reason is None and (name == "owner" or self.independent)
            predicted = float(self._predicted[i]) / self.steps if known else None
            ratio = measured / predicted if predicted else None
            parts[name] = {"measured": measured, "predicted": predicted, "ratio": ratio}
        return parts

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "mean": self._mean_PE,
            "square": self._square_P.clone(),
            "measured": self._measured.clone(),
            "predicted": self._predicted.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self._mean_PE = state["steps"], state["mean"]
        self._square_P, self._measured, self._predicted = (
            state[name].cpu().clone() for name in ("square", "measured", "predicted")
        )


def geometric_tails(law: Law, owners: Sequence[int], ranks: int) -> tuple[dict[int, tuple[float, float]], str | None]:
    """(a_1, lam) of every owner whose age tail is a_(k+1) = a_1 lam^k for all receivers; or none, and the reason.

    Compared exactly for k up to 6.

    >>> from lossproof.theory.laws import GilbertElliott
    >>> geometric_tails(GilbertElliott(0.1, burst=4), owners=[0], ranks=2)
    ({0: (0.1, 0.75)}, None)
    """
    tails = {}
    for owner in owners:
        found = {
            tuple(law.age_tail(k, owner, to) for k in range(1, _TAIL_TERMS + 2)) for to in range(ranks) if to != owner
        }
        if len(found) > 1:
            return {}, f"the age tail of packets from {owner} differs between receivers"
        if any(law.age_tail(k, owner, to, ticks=2) != law.age_tail(k, owner, to) for to in range(ranks) if to != owner
               for k in range(1, 4)):  # fmt: skip
            return {}, "the age tail depends on the number of packets in a step: use a step clock"
        tail = found.pop() if found else (Fraction(0),) * (_TAIL_TERMS + 1)
        ratio = tail[1] / tail[0] if tail[0] else Fraction(0)
        if any(tail[k] != tail[0] * ratio**k for k in range(_TAIL_TERMS + 1)):
            return {}, "the age tail is not geometric"
        tails[owner] = (float(tail[0]), float(ratio))
    return tails, None
