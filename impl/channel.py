"""How packets travel: a channel turns what is sent into (what arrived, the mask). Simulated, real: the same shape.

Legend: N ranks; H of them hosted in this process; P packets, Q of them owned by hosted ranks; E elements of a packet.
In one process H = N and Q = P; in real training H = 1; W processes that share a cluster out host H = N/W each.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from lossproof.impl.loss import Arrivals


class Channel(Protocol):
    """A network between N ranks. What lies in the slot of a lost packet is undefined."""

    ranks: int

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stage 1, a reduce-scatter without the reduction: every sender's packets (H, P, E) go to their owners.

        Returns what hosted owners hold afterwards, received (N, Q, E), and arrived (N, Q), by sender.
        """
        ...

    def parameters(self, step: int, fresh_QE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stage 2, an all-gather: the owners' packets (Q, E) go to every rank.

        Returns what hosted receivers hold afterwards, received (P, E) or (H, P, E), and arrived (H, P), by receiver.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class SimulatedChannel:
    """All ranks in one process: the payload stays where it is and `Arrivals` draws what the network would have lost."""

    def __init__(self, arrivals: Arrivals, device: torch.device | str = "cpu") -> None:
        self.arrivals, self.ranks = arrivals.to(device), arrivals.ranks

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return payload_HPE, self.arrivals.gradients(step)

    def parameters(self, step: int, fresh_QE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return fresh_QE, self.arrivals.parameters(step)

    def state_dict(self) -> dict[str, Any]:
        return self.arrivals.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.arrivals.load_state_dict(state)
