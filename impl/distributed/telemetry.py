"""What an attachment counts and measures: packets by link, packets without a survivor, drift between the replicas.

A rank sees what it receives: the links into it. `Telemetry.gather` puts all ranks' views together.

Legend: N ranks; P packets, Q of them owned by this rank; S sampled packets; E elements of a packet.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lossproof.impl.distributed.exchange import Exchange
from lossproof.impl.losslog import LossLog, used
from lossproof.theory.laws import Law, Phase

PHASES: tuple[Phase, Phase] = ("gradients", "parameters")
_IMPOSSIBLE = 1e-9
_KEPT = 1000  # steps


class LossNotInjected(RuntimeError):
    """No packet was lost in a job where that is next to impossible: the framework no longer calls the protocol."""


@dataclass(frozen=True)
class StepRecord:
    """Packets on the links into this rank in one step, by phase (gradients, parameters) and sender: int64 (2, N).

    A rank's messages to itself are not counted. `no_survivor`: own packets that no rank's gradient arrived for, its
    own included. `reliable`: the parameters of this step travelled reliably (a resync). In a skipped step no parameters
    are offered.
    """

    step: int
    offered_2N: NDArray[np.int64]
    lost_2N: NDArray[np.int64]
    no_survivor: int
    reliable: bool = False

    @property
    def arrived_2N(self) -> NDArray[np.int64]:
        return self.offered_2N - self.lost_2N


@dataclass(frozen=True)
class Drift:
    """Mean squares over sampled packets: between two non-owners, to the owner, and of an owner's step.

    `pair / step_square` compares with `lossproof.theory.drift.pair` where steps are uncorrelated. Two ranks have no two
    non-owners: `pair` is NaN.
    """

    step: int
    pair: float
    owner: float
    step_square: float

    @property
    def ratio(self) -> float:
        """The drift between two non-owners, or where there are no two, to the owner, in mean squared steps."""
        drift = self.owner if math.isnan(self.pair) else self.pair
        return drift / self.step_square if self.step_square else math.inf if drift else 0.0


@dataclass
class Telemetry:
    """Totals since the start, the last 1000 steps, and the drift measurements.

    Args:
        exchange: the ranks. law: what the packets on a link should suffer; None where losses are real.
        sample_S: the packets whose drift is measured.
        drift_every: steps between measurements, 0 for none.
        drift_alarm: warn if `Drift.ratio` exceeds it.
        log_every: steps between lines in the log of rank 0, 0 for none.
        loss_log: gets a row for every packet on the links into this rank.
    """

    exchange: Exchange
    law: Law | None
    sample_S: torch.Tensor
    drift_every: int = 10
    drift_alarm: float | None = None
    log_every: int = 100
    loss_log: LossLog | None = None
    steps: deque[StepRecord] = field(default_factory=lambda: deque(maxlen=_KEPT))
    drift: deque[Drift] = field(default_factory=lambda: deque(maxlen=_KEPT))
    skipped: int = 0
    alarms: int = 0

    def __post_init__(self) -> None:
        ranks = self.exchange.ranks
        self.offered_2N = np.zeros((2, ranks), dtype=np.int64)
        self.lost_2N = np.zeros((2, ranks), dtype=np.int64)
        self.no_survivor = 0
        self._owner_P = self.exchange.owner_P.cpu().numpy()
        self._shards_N = np.bincount(self._owner_P, minlength=ranks)
        self.log = logging.getLogger("lossproof") if self.exchange.rank == 0 else logging.Logger("silent", 100)
        self._log_survival = 0.0  # the logarithm of the probability that nothing was lost so far
        self._fresh_SE: torch.Tensor | None = None
        self._squares, self._squares_of = 0.0, 0
        self._used_logs: list[str] = []

    def compare_logs(self, *others: Exchange) -> None:
        """All ranks, before any of them adds a row: whose log holds rows already; `others` hear of it as well."""
        held = None if self.loss_log is None or self.loss_log.fresh else str(self.loss_log.path)
        self._used_logs = [path for path in self.exchange.objects(held) if path is not None]
        for exchange in others:
            self._used_logs = [path for used_logs in exchange.objects(self._used_logs) for path in used_logs]

    def require_fresh_logs(self) -> None:
        """Raises ValueError on all ranks if a job that starts anew was given a log that holds rows."""
        if self._used_logs:
            raise ValueError(used(self._used_logs[0]))

    def resume_log(self, step: int) -> None:
        """All ranks: the log goes on with `step`; what the job has logged of it and later ones is taken out."""
        if step:
            self._used_logs = []
            if self.loss_log is not None:
                self.loss_log.rewind(step)
        self.exchange.objects(None)  # no rank adds a row before all have done so

    def count(
        self,
        step: int,
        gradients_NQ: torch.Tensor,
        parameters_1P: torch.Tensor | None,
        *,
        reliable: bool = False,
        independent: bool = False,
    ) -> None:
        """Enters one step's masks; None where no parameters travelled over lossy links.

        Raises:
            LossNotInjected: nothing lost, although that has a probability below 1e-9.
        """
        N, rank = self.exchange.ranks, self.exchange.rank
        lost_2N, offered_2N = np.zeros((2, N), dtype=np.int64), np.zeros((2, N), dtype=np.int64)
        lost_2N[0] = (~gradients_NQ).sum(1).cpu().numpy()
        offered_2N[0] = gradients_NQ.shape[1]
        if parameters_1P is not None:
            lost_P = (~parameters_1P[0]).cpu().numpy()
            lost_2N[1] = np.bincount(self._owner_P[lost_P], minlength=N)
            offered_2N[1] = self._shards_N
        no_survivor = int((~gradients_NQ).all(0).sum())
        lost_2N[:, rank] = offered_2N[:, rank] = 0
        self.steps.append(StepRecord(step, offered_2N, lost_2N, no_survivor, reliable))
        self.offered_2N += offered_2N
        self.lost_2N += lost_2N
        self.no_survivor += no_survivor
        if self.loss_log is not None:
            masks: dict[Phase, torch.Tensor] = {"gradients": gradients_NQ.cpu()}
            if parameters_1P is not None:
                masks["parameters"] = parameters_1P.cpu()
            self.loss_log.add_step(step, masks, self._owner_P, rank, reliable=parameters_1P is None)
        if self.law is not None and independent:
            self._require_losses(offered_2N)
        if self.log_every and step % self.log_every == 0:
            offered, lost = self.offered_2N.sum(1), self.lost_2N.sum(1)
            shares = [f"{of} {lost[k] / max(1, offered[k]):.2%} of {offered[k]:,}" for k, of in enumerate(PHASES)]
            drift = f"; drift/step^2 {self.drift[-1].ratio:.3g}" if self.drift else ""
            self.log.info("step %d: rank 0 lost %s; %d without a survivor%s", step, ", ".join(shares), self.no_survivor,
                          drift)  # fmt: skip

    def _require_losses(self, offered_2N: NDArray[np.int64]) -> None:
        assert self.law is not None
        for src, offered in enumerate(offered_2N.sum(0)):
            if offered:
                self._log_survival += int(offered) * math.log1p(-float(self.law.marginal(src, self.exchange.rank)))
        if self._log_survival < math.log(_IMPOSSIBLE) and not self.lost_2N.any():
            raise LossNotInjected(
                f"none of {int(self.offered_2N.sum())} packets to rank {self.exchange.rank} was lost, although "
                f"{self.law!r} makes that less likely than {_IMPOSSIBLE:g}: the losses do not reach the training"
            )

    def measure(self, step: int, replica_PE: torch.Tensor) -> None:
        """Keeps the owners' squared steps, and every `drift_every` steps compares all ranks' sampled packets."""
        self.compare(step, replica_PE[self.sample_S])

    def compare(self, step: int, fresh_SE: torch.Tensor) -> None:
        """`measure` of the sampled packets of this rank's replica; of own packets that is the fresh value."""
        if not self.drift_every:
            return
        owner_S = self.exchange.owner_P[self.sample_S]
        mine_S = owner_S == self.exchange.rank
        if self._fresh_SE is not None:
            self._squares += float((fresh_SE - self._fresh_SE)[mine_S].double().square().sum())
            self._squares_of += 1
        self._fresh_SE = fresh_SE
        if step % self.drift_every or not self._squares_of:
            return
        every_NSE = self.exchange.every(fresh_SE).double()
        N, S = self.exchange.ranks, len(self.sample_S)
        squares = self.exchange.total(torch.tensor([self._squares], dtype=torch.float64, device=fresh_SE.device))
        fresh = every_NSE[owner_S, torch.arange(S, device=owner_S.device)]
        gap_NSE = every_NSE - fresh
        to_owner = float(gap_NSE.square().sum()) / (S * max(1, N - 1))
        # over pairs of non-owners, sum |a - b|^2 = (N-1) sum |a|^2 - |sum a|^2, with a the gaps to the owner
        pairs = (N - 1) * (N - 2) / 2
        total = (N - 1) * gap_NSE.square().sum() - gap_NSE.sum(0).square().sum()
        pair = float(total) / (S * pairs) if pairs else math.nan
        self.drift.append(Drift(step, pair, to_owner, float(squares) / (S * self._squares_of)))
        self._squares, self._squares_of = 0.0, 0
        found = self.drift[-1]
        if self.drift_alarm is not None and found.ratio > self.drift_alarm:
            self.alarms += 1
            self.log.warning(
                "step %d: drift is %.3g mean squared steps, the alarm %.3g", step, found.ratio, self.drift_alarm
            )

    def gather(self) -> dict[str, NDArray[np.int64]]:
        """All ranks together: packets offered and lost so far, int64 (2, N, N) by phase, sender and receiver."""
        views = self.exchange.objects((self.offered_2N, self.lost_2N))
        return {name: np.stack([view[k] for view in views], axis=2) for k, name in enumerate(("offered", "lost"))}

    def state_dict(self) -> dict[str, Any]:
        """The totals; the records of single steps and the drift measurements start anew."""
        return {
            "offered": torch.from_numpy(self.offered_2N.copy()),
            "lost": torch.from_numpy(self.lost_2N.copy()),
            "no_survivor": self.no_survivor,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.offered_2N, self.lost_2N = state["offered"].numpy().copy(), state["lost"].numpy().copy()
        self.no_survivor, self.skipped = state["no_survivor"], state["skipped"]
        self._fresh_SE, self._squares, self._squares_of = None, 0.0, 0
