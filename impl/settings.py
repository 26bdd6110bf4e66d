"""The settings of a training run: all that determines its digits, given the text."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from lossproof.impl.aggregate import NoSurvivor, Rule
from lossproof.impl.layout import LayoutKind
from lossproof.impl.loss import OwnLink
from lossproof.impl.optimizers import make_optimizer
from lossproof.impl.philox import split_seed
from lossproof.theory.laws import Bernoulli, Law

Transport = Literal["simulated", "udp"]
_CHOICES = {
    "rule": Rule, "no_survivor": NoSurvivor, "own_link": OwnLink, "layout": LayoutKind, "transport": Transport,
}  # fmt: skip
_NO_LOSS = Bernoulli(0)
_COUNTS = (
    "ranks", "steps", "packet_bytes", "batch", "context", "hidden", "layers", "heads", "intermediate", "validation",
)  # fmt: skip


_SIZES = ("hidden", "layers", "heads", "intermediate")


@dataclass(frozen=True)
class Settings:
    """All that determines a run, given the text and the files in `model`: equal settings, equal digits.

    Args:
        law: the loss law of both phases. Two laws are the same for a resume if they print the same.
        ranks, seed, own_link: see `Arrivals`; the seed also sets the model's start and the order of the text.
        steps: rounds; the learning rate warms up over a twentieth of them, then follows a cosine to zero.
        optimizer, lr: see `make_optimizer`.
        rule, no_survivor: see `aggregate`. layout, packet_bytes: see `Layout`.
        batch, context: sequences of a rank in each step, and tokens of a sequence.
        hidden, layers, heads, intermediate: the sizes of the LLaMA that is trained if `model` is None.
        model: a folder of transformers, with `config.json` and, if training starts from them, the weights; the sizes
            are left alone then. Its tokenizer, if it has one, is used (see `tokenized`).
        validation: tokens of the validation text, about.
        device: where the job runs.
        transport: `simulated`, or `udp`, where losses are the network's, not the law's: see `UdpChannel`.

    Raises:
        TypeError, ValueError: a value that cannot be used.
    """

    law: Law = _NO_LOSS
    ranks: int = 16
    seed: int = 0
    steps: int = 300
    optimizer: str = "adamw"
    lr: float | None = None
    rule: Rule = "survivor_mean"
    no_survivor: NoSurvivor = "zero"
    own_link: OwnLink = "reliable"
    layout: LayoutKind = "tensors"
    packet_bytes: int = 1024
    batch: int = 1
    context: int = 128
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    intermediate: int = 172
    validation: int = 8192
    device: str = "cpu"
    model: str | None = None
    transport: Transport = "simulated"

    def __post_init__(self) -> None:
        if not isinstance(self.law, Law):
            raise TypeError(f"law must offer marginal, age_tail and sample, got {self.law!r}")
        split_seed(self.seed)
        for name in _COUNTS:
            value, least = getattr(self, name), 2 if name == "context" else 1  # one token predicts nothing
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {getattr(self, name)!r}")
        if self.model is not None:
            if not Path(self.model, "config.json").is_file():
                raise ValueError(f"model must be a folder with the config.json of transformers, got {self.model!r}")
            for name in _SIZES:
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ValueError(
                        f"{name} must not be given with a model, which has its own, got {getattr(self, name)}"
                    )
        if self.transport == "udp":
            for name, only in (("law", _NO_LOSS), ("own_link", "reliable"), ("layout", "tensors")):
                if getattr(self, name) != only:
                    raise ValueError(f"{name} must be {only!r} over udp, got {getattr(self, name)!r}")
            if self.rule == "inverse_probability":
                raise ValueError("rule must not be 'inverse_probability' over udp: no law tells the probabilities")
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden must be a multiple of twice heads={self.heads}, got {self.hidden}")
        make_optimizer(self.optimizer, self.lr, self.layout)
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # torch raises either for a device that it lacks
            raise ValueError(f"device must be one that torch can use here, got {self.device!r} ({error})") from None

    def record(self) -> dict[str, Any]:
        """Plain values for reports and checkpoints: the law as it prints, the learning rate that is used."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        lr = make_optimizer(self.optimizer, self.lr, self.layout)[1]
        return values | {"law": repr(self.law), "optimizer": self.optimizer.lower(), "lr": lr}
