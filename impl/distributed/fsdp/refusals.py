"""What of FSDP2 cannot be trained over lossy links is refused, with the reason, before anything is changed."""

from __future__ import annotations

from typing import Any

from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, HSDPMeshInfo

from lossproof.impl.distributed.fsdp.comms import LossyAllGather
from lossproof.impl.distributed.fsdp.units import records
from lossproof.impl.distributed.options import Options

_HYBRID = (
    "model must be sharded over a mesh of one dimension, or lossy_dimension must be 'shard': the all-reduce of a "
    "hybrid mesh is FSDP2's own and cannot lose packets, only what travels along the shard dimension can; shard "
    "between the machines and replicate inside them"
)


def check_sharded(model: FSDPModule, options: Options) -> Any:
    """FSDP2's record of the mesh. Raises ValueError unless custom collectives can carry both stages of all units."""
    if options.channel is not None:
        raise ValueError("channel must be None for FSDP2, whose units travel one by one: give a law")
    found = records(model)
    states = [module._get_fsdp_state() for module, _ in found]
    if any(len(state._fsdp_param_groups) > 1 for state in states):
        raise ValueError("model must have one mesh for each module: FSDP2 takes no custom collectives for several")
    held = {id(of.sharded_param) for _, record in found for of in record.fsdp_params}
    for module, _ in found:
        module.reshard()  # a forward pass without a backward pass leaves the root gathered
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]  # type: ignore[attr-defined]
    if not named:
        raise ValueError("model must have trainable parameters, got none")
    for name, parameter in named:
        if id(parameter) not in held:
            raise ValueError(f"model must be sharded as a whole: {name} is in no unit, call fully_shard(model) last")
    infos = [record.mesh_info for _, record in found]
    for info in infos:
        if not isinstance(info, FSDPMeshInfo):
            raise ValueError("model must be sharded: replicate() alone is DDP, which attach takes as such")
        if info.is_spmd_mesh:
            raise ValueError("model must be sharded by fully_shard(mesh=...), without dp_mesh_dims")
    if any(info.mesh != infos[0].mesh for info in infos):
        raise ValueError("model must have one mesh, got several")
    if isinstance(infos[0], HSDPMeshInfo) and options.lossy_dimension != "shard":
        raise ValueError(_HYBRID)
    if infos[0].shard_process_group.size() < 2:
        raise ValueError("model must be sharded over at least two ranks: a mesh of one has no links")
    kinds = sorted({f"{p.dtype} on {p.device}" for _, p in named})
    if len(kinds) != 1:
        raise ValueError(f"model must have trainable parameters of one dtype and device, got {', '.join(kinds)}")
    for _, record in found:
        _check_unit(record)
    return infos[0]


def _check_unit(record: Any) -> None:
    if isinstance(record._all_gather_comm, LossyAllGather):
        raise ValueError("model must not be attached already: detach() the other attachment first")
    for comm, kind in (
        (record._all_gather_comm, DefaultAllGather),
        (record._reduce_scatter_comm, DefaultReduceScatter),
    ):
        if type(comm) is not kind:
            raise ValueError(f"model must have FSDP2's own collectives, which attach replaces, got {type(comm)}")
    if isinstance(record.offload_policy, CPUOffloadPolicy):
        raise ValueError("model must not use CPUOffloadPolicy, which was not tried: stale='cpu' saves device memory")
    if len({of.sharded_param.dtype for of in record.fsdp_params}) != 1:
        raise ValueError("model must have parameters of one dtype in each unit: FSDP2 gathers others as bytes")
    for of in record.fsdp_params:
        name = of._module_info.param_name
        if of.fsdp_placement.dim != 0:
            raise ValueError(f"model must be sharded along dimension 0, got {of.fsdp_placement} for {name}")
        if of.is_dtensor:
            raise ValueError(f"model must not be distributed before FSDP2 (tensor parallelism), got {name}")
        if hasattr(of._sharded_local_tensor, "fsdp_pre_all_gather"):
            raise ValueError(f"model must be gathered as it is, but {name} has an extension (fsdp_pre_all_gather)")
