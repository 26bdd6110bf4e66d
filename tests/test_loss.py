"""Arrivals: which draw decides which packet, what is kept between steps, and what is left alone."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossproof.impl import kernels
from lossproof.impl.loss import Arrivals, PhiloxDraw, sender_thresholds
from lossproof.theory.laws import Bernoulli, GilbertElliott, PerSender, Trace

OWNERS = st.integers(1, 4).flatmap(
    lambda ranks: st.tuples(st.just(ranks), st.lists(st.integers(0, ranks - 1), min_size=1, max_size=5))
)
SEEDS = st.integers(0, 2**64 - 1)
OWN_LINKS: list[Any] = ["reliable", "lossy"]
STEPS = st.integers(0, 2**32 - 1)
BURSTY = GilbertElliott(0.4, burst=3, clock="packet")
WITH_MEMORY = [BURSTY, GilbertElliott(0.4, burst=3), Trace("0110100"), Trace("0110100", clock="step")]


@given(OWNERS, SEEDS, STEPS, st.integers(0, 63), st.sampled_from(["reliable", "lossy"]))
def test_a_packet_is_lost_iff_its_word_is_below_the_threshold(
    owners: tuple[int, list[int]], seed: int, step: int, numerator: int, own_link: Any
) -> None:
    ranks, owner_P = owners
    p = Fraction(numerator, 64)
    arrivals = Arrivals(Bernoulli(p), owner_P, ranks, seed, own_link)
    gradients, parameters = arrivals.gradients(step), arrivals.parameters(step)
    assert gradients.dtype == parameters.dtype == torch.bool
    assert gradients.shape == parameters.shape == (ranks, len(owner_P))
    for packet, owner in enumerate(owner_P):
        for rank in range(ranks):
            sent = not oracles.is_lost(oracles.word(seed, packet, rank, owner, "gradients", step), p)
            broadcast = not oracles.is_lost(oracles.word(seed, packet, owner, rank, "parameters", step), p)
            own = rank == owner
            assert gradients[rank, packet] == (sent or (own and own_link == "reliable"))
            assert parameters[rank, packet] == (broadcast or own)  # the owner's copy is always fresh


@given(SEEDS, STEPS, st.integers(0, 3), st.integers(0, 3), st.integers(0, 9))
def test_every_coordinate_changes_the_words(seed: int, step: int, src: int, dst: int, packet: int) -> None:
    def words(seed: int, step: int, src: int, dst: int, packet: int, phase: Any = "gradients") -> tuple[int, ...]:
        cell = [np.array([[x]], dtype=np.int64) for x in (src, dst, packet)]
        draw = PhiloxDraw(phase, step, 4, *cell, seed)
        return tuple(int(draw.words(k)[0, 0]) for k in range(4))

    base = words(seed, step, src, dst, packet)
    assert base == tuple(oracles.word(seed, packet, src, dst, "gradients", step, k) for k in range(4))
    others = [
        words(seed ^ 1, step, src, dst, packet),
        words(seed ^ 2**63, step, src, dst, packet),
        words(seed, step ^ 1, src, dst, packet),
        words(seed, step, src ^ 1, dst, packet),
        words(seed, step, src, dst ^ 1, packet),
        words(seed, step, src, dst, packet ^ 1),
        words(seed, step, src, dst, packet, "parameters"),
    ]
    assert len({base, *others}) == 8
    if src != dst:
        assert words(seed, step, dst, src, packet) != base  # the two directions of a link are two links


def test_packets_keep_their_draws_when_others_are_left_out() -> None:
    """A rank that needs only some packets, or only its own row, recomputes exactly those."""
    owner_P = np.array([0, 1, 2, 2, 1, 0])
    whole = Arrivals(Bernoulli(0.5), owner_P, 3, seed=9)
    fewer = Arrivals(Bernoulli(0.5), owner_P[:4], 3, seed=9)
    assert torch.equal(whole.gradients(3)[:, :4], fewer.gradients(3))
    assert torch.equal(whole.parameters(3)[:, :4], fewer.parameters(3))
    packet = np.array([1, 4])
    draw = PhiloxDraw("gradients", 3, 3, np.array([[2]]), owner_P[packet], packet, 9)
    lost, _ = Bernoulli(0.5).sample(draw, {})
    assert torch.equal(whole.gradients(3)[2:, packet], torch.from_numpy(~lost))


def test_more_ranks_leave_the_links_of_the_others_alone() -> None:
    few, many = (Arrivals(Bernoulli(0.5), [0, 1, 2, 0], ranks, seed=4) for ranks in (3, 7))
    assert torch.equal(few.gradients(0), many.gradients(0)[:3])
    assert torch.equal(few.parameters(0), many.parameters(0)[:3])


def test_relabelling_ranks_relabels_the_law() -> None:
    """A law that tells senders apart follows the ranks' names; the draws belong to the links."""
    losses, owner_P, name = (0.2, 0.5, 0.8), [0, 1, 2, 1], [2, 0, 1]
    there = Arrivals(PerSender(losses), owner_P, 3, seed=5).gradients(0)
    swapped = tuple(losses[name.index(new)] for new in range(3))
    here = Arrivals(PerSender(swapped), [name[o] for o in owner_P], 3, seed=5).gradients(0)
    for packet, owner in enumerate(owner_P):
        for rank in range(3):
            p = Fraction(str(losses[rank]))
            for mask, i, o in ((there, rank, owner), (here, name[rank], name[owner])):
                word = oracles.word(5, packet, i, o, "gradients", 0)
                assert mask[i, packet] == (i == o or not oracles.is_lost(word, p))


