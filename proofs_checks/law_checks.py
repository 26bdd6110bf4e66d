"""Holding any loss law to its own mathematics: what it states, what it draws, and how often.

Frequencies are tested by exact binomial tests, each at level `ALPHA` (`law_frequencies`); the seeds are fixed, so
that a law passes always or never.

Legend: N ranks, P packets, one or several for each owner.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise, permutations
from numbers import Rational
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lossproof.impl.loss import Arrivals, PhiloxDraw
from lossproof.proofs_checks.claim import Evidence, Refuted, require
from lossproof.proofs_checks.instruments.statistics import ALPHA
from lossproof.proofs_checks.law_frequencies import PHASES, K, check_frequencies
from lossproof.theory.laws import Law

METHODS = ("marginal", "age_tail", "sample")
TICKS = (1, 2, 5)
TRIALS = 20_000


def check_law(law: Law, ranks: int = 8, seed: int = 0, trials: int = TRIALS) -> Evidence:
    """Holds a law to its own mathematics, for pytest: raises AssertionError with the first thing that is wrong.

    Stated: exact probabilities; an age tail that starts at 1 and the marginal and falls, ever more slowly, as it does
    for every stationary process. Drawn: bool masks from the draw's words alone, whatever global generators do, equal
    for equal draws, for packets in another order and for a rank that draws only what it receives; memory that is plain
    int64 arrays, is handed on, not kept, and is all that a resumed job needs. Counted: losses in both phases, runs of
    up to 4 losses with one and two ticks a step, at the start and later, and losses of two links at once, which are
    independent unless the law says `independent_links = False`.

    Args:
        law: an instance, not its class.
        ranks: N >= 2; for a law that names ranks, as many as it names.
        seed: of the draws.
        trials: repetitions of every counted event; with 20000 it notices a probability of 0.1 that is off by 0.013.

    Returns:
        What was checked; `alpha` is the chance that a law that is right fails, whatever the law.

    Raises:
        TypeError: not a law. Refuted (an AssertionError): a law that is wrong.

    >>> from lossproof.theory.laws import Bernoulli
    >>> check_law(Bernoulli(0.1), trials=1000).alpha < 1e-6
    True
    """
    if isinstance(law, type):
        raise TypeError(f"law must be an instance, got the class {law.__name__}: write {law.__name__}(...)")
    if missing := [name for name in METHODS if not callable(getattr(law, name, None))]:
        raise TypeError(f"law must offer {', '.join(METHODS)}; {type(law).__name__} has no {', '.join(missing)}")
    if ranks < 2:
        raise ValueError(f"ranks must be at least 2, got {ranks}")
    links = list(permutations(range(ranks), 2))
    with _in_words("stated"):
        tails = {link: _mathematics(law, *link) for link in links}
    with _in_words("drawn"):
        _structure(law, ranks, seed)
    with _in_words("counted"):
        tests = check_frequencies(law, ranks, seed, trials, tails)
    return Evidence(
        f"exact for {len(links)} links; draws, memory and resume as the protocol needs them; {tests} exact binomial "
        f"tests of {trials} trials each or more",
        alpha=tests * ALPHA,
    )


@contextmanager
def _in_words(part: str) -> Iterator[None]:
    """Whatever a law raises is what is wrong with it."""
    try:
        yield
    except Refuted:
        raise
    except Exception as error:
        raise Refuted(
            f"{part}: the law raised {type(error).__name__}: {error} (if it names ranks, pass ranks=...)"
        ) from error


# -- what it states


def _mathematics(law: Law, src: int, dst: int) -> dict[int, list[Fraction]]:
    """P(A >= 0), ..., P(A >= K) of a link for 1 and 2 ticks a step, after all that can be said of them exactly."""
    link = f"{src}, {dst}"
    marginal = _exact(f"marginal({link})", law.marginal(src, dst))
    tails = {}
    for ticks in TICKS:
        call = f"age_tail(k, {link}, ticks={ticks})"
        tail = [_exact(f"age_tail({k}, {link}, {ticks})", law.age_tail(k, src, dst, ticks)) for k in range(2 * K)]
        require(tail[0] == 1, f"{call}: P(A >= 0) must be 1, got {tail[0]}")
        require(tail[1] == marginal, f"{call}: P(A >= 1) must be marginal({link}) = {marginal}, got {tail[1]}")
        require(all(a >= b for a, b in pairwise(tail)), f"{call} must not increase with k, got {_shown(tail)}")
        falls = [a - b for a, b in pairwise(tail)]
        require(
            all(a >= b for a, b in pairwise(falls)),
            f"{call} must fall ever more slowly: P(A = k) is the chance that an arrival is followed by k losses, which "
            f"k + 1 cannot exceed; got {_shown(tail)}",
        )
        tails[ticks] = tail
    if (src, dst) == (0, 1):
        require(law.marginal() == marginal, "marginal() must be marginal(0, 1)")
        require(law.age_tail(2) == tails[1][2], "age_tail(2) must be age_tail(2, 0, 1, 1)")
    return tails


def _exact(call: str, value: Any) -> Fraction:
    require(
        isinstance(value, Rational) and not isinstance(value, bool),
        f"{call} must be exact, a Fraction, got {type(value).__name__} {value!r}: "
        f"fractions.Fraction or lossproof.theory.laws.exact make one",
    )
    require(0 <= value <= 1, f"{call} must be a probability in [0, 1], got {value}")
    return Fraction(value)


def _shown(tail: list[Fraction]) -> str:
    return ", ".join(map(str, tail[: K + 1])) + ", ..."


# -- what it draws


class _Seen:
    """A draw with what the protocol promises and nothing more: no step, no seed, no generator."""

    def __init__(self, draw: PhiloxDraw, columns: NDArray[np.int64] | None = None) -> None:
        self.phase, self.ranks = draw.phase, draw.ranks
        self._draw, self._columns = draw, np.arange(draw.packet.size) if columns is None else columns
        self.src, self.dst, self.packet = (
            array if array.shape[-1] == 1 else array[..., self._columns] for array in (draw.src, draw.dst, draw.packet)
        )

    def words(self, k: int = 0) -> NDArray[np.int64]:
        return self._draw.words(k)[:, self._columns]

    def common(self, k: int = 0) -> NDArray[np.int64]:
        return self._draw.common(k)[:, self._columns]


def _draws(ranks: int, seed: int, steps: int) -> list[PhiloxDraw]:
    """Both phases of some steps; every rank owns two packets, in no order."""
    owner_P, packet_P = np.tile(np.arange(ranks)[::-1], 2), np.arange(2 * ranks)
    rank_N1 = np.arange(ranks)[:, None]
    return [
        PhiloxDraw(phase, step, ranks, src, dst, packet_P, seed)
        for step in range(steps)
        for phase, src, dst in zip(PHASES, (rank_N1, owner_P), (owner_P, rank_N1), strict=True)
    ]


def _history(law: Law, draws: list[_Seen]) -> list[NDArray[np.bool_]]:
    """The masks of draw after draw; mask and memory are looked at before they are used."""
    memory: Any = {}
    masks = []
    for draw in draws:
        before = copy.deepcopy(dict(memory))
        outcome = law.sample(draw, memory)
        require(isinstance(outcome, tuple) and len(outcome) == 2, "sample must return (lost, memory)")
        lost, after = outcome
        shape = draw.words().shape
        require(isinstance(lost, np.ndarray), f"sample must return a NumPy mask, got {type(lost).__name__}")
        require(lost.dtype == np.bool_ and lost.shape == shape,
                f"sample must return a bool mask of shape {shape}, got {lost.dtype} {lost.shape}")  # fmt: skip
        require(
            _same_memory(memory, before), "sample must not change the memory that it is given, but return a new one"
        )
        require(hasattr(after, "items"), f"sample must return its memory by name, got {type(after).__name__}")
        for name, array in after.items():
            plain = isinstance(name, str) and isinstance(array, np.ndarray) and array.dtype == np.int64
            require(
                plain,
                f"memory[{name!r}] must be a plain int64 array, got {getattr(array, 'dtype', type(array).__name__)}",
            )
        masks.append(lost.copy())
        memory = after
    return masks


def _same_memory(a: Any, b: Any) -> bool:
    return set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in b)


def _equal(a: list[NDArray[np.bool_]], b: list[NDArray[np.bool_]]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _structure(law: Law, ranks: int, seed: int) -> None:
    untouched, steps = copy.deepcopy(law), 6
    draws = _draws(ranks, seed, steps)
    states = _generators()
    masks = _history(law, [_Seen(draw) for draw in draws])
    require(_generators() == states, "sample must take its chance from draw.words, but advances a global generator")
    with _other_generators():
        again = _history(law, [_Seen(draw) for draw in draws])
    require(
        _equal(again, masks),
        "sample must depend on the draw and the memory alone: the same draws gave other losses (a generator of its "
        "own, or something kept in the law between draws)",
    )

    order = np.random.default_rng(0).permutation(2 * ranks)
    shuffled = _history(copy.deepcopy(untouched), [_Seen(draw, order) for draw in draws])
    require(_equal(shuffled, [mask[:, order] for mask in masks]),
            "sample must know packets by draw.packet and their words: in another order they lose others")  # fmt: skip

    owner_P = np.tile(np.arange(ranks)[::-1], 2)

    def job(receiver: int | None = None) -> Arrivals:
        return Arrivals(copy.deepcopy(untouched), owner_P, ranks, seed, "lossy", receiver)

    whole = job()
    moments = [(step, phase) for step in range(steps) for phase in PHASES]
    expected, saved = [], []
    for step, phase in moments:
        saved.append(whole.state_dict())
        expected.append(getattr(whole, phase)(step))
    for cut, state in enumerate(saved):
        resumed = job()
        resumed.load_state_dict(state)
        masks_after = [getattr(resumed, phase)(step) for step, phase in moments[cut:]]
        same = all(torch.equal(a, b) for a, b in zip(masks_after, expected[cut:], strict=True))
        require(same, "the returned memory must be all that a resumed job needs: resumed, it loses other packets")
    for rank in range(ranks):
        alone, mine = job(rank), torch.from_numpy(np.flatnonzero(owner_P == rank))
        for (step, phase), mask in zip(moments, expected, strict=True):
            part = mask[:, mine] if phase == "gradients" else mask[rank : rank + 1]
            require(torch.equal(getattr(alone, phase)(step), part),
                    f"rank {rank} that draws only what it receives must find the same losses ({phase} of step {step}): "
                    f"know links by draw.src and draw.dst, not by rows")  # fmt: skip


def _generators() -> tuple[Any, ...]:
    """The state of every global generator."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), name, tuple(keys), *rest, tuple(torch.get_rng_state().tolist())


@contextmanager
def _other_generators() -> Iterator[None]:
    """The global generators in another state, and back."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(12345)
    np.random.seed(12345)  # noqa: NPY002
    torch.manual_seed(12345)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_state)
