"""P2: every parameter element has exactly one place.

Legend: N ranks, P packets, E elements of a packet; B a batch shape.
"""

from __future__ import annotations

from itertools import groupby, product
from math import prod
from typing import Any

import sympy as sp
import torch

from lossproof.impl import layout
from lossproof.impl.layout import Layout, Piece
from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import scalar_layouts
from lossproof.proofs_checks.instruments.scalar_layouts import Place, Shape
from lossproof.theory import aggregation, certify, protocol
from lossproof.theory.derive import protocol as derive

KINDS: tuple[Any, ...] = ("flat", "tensors", "dim0")
SHAPES: tuple[Shape, ...] = ((), (1,), (5,), (3, 2), (1, 4), (2, 2, 2), (7,), (4, 3))
_right_flat, _right_tensors, _right_dim0 = layout._flat, layout._tensors, layout._dim0

P2 = Claim(
    "P2",
    "A layout puts every parameter element in exactly one place",
    derive.layouts,
    assumes=("parameters are dense tensors, none of them empty",),
    not_claimed=(
        "that `tensors` is balanced: one tensor may be larger than all others together; the bound says how far",
        "that `dim0` is: the first ranks hold more of a tensor with few rows",
    ),
    witness="a 3 x 2 matrix and a vector of 4 on two ranks, in packets of 4: three packets, the second half empty",
)
P2.derived(
    plant("total/N + w_max/N", protocol, "heaviest_owner", lambda W, w, N: (W + w) / N),
    plant("without the largest", protocol, "heaviest_owner", lambda W, w, N: W / N),
    plant("total/N + w_max - w_max/(N-1)", protocol, "heaviest_owner", lambda W, w, N: W / N + w - w / (N - 1)),
)


