"""The cluster against ordinary training: no loss is lossless training bit for bit, and stale is stale."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.func import functional_call, grad_and_value, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from lossproof.impl import cluster as cluster_module
from lossproof.impl.aggregate import NoSurvivor, Rule, aggregate
from lossproof.impl.cluster import Cluster
from lossproof.impl.layout import LayoutKind
from lossproof.impl.loss import Arrivals, OwnLink
from lossproof.impl.retain import retain
from lossproof.proofs_checks.instruments.statistics import require_probability
from lossproof.theory.laws import Bernoulli, GilbertElliott, Law

N = 5  # no power of two, so that a product with 1/N is not a division by N
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ADAMW = partial(torch.optim.AdamW, lr=0.01)
MUON = partial(torch.optim.Muon, lr=0.01)
ADAFACTOR = partial(torch.optim.Adafactor, lr=0.01)


def network(bias: bool = True) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return torch.nn.Sequential(torch.nn.Linear(6, 17, bias), torch.nn.Tanh(), torch.nn.Linear(17, 3, bias))


def batches(steps: int, seed: int = 1, ranks: int = N) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(ranks, 5, 6, generator=generator) for _ in range(steps)]


def objective(model: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = (model(x) - x[:, :3].square()).square().mean()
    return loss


def cluster(law: Law, optimizer: Any = SGD, *, bias: bool = True, ranks: int = N, **options: Any) -> Cluster:
    return Cluster(network(bias), objective, optimizer, law, ranks, packet_bytes=32, **options)


def trained(law: Law, optimizer: Any = SGD, steps: int = 8, **options: Any) -> Cluster:
    made = cluster(law, optimizer, **options)
    for batch in batches(steps, ranks=made.ranks):
        made.step(batch)
    return made


def mean_in_rank_order(gradient: torch.Tensor) -> torch.Tensor:
    return sum(gradient[1:], start=gradient[0]) / len(gradient)


def ordinary(
    optimizer: Any, steps: int, bias: bool, ranks: int, mean: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """One copy, one optimizer, the mean of N gradients; the gradients vectorised as in the cluster (see C3's scope)."""
    model = network(bias)
    named = dict(model.named_parameters())
    made = optimizer(list(named.items()))

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return objective(lambda x: functional_call(model, parameters, (x,)), x)

    for batch in batches(steps, ranks=ranks):
        copies = {name: p.detach().expand(ranks, *p.shape).clone() for name, p in named.items()}
        gradients, _ = vmap(grad_and_value(loss))(copies, batch)
        for name, p in named.items():
            p.grad = mean(gradients[name])
        made.step()
    return {name: p.detach() for name, p in named.items()}


@pytest.mark.parametrize(("ranks", "mean"), [(3, partial(torch.mean, dim=0)), (N, mean_in_rank_order)])
@pytest.mark.parametrize(
    ("optimizer", "layout", "bias"),
    [
        (SGD, "tensors", True),
        (ADAMW, "tensors", True),
        (MUON, "tensors", False),
        (ADAFACTOR, "tensors", True),
        (SGD, "flat", True),
        (ADAMW, "flat", True),
        (SGD, "dim0", True),
        (ADAMW, "dim0", True),
    ],
)
def test_without_loss_training_is_lossless_training_bit_for_bit(
    optimizer: Any, layout: LayoutKind, bias: bool, ranks: int, mean: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """`torch.mean` adds more than four gradients in an order that depends on their shape, so there we add by hand."""
    made = trained(Bernoulli(0), optimizer, 6, bias=bias, layout=layout, ranks=ranks)
    expected = ordinary(optimizer, 6, bias, ranks, mean)
    assert list(made.owners_model()) == list(expected)
    for name, value in made.owners_model().items():
        assert torch.equal(value, expected[name]), name
    assert torch.equal(made.replicas_NPE, made.fresh_PE.expand_as(made.replicas_NPE))


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunk_changes_no_digit(chunk: int) -> None:
    law = Bernoulli(0.3)
    whole, chunked = trained(law), trained(law, chunk=chunk)
    assert torch.equal(whole.replicas_NPE, chunked.replicas_NPE)
    assert torch.equal(whole.evaluate(batches(1)[0][0]), chunked.evaluate(batches(1)[0][0]))


@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_chunk_reaches_every_vectorised_pass(monkeypatch: pytest.MonkeyPatch, chunk: int | None) -> None:
    given: list[Any] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        given.append(options.get("chunk_size"))
        return vmap(*arguments, **options)

    monkeypatch.setattr(cluster_module, "vmap", spy)
    made = cluster(Bernoulli(0.3), chunk=chunk)
    batch = batches(1)[0]
    made.step(batch)
    made.evaluate(batch[0])
    assert given == [chunk] * 2  # the gradients, and the evaluation of replicas and owners


def test_chunk_bounds_how_many_replicas_are_computed_at_a_time() -> None:
    """Seen from below: the leading dimension of what tanh really works on."""
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.tanh.default:
                sizes.append(args[0].shape[0])
            return func(*args, **(kwargs or {}))

    made, batch = cluster(Bernoulli(0), chunk=2), batches(1)[0]
    with Watch():
        made.gradients(batch)
        made.evaluate(batch[0])
    assert sizes == [2, 2, 1, 2, 2, 1, 1]  # N replicas; N, and the owners' model


@pytest.mark.parametrize("own_link", ["lossy", "reliable"])
@pytest.mark.parametrize("no_survivor", ["zero", "hold", "own"])
@pytest.mark.parametrize("rule", ["survivor_mean", "inverse_probability", "zero_fill"])
def test_a_lossy_run_is_the_plain_loop_of_both_stages(rule: Rule, no_survivor: NoSurvivor, own_link: OwnLink) -> None:
    """Both take their gradients in the same way; everything after that is written out here."""
    p, rate = 0.7, 0.05
    optimizer = partial(torch.optim.SGD, lr=rate)
    options = {"rule": rule, "no_survivor": no_survivor, "own_link": own_link, "seed": 9}
    made, calculator = cluster(Bernoulli(p), optimizer, **options), cluster(Bernoulli(0), optimizer)
    owner_P = torch.tensor(made.layout.owner_P)
    arrivals = Arrivals(Bernoulli(p), made.layout.owner_P, N, 9, own_link)
    own_NP = torch.arange(N)[:, None] == owner_P
    probability_NP = torch.where(own_NP & (own_link == "reliable"), 1.0, 1 - p).double()
    fresh_PE, replicas_NPE = made.fresh_PE.clone(), made.replicas_NPE.clone()
    estimate_PE, without_survivor = torch.zeros_like(fresh_PE), 0
    for step, batch in enumerate(batches(12)):
        calculator.round.replicas_HPE = replicas_NPE
        estimate_PE, count_P = aggregate(
            calculator.gradients(batch)[0],
            arrivals.gradients(step),
            rule,
            no_survivor=no_survivor,
            arrival_probability_N=probability_NP,
            previous_PE=estimate_PE,
            owner=owner_P,
        )
        without_survivor += int((count_P == 0).sum())
        fresh_PE -= rate * estimate_PE
        replicas_NPE = retain(replicas_NPE, fresh_PE, arrivals.parameters(step))
        made.step(batch)
        torch.testing.assert_close(made.fresh_PE, fresh_PE)
        torch.testing.assert_close(made.replicas_NPE, replicas_NPE)
    assert made.round.counts.no_survivor == without_survivor
    assert (without_survivor > 0) == (own_link == "lossy")


def test_every_rule_and_every_answer_to_no_survivor_trains_differently() -> None:
    ends = [
        trained(Bernoulli(0.7), rule=rule, no_survivor=no_survivor, own_link="lossy").fresh_PE
        for rule in ("survivor_mean", "inverse_probability", "zero_fill")
        for no_survivor in ("zero", "hold", "own")
    ]
    for number, end in enumerate(ends):
        assert not any(torch.allclose(end, other) for other in ends[:number])


def test_no_survivor_may_stop_the_run() -> None:
    with pytest.raises(ValueError, match="no survivor for packet"):
        trained(Bernoulli(0.8), own_link="lossy", no_survivor="raise")


@pytest.mark.parametrize(("dtype", "elements"), [(torch.float32, 8), (torch.float64, 4), (torch.bfloat16, 16)])
def test_packet_bytes_are_bytes_of_the_models_dtype(dtype: torch.dtype, elements: int) -> None:
    for size in (32, 33):
        made = Cluster(network().to(dtype), objective, SGD, Bernoulli(0), N, packet_bytes=size)
        assert made.layout.packet_elements == made.fresh_PE.shape[1] == elements
        assert made.fresh_PE.dtype == dtype
        assert made.layout.packets == sum(-(-p.numel() // elements) for p in network().parameters())


@pytest.mark.parametrize(("dtype", "elements"), [(torch.float32, 256), (torch.float64, 128)])
def test_a_packet_has_1024_bytes_unless_told(dtype: torch.dtype, elements: int) -> None:
    made = Cluster(network().to(dtype), objective, SGD, Bernoulli(0), N)
    assert made.layout.packet_elements == elements


def test_every_rank_draws_its_own_dropout() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(64, 1, bias=False))
    made = Cluster(model, lambda model, x: model(x).sum(), SGD, Bernoulli(0), N)
    x = torch.ones(1, 64)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        payload_NPE, _ = made.gradients(x.expand(N, 1, 64))
        losses = made.evaluate(x)
    kept = {tuple((gradient != 0).flatten().tolist()) for gradient in payload_NPE}
    assert len(kept) == N, "the gradient of this model is its mask, times two"
    assert len(set(losses.tolist())) == N + 1


def test_gradients_are_taken_at_the_stale_replicas() -> None:
    made = trained(Bernoulli(0.5))
    assert not torch.equal(made.replicas_NPE[0], made.replicas_NPE[1])
    batch, layout = batches(1, seed=7)[0], made.layout
    payload_NPE, losses_N = made.gradients(batch)
    for rank in range(N):
        names = [name for name, _ in made.model.named_parameters()]
        replica = {
            n: t.clone().requires_grad_() for n, t in zip(names, layout.unpack(made.replicas_NPE[rank]), strict=True)
        }
        loss = objective(lambda x, at=replica: functional_call(made.model, at, (x,)), batch[rank])
        expected = layout.pack(torch.autograd.grad(loss, list(replica.values())))
        torch.testing.assert_close(payload_NPE[rank], expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(losses_N[rank], loss.detach())


def test_a_replica_holds_an_earlier_state_of_the_owner_packet_by_packet() -> None:
    made = cluster(Bernoulli(0.6))
    history = [made.fresh_PE.clone()]
    for batch in batches(6):
        made.step(batch)
        history.append(made.fresh_PE.clone())
    states_TPE = torch.stack(history)
    for replica_PE in made.replicas_NPE:
        assert bool((states_TPE == replica_PE).all(-1).any(0).all())
    own_NP = torch.arange(N)[:, None] == torch.tensor(made.layout.owner_P)
    assert bool((made.replicas_NPE == made.fresh_PE).all(-1)[own_NP].all())


@pytest.mark.parametrize("law", [Bernoulli(0.3), GilbertElliott(0.2, burst=3), GilbertElliott(0.2, 30, clock="packet")])
@pytest.mark.parametrize("optimizer", [SGD, ADAMW])
def test_resume_is_bit_for_bit(law: Law, optimizer: Any) -> None:
    whole, first, second = trained(law, optimizer, 9), cluster(law, optimizer), cluster(law, optimizer)
    for batch in batches(9)[:4]:
        first.step(batch)
    saved = first.state_dict()
    first.step(batches(9)[4])  # what happens afterwards must not reach what was saved
    second.load_state_dict(saved)
    for batch in batches(9)[4:]:
        second.step(batch)
    assert torch.equal(second.replicas_NPE, whole.replicas_NPE)
    assert torch.equal(second.fresh_PE, whole.fresh_PE)
    assert second.round.counts == whole.round.counts


def test_the_seed_decides_and_nothing_else_does() -> None:
    law = Bernoulli(0.3)
    before = torch.random.get_rng_state()
    first = trained(law, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before), "drawing losses used torch's global generator"
    torch.rand(3)
    again, other = trained(law, seed=3), trained(law, seed=4)
    assert torch.equal(first.replicas_NPE, again.replicas_NPE)
    assert not torch.equal(first.replicas_NPE, other.replicas_NPE)
    assert first.round.counts != other.round.counts


def test_without_loss_it_does_not_matter_which_rank_has_which_batch() -> None:
    straight, turned = cluster(Bernoulli(0), ADAMW), cluster(Bernoulli(0), ADAMW)
    for batch in batches(4):
        straight.step(batch)
        turned.step(batch.flip(0))
    torch.testing.assert_close(straight.fresh_PE, turned.fresh_PE, rtol=1e-4, atol=1e-5)


def test_equal_batches_without_staleness_make_gradient_loss_harmless() -> None:
    """All survivors agree, so their mean is the mean of all: with every parameter arriving only rounding is left."""
    lossy, clean = cluster(Bernoulli(0.5)), cluster(Bernoulli(0))
    everything_NP = torch.ones(N, lossy.layout.packets, dtype=torch.bool)
    lossy.round.channel.parameters = lambda step, fresh_QE: (fresh_QE, everything_NP)  # type: ignore[method-assign]
    for batch in batches(5):
        for made in (lossy, clean):
            made.step(batch[:1].expand_as(batch))
    assert lossy.round.counts.gradients_lost > 0
    torch.testing.assert_close(lossy.fresh_PE, clean.fresh_PE, rtol=1e-5, atol=1e-6)


def test_counts_are_of_packets_on_the_network() -> None:
    steps = 200
    made = trained(Bernoulli(0.25), steps=steps)
    counts, offered = made.round.counts, steps * made.layout.packets * (N - 1)
    assert counts.gradients_offered == counts.parameters_offered == offered
    for lost in (counts.gradients_lost, counts.parameters_lost):
        require_probability("packets lost", lost, offered, 0.25, alpha=1e-6)
    assert counts.no_survivor == 0, "the owner's own gradient always arrives here"
    assert trained(Bernoulli(0.8), own_link="lossy").round.counts.no_survivor > 0


def test_evaluate_gives_every_replica_and_then_the_owners() -> None:
    made = trained(Bernoulli(0.5))
    x = batches(1)[0][0]
    losses = made.evaluate(x)
    assert losses.shape == (N + 1,)
    expected = objective(lambda x: functional_call(made.model, made.owners_model(), (x,)), x)
    torch.testing.assert_close(losses[-1], expected.detach())
    replica = dict(zip(made.owners_model(), made.layout.unpack(made.replicas_NPE[2]), strict=True))
    torch.testing.assert_close(losses[2], objective(lambda x: functional_call(made.model, replica, (x,)), x).detach())


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(ValueError, match="packet_bytes must be at least 4"):
        Cluster(network(), objective, SGD, Bernoulli(0), N, packet_bytes=3)
    mixed = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match="model must have trainable parameters of one dtype"):
        Cluster(mixed, objective, SGD, Bernoulli(0), N)
    with pytest.raises(ValueError, match="own_link must be"):
        cluster(Bernoulli(0), own_link="sometimes")
    frozen = network().requires_grad_(False)
    with pytest.raises(ValueError, match="trainable parameters"):
        Cluster(frozen, objective, SGD, Bernoulli(0), N)
