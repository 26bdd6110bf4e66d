"""Ordinary DDP training, lossy in one line. `torchrun --nproc-per-node 2 examples/ddp.py`, on CPU or GPUs."""

import logging
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lossproof.impl.distributed import attach
from lossproof.theory.laws import Bernoulli

logging.basicConfig(level=logging.INFO, format="%(message)s")
cuda = torch.cuda.is_available()
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
dist.init_process_group("nccl" if cuda else "gloo")
torch.manual_seed(0)

net = torch.nn.Sequential(torch.nn.Linear(32, 256), torch.nn.GELU(), torch.nn.Linear(256, 8)).to(device)
model = DistributedDataParallel(net)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
attachment = attach(model, optimizer, Bernoulli(0.1))  # the one line

teacher = torch.randn(32, 8, device=device)
torch.manual_seed(1 + dist.get_rank())  # every rank has its own data
for _ in range(300):
    inputs = torch.randn(64, 32, device=device)
    optimizer.zero_grad()
    loss = (model(inputs) - inputs @ teacher).square().mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()

weights = attachment.owners_model()  # what was trained: to evaluate, to export
packets = attachment.telemetry.gather()
if dist.get_rank() == 0:
    print(f"loss {loss:.4f}; lost {packets['lost'].sum() / packets['offered'].sum():.1%} of all packets")
dist.destroy_process_group()