@pytest.mark.parametrize("law", WITH_MEMORY)
def test_a_law_with_memory_is_advanced_in_order(law: Any) -> None:
    arrivals = Arrivals(law, [0, 1], 2, seed=1)
    arrivals.gradients(0)
    arrivals.parameters(0)
    for wrong in (0, 2):
        with pytest.raises(ValueError, match="step must be 1"):
            arrivals.gradients(wrong)
    arrivals.gradients(1)
    with pytest.raises(ValueError, match="step must be 1"):
        arrivals.parameters(0)


def test_a_law_without_memory_answers_in_any_order() -> None:
    arrivals = Arrivals(Bernoulli(0.5), [0, 1] * 8, 2, seed=1)
    later = arrivals.gradients(7)
    arrivals.parameters(3)
    assert torch.equal(arrivals.gradients(7), later)
    assert not torch.equal(arrivals.gradients(8), later)


@pytest.mark.parametrize("law", [Bernoulli(0.4), *WITH_MEMORY])
def test_a_resumed_job_loses_the_same_packets(law: Any) -> None:
    def masks(arrivals: Arrivals, steps: range) -> list[torch.Tensor]:
        return [mask for step in steps for mask in (arrivals.gradients(step), arrivals.parameters(step))]

    def new() -> Arrivals:
        return Arrivals(law, [0, 1, 2, 0, 1], 3, seed=2)

    through, first, second = new(), new(), new()
    expected = masks(through, range(9))
    masks(first, range(4))
    state = first.state_dict()
    masks(first, range(4, 6))  # goes on; the state that was taken does not
    second.load_state_dict(state)
    resumed = masks(second, range(4, 9))
    assert all(torch.equal(a, b) for a, b in zip(resumed, expected[8:], strict=True))
    assert all(isinstance(tensor, torch.Tensor) for tensor in state["memory"].values())


