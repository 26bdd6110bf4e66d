"""`attach`: an ordinary DDP or FSDP2 training job goes lossy, its model, optimizer and loop unchanged.

Legend: P packets, Q of them owned by this rank; E elements of a packet.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import torch
from torch.distributed.algorithms.join import Joinable, JoinHook
from torch.nn.parallel import DistributedDataParallel

from lossproof.impl.aggregate import NoSurvivor, Rule
from lossproof.impl.distributed import consolidation, joining
from lossproof.impl.distributed.ddp import DdpHooks
from lossproof.impl.distributed.exchange import Exchange
from lossproof.impl.distributed.options import Given, NonFinite, Options, Stale
from lossproof.impl.distributed.refusals import check_agreement, check_model, check_optimizer, is_sharded, trainable
from lossproof.impl.layout import LayoutKind
from lossproof.impl.loss import OwnLink
from lossproof.theory.laws import Law

if TYPE_CHECKING:  # half a second that DDP need not wait for
    from torch.distributed.fsdp import FSDPModule

    from lossproof.impl.distributed.fsdp.attachment import ShardedAttachment


@overload
def attach(
    model: DistributedDataParallel, optimizer: torch.optim.Optimizer, law: Law | None = None, **options: Unpack[Given]
) -> Attachment: ...
@overload
def attach(
    model: FSDPModule, optimizer: torch.optim.Optimizer, law: Law | None = None, **options: Unpack[Given]
) -> ShardedAttachment: ...
def attach(
    model: DistributedDataParallel | FSDPModule,
    optimizer: torch.optim.Optimizer,
    law: Law | None = None,
    *,
    channel: Callable[[Exchange], Any] | None = None,
    seed: int = 0,
    packet_bytes: int = 1024,
    layout: LayoutKind | None = None,
    own_link: OwnLink = "reliable",
    rule: Rule = "survivor_mean",
    no_survivor: NoSurvivor = "zero",
    non_finite: NonFinite = "raise",
    resync_every: int = 0,
    drift_every: int = 10,
    drift_alarm: float | None = None,
    log_every: int = 100,
    loss_log: str | Path | None = None,
    stale: Stale = "device",
    lossy_dimension: Literal["shard"] | None = None,
) -> Attachment | ShardedAttachment:
    """Lets a DDP or FSDP2 model train over lossy links from the next backward pass on; all ranks call it together.

    Every parameter tensor gets an owner, which alone steps it and holds its optimizer state. Gradients travel to owners
    packet by packet, and what is lost is missing from the owner's average; after `optimizer.step()` the owners'
    parameters travel to all ranks, and where a packet is lost the stale value stays. Buffers stay DDP's business.
    How that is under FSDP2 is said in `lossproof.impl.distributed.fsdp`; what follows is DDP.

    What works unchanged: any torch optimizer (for several, see `MuonAndAdamW`), `no_sync`, L2 clipping with
    `torch.nn.utils.clip_grad_norm_` (other norms: `Attachment.clip_grad_norm_`), autocast, GradScaler (with
    `non_finite="carry"`), schedulers, parameter groups, frozen and tied parameters. Uneven inputs:
    `with Join([model, attachment])`. Between `backward` and `step` a rank's `.grad` is the aggregated gradient for the
    tensors it owns; for others it is a stand-in with the same L2 norm, which clipping by value spoils: after that take
    `Attachment.clip_grad_norm_`. An optimizer whose step for one tensor looks at others sees those of its rank only.

    Args:
        law: draws the losses, for both phases. channel: makes a real network of an `Exchange` instead; exactly one of
            the two.
        seed, own_link: see `Arrivals`. Models that lose independently of each other need different seeds.
        packet_bytes, layout: see `Layout`; `tensors` for DDP and `dim0` for FSDP2. rule, no_survivor: see `aggregate`.
        non_finite: `raise` on all ranks if an aggregated gradient is not finite, or `carry` it, for a GradScaler.
        resync_every: every so many steps the parameters travel reliably (claim B12); 0 for never.
        drift_every, drift_alarm, log_every: see `Telemetry`.
        loss_log: a file to which a row is appended for every packet, for `lossproof fit` and `Trace.from_csv`; ranks of
            one machine may share it, jobs must not: the first step of a job that starts anew refuses a file that holds
            rows, and a job that resumes takes out the rows of steps that it will do again.
        stale, lossy_dimension: for FSDP2, see `lossproof.impl.distributed.fsdp`.

    Raises:
        TypeError, ValueError: what cannot be trained this way, before anything is changed.

    >>> attachment = attach(DistributedDataParallel(model), optimizer, Bernoulli(0.1))  # doctest: +SKIP
    """
    given = {name: value for name, value in locals().items() if name not in ("model", "optimizer")}
    options = Options(**given | {"layout": layout or ("dim0" if is_sharded(model) else "tensors")})
    options.require_for(sharded=is_sharded(model))
    if is_sharded(model):
        from lossproof.impl.distributed.fsdp.attachment import ShardedAttachment

        return ShardedAttachment(model, optimizer, options)
    check_model(model)
    check_optimizer(optimizer, trainable(model.module))
    return Attachment(model, optimizer, options)


class Attachment(Joinable):
    """The lossy protocol of one DDP model on this rank; made by `attach`. Dropping the object does not detach it.

    Attributes:
        telemetry: packets by step and link, drift; see `Telemetry`.
        layout, stages, exchange, channel: the parts that it is made of.
        names, parameters: the trainable parameters in the layout's order; `owned`: of this rank's, by
            number, the first packet among its own.
    """

    def __init__(self, model: DistributedDataParallel, optimizer: torch.optim.Optimizer, options: Options) -> None:
        super().__init__()
        self.model, self.optimizer, self.options = model, optimizer, options
        self.names = [name for name, _ in trainable(model.module)]
        self.parameters = [parameter for _, parameter in trainable(model.module)]
        self.number: dict[torch.Tensor, int] = {parameter: number for number, parameter in enumerate(self.parameters)}
        group = model.process_group
        self.layout = options.make_layout(self.parameters, group.size())
        E = self.layout.packet_elements
        self.packets = [range(p.position // E, -(-(p.position + p.stop - p.start) // E)) for p in self.layout.pieces]
        self.exchange = Exchange(torch.tensor(self.layout.owner_P, device=self.parameters[0].device), group)
        place = self.exchange.place_P.tolist()
        mine = [p.parameter for p in self.layout.pieces if p.owner == group.rank()]
        self.owned = {number: place[self.packets[number].start] for number in mine}
        self.stages = options.make_stages(self.exchange)
        self.channel: Any = self.stages.channel
        self.telemetry = options.make_telemetry(self.exchange)
        self.telemetry.compare_logs()
        of_model = {
            "ranks": group.size(),
            "parameters": {n: tuple(p.shape) for n, p in zip(self.names, self.parameters, strict=True)},
        }
        self.settings = of_model | options.settings
        check_agreement(self.exchange.objects(of_model | options.agreed))
        self.joined, self.join_configs = False, (model._join_config, self._join_config)
        self.begin()
        self.hooks = DdpHooks(self, model, optimizer)
        self._saving = consolidation.ride_along(self)  # may find a state to load, and refuse it
        self.hooks.install()
        joining.refuse_bare_join(model)

    # The two stages, called by the hooks -----------------------------------------------------------------------------

    def own_view(self, packets_QE: torch.Tensor, number: int) -> torch.Tensor:
        """The owned parameter `number` inside this rank's own packets."""
        first = self.owned[number]
        flat = packets_QE[first : first + len(self.packets[number])].view(-1)
        return flat[: self.parameters[number].numel()].view(self.layout.shapes[number])

    def begin(self, fingerprint: int | None = None) -> None:
        """At the start and where a state was loaded: what is known of earlier steps is void."""
        self._consolidated: consolidation.Consolidated | None = None
        self._fresh_QE: torch.Tensor | None = None
        self.expected = fingerprint

    def open_step(self) -> None:
        """Before the first gradients of a step leave."""
        consolidation.require_fingerprint(self)
        self.telemetry.require_fresh_logs()
        if self._consolidated:
            self._consolidated = None
            consolidation.drop_foreign_state(self)

    def skip(self) -> None:
        """Ends a step in which the optimizer was not called: nothing travels, the links' clocks tick."""
        self.channel.skip(self.stages.step_number)
        self._count(self.stages.step_number, None)
        self.stages.step_number += 1
        self.telemetry.skipped += 1

    @torch.no_grad()
    def after_step(self) -> None:
        """Stage 2: the owners' parameters to all ranks."""
        step = self.stages.step_number
        stale_PE = self._packed()
        self._fresh_QE = stale_PE[self.exchange.own_Q]
        every = self.options.resync_every
        reliable = bool(every) and (step + 1) % every == 0
        if reliable:
            self.channel.skip(step)
            self.stages.step_number += 1
            replica_PE = self.exchange.gather(self._fresh_QE)
        else:
            replica_PE = self.stages.broadcast(stale_PE[None], self._fresh_QE)[0]
        self._unpack(replica_PE)
        self._count(step, None if reliable else self.stages.arrived["parameters"], reliable)
        self.telemetry.measure(step, replica_PE)

    def _count(self, step: int, parameters_1P: torch.Tensor | None, reliable: bool = False) -> None:
        independent = getattr(self.channel, "independent", False)
        gradients_NQ = self.stages.arrived["gradients"]
        self.telemetry.count(step, gradients_NQ, parameters_1P, reliable=reliable, independent=independent)

    def fresh(self) -> torch.Tensor:
        """This rank's own packets, (Q, E)."""
        return self._packed()[self.exchange.own_Q]

    def _packed(self) -> torch.Tensor:
        return self.layout.pack([parameter.detach() for parameter in self.parameters])

    def _unpack(self, replica_PE: torch.Tensor) -> None:
        for parameter, value in zip(self.parameters, self.layout.unpack(replica_PE), strict=True):
            parameter.copy_(value)

    # For the user ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> torch.Tensor:
        """`torch.nn.utils.clip_grad_norm_` for any norm; all ranks call it. Returns the norm before clipping."""
        if not norm_type > 0:
            raise ValueError(f"norm_type must be positive, got {norm_type!r}")
        norms = torch.zeros(len(self.parameters), device=self.parameters[0].device, dtype=self.parameters[0].dtype)
        for number in self.owned:
            gradient = self.parameters[number].grad
            if gradient is not None:
                norms[number] = torch.linalg.vector_norm(gradient, norm_type)
        total: torch.Tensor = torch.linalg.vector_norm(self.exchange.total(norms), norm_type)
        torch.nn.utils.clip_grads_with_norm_(self.parameters, max_norm, total)
        return total

    @torch.no_grad()
    def resync(self, from_last_step: bool = False) -> None:
        """Every replica becomes the owners' model, reliably; all ranks call it.

        `from_last_step`: the owners' parameters are those after the last step, whatever the model holds now.
        """
        fresh_QE = self._fresh_QE if from_last_step else None
        self._unpack(self.exchange.gather(self.fresh() if fresh_QE is None else fresh_QE))
        self.hooks.parameters_set()

    @torch.no_grad()
    def owners_model(self) -> dict[str, torch.Tensor]:
        """The owners' parameters in a state dict of the module, buffers and all, copied; all ranks call it.

        This is the model that is being trained, to evaluate or export; the replicas stay as they are.
        """
        fresh = self.layout.unpack(self.exchange.gather(self.fresh()))
        by_storage = {parameter.data_ptr(): value for parameter, value in zip(self.parameters, fresh, strict=True)}
        return {
            name: by_storage.get(value.data_ptr(), value).detach().clone() if isinstance(value, torch.Tensor) else value
            for name, value in self.model.module.state_dict().items()
        }

    def consolidate(self, to: int = 0) -> None:
        """Prepares saving on one rank: a resync, then the whole optimizer state on rank `to`; all ranks call it.

        What that rank saves before the next backward pass - model, optimizer, attachment - every rank can load, and
        training goes on bit for bit as it does here. The resync makes it another trajectory than without it.
        """
        if not 0 <= to < self.exchange.ranks:
            raise ValueError(f"to must be a rank in [0, {self.exchange.ranks}), got {to!r}")
        self.resync()
        self._consolidated = consolidation.consolidate(self, to)

    @property
    def consolidated(self) -> bool:
        """Whether one rank may save: all ranks called `consolidate`, and no backward pass followed."""
        return self._consolidated is not None

    def state_dict(self) -> dict[str, Any]:
        """What a bit-for-bit resume needs beside model and optimizer; part of the optimizer's state dict as well."""
        return {
            "settings": self.settings,
            "rank": self.exchange.rank,
            "step_number": self.stages.step_number,
            "ranks": self._consolidated.ranks if self._consolidated else None,
            "own": consolidation.own_state(self),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """All ranks call it, each with its own state or all with the consolidated one.

        Raises:
            ValueError: on all ranks, if a setting differs or a rank was given another rank's state.
        """
        consolidation.load(self, state)

    def detach(self) -> None:
        """A reliable resync, then DDP's own all-reduce again; all ranks call it.

        Every rank then holds all parameters and the whole optimizer state. What is left in .grad is dropped. A channel
        that has a `close` is closed; what was counted can still be read.

        Raises:
            RuntimeError: gradients are left that no step has used.
        """
        self.hooks.drop_gradients()
        self.resync()  # after which no rank sends anything more over the channel
        consolidation.share_state(self)
        self.hooks.remove()
        self._saving()
        joining.allow_bare_join(self.model)
        if hasattr(self.channel, "close"):
            self.channel.close()

    # Uneven inputs: `with Join([model, attachment])` -----------------------------------------------------------------

    def join_hook(self, **kwargs: Any) -> JoinHook:
        return joining.AttachmentJoinHook(self, self.hooks, **kwargs)

    @property
    def join_device(self) -> torch.device:
        return self.parameters[0].device

    @property
    def join_process_group(self) -> Any:
        return self.model.process_group