@P2.rung(
    "certified",
    plant("total/N + w_max/N", protocol, "heaviest_owner", lambda W, w, N: aggregation.divide(W + w, N)),
    plant("without the largest", protocol, "heaviest_owner", lambda W, w, N: aggregation.divide(W, N)),
    plant("total + (N+1) w_max", protocol, "heaviest_owner", lambda W, w, N: aggregation.divide(W + (N + 1) * w, N)),
    plant("one packet too many", protocol, "packets", lambda n, E: n // E + 1),
    plant("the last packet dropped", protocol, "packets", lambda n, E: n // E),
    plant("slices of a packet too many", protocol, "slice_elements", lambda W, N, E: (W // (N * E) + 1) * E),
)
def _balance(run: Run) -> Evidence:
    L, s, r, less, M = sp.symbols("L s r less M", nonnegative=True)
    N = M + 1  # ranks
    total, largest = N * (L - s) + s + r, s + less  # all others held at least L - s when the heaviest got its last
    slack = sp.expand(sp.simplify(protocol.heaviest_owner(total, largest, N) - L) * N)
    require(certify.is_zero(slack - r - M * less), "the bound is not the heaviest load plus what is not negative")
    require(certify.is_zero(protocol.heaviest_owner(r + N * L, 0, N) - L - r / N), "the bound of equal loads is not L")
    k, E, over = sp.symbols("k E over", positive=True)
    limit = run.pick(24, 60)
    for elements, size in product(range(1, limit), range(1, limit)):
        number = protocol.packets(elements, size)
        fits = (number - 1) * size < elements <= number * size
        require(fits, f"{number} packets of {size} are not the fewest that hold {elements} elements")
    require(certify.is_zero((k * E + over) / E - k - over / E), "ceil is not k or k + 1")
    for total_, ranks, size in product(range(1, limit), range(1, 6), range(1, 8)):
        each = protocol.slice_elements(total_, ranks, size)
        require(each % size == 0 and (each - size) * ranks < total_ <= each * ranks, f"slices of {total_}: {each}")
    for sizes in product(range(1, run.pick(5, 7)), repeat=4):  # attained: the bound is no looser than it must be
        for ranks in (2, 3):
            load = max(_loads([(size,) for size in sizes], ranks))
            bound = protocol.heaviest_owner(sum(sizes), max(sizes), ranks)
            require(load <= bound, f"an owner of {sizes} holds {load}, more than {bound}")
    attained = protocol.heaviest_owner(3, 3, 2)
    require(attained == 3 == max(_loads([(3,)], 2)), f"one tensor of 3 on two ranks: the bound is {attained}")
    return Evidence("total/N + (1 - 1/N) largest for all sizes; whole packets; attained by one tensor", tightness=1.0)


def _loads(shapes: list[Shape], ranks: int) -> list[int]:
    load = [0] * ranks
    for shape, owner in zip(shapes, scalar_layouts.tensor_owners(shapes, ranks), strict=True):
        load[owner] += prod(shape)
    return load


def _moved(of: Any, **by: int) -> Any:
    """The pieces of a layout, a field of each shifted."""

    def cut(*args: Any) -> Any:
        for piece in of(*args):
            fields = {name: getattr(piece, name) + step for name, step in by.items()}
            yield Piece(**{**vars(piece), **fields})

    return cut


def _round_robin(shapes: Any, ranks: int, E: int) -> Any:
    for piece in _right_tensors(shapes, ranks, E):
        yield Piece(**{**vars(piece), "owner": piece.parameter % ranks})


def _unpadded(shapes: Any, ranks: int, E: int) -> Any:
    position = 0
    for piece in _right_tensors(shapes, ranks, E):
        yield Piece(**{**vars(piece), "position": position})
        position += piece.stop - piece.start


@P2.rung(
    "enumerated",
    plant("owners in turn", layout, "_tensors", _round_robin),
    plant("packets span tensors", layout, "_tensors", _unpadded),
    plant("flat owned by the next", layout, "_flat", _moved(_right_flat, owner=1)),
    plant("dim0 one element late", layout, "_dim0", _moved(_right_dim0, position=1)),
    plant("slices of one packet too many", layout, "_slice_elements",
          lambda shapes, ranks, E: (sum(map(prod, shapes)) // (ranks * E) + 1) * E),
    plant("elements counted once for each parameter", Layout, "elements", property(lambda self: len(self.shapes))),
    plant("a piece is found by its end", Layout, "locate", lambda self, parameter, element: next(
        (p.owner, *divmod(p.position + element - p.start, self.packet_elements))
        for p in self.pieces if p.parameter == parameter and element <= p.stop)),
)  # fmt: skip
def _every_small_layout(run: Run) -> Evidence:
    limit, longest = run.pick((3, 3), (5, 6))
    several = [(one,) for one in SHAPES] + list(product(SHAPES, repeat=2))[:: run.pick(3, 1)]
    several += [((5,), (), (4, 3), (3, 2)), ((1,),) * 5, ((7,), (5,), (5,), (1,))]
    count = 0
    for shapes, ranks, E, kind in product(several, range(1, limit + 1), range(1, longest + 1), KINDS):
        _require_layout(Layout.build(shapes, ranks, E, kind), kind, shapes, ranks, E, ((), (2,))[count % 2])
        count += 1
    default = Layout.build([(300,), (5,)], 2)
    require(default == Layout.build([(300,), (5,)], 2, 256, "tensors"), "not tensors in packets of 256 unless said")
    return Evidence(f"{count} layouts: up to 5 parameters, {limit} ranks, packets of up to {longest} elements")


def _require_layout(made: Layout, kind: str, shapes: tuple[Shape, ...], ranks: int, E: int, B: tuple[int, ...]) -> None:
    what = f"{kind} layout of {shapes} on {ranks} ranks in packets of {E}"
    wanted = scalar_layouts.places(kind, shapes, ranks, E)
    owners = scalar_layouts.packet_owners(kind, shapes, ranks, E)
    require(made.owner_P == tuple(owners) and made.packets == len(owners), f"{what}: owners {made.owner_P}")
    require((made.kind, made.ranks, made.packet_elements, made.shapes) == (kind, ranks, E, shapes), f"{what}: fields")
    require(made.elements == len(wanted), f"{what}: {made.elements} elements")
    require(made in {Layout.build(shapes, ranks, E, kind)}, f"{what}: not a value")  # type: ignore[arg-type]
    spots = {(at.packet, at.offset) for at in wanted}
    require(len(spots) == len(wanted) and all(offset < E for _, offset in spots), f"{what}: not one to one")
    for at in wanted:
        got = made.locate(at.parameter, at.element)
        require(got == (at.owner, at.packet, at.offset) and owners[at.packet] == at.owner, f"{what}: {at} at {got}")
    _require_bounds(what, kind, wanted, owners, shapes, ranks, E)
    # Elements numbered from 1, so that padding alone is 0; a second batch negated.
    signs = torch.tensor([1.0, -1.0])[: prod(B)].reshape(B)
    values = torch.arange(1.0, len(wanted) + 1)
    tensors = [(signs[..., None] * part).reshape((*B, *shape))
               for shape, part in zip(shapes, torch.split(values, list(map(prod, shapes))), strict=True)]  # fmt: skip
    buffer = torch.zeros(len(owners), E)
    for value, at in enumerate(wanted, 1):
        buffer[at.packet, at.offset] = value
    buffer = signs[..., None, None] * buffer
    packed = made.pack(tensors)
    require(packed.shape == buffer.shape and torch.equal(packed, buffer), f"{what}: packed {packed.tolist()}")
    again = made.pack(tensors, out=(held := torch.zeros_like(buffer)))
    require(again is held and torch.equal(again, buffer), f"{what}: packed into a buffer")
    unpacked = made.unpack(packed)
    require(len(unpacked) == len(tensors), f"{what}: unpacked {len(unpacked)} parameters")
    for parameter, (back, tensor) in enumerate(zip(unpacked, tensors, strict=True)):
        require(back.shape == tensor.shape and torch.equal(back, tensor), f"{what}: unpacked {back.tolist()}")
        run = [place.packet * E + place.offset for place in wanted if place.parameter == parameter]
        shares = back.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()
        require(
            shares == (run[-1] - run[0] == len(run) - 1), f"{what}: views are for parameters in one run, and only they"
        )
    _require_pieces(what, made, packed, tensors, wanted, B)


def _require_bounds(
    what: str, kind: str, wanted: list[Place], owners: list[int], shapes: tuple[Shape, ...], ranks: int, E: int
) -> None:
    held = [sum(at.owner == rank for at in wanted) for rank in range(ranks)]
    if kind == "flat":
        each = {owners.count(rank) * E for rank in range(ranks)}
        require(each == {protocol.slice_elements(len(wanted), ranks, E)}, f"{what}: slices of {each}")
        return
    inside: dict[int, set[tuple[int, int]]] = {}
    for at in wanted:
        inside.setdefault(at.packet, set()).add((at.owner, at.parameter))
    require(all(len(of) == 1 for of in inside.values()), f"{what}: a packet spans parameters or owners")
    if kind == "tensors":
        bound = protocol.heaviest_owner(len(wanted), max(map(prod, shapes)), ranks)
        require(max(held) <= bound, f"{what}: an owner holds {max(held)}, more than {bound}")
        number = sum(protocol.packets(prod(shape), E) for shape in shapes)
        require(len(owners) == number, f"{what}: {len(owners)} packets, not {number}")


def _require_pieces(
    what: str, made: Layout, packed: torch.Tensor, tensors: list[torch.Tensor], wanted: list[Place], B: tuple[int, ...]
) -> None:
    """Pieces are the runs of one owner in one parameter, shaped as slices of it; a view writes into the buffer."""
    runs = [list(run) for _, run in groupby(wanted, lambda at: (at.parameter, at.owner))]
    require(len(runs) == len(made.pieces), f"{what}: {len(made.pieces)} pieces, not {len(runs)}")
    E = made.packet_elements
    for piece, run in zip(made.pieces, runs, strict=True):
        parameter, start, stop = run[0].parameter, run[0].element, run[-1].element + 1
        shape = made.shapes[parameter]
        if made.kind == "dim0" and shape:
            row = prod(shape[1:])
            rows, slice_ = (
                (stop - start) // row,
                tensors[parameter][(slice(None),) * len(B) + (slice(start // row, stop // row),)],
            )
            shape = (rows, *shape[1:])
        else:
            shape = shape if stop - start == prod(shape) else (stop - start,)
            slice_ = tensors[parameter].reshape(*B, -1)[..., start:stop].reshape((*B, *shape))
        wanted_piece = Piece(parameter, start, stop, run[0].packet * E + run[0].offset, run[0].owner, shape)
        require(piece == wanted_piece, f"{what}: {piece}, not {wanted_piece}")
        view = made.view(packed, piece)
        require(view.shape == slice_.shape and torch.equal(view, slice_), f"{what}: the view of {piece}")
        view.zero_()
    require(not packed.any(), f"{what}: views do not cover the buffer")


P2.leave_out("sampled", "not applicable", "a layout draws nothing: small ones are all alike to large ones")
P2.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
