"""Wrong variants of what trains, planted to see whether the checks notice; each with the signature of the right one."""

from __future__ import annotations

from typing import Any

import torch

from lossproof.impl import aggregate as stage_1
from lossproof.impl import loss, philox
from lossproof.impl import retain as stage_2
from lossproof.impl import round as round_
from lossproof.proofs_checks.claim import Mutant

_aggregate, _retain, _philox, _step = stage_1.aggregate, stage_2.retain, philox.philox4x32, round_.Round.step


def _aggregating(description: str, wrong: Any) -> Mutant:
    return Mutant(description, round_, "aggregate", wrong)


def _counted_twice(payload: Any, arrived: Any, *args: Any, **options: Any) -> Any:
    estimate, count = _aggregate(payload, arrived, *args, **options)
    return estimate * (count / (count + 1).clamp(min=1))[:, None], count


def _owner_plus_one(payload: Any, arrived: Any, *args: Any, **options: Any) -> Any:
    options["owner"] = (options["owner"] + 1) % len(payload)
    return _aggregate(payload, arrived, *args, **options)


def _swap_fallback(wrong: dict[str, str]) -> Any:
    def aggregate(payload: Any, arrived: Any, *args: Any, no_survivor: Any = "zero", **options: Any) -> Any:
        no_survivor = wrong.get(no_survivor, no_survivor)
        if no_survivor == "hold" and options.get("previous_PE") is None:  # a round keeps it only where it is asked for
            options["previous_PE"] = torch.zeros_like(payload[0])
        return _aggregate(payload, arrived, *args, no_survivor=no_survivor, **options)

    return aggregate


DIVIDE_BY_N = _aggregating("divides by N", lambda g, m, rule="", **o: _aggregate(g, m, "zero_fill", **o))
IGNORE_LOSS = _aggregating(
    "averages lost packets too", lambda g, m, *a, **o: _aggregate(g, torch.ones_like(m), *a, **o)
)
COUNT_PLUS_ONE = _aggregating("counts one survivor too many", _counted_twice)
NEXT_PACKETS_MASK = _aggregating(
    "reads the mask of the next packet", lambda g, m, *a, **o: _aggregate(g, m.roll(1, 1), *a, **o)
)
NEXT_SENDERS_MASK = _aggregating(
    "reads the mask of the next sender", lambda g, m, *a, **o: _aggregate(g, m.roll(1, 0), *a, **o)
)
NOT_ZEROED = _aggregating(
    "sender i sends the sum of the first i", lambda g, m, *a, **o: _aggregate(g.cumsum(0), m, *a, **o)
)
SURVIVORS_FOR_ZERO_FILL = _aggregating(
    "zero fill divides by survivors", lambda g, m, rule="", **o: _aggregate(g, m, "survivor_mean", **o)
)
NEIGHBOURS_GRADIENT = _aggregating("falls back to the next rank's gradient", _owner_plus_one)
ZERO_FOR_HOLD = _aggregating("sends 0 instead of holding", _swap_fallback({"hold": "zero"}))
HOLD_FOR_OWN = _aggregating("holds instead of the owner's own", _swap_fallback({"own": "hold"}))
OWN_FOR_ZERO = _aggregating("falls back to the owner's own instead of 0", _swap_fallback({"zero": "own"}))


def _retaining(description: str, wrong: Any) -> Mutant:
    return Mutant(description, round_, "retain", wrong)


ZERO_FOR_STALE = _retaining(
    "a lost parameter becomes 0", lambda stale, fresh, m: _retain(torch.zeros_like(stale), fresh, m)
)
ALWAYS_FRESH = _retaining("nothing is ever lost", lambda stale, fresh, m: _retain(stale, fresh, torch.ones_like(m)))
INVERTED = _retaining("keeps what arrived stale", lambda stale, fresh, m: _retain(stale, fresh, ~m))
BLENDS = _retaining("blends stale and fresh", lambda stale, fresh, m: _retain((stale + fresh) / 2, fresh, m))
ONE_MASK_FOR_ALL = _retaining(
    "all receivers lose the same packets", lambda stale, fresh, m: _retain(stale, fresh, m[1].expand_as(m))
)


def _broadcast_first(self: Any, payload: Any, update: Any) -> Any:
    before = self.fresh_QE.clone()
    count = _step(self, payload, lambda estimate: None)
    self.fresh_QE.copy_(before)
    update(_aggregate(payload, torch.ones(payload.shape[:2], dtype=torch.bool))[0])
    return count


BROADCAST_FIRST = Mutant("broadcasts before the optimizer's step", round_.Round, "step", _broadcast_first)


def _counter(description: str, change: Any) -> Mutant:
    return Mutant(description, loss, "philox4x32", lambda counter, key: _philox(change(*counter), key))


SAME_FOR_ALL_RECEIVERS = _counter("counter without the receiver", lambda k, link, ph, s: (k, link & ~0xFFFF, ph, s))
SAME_FOR_ALL_STEPS = _counter("counter without the step", lambda k, link, ph, s: (k, link, ph, 0))
SAME_FOR_ALL_SENDERS = _counter("counter without the sender", lambda k, link, ph, s: (k, link & 0xFFFF, ph, s))


def _halved(counter: Any, key: Any) -> Any:
    return tuple(word >> 1 for word in _philox(counter, key))


WORDS_OF_31_BITS = Mutant("random words of 31 bits", loss, "philox4x32", _halved)


def own_link(wrong: str) -> Mutant:
    """The owner's own link is `wrong` whatever was asked for."""
    original = loss.Arrivals.__init__

    def init(
        self: Any, law: Any, owner_P: Any, ranks: int, seed: int = 0, own_link: Any = "", receiver: int | None = None
    ) -> None:
        original(self, law, owner_P, ranks, seed, wrong, receiver)  # type: ignore[arg-type]

    return Mutant(f"own link always {wrong}", loss.Arrivals, "__init__", init)


def _inverse(change: Any) -> Any:
    """Inverse probability with other gradients, masks or probabilities: `change(g, m, q)` gives them."""

    def aggregate(payload: Any, arrived: Any, *args: Any, **options: Any) -> Any:
        q = options.get("arrival_probability_N")
        if q is None:
            return _aggregate(payload, arrived, *args, **options)
        payload, arrived, options["arrival_probability_N"] = change(payload, arrived, q)
        return _aggregate(payload, arrived, *args, **options)

    return aggregate


def _self_normalised(g: Any, m: Any, q: Any) -> Any:
    total = (m / q.reshape(len(q), -1)).sum(0)
    return g * (len(g) / total.where(total > 0, 1.0))[:, None], m, q


NEXT_SENDERS_PROBABILITY = _aggregating("the next sender's probability", _inverse(lambda g, m, q: (g, m, q.roll(1, 0))))
PROBABILITY_IGNORED = _aggregating(
    "divides by probabilities of 1", _inverse(lambda g, m, q: (g, m, torch.ones_like(q)))
)
SELF_NORMALISED = _aggregating("inverse probability divided by the sum of weights", _inverse(_self_normalised))
SURVIVORS_FOR_INVERSE = _aggregating(
    "the survivor mean for inverse probability", lambda g, m, rule="", **o: _aggregate(g, m, "survivor_mean", **o)
)


def a_fifth_more(module: Any, name: str) -> Mutant:
    """A closed form a fifth too large: a sampled check that catches it resolves that much."""
    right = getattr(module, name)
    return Mutant(f"{name} a fifth too large", module, name, lambda *args, **options: 1.2 * right(*args, **options))
