"""Which packets arrive: a law, a seed and the owners of the packets give the masks of every phase of every step.

The draw for a packet is Philox at counter (packet, src << 16 | dst, phase, step) under the seed, so every rank can
recompute every mask; what all links have in common is drawn at (packet, 0, 2 + phase, step). A law with memory is
advanced once a phase of each step; its memory is part of `state_dict`.

Legend: N ranks, P packets. A row of a mask is the remote end of a packet's link to its owner: the sender of a gradient
packet (the owner receives), the receiver of a parameter packet (the owner sends).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lossproof.impl import kernels
from lossproof.impl.philox import philox4x32, split_seed
from lossproof.theory.laws import Bernoulli, Law, Memory, PerSender, Phase, exact, threshold

if TYPE_CHECKING:
    from lossproof.impl.kernels.masks import Draw

OwnLink = Literal["reliable", "lossy"]
_PHASE_NUMBER: dict[Phase, int] = {"gradients": 0, "parameters": 1}


class PhiloxDraw:
    """The `Draw` that a law sees: one phase of one step, words from Philox, computed once and only when asked for."""

    def __init__(
        self,
        phase: Phase,
        step: int,
        ranks: int,
        src: NDArray[np.int64],
        dst: NDArray[np.int64],
        packet: NDArray[np.int64],
        seed: int,
    ) -> None:
        self.phase, self.step, self.ranks = phase, step, ranks
        self.src, self.dst, self.packet = src, dst, packet
        self._key = split_seed(seed)
        self._words: tuple[NDArray[np.int64], ...] | None = None

    def words(self, k: int = 0) -> NDArray[np.int64]:
        if self._words is None:
            link = self.src << 16 | self.dst
            self._words = philox4x32((self.packet, link, _PHASE_NUMBER[self.phase], self.step), self._key)
        return self._words[k]

    def common(self, k: int = 0) -> NDArray[np.int64]:
        """Words that belong to no link: the counter has phase numbers of its own, and 0 for the link."""
        packet = self.packet.reshape(1, -1)
        phase = len(_PHASE_NUMBER) + _PHASE_NUMBER[self.phase]
        words: tuple[NDArray[np.int64], ...] = philox4x32((packet, np.zeros_like(packet), phase, self.step), self._key)
        return words[k]


class Arrivals:
    """The arrival masks of a job.

    Args:
        law: the loss law, the same for both phases.
        owner_P: the owner of each packet, ints in [0, ranks).
        ranks: N, at most 65536.
        seed: 64-bit seed; equal seed, owners and packet numbers give equal masks everywhere.
        own_link: `reliable`, the owner's own gradient always arrives; or `lossy`, it is lost like the others. Either
            way the owner's own copy of the parameters is fresh.
        receiver: draw only what this rank receives, or these H ranks (a range), for a process that hosts no others:
            gradients (N, Q) of the Q packets that they own, parameters (H, P). The masks are the same; None for what
            all ranks receive.

    >>> from lossproof.theory.laws import Bernoulli
    >>> Arrivals(Bernoulli(0.5), [0, 1], ranks=2).gradients(step=0)
    tensor([[ True, False],
            [ True,  True]])
    """

    def __init__(
        self,
        law: Law,
        owner_P: Any,
        ranks: int,
        seed: int = 0,
        own_link: OwnLink = "reliable",
        receiver: int | range | None = None,
    ) -> None:
        if own_link not in ("reliable", "lossy"):
            raise ValueError(f"own_link must be 'reliable' or 'lossy', got {own_link!r}")
        if not isinstance(ranks, int) or isinstance(ranks, bool):
            raise TypeError(f"ranks must be an int, got {ranks!r}")
        if not 1 <= ranks <= 1 << 16:
            raise ValueError(f"ranks must lie in [1, 65536], got {ranks}")
        if not isinstance(law, Law):
            raise TypeError(f"law must offer marginal, age_tail and sample, got {law!r}")
        split_seed(seed)
        self.law, self.ranks, self.seed, self.own_link, self.receiver = law, ranks, seed, own_link, receiver
        self.owner_P = np.asarray(owner_P)
        if self.owner_P.size and self.owner_P.dtype.kind not in "iu":
            raise TypeError(f"owner_P must hold integers, got {owner_P!r}")
        self.owner_P = self.owner_P.astype(np.int64)
        if self.owner_P.ndim != 1 or ((self.owner_P < 0) | (self.owner_P >= ranks)).any():
            raise ValueError(f"owner_P must be a vector of ranks in [0, {ranks}), got {owner_P!r}")
        hosted = range(ranks) if receiver is None else receiver
        hosted = hosted if isinstance(hosted, range) else range(hosted, hosted + 1)
        if not hosted or min(hosted) < 0 or max(hosted) >= ranks:
            raise ValueError(f"receiver must be a rank in [0, {ranks}) or a range of them, got {receiver}")
        self._rank_N1 = np.arange(ranks, dtype=np.int64)[:, None]
        self._packet_P = np.arange(self.owner_P.size, dtype=np.int64)
        self._receiver_H1 = self._rank_N1[hosted]
        self._received_Q = self._packet_P[np.isin(self.owner_P, hosted)]
        self._memory: Memory = {}
        self._next: dict[Phase, int] = {}
        self.device, self._hosted = torch.device("cpu"), hosted
        self._draws: dict[Phase, Draw] = {}

    def to(self, device: torch.device | str) -> Arrivals:
        """The same masks for another device; on a GPU a kernel draws them there, if the losses are independent.

        Why a mask is drawn into memory, and not by the stages on their way, is said in `lossproof.impl.kernels.masks`.
        """
        self.device, self._draws = torch.device(device), {}
        thresholds = sender_thresholds(self.law, self.ranks)
        if thresholds is None or not kernels.available(self.device):
            return self
        from lossproof.impl.kernels.masks import Draw

        threshold_N, owner_P, packet_P, received_Q = (
            torch.tensor(values, device=self.device)
            for values in (thresholds, self.owner_P, self._packet_P, self._received_Q)
        )
        own_arrives, hosted = self.own_link == "reliable", self._hosted
        self._draws = {
            "gradients": Draw(self.seed, 0, threshold_N, owner_P[received_Q], packet_P[received_Q], own_arrives),
            "parameters": Draw(self.seed, 0, threshold_N, owner_P, packet_P, first=hosted.start, every=hosted.step),
        }
        return self

    def gradients(self, step: int) -> torch.Tensor:
        """Stage 1: bool (N, P), whether the gradient packet of each sender reached the packet's owner."""
        if self._draws:
            return self._drawn("gradients", step, len(self._rank_N1))
        owner_Q = self.owner_P[self._received_Q]
        lost = self._lost("gradients", step, src=self._rank_N1, dst=owner_Q, packet=self._received_Q)
        arrived = ~lost | (self._rank_N1 == owner_Q) if self.own_link == "reliable" else ~lost
        return torch.from_numpy(arrived).to(self.device)

    def parameters(self, step: int) -> torch.Tensor:
        """Stage 2: bool (N, P), whether the packet of the owner reached each receiver; the owner's copy is fresh."""
        if self._draws:
            return self._drawn("parameters", step, len(self._receiver_H1))
        lost = self._lost("parameters", step, src=self.owner_P, dst=self._receiver_H1, packet=self._packet_P)
        return torch.from_numpy(~lost | (self._receiver_H1 == self.owner_P)).to(self.device)

    def gradient_probability(self) -> torch.Tensor:
        """float64 (N, P), the marginal probability that the gradient packet of each sender arrives (claim A4's q)."""
        owners, column_Q = np.unique(self.owner_P[self._received_Q], return_inverse=True)
        q_NO = [[float(1 - self.law.marginal(src, dst)) if src != dst or self.own_link == "lossy" else 1.0
                 for dst in owners.tolist()] for src in range(self.ranks)]  # fmt: skip
        return torch.tensor(q_NO, dtype=torch.float64)[:, torch.from_numpy(column_Q)]

    def _lost(
        self, phase: Phase, step: int, src: NDArray[np.int64], dst: NDArray[np.int64], packet: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        self._check_step(phase, step)
        draw = PhiloxDraw(phase, step, self.ranks, src, dst, packet, self.seed)
        lost, memory = self.law.sample(draw, self._memory)
        shape = np.broadcast_shapes(src.shape, dst.shape, packet.shape)
        if lost.shape != shape or lost.dtype != np.bool_:
            raise ValueError(f"law.sample must return a bool mask of shape {shape}, got {lost.dtype} {lost.shape}")
        self._memory, self._next[phase] = memory, step + 1
        return lost

    def _drawn(self, phase: Phase, step: int, rows: int) -> torch.Tensor:
        from lossproof.impl.kernels import masks

        self._check_step(phase, step)
        self._next[phase] = step + 1
        return masks.draw(replace(self._draws[phase], step=int(step)), phase, rows)

    def _check_step(self, phase: Phase, step: int) -> None:
        if isinstance(step, bool) or not isinstance(step, (int, np.integer)):
            raise TypeError(f"step must be an int, got {step!r}")
        if not 0 <= step < 1 << 32:
            raise ValueError(f"step must lie in [0, 2^32), got {step}")
        if self._memory and step != self._next.get(phase, step):
            raise ValueError(f"step must be {self._next[phase]}: a law with memory is advanced in order, got {step}")
        latest = max(((at - 1, _PHASE_NUMBER[of]) for of, at in self._next.items()), default=(-1, 0))
        if self._memory and (step, _PHASE_NUMBER[phase]) <= latest:
            raise ValueError(
                f"step must be above {latest[0]} for {phase}: the gradients of a step come first, got {step}"
            )

    @property
    def next_step(self) -> int:
        """The first step of which no mask has been given."""
        return max(self._next.values(), default=0)

    @property
    def memoryless(self) -> bool:
        """Whether the law has carried nothing from draw to draw."""
        return not self._memory

    def state_dict(self) -> dict[str, Any]:
        """The memory of the law and the next step of each phase; with the same arguments, all that a resume needs."""
        return {
            "memory": {name: torch.from_numpy(array.copy()) for name, array in self._memory.items()},
            "next": dict(self._next),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._memory = {name: tensor.numpy().copy() for name, tensor in state["memory"].items()}
        self._next = dict(state["next"])


def sender_thresholds(law: Law, ranks: int) -> NDArray[np.int64] | None:
    """floor(p 2^32) of each sender, where a packet is lost iff word 0 of its draw is below; None for any other law.

    >>> sender_thresholds(Bernoulli(0.5), 2)
    array([2147483648, 2147483648])
    """
    losses: tuple[Any, ...] = ()
    if type(law) is Bernoulli:  # not a class made of it, which may draw in another way
        losses = (law.loss,) * ranks
    elif type(law) is PerSender:
        losses = law.losses
    return np.array([threshold(exact(loss)) for loss in losses], dtype=np.int64) if len(losses) == ranks else None
