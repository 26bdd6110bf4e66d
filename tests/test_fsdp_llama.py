"""A LLaMA of transformers under FSDP2, wrapped block by block, at 10 % loss: `examples/fsdp.py` on three ranks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from lossy_fsdp import Job
from processes import together
from torch.distributed.fsdp import FSDPModule

EXAMPLE = Path(__file__).parents[1] / "examples" / "fsdp.py"
STEPS = 30


def trained(folder):
    """The example's losses, how much was lost, and what its model is made of."""
    spec = importlib.util.spec_from_file_location("fsdp_example", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    losses, attachment = example.train(STEPS, folder)
    units = [type(module).__name__ for module in attachment.model.modules() if isinstance(module, FSDPModule)]
    stale = Job.replica(attachment_job(attachment))
    owners = attachment.owners_model()
    behind = sum(float((stale[name] - owners[name]).abs().max()) > 0 for name in stale)
    packets = attachment.telemetry.gather()
    return losses, units, packets["lost"].sum() / packets["offered"].sum(), behind, len(stale)


def attachment_job(attachment):
    job = Job.__new__(Job)
    job.module = attachment.model
    return job


def test_a_llama_trains_block_by_block_at_ten_percent_loss(tmp_path):
    found = together(trained, 3, str(tmp_path))
    for losses, units, share, behind, parameters in found:
        assert units == ["FSDPLlamaForCausalLM"] + ["FSDPLlamaDecoderLayer"] * 3
        assert sum(losses[-5:]) < 0.5 * sum(losses[:5]), losses
        assert 0.08 < share < 0.12  # of a hundred thousand packets: the standard deviation is 0.001
        assert behind > parameters // 2  # replicas are stale
    metadata = dcp.FileSystemReader(tmp_path).read_metadata()
    assert all(
        any(key.startswith(f"attachment.rank{rank}.") for key in metadata.state_dict_metadata) for rank in range(3)
    )
    assert len({tuple(losses) for losses, *_ in found}) == 3
    assert torch.isfinite(torch.tensor([losses for losses, *_ in found])).all()
