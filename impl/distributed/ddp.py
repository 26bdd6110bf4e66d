"""How DDP calls the two stages: a communication hook for the gradients, hooks around `optimizer.step` for the rest.

A rank steps only the tensors that it owns. In place of any other tensor's gradient it holds a stand-in: that tensor's
aggregated L2 norm, then zeros. So `clip_grad_norm_` finds the norm of the whole gradient on every rank, a GradScaler
finds an overflow on every rank, and whatever scales the gradients scales the stand-ins alike.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch._C._distributed_c10d import GradBucket
from torch.autograd.graph import get_gradient_edge
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from lossproof.impl.aggregate import NonFiniteGradient
from lossproof.impl.distributed import joining

if TYPE_CHECKING:
    from lossproof.impl.distributed.attachment import Attachment


class Switch:
    """What DDP calls for every bucket; a model takes a hook only once, so it stays, and its target changes."""

    target: DdpHooks | None = None

    def __init__(self, model: DistributedDataParallel) -> None:
        self.group = model.process_group
        # Weakly, for the garbage collector does not see the cycle through the reducer, which keeps the hook.
        # DDP reads the annotations of a hook's parameters at run time, so they are better absent.
        model.register_comm_hook(weakref.ref(model), lambda model, bucket: model()._lossproof(bucket))

    def __call__(self, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        if self.target is None:
            return allreduce_hook(self.group, bucket)
        return self.target.on_bucket(bucket)


class DdpHooks:
    """The state of one attachment between the calls that the framework makes."""

    def __init__(
        self, attachment: Attachment, model: DistributedDataParallel, optimizer: torch.optim.Optimizer
    ) -> None:
        self.attachment, self.model, self.optimizer = attachment, model, optimizer
        self.delivered = False  # gradients reached their owners and no step has used them
        self.clean = True  # no gradient that the hook delivered is left in .grad
        self.finite = True  # what was delivered last
        self.estimate_QE: torch.Tensor | None = None
        self._versions = 0  # of the parameters when gradients were delivered
        self._payload_1PE: torch.Tensor | None = None
        self._buckets: list[tuple[GradBucket, list[int], torch.futures.Future[torch.Tensor]]] = []
        self._stand_ins: dict[torch.nn.Parameter, torch.Tensor | None] = {}

    def install(self) -> None:
        if not hasattr(self.model, "_lossproof"):
            self.model._lossproof = Switch(self.model)  # type: ignore[assignment]
        self._switch: Switch = self.model._lossproof  # type: ignore[assignment]
        self._switch.target = self
        # not the parameters' own hooks, which `torch.autograd.grad` calls too; nothing else keeps these nodes alive
        self._nodes = [get_gradient_edge(parameter).node for parameter in self.attachment.parameters]
        before = weakref.WeakMethod(self._before_gradient)  # weakly, for neither does it see the hooks of a node
        self._handles = [node.register_prehook(lambda gradients: _call(before, gradients)) for node in self._nodes]
        self._handles.append(self.optimizer.register_step_pre_hook(self._before_step))
        self._handles.append(self.optimizer.register_step_post_hook(self._after_step))

    def remove(self) -> None:
        self._switch.target = None
        for handle in self._handles:
            handle.remove()

    def drop_gradients(self) -> None:
        """Before plain DDP goes on, which would take what is left in .grad for gradients."""
        if self.delivered and any(parameter.grad is not None for parameter in self.attachment.parameters):
            raise RuntimeError(
                "gradients that no step has used are left, most of them on their owners only: call optimizer.step(), "
                "or optimizer.zero_grad(), before detach()"
            )
        for parameter in self.attachment.parameters:
            parameter.grad = None

    def _before_gradient(self, gradients: Any) -> None:
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
        self._settle()

    def _settle(self) -> None:
        """New gradients come, and nobody used the last ones: the user, or a GradScaler, skipped a step."""
        if not self.delivered:
            return
        self.delivered = False
        if self._versions != self._version():
            raise RuntimeError(
                "the parameters have changed since the last backward pass, but not by the step() of the attached "
                "optimizer: only that one takes the owners' parameters to the other ranks"
            )
        self.attachment.skip()

    def _version(self) -> int:
        return sum(parameter._version for parameter in self.attachment.parameters)

    def parameters_set(self) -> None:
        """The attachment itself has changed the parameters."""
        self._versions = self._version()

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
        at.channel.send(self._payload_1PE, [at.packets[number] for number in numbers])
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
        joining.require_both(at)
        self._buckets.clear()  # an error may have left some
        at.exchange.forget()
        at.open_step()
        self._settle()
        if self._payload_1PE is None:
            self._payload_1PE = like.new_zeros(1, at.layout.packets, at.layout.packet_elements)

    def _deliver(self) -> None:
        at, layout = self.attachment, self.attachment.layout
        assert self._payload_1PE is not None
        self.delivered = True
        self.parameters_set()
        norms = self._payload_1PE.new_zeros(len(layout.shapes) + 1)  # the last counts the ranks that cannot go on
        own: dict[int, torch.Tensor] = {}
        problem = ValueError("another rank could not aggregate what arrived: see no_survivor='raise'")
        try:
            self.estimate_QE, _ = at.stages.reduce(self._payload_1PE)
            own = {number: at.own_view(self.estimate_QE, number) for number in at.owned}
        except ValueError as error:
            problem, norms[-1] = error, 1
        for number, estimate in own.items():
            norms[number] = _norm(estimate)
        at.exchange.total(norms)
        if norms[-1]:
            raise problem
        self.finite = bool(norms.isfinite().all())
        if at.options.non_finite == "raise" and not self.finite:
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
        self.clean = False

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
        joining.agree(at, self)
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


def _call(method: Callable[[], Callable[[Any], None] | None], gradients: Any) -> None:
    if (alive := method()) is not None:
        alive(gradients)


def _norm(estimate: torch.Tensor) -> torch.Tensor:
    """The L2 norm as `clip_grad_norm_` takes it, but finite wherever all elements are."""
    norm: torch.Tensor = torch.linalg.vector_norm(estimate)
    if not bool(norm.isfinite()) and bool(torch.linalg.vector_norm(estimate, torch.inf).isfinite()):
        return norm.new_tensor(torch.finfo(norm.dtype).max)
    return norm
