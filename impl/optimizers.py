"""Optimizers by name: those of `torch.optim`, and Muon with AdamW beside it for what is not a matrix."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch

NamedParameters = list[tuple[str, torch.nn.Parameter]]

_OFFERED = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)
    if name not in ("Optimizer", "LBFGS", "SparseAdam")  # these need closures or sparse gradients
}
_WHOLE_TENSORS = ("adafactor", "muon")
_LR = {"adam": 1e-3, "adamw": 1e-3, "muon": 1e-3, "sgd": 0.1}  # for the small models of `lossproof train`


def make_optimizer(
    name: str, lr: float | None = None, layout: str = "tensors"
) -> tuple[Callable[[NamedParameters], torch.optim.Optimizer], float]:
    """The maker of a torch optimizer and the learning rate it will use.

    Args:
        name: any optimizer class of `torch.optim`, in any case; `muon` is Muon for matrices and AdamW for the rest.
        lr: None for a default that suits a small language model (adam, adamw, muon, sgd), else torch's own.
        layout: `adafactor` and `muon` look at whole tensors, so they need the layout `tensors`.

    Raises:
        TypeError, ValueError: an unknown name, a learning rate that is not positive and finite, an unfit layout.

    >>> make_optimizer("AdamW")[1]
    0.001
    """
    key = name.lower()
    if key not in _OFFERED:
        raise ValueError(f"optimizer must be one of {', '.join(sorted(_OFFERED))}, got {name!r}")
    if key in _WHOLE_TENSORS and layout != "tensors":
        raise ValueError(f"layout must be 'tensors' for {key}, whose update depends on whole tensors, got {layout!r}")
    kind: Any = MuonAndAdamW if key == "muon" else _OFFERED[key]
    if lr is None:
        lr = _LR[key] if key in _LR else float(inspect.signature(kind).parameters["lr"].default)
    if isinstance(lr, bool) or not isinstance(lr, int | float):
        raise TypeError(f"lr must be a number, got {lr!r}")
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be positive and finite, got {lr!r}")
    return (lambda named: kind(named, lr=lr)), lr


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the matrices, AdamW for the other parameters, at one learning rate: Muon takes matrices only.

    The parts share the state and the parameter groups of the whole, which schedulers, checkpoints and hooks see.
    """

    def __init__(self, named: NamedParameters, lr: float) -> None:
        super().__init__([parameter for _, parameter in named], {"lr": lr})
        self.parts = [
            torch.optim.Muon([(n, p) for n, p in named if p.ndim == 2], lr=lr, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([(n, p) for n, p in named if p.ndim != 2], lr=lr),
        ]
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self._share()

    def _share(self) -> None:
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "parts" in vars(self):
            self._share()
