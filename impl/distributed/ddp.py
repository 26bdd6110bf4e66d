"""How DDP calls the two stages: a communication hook for the gradients, hooks around `optimizer.step` for the rest.

A rank steps only the tensors that it owns. In place of any other tensor's gradient it holds a stand-in: that tensor's
aggregated L2 norm, then zeros. So `clip_grad_norm_` finds the norm of the whole gradient on every rank, a GradScaler
finds an overflow on every rank, and whatever scales the gradients scales the stand-ins alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from lossproof.impl.aggregate import NonFiniteGradient

if TYPE_CHECKING:
    from lossproof.impl.distributed.attachment import Attachment


class Switch:
    """What DDP calls for every bucket; a model takes a hook only once, so it stays, and its target changes."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self.model, self.target = model, None
        # DDP reads the annotations of a hook's parameters at run time, so they are better absent
        model.register_comm_hook(self, lambda state, bucket: state(bucket))

    target: DdpHooks | None

    def __call__(self, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        if self.target is None:
            return allreduce_hook(self.model.process_group, bucket)
        return self.target.on_bucket(bucket)


class DdpHooks:
    """The state of one attachment between the calls that the framework makes."""

    def __init__(
        self, attachment: Attachment, model: DistributedDataParallel, optimizer: torch.optim.Optimizer
    ) -> None:
        self.attachment, self.model, self.optimizer = attachment, model, optimizer
        self.delivered = False  # gradients reached their owners and no step has used them
        self.clean = True  # no gradient that the hook delivered is left in .grad
        self.estimate_QE: torch.Tensor | None = None
        self._payload_1PE: torch.Tensor | None = None
        self._buckets: list[tuple[GradBucket, list[int], torch.futures.Future[torch.Tensor]]] = []
        self._stand_ins: dict[torch.nn.Parameter, torch.Tensor | None] = {}
        if not hasattr(model, "_lossproof"):
            model._lossproof = Switch(model)  # type: ignore[assignment]
        self._switch: Switch = model._lossproof  # type: ignore[assignment]
        self._switch.target = self
        self._handles = [p.register_hook(self._before_gradient) for p in attachment.parameters]  # type: ignore[no-untyped-call]
        self._handles.append(optimizer.register_step_pre_hook(self._before_step))
        self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def remove(self) -> None:
        self._switch.target = None
        for handle in self._handles:
            handle.remove()

    def _before_gradient(self, gradient: torch.Tensor) -> None:
        """The first gradient of a backward pass: nothing that was delivered may be there for it to be added to."""
        if self.clean:
            return
        for name, parameter in zip(self.attachment.names, self.attachment.parameters, strict=True):
            if parameter.grad is not None and bool(parameter.grad.any()):
                raise RuntimeError(
                    f"a second backward pass would add to the aggregated gradient of {name}, which only its owner has: "
                    "accumulate under model.no_sync(), and call optimizer.zero_grad() after every step"
                )
        self.clean = True

    @torch.no_grad()
    def on_bucket(self, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Stage 1: the bucket's packets leave at once; with the last bucket all arrive and are aggregated."""
        at, layout = self.attachment, self.attachment.layout
        gradients = bucket.gradients()
        if bucket.index() == 0:
            self._open(gradients[0])
        assert self._payload_1PE is not None
        numbers = [at.number[parameter] for parameter in bucket.parameters()]
        for number, gradient in zip(numbers, gradients, strict=True):
            layout.view(self._payload_1PE[0], layout.pieces[number]).copy_(gradient)
        at.channel.send(self._payload_1PE, [packet for number in numbers for packet in at.packets[number]])
        device = gradients[0].device
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future(
            devices=[device] if device.type == "cuda" else None
        )
        self._buckets.append((bucket, numbers, future))
        if bucket.is_last():
            self._deliver()
        return future

    def _open(self, like: torch.Tensor) -> None:
        at = self.attachment
        at.require_joinable()
        self._buckets.clear()  # an error may have left some
        at.exchange.forget()
        if self.delivered:  # the optimizer was not called: a GradScaler skipped a step
            at.skip()
            self.delivered = False
        if self._payload_1PE is None:
            self._payload_1PE = like.new_zeros(1, at.layout.packets, at.layout.packet_elements)

    def _deliver(self) -> None:
        at, layout = self.attachment, self.attachment.layout
        assert self._payload_1PE is not None
        self.estimate_QE, _ = at.stages.reduce(self._payload_1PE)
        own = {number: at.own_view(self.estimate_QE, number) for number in at.owned}
        norms = self.estimate_QE.new_zeros(len(layout.shapes))
        for number, estimate in own.items():
            norms[number] = _norm(estimate)
        at.exchange.total(norms)
        if at.non_finite == "raise" and not bool(norms.isfinite().all()):
            self.delivered = True
            raise NonFiniteGradient(
                f"the aggregated gradient of {at.names[int((~norms.isfinite()).nonzero()[0])]} is not finite; pass "
                "non_finite='carry' to attach if a GradScaler deals with that"
            )
        for bucket, numbers, future in self._buckets:
            for number, result in zip(numbers, bucket.gradients(), strict=True):
                if number in own:
                    result.copy_(own[number])
                else:
                    result.zero_().view(-1)[:1] = norms[number]
            future.set_result(bucket.buffer())
        self._buckets.clear()
        self.delivered, self.clean = True, False

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is not None:
            raise ValueError(
                "closure must be None: it would compute gradients again inside the step, where only owners have them"
            )
        at = self.attachment
        if not self.delivered and any(parameter.grad is not None for parameter in at.parameters):
            raise RuntimeError(
                "optimizer.step() was called with gradients that were never reduced: call the DDP model itself, not "
                "its module, and run the last backward pass before a step outside no_sync()"
            )
        at.before_step(self.changed)
        for number, parameter in enumerate(at.parameters):
            if number not in at.owned:
                self._stand_ins[parameter], parameter.grad = parameter.grad, None

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for parameter, stand_in in self._stand_ins.items():
            parameter.grad = stand_in
        self._stand_ins.clear()
        if self.delivered:
            self.delivered = False
            self.attachment.after_step()

    @property
    def changed(self) -> bool:
        """Whether this rank's own gradients are no longer what was delivered: scaled, clipped, or otherwise."""
        at = self.attachment
        return self.delivered and self.estimate_QE is not None and any(
            grad is not None and not torch.equal(grad, at.own_view(self.estimate_QE, number).to(grad.dtype))
            for number in at.owned
            for grad in [at.parameters[number].grad]
        )  # fmt: skip


def _norm(estimate: torch.Tensor) -> torch.Tensor:
    """The L2 norm as `clip_grad_norm_` takes it, but finite wherever all elements are."""
    norm: torch.Tensor = torch.linalg.vector_norm(estimate)
    if not bool(norm.isfinite()) and bool(torch.linalg.vector_norm(estimate, torch.inf).isfinite()):
        return norm.new_tensor(torch.finfo(norm.dtype).max)
    return norm
