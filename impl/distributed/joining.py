"""Uneven inputs: a rank whose data has ended goes on as an owner, for torch's `Join` context manager.

It contributes zero gradients (DDP's own convention: the mean is over all ranks), steps what it owns with the learning
rates of those that go on, and sends its parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.distributed.algorithms.join import JoinHook
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from lossproof.impl.distributed.attachment import Attachment
    from lossproof.impl.distributed.ddp import DdpHooks

_HINT = "write `with Join([model, attachment])` from torch.distributed.algorithms.join"


def refuse_bare_join(model: DistributedDataParallel) -> None:
    def join(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"model.join() knows nothing of the owners, who must go on stepping: {_HINT}")

    model.join = join  # type: ignore[method-assign]


def allow_bare_join(model: DistributedDataParallel) -> None:
    del model.join


def require_both(at: Attachment) -> None:
    """Raises RuntimeError if the model has entered a `Join` without the attachment, or behind it.

    A `Join` that has ended leaves its configuration behind, so only a new one says something.
    """
    now = at.model._join_config, at._join_config
    new = [config for config, known in zip(now, at.join_configs, strict=True) if config is not known]
    if any(config.enable for config in new) and (len(new) == 1 or now[1].is_first_joinable):
        raise RuntimeError(f"Join must be given the model first and then its attachment: {_HINT}")
    at.join_configs = now


def agree(at: Attachment, hooks: DdpHooks) -> None:
    """Before a step inside `Join`: a rank that has joined learns what the others do."""
    if not at._join_config.enable:
        return
    options = [
        {k: v for k, v in group.items() if k != "params" and isinstance(v, bool | int | float | tuple | None)}
        for group in at.optimizer.param_groups
    ]
    absent = [number for number, parameter in enumerate(at.parameters) if parameter.grad is None]
    views = at.exchange.objects((at.joined, hooks.changed, options, absent))
    if not any(joined for joined, *_ in views):
        return
    if any(changed for _, changed, *_ in views):
        raise RuntimeError(
            "gradients were changed between backward and step (clipped, scaled) while a rank without inputs of its own "
            "steps the plain ones: even out the inputs instead"
        )
    if at.joined:
        _, _, options, absent = next(view for view in views if not view[0])
        for group, values in zip(at.optimizer.param_groups, options, strict=True):
            group.update(values)
        for number in absent:
            at.parameters[number].grad = None


class AttachmentJoinHook(JoinHook):
    """What a rank that has joined does in every step of the others."""

    def __init__(self, at: Attachment, hooks: DdpHooks, divide_by_initial_world_size: bool = True, **_: Any) -> None:
        if not divide_by_initial_world_size:
            raise ValueError("divide_by_initial_world_size must be True: ranks that have joined contribute zeros")
        self.at, self.hooks = at, hooks

    def main_hook(self) -> None:
        if not self.hooks.delivered:
            return  # the others accumulate under no_sync
        if not self.hooks.finite:
            raise RuntimeError(
                "gradients are not finite while a rank has no inputs of its own and cannot see whether the others skip "
                "the step: even out the inputs instead"
            )
        at = self.at
        at.joined = True
        assert self.hooks.estimate_QE is not None
        for number in at.owned:
            at.parameters[number].grad = at.own_view(self.hooks.estimate_QE, number).clone()
        at.optimizer.step()
        for number in at.owned:
            at.parameters[number].grad = None

    @torch.no_grad()
    def post_hook(self, is_last_joiner: bool) -> None:
        """DDP has just made every replica one rank's; the owners put theirs back and send them to all."""
        self.at.joined = False
        self.at.resync(from_last_step=True)