def test_no_global_generator_is_touched() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    for law in (Bernoulli(0.5), *WITH_MEMORY):
        arrivals = Arrivals(law, [0, 1], 2, seed=3)
        first = arrivals.gradients(0), arrivals.parameters(0)
        torch.manual_seed(12345)  # and a user who seeds it changes no draw
        again = Arrivals(law, [0, 1], 2, seed=3)
        assert torch.equal(again.gradients(0), first[0])
        assert torch.equal(again.parameters(0), first[1])
        torch.manual_seed(0)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_gradient_probability_is_the_marginal_of_each_link() -> None:
    law, owner_P = PerSender((0.1, 0.2, 0.5)), [0, 2, 2, 1]
    for own_link in ("reliable", "lossy"):
        q_NP = Arrivals(law, owner_P, 3, own_link=own_link).gradient_probability()  # type: ignore[arg-type]
        assert q_NP.dtype == torch.float64
        for packet, owner in enumerate(owner_P):
            for src in range(3):
                sure = src == owner and own_link == "reliable"
                assert q_NP[src, packet] == (1.0 if sure else float(1 - law.marginal(src)))
    links = Trace((((0, 1), "01"), ((1, 0), "0001")))
    assert Arrivals(links, [0, 1], 2, own_link="lossy").gradient_probability().tolist() == [[1.0, 0.5], [0.75, 1.0]]


class Wrong:
    """A law whose mask has the wrong type."""

    def marginal(self, src: int = 0, dst: int = 1) -> Fraction:
        return Fraction(0)

    def age_tail(self, k: int, src: int = 0, dst: int = 1, ticks: int = 1) -> Fraction:
        return Fraction(k == 0)

    def sample(self, draw: Any, memory: Any) -> Any:
        return draw.words() * 0, {"touched": np.ones(1, dtype=np.int64)}


@pytest.mark.parametrize(
    ("name", "error", "arguments"),
    [
        ("law", TypeError, {"law": 0.1}),
        ("own_link", ValueError, {"own_link": "broken"}),
        ("ranks", ValueError, {"ranks": 0, "owner_P": []}),
        ("ranks", ValueError, {"ranks": 2**16 + 1}),
        ("ranks", TypeError, {"ranks": 2.0}),
        ("ranks", TypeError, {"ranks": True}),
        ("owner_P", ValueError, {"owner_P": [0, 2]}),
        ("owner_P", ValueError, {"owner_P": [-1]}),
        ("owner_P", ValueError, {"owner_P": [[0]]}),
        ("owner_P", TypeError, {"owner_P": [0.5]}),
        ("seed", ValueError, {"seed": -1}),
        ("seed", TypeError, {"seed": "1"}),
    ],
)
def test_unusable_arguments_are_refused(name: str, error: type[Exception], arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=f"^{name} must"):
        Arrivals(**({"law": Bernoulli(0.1), "owner_P": [0, 1], "ranks": 2} | arguments))


