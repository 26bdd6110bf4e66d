"""Wrong variants of what attaches a job to lossy links; planted in the processes by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lossproof.impl.distributed import attachment, cluster, consolidation, ddp, exchange, joining, telemetry
from lossproof.proofs_checks.claim import Mutant

_Attachment, _Exchange = attachment.Attachment, exchange.Exchange
_gather, _collect, _count, _skip, _own_state, _measure = (
    _Exchange.gather, _Exchange.collect, telemetry.Telemetry.count, _Attachment.skip, consolidation.own_state,
    telemetry.Telemetry.measure,
)  # fmt: skip

_received, _broadcast, _hosted_step = (
    cluster.HostedChannel.gradients, cluster.HostedChannel.parameters, cluster.HostedCluster.step,
)  # fmt: skip

STAND_IN_SQUARED = Mutant("the stand-in is the squared norm", ddp, "_norm", lambda e: e.square().sum())
STAND_IN_MAX = Mutant("the stand-in is the largest element", ddp, "_norm", lambda e: e.abs().max())


def _counted_as_taken(self: Any) -> None:
    _skip(self)
    last = self.telemetry.steps[-1]
    offered_2N = last.offered_2N.copy()
    offered_2N[1] = offered_2N[0]
    self.telemetry.steps[-1] = replace(last, offered_2N=offered_2N)


def _numbered_twice(self: Any) -> None:
    _skip(self)
    self.stages.step_number += 1


SKIP_COUNTED = Mutant("a skipped step counts parameters", _Attachment, "skip", _counted_as_taken)
SKIP_NUMBERED_TWICE = Mutant("a skipped step counts twice", _Attachment, "skip", _numbered_twice)


def _in_order_of_owners(self: Any, fresh_QE: torch.Tensor) -> torch.Tensor:
    packets_PE = _gather(self, fresh_QE)
    return packets_PE[self.owner_P.argsort(stable=True)]


GATHERED_BY_OWNER = Mutant("gathered packets in the order of owners", _Exchange, "gather", _in_order_of_owners)
SENDERS_REVERSED = Mutant(
    "what arrives is another sender's", _Exchange, "collect", lambda self, payload: _collect(self, payload).flip(0)
)


def _counted_by_receiver(self: Any, step: int, gradients_NQ: Any, parameters_1P: Any, **options: Any) -> None:
    _count(self, step, gradients_NQ.flip(0), parameters_1P, **options)


COUNT_OTHER_LINK = Mutant("losses counted for another link", telemetry.Telemetry, "count", _counted_by_receiver)
COUNT_ARRIVALS = Mutant(
    "arrivals counted for losses", telemetry.Telemetry, "count",
    lambda self, step, g, m, **options: _count(self, step, ~g, None if m is None else ~m, **options),
)  # fmt: skip
COUNTS_NOT_SAVED = Mutant(
    "a state without the steps skipped", consolidation, "own_state",
    lambda at: _own_state(at) | {"telemetry": {**at.telemetry.state_dict(), "skipped": 0}},
)  # fmt: skip
STATE_NOT_GATHERED = Mutant(
    "a rank saves its own optimizer state only", consolidation, "_adopt", lambda at, states: None
)
RESYNC_FROM_REPLICA = Mutant(
    "a resync from rank 0, not from owners", _Attachment, "resync",
    lambda self, from_last_step=False: [self.exchange.spread(p.detach()) for p in self.parameters],
)  # fmt: skip
DRIFT_OF_REPLICAS = Mutant(
    "drift between halves", telemetry.Telemetry, "measure",
    lambda self, step, replica: _measure(self, step, replica / 2),
)  # fmt: skip
STALE_IS_FRESH = Mutant(
    "an owner's step is lost on it", _Attachment, "_unpack",
    lambda self, replica: [p.copy_(0.5 * (p + v)) for p, v in zip(
        self.parameters, self.layout.unpack(replica), strict=True)],
)  # fmt: skip


def _does_not_step(self: Any) -> None:
    self.at.optimizer.zero_grad()
    self.at.optimizer.step()


JOINED_IN_HALF = Mutant("a rank that has joined does not step", joining.AttachmentJoinHook, "main_hook", _does_not_step)


def _of_another_rank(self: Any, step: int, fresh_QE: torch.Tensor) -> Any:
    received_PE, arrived_HP = _broadcast(self, step, fresh_QE)
    return received_PE, arrived_HP.roll(1, 0)


def _in_order_of_processes(self: Any, step: int, payload_HPE: torch.Tensor) -> Any:
    received_NQE, arrived_NQ = _received(self, step, payload_HPE)
    by_turns = received_NQE.view(len(payload_HPE), -1, *received_NQE.shape[1:])
    return by_turns.transpose(0, 1).flatten(0, 1), arrived_NQ


HOSTED_SENDERS = Mutant(
    "gradients in the order of processes", cluster.HostedChannel, "gradients", _in_order_of_processes
)
HOSTED_BATCH = Mutant(
    "a rank has the next one's batch", cluster.HostedCluster, "step",
    lambda self, batch_N: _hosted_step(self, batch_N.roll(1, 0)),
)  # fmt: skip
HOSTED_RECEIVERS = Mutant(
    "a rank receives what its neighbour should", cluster.HostedChannel, "parameters", _of_another_rank
)
HOSTED_COUNTS = Mutant(
    "a process counts its own packets only", cluster.HostedCluster, "counts", property(lambda self: self.round.counts)
)
