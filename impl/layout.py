"""Where every parameter element lives: its owner, its packet, and its offset in the packet.

A layout cuts the flattened parameters into *pieces*, contiguous ranges with one owner each, and lays the pieces one
after another into a buffer of P packets of E elements. Packet numbers depend on the layout and the packet size only.

- `flat`: the parameters end to end, cut into N equal slices (rounded up to whole packets); packets may span parameters.
- `tensors`: whole tensors, each with one owner, balanced by size; packets never span tensors, so any optimizer works.
- `dim0`: every tensor cut into N chunks along its first dimension, as FSDP2 does; packets never span tensors or chunks.

Legend: N ranks, P packets, E elements of a packet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Literal, get_args

import torch

LayoutKind = Literal["flat", "tensors", "dim0"]


@dataclass(frozen=True)
class Piece:
    """Elements [start, stop) of a flattened parameter, at `position` of the packet buffer; `shape` as a tensor."""

    parameter: int
    start: int
    stop: int
    position: int
    owner: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Build one with `Layout.build`.

    >>> layout = Layout.build([(3, 2), (4,)], ranks=2, packet_elements=4, kind="tensors")
    >>> layout.packets, layout.owner_P, layout.locate(0, 5)
    (3, (0, 0, 1), (0, 1, 1))
    """

    kind: LayoutKind
    ranks: int
    packet_elements: int
    shapes: tuple[tuple[int, ...], ...]
    pieces: tuple[Piece, ...]
    owner_P: tuple[int, ...]

    @classmethod
    def build(
        cls, shapes: Sequence[Sequence[int]], ranks: int, packet_elements: int = 256, kind: LayoutKind = "tensors"
    ) -> Layout:
        """The layout of parameters of these shapes over N ranks, in packets of `packet_elements` elements."""
        if kind not in get_args(LayoutKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(LayoutKind))}, got {kind!r}")
        for name, value in (("ranks", ranks), ("packet_elements", packet_elements)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        sizes = tuple(tuple(int(size) for size in shape) for shape in shapes)
        if not sizes or any(prod(shape) == 0 for shape in sizes):
            raise ValueError(f"shapes must name at least one parameter and no empty one, got {sizes}")
        cut = {"flat": _flat, "tensors": _tensors, "dim0": _dim0}[kind]
        pieces = tuple(cut(sizes, ranks, packet_elements))
        if kind == "flat":
            slice_packets = _slice_elements(sizes, ranks, packet_elements) // packet_elements
            owner_P = tuple(rank for rank in range(ranks) for _ in range(slice_packets))
        else:
            owner_P = tuple(
                piece.owner for piece in pieces for _ in range(-(-(piece.stop - piece.start) // packet_elements))
            )
        return cls(kind, ranks, packet_elements, sizes, pieces, owner_P)

    @property
    def packets(self) -> int:
        return len(self.owner_P)

    @property
    def elements(self) -> int:
        """Parameter elements, padding not counted."""
        return sum(prod(shape) for shape in self.shapes)

    def locate(self, parameter: int, element: int) -> tuple[int, int, int]:
        """(owner, packet, offset) of one element of a flattened parameter."""
        for piece in self.pieces:
            if piece.parameter == parameter and piece.start <= element < piece.stop:
                packet, offset = divmod(piece.position + element - piece.start, self.packet_elements)
                return piece.owner, packet, offset
        raise ValueError(f"parameter and element must name an element of {self.shapes}, got {parameter}, {element}")

    def pack(self, tensors: Sequence[torch.Tensor], out: torch.Tensor | None = None) -> torch.Tensor:
        """The packet buffer (*B, P, E) of parameters or gradients (*B, *shape) with any leading batch shape B.

        The padding of short packets is zero; `out` is a buffer of an earlier call to write into.
        """
        batch = self._batch(tensors)
        if out is None:
            out = tensors[0].new_zeros(*batch, self.packets, self.packet_elements)
        flat = out.view(*batch, -1)
        for piece in self.pieces:
            source = tensors[piece.parameter].reshape(*batch, -1)[..., piece.start : piece.stop]
            flat[..., piece.position : piece.position + piece.stop - piece.start] = source
        return out

    def unpack(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """The parameters (*B, *shape) in a buffer (*B, P, E): views where a parameter lies in one run, else copies."""
        batch = buffer.shape[:-2]
        tensors = []
        for number, shape in enumerate(self.shapes):
            pieces = [piece for piece in self.pieces if piece.parameter == number]
            if all(a.position + a.stop - a.start == b.position for a, b in pairwise(pieces)):
                flat = buffer.view(*batch, -1)[..., pieces[0].position : pieces[0].position + prod(shape)]
            else:
                flat = torch.cat([self.view(buffer, piece).reshape(*batch, -1) for piece in pieces], -1)
            tensors.append(flat.view((*batch, *shape)))
        return tensors

    def view(self, buffer: torch.Tensor, piece: Piece) -> torch.Tensor:
        """The piece inside a buffer (*B, P, E), as a view of shape (*B, *piece.shape)."""
        batch = buffer.shape[:-2]
        flat = buffer.view(*batch, -1)[..., piece.position : piece.position + piece.stop - piece.start]
        return flat.view((*batch, *piece.shape))

    def _batch(self, tensors: Sequence[torch.Tensor]) -> torch.Size:
        if len(tensors) != len(self.shapes):
            raise ValueError(f"tensors must hold {len(self.shapes)} parameters, got {len(tensors)}")
        batch = tensors[0].shape[: tensors[0].ndim - len(self.shapes[0])]
        for tensor, shape in zip(tensors, self.shapes, strict=True):
            if tensor.shape != (*batch, *shape):
                raise ValueError(f"tensors must have shape {(*batch, *shape)} here, got {tuple(tensor.shape)}")
        return batch


def _slice_elements(shapes: tuple[tuple[int, ...], ...], ranks: int, packet_elements: int) -> int:
    return -(-sum(map(prod, shapes)) // (ranks * packet_elements)) * packet_elements


def _flat(shapes: tuple[tuple[int, ...], ...], ranks: int, packet_elements: int) -> Iterator[Piece]:
    size, position = _slice_elements(shapes, ranks, packet_elements), 0
    for number, shape in enumerate(shapes):
        start = 0
        while start < prod(shape):
            owner = position // size
            length = min(prod(shape) - start, (owner + 1) * size - position)
            whole = length == prod(shape)
            yield Piece(number, start, start + length, position, owner, shape if whole else (length,))
            start, position = start + length, position + length


def _tensors(shapes: tuple[tuple[int, ...], ...], ranks: int, packet_elements: int) -> Iterator[Piece]:
    load, owners = [0] * ranks, [0] * len(shapes)
    for number in sorted(range(len(shapes)), key=lambda n: -prod(shapes[n])):  # largest first, to the least loaded
        owners[number] = min(range(ranks), key=load.__getitem__)
        load[owners[number]] += prod(shapes[number])
    position = 0
    for number, shape in enumerate(shapes):
        yield Piece(number, 0, prod(shape), position, owners[number], shape)
        position += -(-prod(shape) // packet_elements) * packet_elements


def _dim0(shapes: tuple[tuple[int, ...], ...], ranks: int, packet_elements: int) -> Iterator[Piece]:
    position = 0
    for number, shape in enumerate(shapes):
        rows, row = (shape[0], prod(shape[1:])) if shape else (1, 1)
        chunk = -(-rows // ranks)
        for owner, first in enumerate(range(0, rows, chunk)):
            last = min(first + chunk, rows)
            yield Piece(number, first * row, last * row, position, owner, (last - first, *shape[1:]) if shape else ())
            position += -(-((last - first) * row) // packet_elements) * packet_elements
