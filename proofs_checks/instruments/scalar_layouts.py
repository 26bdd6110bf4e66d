"""Where every parameter element belongs, once more: plain integers, one element at a time, from the definitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

Shape = tuple[int, ...]
KINDS = ("flat", "tensors", "dim0")


@dataclass(frozen=True)
class Place:
    """Element `element` of flattened parameter `parameter` and where it is."""

    parameter: int
    element: int
    owner: int
    packet: int
    offset: int


def places(kind: str, shapes: Sequence[Shape], ranks: int, E: int) -> list[Place]:
    """Every element's place, in the order of parameters and elements."""
    return list({"flat": _flat, "tensors": _tensors, "dim0": _dim0}[kind](shapes, ranks, E))


def packet_owners(kind: str, shapes: Sequence[Shape], ranks: int, E: int) -> list[int]:
    """The owner of every packet; a flat layout has packets of padding only, the last of its slices are all equal."""
    owner = {place.packet: place.owner for place in places(kind, shapes, ranks, E)}
    if kind == "flat":
        each = flat_packets(sum(map(prod, shapes)), ranks, E)
        return [rank for rank in range(ranks) for _ in range(each)]
    return [owner[packet] for packet in range(len(owner))]


def flat_packets(total: int, ranks: int, E: int) -> int:
    """The fewest packets of E elements that each rank needs to hold an equal part of all."""
    each = 1
    while each * ranks * E < total:
        each += 1
    return each


def _flat(shapes: Sequence[Shape], ranks: int, E: int) -> Iterator[Place]:
    each = flat_packets(sum(map(prod, shapes)), ranks, E)
    at = 0
    for parameter, shape in enumerate(shapes):
        for element in range(prod(shape)):
            yield Place(parameter, element, at // E // each, at // E, at % E)
            at += 1


def tensor_owners(shapes: Sequence[Shape], ranks: int) -> list[int]:
    """Largest first, the first of equals first; each to the least loaded rank, the first of equals."""
    load, owners = [0] * ranks, [0] * len(shapes)
    left = list(range(len(shapes)))
    while left:
        largest = max(left, key=lambda parameter: (prod(shapes[parameter]), -parameter))
        left.remove(largest)
        owners[largest] = load.index(min(load))
        load[owners[largest]] += prod(shapes[largest])
    return owners


def _tensors(shapes: Sequence[Shape], ranks: int, E: int) -> Iterator[Place]:
    packet = 0
    for parameter, (shape, owner) in enumerate(zip(shapes, tensor_owners(shapes, ranks), strict=True)):
        for element in range(prod(shape)):
            yield Place(parameter, element, owner, packet + element // E, element % E)
        packet += (prod(shape) - 1) // E + 1


def _dim0(shapes: Sequence[Shape], ranks: int, E: int) -> Iterator[Place]:
    packet = 0
    for parameter, shape in enumerate(shapes):
        rows = shape[0] if shape else 1
        row = prod(shape) // rows
        chunk = next(size for size in range(1, rows + 1) if size * ranks >= rows)  # rows of a rank; the last ones fewer
        for owner, elements in groupby(range(prod(shape)), lambda element: element // row // chunk):
            run = list(elements)
            for number, element in enumerate(run):
                yield Place(parameter, element, owner, packet + number // E, number % E)
            packet += (len(run) - 1) // E + 1
