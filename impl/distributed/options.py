"""What `attach` was asked for: checked once, and the parts of an attachment are made from it.

Legend: N ranks; P packets, Q of them owned by this rank; S sampled packets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import torch

from lossproof.impl.aggregate import NoSurvivor, Rule
from lossproof.impl.distributed.exchange import Exchange, ProcessChannel
from lossproof.impl.distributed.refusals import check_law
from lossproof.impl.distributed.telemetry import Telemetry
from lossproof.impl.layout import Layout, LayoutKind
from lossproof.impl.loss import Arrivals, OwnLink
from lossproof.impl.losslog import LossLog
from lossproof.impl.round import Stages
from lossproof.theory.laws import Law

NonFinite = Literal["raise", "carry"]
Stale = Literal["device", "cpu", "bfloat16"]
_CHOICES = {"rule": Rule, "no_survivor": NoSurvivor, "non_finite": NonFinite, "stale": Stale}
_EVERY = ("resync_every", "drift_every", "log_every")
# What decides the digits of a job, which a job that resumes it must have the same; all ranks must agree in more.
_SETTINGS = ("seed", "packet_bytes", "layout", "own_link", "rule", "no_survivor", "resync_every")
_AGREED = ("drift_every", "non_finite")
_SAMPLED_PACKETS = 64


class Given(TypedDict, total=False):
    """The types of `attach`'s options."""

    channel: Callable[[Exchange], Any] | None
    seed: int
    packet_bytes: int
    layout: LayoutKind | None
    own_link: OwnLink
    rule: Rule
    no_survivor: NoSurvivor
    non_finite: NonFinite
    resync_every: int
    drift_every: int
    drift_alarm: float | None
    log_every: int
    loss_log: str | Path | None
    stale: Stale
    lossy_dimension: Literal["shard"] | None


@dataclass(frozen=True)
class Options:
    """The arguments of `attach` beside model and optimizer; it explains them, and has their defaults.

    Raises:
        ValueError: a value that no model could be attached with.
    """

    law: Law | None
    channel: Callable[[Exchange], Any] | None
    seed: int
    packet_bytes: int
    layout: LayoutKind
    own_link: OwnLink
    rule: Rule
    no_survivor: NoSurvivor
    non_finite: NonFinite
    resync_every: int
    drift_every: int
    drift_alarm: float | None
    log_every: int
    loss_log: str | Path | None
    stale: Stale
    lossy_dimension: Literal["shard"] | None

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        size, alarm = self.packet_bytes, self.drift_alarm
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"packet_bytes must be a positive int, got {size!r}")
        for name in _EVERY:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be an int, 0 for never, got {value!r}")
        if self.lossy_dimension not in (None, "shard"):
            raise ValueError(f"lossy_dimension must be 'shard' or None, got {self.lossy_dimension!r}")
        if alarm is not None and not (isinstance(alarm, int | float) and alarm > 0):
            raise ValueError(f"drift_alarm must be positive or None, got {alarm!r}")
        if (self.law is None) == (self.channel is None):
            raise ValueError(
                f"exactly one of law and channel must be given, got law={self.law!r} and channel={self.channel!r}"
            )
        if self.law is None and self.rule == "inverse_probability":
            raise ValueError("rule must not be 'inverse_probability' without a law, which knows the probabilities")

    @property
    def settings(self) -> dict[str, Any]:
        """What a job that resumes must have the same."""
        return {"law": repr(self.law)} | {name: getattr(self, name) for name in _SETTINGS}

    @property
    def agreed(self) -> dict[str, Any]:
        """What all ranks must have the same."""
        return self.settings | {name: getattr(self, name) for name in _AGREED}

    def require_for(self, *, sharded: bool) -> None:
        """Raises ValueError if an option is for another kind of model."""
        if sharded and self.layout != "dim0":
            raise ValueError(f"layout must be 'dim0' for FSDP2, which cuts every tensor there, got {self.layout!r}")
        if not sharded and self.layout != "tensors":
            raise ValueError(
                f"layout must be 'tensors' for DDP, whose optimizers see whole tensors, got {self.layout!r}"
            )
        for name, default in () if sharded else (("stale", "device"), ("lossy_dimension", None)):
            if getattr(self, name) != default:
                raise ValueError(f"{name} must be {default!r} for DDP, got {getattr(self, name)!r}")

    # The parts of an attachment --------------------------------------------------------------------------------------

    def make_layout(self, parameters: list[torch.nn.Parameter], ranks: int) -> Layout:
        """Raises ValueError if a packet holds no element."""
        size = parameters[0].element_size()
        if self.packet_bytes < size:
            raise ValueError(f"packet_bytes must be at least {size} for {parameters[0].dtype}, got {self.packet_bytes}")
        return Layout.build([tuple(p.shape) for p in parameters], ranks, self.packet_bytes // size, self.layout)

    def make_arrivals(self, exchange: Exchange) -> Arrivals:
        """What this rank receives under the law, which is given; raises what it raises for so many ranks."""
        assert self.law is not None
        check_law(self.law, exchange.ranks)
        arrivals = Arrivals(
            self.law, exchange.owner_P.tolist(), exchange.ranks, self.seed, self.own_link, receiver=exchange.rank
        )
        return arrivals.to(exchange.owner_P.device)

    def make_stages(self, exchange: Exchange) -> Stages:
        """The two stages of this rank, over simulated losses or a channel of the user's; raises what the law raises."""
        if self.law is not None:
            arrivals = self.make_arrivals(exchange)
            return self.stages_of(exchange, None, ProcessChannel(exchange, arrivals), arrivals)
        assert self.channel is not None
        channel = self.channel(exchange)
        if self.packet_bytes > (largest := getattr(channel, "largest_packet", self.packet_bytes)):
            raise ValueError(f"packet_bytes must be at most {largest} over these links, got {self.packet_bytes}")
        return self.stages_of(exchange, None, channel, None)

    def stages_of(
        self, exchange: Exchange, packet_P: torch.Tensor | None, channel: Any, arrivals: Arrivals | None
    ) -> Stages:
        """The stages of some packets, or of all."""
        owner_P = exchange.owner_P if packet_P is None else exchange.owner_P[packet_P]
        own_P, probability_NQ = owner_P == exchange.rank, None
        if self.rule == "inverse_probability":
            assert arrivals is not None
            probability_NQ = arrivals.gradient_probability().to(owner_P.device)
            if packet_P is not None:
                probability_NQ = probability_NQ[:, exchange.place_P[packet_P[own_P]]]
        return Stages(
            owner_P[own_P],
            own_P[None],
            channel,
            self.rule,
            self.no_survivor,
            probability_NQ,
            non_finite="carry",  # one rank must not raise alone: the hook lets all of them know
        )

    def make_telemetry(self, exchange: Exchange, quiet: bool = False) -> Telemetry:
        """Raises what `LossLog` raises. `quiet`: another rank logs the same."""
        packets = len(exchange.owner_P)
        sample_S = torch.linspace(0, packets - 1, min(_SAMPLED_PACKETS, packets)).long().to(exchange.owner_P.device)
        return Telemetry(
            exchange, self.law, sample_S, self.drift_every, self.drift_alarm,
            0 if quiet else self.log_every, None if self.loss_log is None or quiet else LossLog(self.loss_log),
        )  # fmt: skip
