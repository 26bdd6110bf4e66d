"""Saving and loading: a rank holds a part of the optimizer's state and of the protocol's, and a file must say which.

The attachment's state travels inside the optimizer's own state dict, so that whoever saves an optimizer saves it, and
whoever loads the file of another rank is told.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lossproof.impl.checkpoint import check_same

if TYPE_CHECKING:
    from lossproof.impl.distributed.attachment import Attachment

_KEY = "lossproof"


@dataclass(frozen=True)
class Consolidated:
    """The own states of all ranks, on the rank that saves; None on the others."""

    ranks: list[dict[str, Any]] | None


def own_state(at: Attachment) -> dict[str, Any]:
    """What only this rank knows: the memory of its links, its held estimates, its counts, which parameters it owns."""
    return {
        "stages": at.stages.state_dict(),
        "telemetry": at.telemetry.state_dict(),
        # gradients that no step has used before the state is saved are those of a skipped step
        "skipped": at.stages.arrived["gradients"].cpu() if at.hooks.delivered else None,
        "fingerprint": fingerprint(at),
    }


def fingerprint(at: Attachment) -> int:
    """A checksum of the parameters that this rank owns."""
    return zlib.crc32(at.fresh().cpu().view(torch.uint8).numpy().tobytes())


def require_fingerprint(at: Attachment) -> None:
    """Raises ValueError on all ranks unless the model is the one that was saved with the loaded state."""
    if at.expected is None:
        return
    expected, at.expected = at.expected, None
    wrong = [rank for rank, good in enumerate(at.exchange.objects(expected == fingerprint(at))) if not good]
    if wrong:
        raise ValueError(
            f"the model must be the one that was saved with the optimizer's state, but what ranks {wrong} own differs: "
            "load the files of single ranks into the module after it was wrapped in DistributedDataParallel, which "
            "copies rank 0's model to all, or consolidate() before rank 0 saves"
        )


def consolidate(at: Attachment, to: int) -> Consolidated:
    """Gathers optimizer state and own states on rank `to`, whose optimizer then holds the state of all parameters."""
    if at.model.broadcast_buffers:  # as DDP does before the next forward pass: a file must not hold another rank's
        for buffer in at.model.module.buffers():
            at.exchange.spread(buffer)
    mine = (own_state(at), {number: _on_cpu(at.optimizer.state[at.parameters[number]]) for number in _with_state(at)})
    every = at.exchange.objects(mine, to)
    if not every:
        return Consolidated(None)
    for _, states in every:
        _adopt(at, states)
    return Consolidated([own for own, _ in every])


def share_state(at: Attachment) -> None:
    """Gives all ranks the optimizer state of all parameters."""
    for states in at.exchange.objects(
        {number: _on_cpu(at.optimizer.state[at.parameters[number]]) for number in _with_state(at)}
    ):
        _adopt(at, states)


def drop_foreign_state(at: Attachment) -> None:
    """Optimizer state of parameters that others own goes out of date with the next step."""
    for number, parameter in enumerate(at.parameters):
        if number not in at.owned:
            at.optimizer.state.pop(parameter, None)


def load(at: Attachment, state: dict[str, Any]) -> None:
    """Loads this rank's part, or raises ValueError on all ranks if any of them cannot."""
    problem, rank = None, at.exchange.rank
    try:
        check_same(state["settings"], at.settings)
        if state["ranks"] is None and state["rank"] != rank:
            raise ValueError(
                f"state must be rank {rank}'s own or a consolidated one, got rank {state['rank']}'s, which lacks what "
                "the others own: call attachment.consolidate() on all ranks before rank 0 saves"
            )
    except ValueError as error:
        problem = str(error)
    problems = [found for found in at.exchange.objects(problem) if found]
    if problems:
        raise ValueError(problems[0])
    own = state["own"] if state["ranks"] is None else state["ranks"][rank]
    at.stages.load_state_dict(own["stages"])
    at.telemetry.load_state_dict(own["telemetry"])
    at.telemetry.resume_log(at.stages.step_number)
    at.hooks.delivered = False
    if own["skipped"] is not None:
        at.stages.arrived["gradients"] = own["skipped"]
        at.skip()
    at.begin(own["fingerprint"])


def ride_along(at: Attachment) -> Callable[[], None]:
    """Puts the attachment's state into the optimizer's state dict from now on; returns what undoes that."""
    optimizer = at.optimizer

    def saved(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        state_dict["param_groups"][0][_KEY] = at.state_dict()

    def loaded(_: torch.optim.Optimizer) -> None:
        state = optimizer.param_groups[0].get(_KEY)
        if state is not None:
            load(at, state)
            del optimizer.param_groups[0][_KEY]
        drop_foreign_state(at)

    loaded(optimizer)  # a state dict may have been loaded before
    handles = [
        optimizer.register_state_dict_post_hook(saved),
        optimizer.register_load_state_dict_post_hook(loaded),
    ]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def _with_state(at: Attachment) -> list[int]:
    return [number for number in sorted(at.owned) if at.parameters[number] in at.optimizer.state]


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v.detach().cpu() if isinstance(v, torch.Tensor) else v for k, v in state.items()}


def _adopt(at: Attachment, states: dict[int, dict[str, Any]]) -> None:
    """Enters another rank's optimizer state; counters stay where the optimizer keeps them, on the CPU."""
    for number, state in states.items():
        if number in at.owned:
            continue
        parameter = at.parameters[number]
        at.optimizer.state[parameter] = {
            k: v.to(parameter.device) if isinstance(v, torch.Tensor) and v.ndim else v for k, v in state.items()
        }
