"""The HF Trainer goes lossy with one callback; the script stays an ordinary Trainer script under `torchrun`."""

from __future__ import annotations

import gc
import inspect
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from lossproof.impl.distributed.attachment import Attachment, attach
from lossproof.impl.distributed.telemetry import PHASES
from lossproof.theory.laws import Law

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ImportError("LossyCallback needs transformers and accelerate: pip install 'lossproof[llm]'") from error


class LossyCallback(TrainerCallback):  # type: ignore[misc]
    """`attach` for the Trainer: it trains over lossy links from `train()` on; everything else stays as it is.

    What the Trainer evaluates, saves and ends with is the owners' model: before each of these the callback consolidates
    on all ranks, and a resync is part of that. `resume_from_checkpoint` goes on bit for bit. Under fp16 `non_finite` is
    `"carry"` unless given. The training log gains `gradients_lost` and `parameters_lost`, the shares lost so far on
    the links into rank 0, and `no_survivor`, its own packets without a survivor.

    A callback of yours that asks for saving or evaluation comes before this one in `callbacks`.

    Args:
        law, options: as `attach` takes them.

    Attributes:
        attachment: the `Attachment`, once training has begun; another `train()` of the same Trainer goes on with it.

    Raises:
        TypeError: an option that `attach` does not have.
        TypeError, ValueError: from `train()`, before the first step, where this job cannot be trained lossily.

    >>> Trainer(model, args, train_dataset=data, callbacks=[LossyCallback(Bernoulli(0.1))]).train()  # doctest: +SKIP
    """

    def __init__(self, law: Law | None = None, **options: Any) -> None:
        inspect.signature(attach).bind(None, None, law, **options)
        self.law, self.options = law, options
        self.attachment: Attachment | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        model = _wrapped_model(args, state)
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper takes no hooks
        held = self.attachment
        if held is not None and held.model is model and held.optimizer is optimizer:
            return
        options = {"non_finite": "carry"} if args.fp16 else {}
        self.attachment = attach(model, optimizer, self.law, **options | self.options)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._consolidate_for(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._consolidate_for(control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.attachment is not None
        if not self.attachment.consolidated:
            raise RuntimeError(
                f"the checkpoint of step {state.global_step} is rank 0's stale replica, not the owners' model: it was "
                "asked for by a callback behind LossyCallback, which must come last in the Trainer's callbacks"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.attachment is not None
        self.attachment.resync()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.attachment is None or not logs or "loss" not in logs:  # evaluation, the summary at the end
            return
        counts = self.attachment.telemetry
        offered, lost = counts.offered_2N.sum(1), counts.lost_2N.sum(1)
        found: dict[str, float] = {
            f"{phase}_lost": float(lost[k]) / max(1, int(offered[k])) for k, phase in enumerate(PHASES)
        }
        found["no_survivor"] = counts.no_survivor
        logs.update(found)
        state.log_history[-1].update(found)

    def _consolidate_for(self, control: Any) -> None:
        # an evaluation may decide that the model is the best so far and is saved at once
        if control.should_save or control.should_evaluate:
            assert self.attachment is not None
            self.attachment.consolidate()


def _wrapped_model(args: Any, state: Any) -> DistributedDataParallel:
    """What the Trainer wrapped its model in, or an error if that is not DDP among several ranks.

    The Trainer shows a callback the bare model only; it is found as the one object of its class with this state.
    """
    if args.world_size < 2:
        raise ValueError(
            "the Trainer must run on at least two ranks, got one, which has no links: start the script with "
            "`torchrun --nproc-per-node 2`"
        )
    if args.auto_find_batch_size:
        raise ValueError("auto_find_batch_size must be off: it wraps the model anew in the midst of the training")
    if args.enable_jit_checkpoint:
        raise ValueError("enable_jit_checkpoint must be off: it saves without the owners' model being gathered first")
    trainer = next(object for object in gc.get_objects() if issubclass(type(object), Trainer) and object.state is state)
    model = getattr(trainer.model_wrapped, "_orig_mod", trainer.model_wrapped)  # torch.compile's wrapper is outermost
    if not isinstance(model, DistributedDataParallel):
        raise TypeError(
            f"the Trainer must wrap its model in DistributedDataParallel, got {type(model).__name__}: FSDP, DeepSpeed "
            "and tensor parallelism move gradients in ways of their own, which DDP's communication hook does not see"
        )
    return model
