"""A LLaMA under FSDP2, lossy in one line. `torchrun --nproc-per-node 4 examples/fsdp.py`, on CPU or GPUs."""

import logging
import os

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from lossproof.impl.distributed import attach
from lossproof.theory.laws import Bernoulli


def train(steps, folder=None):
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in model.model.layers:  # block by block, then the rest
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attachment = attach(model, optimizer, Bernoulli(0.1))  # the one line

    losses, generator = [], torch.Generator().manual_seed(1 + dist.get_rank())  # every rank has its own data
    for _ in range(steps):
        start, stride = torch.randint(0, 64, (2, 8, 1), generator=generator)
        tokens = ((start + (1 + stride % 4) * torch.arange(32)) % 64).to(device)  # to be continued: 5, 8, 11, 14 ...
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    if folder:  # every rank saves its shards; all three load as they were saved, and training goes on bit for bit
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": state, "attachment": attachment}, checkpoint_id=folder)
    return losses, attachment


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    losses, attachment = train(steps=200)
    packets = attachment.telemetry.gather()
    if dist.get_rank() == 0:
        share = packets["lost"].sum() / packets["offered"].sum()
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; lost {share:.1%} of all packets")
    dist.destroy_process_group()