@pytest.mark.parametrize(
    ("step", "error"), [(-1, ValueError), (2**32, ValueError), (0.5, TypeError), (True, TypeError)]
)
def test_an_unusable_step_is_refused(step: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^step must"):
        Arrivals(Bernoulli(0.1), [0], 2).gradients(step)


def test_a_mask_that_is_none_is_refused_and_nothing_is_kept() -> None:
    arrivals = Arrivals(Wrong(), [0], 2)
    with pytest.raises(ValueError, match=r"law\.sample must return a bool mask"):
        arrivals.gradients(0)
    assert arrivals.state_dict() == {"memory": {}, "next": {}}


def test_no_packets_and_one_rank() -> None:
    for law in (Bernoulli(0.5), *WITH_MEMORY):
        assert Arrivals(law, [], 3).gradients(0).shape == (3, 0)
        assert Arrivals(law, [0, 0], 1).gradients(0).all()
        assert Arrivals(law, [0, 0], 1).parameters(0).all()


def test_the_phases_of_a_step_come_in_order_for_a_law_with_memory():
    """One chain of a link serves both phases: drawn in another order, the masks would be others."""
    arrivals = Arrivals(GilbertElliott(0.2, 3, clock="packet"), [0, 1, 2], ranks=3)
    arrivals.gradients(0)
    arrivals.gradients(1)
    with pytest.raises(ValueError, match="step"):
        arrivals.parameters(0)
    arrivals.parameters(1)
    with pytest.raises(ValueError, match="step"):
        arrivals.gradients(1)
    arrivals.gradients(2)


@given(OWNERS, SEEDS, st.sampled_from(["reliable", "lossy"]), st.sampled_from([Bernoulli(0.4), *WITH_MEMORY]))
def test_a_receiver_draws_its_part_of_the_same_masks(
    owners: tuple[int, list[int]], seed: int, own_link: Any, law: Any
) -> None:
    ranks, owner_P = owners
    whole = Arrivals(law, owner_P, ranks, seed, own_link)
    parts = [Arrivals(law, owner_P, ranks, seed, own_link, receiver=rank) for rank in range(ranks)]
    for step in range(4):
        gradients, parameters = whole.gradients(step), whole.parameters(step)
        for rank, part in enumerate(parts):
            owned = torch.tensor(owner_P) == rank
            assert torch.equal(part.gradients(step), gradients[:, owned])
            assert torch.equal(part.parameters(step), parameters[rank : rank + 1])
    probability = Arrivals(law, owner_P, ranks).gradient_probability()
    for rank in range(ranks):
        part = Arrivals(law, owner_P, ranks, receiver=rank).gradient_probability()
        assert torch.equal(part, probability[:, torch.tensor(owner_P) == rank])


@given(OWNERS, SEEDS, st.data())
def test_several_receivers_draw_their_parts_of_the_same_masks(
    owners: tuple[int, list[int]], seed: int, data: st.DataObject
) -> None:
    ranks, owner_P = owners
    first, stride = data.draw(st.integers(0, ranks - 1)), data.draw(st.integers(1, ranks))
    law, own_link = data.draw(st.sampled_from([Bernoulli(0.4), *WITH_MEMORY])), data.draw(st.sampled_from(OWN_LINKS))
    hosted = range(first, ranks, stride)
    whole = Arrivals(law, owner_P, ranks, seed, own_link)
    part = Arrivals(law, owner_P, ranks, seed, own_link, receiver=hosted)
    owned = torch.tensor([owner in hosted for owner in owner_P])
    for step in range(4):
        assert torch.equal(part.gradients(step), whole.gradients(step)[:, owned])
        assert torch.equal(part.parameters(step), whole.parameters(step)[list(hosted)])
    losses = PerSender(tuple(rank / 8 for rank in range(ranks)))
    probability, mine = (
        Arrivals(losses, owner_P, ranks, receiver=some).gradient_probability() for some in (None, hosted)
    )
    assert torch.equal(mine, probability[:, owned])


@pytest.mark.parametrize("receiver", [-1, 2, range(1, 3), range(-1, 1), range(1, 1)])
def test_a_receiver_is_a_rank(receiver: Any) -> None:
    with pytest.raises(ValueError, match=r"receiver must be a rank in \[0, 2\) or a range of them, got ") as refused:
        Arrivals(Bernoulli(0.1), [0, 1], 2, receiver=receiver)
    assert str(refused.value).endswith(str(receiver))


def test_the_next_step_is_that_of_the_phase_that_is_ahead() -> None:
    arrivals = Arrivals(Bernoulli(0.5), [0, 1], ranks=2)
    for step in range(3):
        arrivals.gradients(step)
    arrivals.parameters(0)
    assert arrivals.next_step == 3


def test_thresholds_are_of_the_shipped_laws_themselves() -> None:
    class Mine(PerSender):
        pass

    assert sender_thresholds(PerSender((0.5, 0.25)), 2).tolist() == [1 << 31, 1 << 30]
    assert sender_thresholds(Mine((0.5, 0.25)), 2) is None  # may draw in another way
    assert sender_thresholds(PerSender((0.1, 0.2, 0.3)), 2) is None
    assert sender_thresholds(GilbertElliott(0.5, 4), 2) is None


def test_masks_for_another_device_forget_the_draws_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda device: device.type == "meta")
    arrivals = Arrivals(Bernoulli(0.5), [0, 1], ranks=2)
    plain = arrivals.gradients(0)
    arrivals._draws = {"gradients": None}  # as if a kernel drew
    assert torch.equal(arrivals.to("cpu").gradients(0), plain)
