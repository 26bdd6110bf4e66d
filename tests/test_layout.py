"""Every parameter element has one place; what each kind of layout promises about it."""

from __future__ import annotations

from itertools import pairwise, product
from math import ceil, prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossproof.impl.layout import Layout

SHAPES = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=5)
KINDS = st.sampled_from(["flat", "tensors", "dim0"])
BATCHES = st.sampled_from([(), (1,), (3,), (2, 3)])
LAYOUTS = st.builds(Layout.build, SHAPES, st.integers(1, 5), st.integers(1, 7), KINDS)


def numbered(layout: Layout, batch: tuple[int, ...] = ()) -> list[torch.Tensor]:
    """Parameters whose elements are all different and none is zero."""
    tensors, start = [], 1
    for shape in layout.shapes:
        length = prod(batch) * prod(shape)
        tensors.append(torch.arange(start, start + length, dtype=torch.float64).reshape((*batch, *shape)))
        start += length
    return tensors


@given(LAYOUTS)
def test_every_element_has_exactly_one_place(layout: Layout) -> None:
    tensors = numbered(layout)
    buffer = layout.pack(tensors)
    assert buffer.shape == (layout.packets, layout.packet_elements)
    assert layout.elements == sum(tensor.numel() for tensor in tensors)
    placed = buffer[buffer != 0]  # all else is padding
    assert sorted(placed.tolist()) == [float(i) for i in range(1, layout.elements + 1)]
    for parameter, tensor in enumerate(tensors):
        for element, value in enumerate(tensor.flatten().tolist()):
            owner, packet, offset = layout.locate(parameter, element)
            assert buffer[packet, offset] == value
            assert layout.owner_P[packet] == owner
            assert 0 <= owner < layout.ranks


@given(LAYOUTS, BATCHES)
def test_pack_and_unpack_are_inverse(layout: Layout, batch: tuple[int, ...]) -> None:
    tensors = numbered(layout, batch)
    buffer = layout.pack(tensors)
    assert buffer.shape == (*batch, layout.packets, layout.packet_elements)
    unpacked = layout.unpack(buffer)
    assert all(torch.equal(a, b) for a, b in zip(unpacked, tensors, strict=True))
    assert torch.equal(layout.pack(unpacked), buffer)
    again = torch.zeros_like(buffer)
    assert layout.pack([-t for t in tensors], out=again) is again
    assert torch.equal(again, -buffer)
    if batch:  # a batch is so many buffers
        alone = [layout.pack([t.reshape(-1, *s)[-1] for t, s in zip(tensors, layout.shapes, strict=True)])]
        assert torch.equal(buffer.reshape(-1, *buffer.shape[-2:])[-1], alone[0])


@given(LAYOUTS, BATCHES)
def test_pieces_are_views(layout: Layout, batch: tuple[int, ...]) -> None:
    buffer = layout.pack(numbered(layout, batch))
    for piece in layout.pieces:
        view = layout.view(buffer, piece)
        whole = layout.unpack(buffer)[piece.parameter].reshape(*batch, -1)
        assert view.shape == (*batch, *piece.shape)
        assert torch.equal(view.reshape(*batch, -1), whole[..., piece.start : piece.stop])
        view.zero_()
        assert not layout.unpack(buffer)[piece.parameter].reshape(*batch, -1)[..., piece.start : piece.stop].any()
    assert not buffer.any()  # pieces cover everything


@given(LAYOUTS)
def test_unpacked_parameters_in_one_run_are_views(layout: Layout) -> None:
    buffer = layout.pack(numbered(layout))
    for number, tensor in enumerate(layout.unpack(buffer)):
        runs = [p for p in layout.pieces if p.parameter == number]
        in_one_run = all(a.position + a.stop - a.start == b.position for a, b in pairwise(runs))
        assert (tensor.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()) == in_one_run
        assert in_one_run or layout.kind == "dim0"


@given(LAYOUTS)
def test_a_packet_has_one_owner_and_one_parameter(layout: Layout) -> None:
    inside: dict[int, set[tuple[int, ...]]] = {}
    for parameter, shape in enumerate(layout.shapes):
        for element in range(prod(shape)):
            owner, packet, _ = layout.locate(parameter, element)
            what = () if layout.kind == "flat" else (parameter,)
            inside.setdefault(packet, set()).add((owner, *what))
    assert all(len(contents) == 1 for contents in inside.values())
    if layout.kind != "flat":
        assert set(inside) == set(range(layout.packets))  # no packet is padding only


