"""`attach` for FSDP2: every unit of the model gets lossy collectives, its model, optimizer and loop unchanged.

Legend: N ranks; P packets, Q of them owned by this rank; S sampled packets; E elements of a packet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lossproof.impl.aggregate import NonFiniteGradient
from lossproof.impl.distributed.exchange import Exchange
from lossproof.impl.distributed.fsdp import saving
from lossproof.impl.distributed.fsdp.comms import LossyAllGather, LossyReduceScatter, StepMasks, UnitStages
from lossproof.impl.distributed.fsdp.refusals import check_sharded
from lossproof.impl.distributed.fsdp.units import make_units
from lossproof.impl.distributed.options import Options
from lossproof.impl.distributed.refusals import check_agreement, check_optimizer, trainable
from lossproof.impl.round import Counts


class ShardedAttachment:
    """The lossy protocol of one FSDP2 model on this rank; made by `attach`. Dropping the object does not detach it.

    Attributes:
        telemetry: packets by step and link, drift; see `Telemetry`. The drift of a step is measured before the next.
        layout, exchange: the parts that it is made of; `units`: the stages of each FSDP module.
        names: the trainable parameters in the layout's order. step_number: steps so far.
    """

    def __init__(self, model: FSDPModule, optimizer: torch.optim.Optimizer, options: Options) -> None:
        mesh_info = check_sharded(model, options)
        named = trainable(model)  # type: ignore[arg-type]
        check_optimizer(optimizer, named)
        self.model, self.optimizer, self.options = model, optimizer, options
        self.names, self.parameters = [name for name, _ in named], [parameter for _, parameter in named]
        group, device = mesh_info.shard_process_group, self.parameters[0].device
        self.layout = options.make_layout(self.parameters, group.size())
        self.exchange = Exchange(torch.tensor(self.layout.owner_P, device=device), group)
        self.stale_device = torch.device("cpu") if options.stale == "cpu" else device
        self.arrivals = options.make_arrivals(self.exchange)
        self.masks = StepMasks(self.arrivals)
        self.step_number = 0
        self.expected: int | None = None
        of_model = {
            "ranks": group.size(),
            "parameters": {name: tuple(parameter.shape) for name, parameter in named},
            "stale": options.stale,
        }
        self.settings = of_model | options.settings
        self._all = [self.exchange]  # and on a hybrid mesh the ranks of this machine, with the same masks
        if getattr(mesh_info, "replicate_process_group", None) is not None:
            self._all.append(Exchange(self.exchange.owner_P, mesh_info.replicate_process_group))
            check_agreement(self._all[1].objects(of_model | options.agreed))
        self.telemetry = options.make_telemetry(self.exchange, quiet=self._all[-1].rank > 0 and len(self._all) > 1)
        self.telemetry.compare_logs(*self._all[1:])
        check_agreement(self.exchange.objects(of_model | options.agreed))
        made = make_units(model, self.names, self.layout, self.exchange.rank)
        self.units = [UnitStages(self, unit) for unit in made]
        self._measured: int | None = None  # the step whose drift is still to be measured
        self._install()

    def _install(self) -> None:
        self._before = [(unit.unit.record._all_gather_comm, unit.unit.record._reduce_scatter_comm)
                        for unit in self.units]  # fmt: skip
        for unit in self.units:
            unit.unit.module.set_custom_all_gather(LossyAllGather(unit))
            unit.unit.module.set_custom_reduce_scatter(LossyReduceScatter(unit))
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]

    # Called by the collectives and around the step -------------------------------------------------------------------

    def open(self, unit: UnitStages) -> None:
        """Before gradients of a unit are reduced."""
        if unit.delivered:
            if not unit.unit.accumulates():
                self._skip()
            elif self.options.no_survivor == "hold":
                raise RuntimeError(
                    "no_survivor='hold' takes one reduction a step: accumulate with set_requires_gradient_sync(False)"
                )
        if not any(other.delivered for other in self.units):
            self.telemetry.require_fresh_logs()

    def before_gather(self) -> None:
        if self.expected is None:
            return
        expected, self.expected = self.expected, None
        same = self.exchange.objects(expected == saving.fingerprint(self))
        if not all(same):
            wrong = [rank for rank, good in enumerate(same) if not good]
            raise ValueError(
                f"the model must be the one that was saved with the attachment's state, but what ranks {wrong} own "
                "differs: load the model before training goes on"
            )

    def _skip(self) -> None:
        """Ends a step in which the optimizer was not called: nothing travels, the links' clocks tick."""
        gradients_NQ, _ = self.masks.close(self.step_number)
        self._count(gradients_NQ, None, reliable=False)
        self.telemetry.skipped += 1
        self._next()

    def _next(self) -> None:
        self.step_number += 1
        for unit in self.units:
            unit.delivered, unit.finite, unit.problem = False, None, ""

    def _count(self, gradients_NQ: torch.Tensor, parameters_1P: torch.Tensor | None, reliable: bool) -> None:
        independent = self.arrivals.memoryless and getattr(self.arrivals.law, "independent_links", True)
        self.telemetry.count(self.step_number, gradients_NQ, parameters_1P, reliable=reliable, independent=independent)

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if (args[1] if len(args) > 1 else kwargs.get("closure")) is not None:
            raise ValueError("closure must be None: gradients would be reduced a second time inside the step")
        delivered = [unit.delivered for unit in self.units]
        if not any(delivered):
            # torch's checkpoints call step() with zeros, at a rate of zero, to have the state made
            if any(parameter.grad is not None and bool(_local(parameter.grad).any()) for parameter in self.parameters):
                raise RuntimeError("optimizer.step() was called with gradients that no backward pass has reduced since "
                                   "the last step: call optimizer.zero_grad() after every step")  # fmt: skip
            return
        if not all(delivered):
            missing = self.units[delivered.index(False)].unit.names
            raise RuntimeError(
                f"the parameters {', '.join(missing)} have no gradients in this step, and their packets have to travel "
                "all the same: call model.set_reduce_scatter_unused_params(True)"
            )
        problem = next((unit.problem for unit in self.units if unit.problem), "")
        bad = [bool(problem), not all(bool(unit.finite) for unit in self.units)]
        total = torch.tensor(bad, device=self.exchange.owner_P.device).long()
        for exchange in self._all:
            exchange.total(total)
        problems, infinite = total.tolist()
        if problems:
            raise ValueError(problem or "another rank could not aggregate what arrived: see no_survivor='raise'")
        if infinite and self.options.non_finite == "raise":
            raise NonFiniteGradient(
                "an aggregated gradient is not finite; pass non_finite='carry' to attach if a GradScaler deals with it"
            )
        for unit in self.units:
            if unit.due:
                unit.refresh()
        if self._measured is not None and self.options.drift_every:
            self.telemetry.compare(self._measured, self._sampled())
            self._measured = None

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not any(unit.delivered for unit in self.units):
            return
        every = self.options.resync_every
        reliable = bool(every) and (self.step_number + 1) % every == 0
        gradients_NQ, parameters_1P = self.masks.close(self.step_number)
        for unit in self.units:
            unit.due = True
            unit.channel.arrived_1P = None if reliable else parameters_1P[:, unit.packet_P]
        self._count(gradients_NQ, None if reliable else parameters_1P, reliable)
        self._measured = self.step_number
        self._next()

    def _sampled(self) -> torch.Tensor:
        """The sampled packets of this rank's replica, (S, E)."""
        sample_S, E = self.telemetry.sample_S, self.layout.packet_elements
        found_SE = torch.zeros(len(sample_S), E, dtype=self.units[0].kept().dtype, device=sample_S.device)
        for unit in self.units:
            at_S, place = unit.sampled
            found_SE[at_S] = unit.kept()[place.to(self.stale_device)].to(found_SE)
        return found_SE

    # For the user ----------------------------------------------------------------------------------------------------

    @property
    def counts(self) -> Counts:
        """Packets to and from this rank's own so far, reduction by reduction; `telemetry` counts them step by step."""
        of_units = [vars(unit.stages.counts) for unit in self.units]
        return Counts(**{name: sum(counts[name] for counts in of_units) for name in of_units[0]})

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> torch.Tensor:
        """`torch.nn.utils.clip_grad_norm_`, which serves FSDP2; all ranks call it. Returns the norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, max_norm, norm_type)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def resync(self) -> None:
        """The next gather is reliable: every replica becomes the owners' model; all ranks call it."""
        for unit in self.units:
            unit.unit.module.reshard()
            unit.due, unit.channel.arrived_1P = True, None

    @torch.no_grad()
    def owners_model(self) -> dict[str, torch.Tensor]:
        """The owners' parameters in a state dict, whole and copied to every rank; all ranks call it.

        `model.state_dict()` is the same, sharded: FSDP2's shards are the owners' parameters, never the replicas.
        """
        return {
            name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
            for name, value in self.model.state_dict().items()  # type: ignore[attr-defined]
        }

    def consolidate(self, to: int = 0) -> None:
        """There is nothing to gather: every rank saves what it owns."""
        raise RuntimeError(
            "consolidate() is for DDP: under FSDP2 every rank saves its shards, with model, optimizer and attachment "
            "given to torch.distributed.checkpoint"
        )

    def detach(self) -> None:
        """FSDP2's own collectives again; all ranks call it. The next gather brings the owners' model to all.

        Raises:
            RuntimeError: gradients are left that no step has used.
        """
        if any(unit.delivered and any(p.grad is not None for p in unit.unit.sharded_parameters) for unit in self.units):
            raise RuntimeError("gradients that no step has used are left: call optimizer.step(), or "
                               "optimizer.zero_grad(), before detach()")  # fmt: skip
        for unit, (gather, scatter) in zip(self.units, self._before, strict=True):
            unit.unit.module.reshard()
            unit.unit.module.set_custom_all_gather(gather)
            unit.unit.module.set_custom_reduce_scatter(scatter)
            unit.keep(None)
        for handle in self._handles:
            handle.remove()

    # Saving: give the attachment itself to torch.distributed.checkpoint, beside model and optimizer ------------------

    def state_dict(self) -> dict[str, Any]:
        """What a bit-for-bit resume needs beside model and optimizer: this rank's part, under a key of its own.

        It holds the stale copy, which is as large as the whole model, on every rank.
        """
        return saving.state(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """All ranks call it; `torch.distributed.checkpoint.load` does. Load model and optimizer as well.

        Raises:
            ValueError: on all ranks, if a setting differs or a rank's part is missing.
        """
        saving.load(self, state)


def _local(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value
