"""Rounds of two other designs, made of the same two stages: averaging what ranks hold (B11), sharing updates (B10).

All ranks are hosted by this process.

Legend: N ranks, H hosted (all of them); P packets, Q of them owned here (all); E elements of a packet.
"""

from __future__ import annotations

from typing import Any

import torch

from lossproof.impl.round import Round


class Averaging(Round):
    """The owner averages what reached it and sends the average to all; who misses it keeps what it had.

    With models this is RPS.
    """

    def average(self, values_NPE: torch.Tensor) -> torch.Tensor:
        """What each rank holds afterwards; the owners' averages are in `fresh_QE`."""
        self.replicas_HPE = values_NPE
        self.step(values_NPE, self._replace)
        return self.replicas_HPE

    def _replace(self, average_PE: torch.Tensor) -> None:
        self.fresh_QE.copy_(average_PE)


class SharingUpdates(Round):
    """The owner sends by how much its packet moved, not the packet; receivers add what arrives. A lost update is never
    repeated."""

    def __init__(self, fresh_QE: torch.Tensor, *arguments: Any, **options: Any) -> None:
        super().__init__(fresh_QE, *arguments, **options)
        self._before_QE = fresh_QE.clone()

    def broadcast(self, stale_HPE: torch.Tensor, fresh_QE: torch.Tensor) -> torch.Tensor:
        # stale + (fresh - before), written so that a replica that lacks nothing gets the owner's very bits
        offered_HPE = fresh_QE - (self._before_QE - stale_HPE)
        self._before_QE = fresh_QE.clone()
        return super().broadcast(stale_HPE, offered_HPE)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"before": self._before_QE.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._before_QE = state["before"].to(self._before_QE.device, copy=True)
