"""Masks drawn in Triton's interpreter against those of `Arrivals`, bit for bit; `test_kernels.py` runs this file.

Legend: N ranks, P packets.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_interpreter import KERNELS, Check, both_tests, same_bits

from lossproof.impl import aggregate as plain_1
from lossproof.impl import kernels
from lossproof.impl import retain as plain_2
from lossproof.impl.loss import Arrivals
from lossproof.impl.philox import philox4x32, split_seed
from lossproof.theory.laws import Bernoulli, GilbertElliott, PerSender, threshold


def check_masks(k: Any, N: int, P: int, seed: int, step: int, own_link: Any, losses: list[Fraction]) -> None:
    owner = np.random.default_rng(seed).integers(0, N, P)
    law = Bernoulli(losses[0]) if len(losses) == 1 else PerSender(tuple(losses))
    arrivals = Arrivals(law, owner, N, seed, own_link)
    thresholds = torch.tensor([threshold(losses[i % len(losses)]) for i in range(N)])
    draw = k.masks.Draw(seed, step, thresholds, torch.from_numpy(owner), torch.arange(P), own_link == "reliable")
    gradients = arrivals.gradients(step)
    assert torch.equal(k.masks.draw(draw, "gradients", N), gradients)
    received = replace(draw, own_arrives=True)
    parameters = arrivals.parameters(step)
    assert torch.equal(k.masks.draw(received, "parameters", N), parameters)

    some = torch.arange(P)[:: max(1, P // 2)]  # the packets of one owner, the rows of a few receivers
    part = replace(draw, owner_P=draw.owner_P[some], packet_P=draw.packet_P[some])
    assert torch.equal(k.masks.draw(part, "gradients", N), gradients[:, some])
    last = replace(received, first=N - 1)
    assert torch.equal(k.masks.draw(last, "parameters", 1), parameters[-1:])
    odd = replace(received, first=1, every=2)
    assert torch.equal(k.masks.draw(odd, "parameters", N // 2), parameters[1::2])

    words, _, _, _ = philox4x32(
        (np.arange(P), (np.int64(0) << 16) | owner, 0, np.int64(step)), split_seed(seed)
    )  # a packet is lost iff its word is below the threshold, so one that equals it arrives
    edge = replace(draw, threshold_N=torch.full((N,), int(words[0])), own_arrives=False)
    assert k.masks.draw(edge, "gradients", 1)[0].tolist() == (words >= words[0]).tolist()

    payload, stale = torch.randn(N, P, 5), torch.randn(N, P, 5)
    estimate, count, _ = k.stage1.aggregate(payload, draw, survivors_divide=True)
    expected = plain_1.aggregate(payload, gradients)
    assert same_bits(estimate, expected[0])
    assert torch.equal(count, expected[1])
    assert same_bits(k.stage2.retain(stale, payload[0], received), plain_2.retain(stale, payload[0], parameters))


@settings(max_examples=15)
@given(
    st.integers(1, 20),
    st.integers(1, 5),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["reliable", "lossy"]),
    st.lists(st.fractions(0, Fraction(999, 1000)), min_size=1, max_size=1),
)
def test_drawn_masks_are_those_of_the_simulation(
    N: int, P: int, seed: int, step: int, own_link: str, losses: list[Fraction]
) -> None:
    check_masks(KERNELS, N, P, seed, step, own_link, losses)


def test_every_sender_may_have_its_own_loss() -> None:
    check_masks(KERNELS, 4, 9, 3, 5, "lossy", [Fraction(1, 2), Fraction(1, 10), Fraction(9, 10), Fraction(0)])


def test_arrivals_on_a_gpu_are_those_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, and of what some ranks receive; a law that the kernel does not know is drawn as ever."""
    owner = [3, 0, 2, 2, 1, 4, 0]
    for law in (Bernoulli(0.3), PerSender((0.1, 0.9, 0, 0.5, 0.3)), GilbertElliott(0.2, burst=3)):
        for own_link, receiver in (("reliable", None), ("lossy", None), ("lossy", 2), ("reliable", range(1, 5, 2))):
            arguments = (law, owner, 5, 2**64 - 1, own_link, receiver)
            here, there = Arrivals(*arguments), Arrivals(*arguments)  # type: ignore[arg-type]
            with monkeypatch.context() as on_gpu:
                on_gpu.setattr(kernels, "available", lambda device: True)
                there.to("cpu")
            assert bool(there._draws) == (not isinstance(law, GilbertElliott))
            for step in (0, 1, 2):
                assert torch.equal(there.gradients(step), here.gradients(step))
                assert torch.equal(there.parameters(step), here.parameters(step))
            assert there.next_step == here.next_step == 3
            assert there.state_dict()["next"] == here.state_dict()["next"]
            for wrong in (-1, 1 << 32, True, 1.0):
                with pytest.raises((TypeError, ValueError), match="step must"):
                    there.gradients(wrong)  # type: ignore[arg-type]
            if there._draws:
                assert torch.equal(there.gradients(2**32 - 1), here.gradients(2**32 - 1))


class Inverted(Bernoulli):
    def sample(self, draw: Any, memory: Any) -> Any:
        return draw.words() >= threshold(Fraction(self.loss)), memory


def test_a_law_made_of_another_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda device: True)
    here, there = (Arrivals(Inverted(Fraction(1, 4)), [0, 1, 2], 3) for _ in range(2))
    assert torch.equal(there.to("cpu").gradients(0), here.gradients(0))
    with pytest.raises(ValueError, match="losses must hold one probability for each of 3 ranks"):
        Arrivals(PerSender((0.1, 0.2)), [0], 3).to("cpu").gradients(0)


def everything(k: Any) -> None:
    check_masks(k, 5, 7, 2**63 + 11, 2**31 + 3, "reliable", [Fraction(1, 3)])
    check_masks(k, 4, 9, 3, 5, "lossy", [Fraction(1, 2), Fraction(1, 10), Fraction(9, 10), Fraction(0)])


MISTAKES: dict[str, tuple[Check, str, str, str]] = {
    name: (everything, "masks", right, wrong)
    for name, (right, wrong) in {
        "the number of the next packet": (
            "mask=inside, other=0).to(tl.uint32)", "mask=inside, other=0).to(tl.uint32) + 1"),
        "another counter word": ("return c0\n", "return c1\n"),
        "a round too few": ("static_range(10)", "static_range(9)"),
        "sender and receiver swapped": ("((src << 16) | dst)", "((dst << 16) | src)"),
        "always the first phase": ("zero + PHASE", "zero"),
        "the key's halves swapped": ("low, high = split_seed", "high, low = split_seed"),
        "lost at the threshold too": ("word.to(tl.int64) >= ", "word.to(tl.int64) > "),
        "the receiver's threshold": ("threshold_ptr + src", "threshold_ptr + dst"),
        "row 0 is always rank 0": ("row * every + first", "row * every"),
        "rows are neighbours": ("row * every + first", "row + first"),
        "own messages are lost": ("arrived | (src == dst) if OWN_ARRIVES else arrived", "arrived"),
    }.items()
}  # fmt: skip


test_planted_mistakes_are_caught, test_without_a_mistake_the_same_checks_pass = both_tests(MISTAKES)
