"""FSDP2 goes lossy through the extension that it offers: all-gather and reduce-scatter of one's own for every unit.

`attach(model, optimizer, law)` takes a model that went through `fully_shard`. The owner of a packet is the rank whose
shard it lies in (layout `dim0`), so every optimizer steps as it does under plain FSDP2.

- **Gradients.** Every rank sends every other its chunk of a unit's gradients; the owner aggregates what arrived, and
  FSDP2's reduce op and divide factors apply to that mean. A packet that is lost is lost with all its parts: where
  gradients are reduced several times before a step, the same packets arrive each time, as if their sum were reduced.
- **Parameters.** The first gather of a unit after a step is the broadcast of that step: what a rank misses stays as it
  was in the *stale copy* of the gathered unit that it keeps. Every later gather until the next step, of the backward
  pass above all, is filled from that copy without a message: forward and backward pass see the same parameters, and
  `reshard_after_forward` decides about memory, not about losses. The first gather of a job is reliable.
- **Reliable** are the small all-reduce of `clip_grad_norm_`, frozen parameters, and buffers, which FSDP2 leaves alone.

Under mixed precision the packets are those of the parameters' own dtype, `packet_bytes` in that dtype; what travels is
what FSDP2 sends. A skipped step is one before whose successor gradients were set to None.

**Memory.** A stale copy is as large as the gathered model, on every rank: the very memory that FSDP2 saves. `stale`
says where it is kept:

- `"device"`: beside the shards. With `MixedPrecisionPolicy(param_dtype=torch.bfloat16)` it is in bfloat16, exactly.
- `"cpu"`: in the memory of the host; a unit is copied over for every gather.
- `"bfloat16"`: in half of the memory, for parameters that are gathered in a wider type. A rank then computes with a
  *rounded* value wherever a packet was lost, off by up to 2^-8 of its size, always in the same direction for the same
  value: a bias, which does not shrink with the learning rate as staleness does. To the mean squared distance from the
  owner it adds up to p 2^-16 |theta|^2, as far as rounding and steps are uncorrelated; compare with p/(1-p) sigma^2
  (claim B3). It does not accumulate: what arrives is exact. The rounded copy cannot fill the backward pass's gather,
  so that travels as it does under plain FSDP2; and the telemetry measures the drift of rounded copies.

`benchmarks/README.md` has it measured. Between steps, a rank of plain FSDP2 with AdamW holds 3/N of the model's size,
and the copy adds 1: what sharding saves ends there. DDP needs no stale copy, for its replica is one, but holds whole
gradients and its messages besides; it is the better choice not for memory but for what only it has: optimizers that
look at whole tensors, `Join`, a real channel, `consolidate`.

**Hybrid meshes.** FSDP2's all-reduce cannot lose packets: `set_all_reduce_hook` runs behind it, and adding a hook to a
one-dimensional mesh does not help either, for a shard that every machine steps has no owner among the machines. The
shard dimension can: shard between the machines (the slow dimension), replicate inside, and say
`lossy_dimension="shard"`. Then a *machine* takes the place of a rank everywhere in the theory: N is the number of
machines, the gradient of a machine is the mean of its ranks', its variance accordingly smaller, and p the probability
that a packet between two machines is lost, for all ranks of the receiving machine at once.
"""