@given(SHAPES, st.integers(1, 5), st.integers(1, 7))
def test_flat_slices_are_equal_and_end_to_end(shapes: list[tuple[int, ...]], ranks: int, E: int) -> None:
    layout = Layout.build(shapes, ranks, E, "flat")
    total = sum(map(prod, shapes))
    packets_each = ceil(total / (ranks * E))
    assert layout.owner_P == tuple(packet // packets_each for packet in range(ranks * packets_each))
    assert layout.pack(numbered(layout)).flatten()[:total].tolist() == [float(i) for i in range(1, total + 1)]


@given(SHAPES, st.integers(1, 5), st.integers(1, 7))
def test_dim0_cuts_as_torch_chunk_does(shapes: list[tuple[int, ...]], ranks: int, E: int) -> None:
    layout = Layout.build(shapes, ranks, E, "dim0")
    buffer = layout.pack(numbered(layout))
    for number, tensor in enumerate(numbered(layout)):
        chunks = torch.chunk(tensor, ranks) if tensor.ndim else (tensor,)
        pieces = [piece for piece in layout.pieces if piece.parameter == number]
        assert [piece.owner for piece in pieces] == list(range(len(chunks)))
        assert all(torch.equal(layout.view(buffer, p), c) for p, c in zip(pieces, chunks, strict=True))
        assert all(piece.position % E == 0 for piece in pieces)


@given(SHAPES, st.integers(1, 3))
def test_tensors_are_balanced_as_largest_first_can(shapes: list[tuple[int, ...]], ranks: int) -> None:
    """Graham's bound for largest first, against the best of all assignments: (4/3 - 1/(3N)) of it."""
    layout = Layout.build(shapes, ranks, 4, "tensors")
    sizes = [prod(shape) for shape in shapes]

    def heaviest(owners: Any) -> int:
        return max(sum(s for s, o in zip(sizes, owners, strict=True) if o == rank) for rank in range(ranks))

    assert all(piece.shape == layout.shapes[piece.parameter] for piece in layout.pieces)
    best = min(map(heaviest, product(range(ranks), repeat=len(sizes))))
    assert 3 * ranks * heaviest([piece.owner for piece in layout.pieces]) <= (4 * ranks - 1) * best


@given(SHAPES, st.integers(1, 7), st.integers(1, 5), st.integers(1, 5), st.sampled_from(["flat", "tensors"]))
def test_places_do_not_depend_on_the_number_of_ranks(
    shapes: list[tuple[int, ...]], E: int, few: int, many: int, kind: Any
) -> None:
    a, b = (Layout.build(shapes, ranks, E, kind) for ranks in (few, many))
    for parameter, shape in enumerate(shapes):
        for element in range(prod(shape)):
            assert a.locate(parameter, element)[1:] == b.locate(parameter, element)[1:]
    if kind == "tensors":
        assert a.packets == b.packets


def test_layouts_are_values() -> None:
    one, two = (Layout.build([[3, 2], torch.Size([4])], 2, 4) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert one.shapes == ((3, 2), (4,))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("kind", ([(2,)], 2, 4, "rows")),
        ("ranks", ([(2,)], 0, 4, "flat")),
        ("ranks", ([(2,)], 1.5, 4, "flat")),
        ("ranks", ([(2,)], True, 4, "flat")),
        ("packet_elements", ([(2,)], 2, 0, "flat")),
        ("shapes", ([], 2, 4, "flat")),
        ("shapes", ([(2, 0)], 2, 4, "tensors")),
    ],
)
def test_unusable_arguments_are_refused(name: str, arguments: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        Layout.build(*arguments)


def test_tensors_of_other_shapes_are_refused() -> None:
    layout = Layout.build([(2, 3), (4,)], 2, 4)
    for tensors in ([torch.ones(2, 3)], [torch.ones(2, 3), torch.ones(5)], [torch.ones(5, 2, 3), torch.ones(4)]):
        with pytest.raises(ValueError, match=r"^tensors must"):
            layout.pack(tensors)
    for parameter, element in ((0, 6), (0, -1), (2, 0)):
        with pytest.raises(ValueError, match=r"^parameter and element must"):
            layout.locate(parameter, element)
