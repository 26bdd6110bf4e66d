"""Reading a loss log: a CSV file, one row for each packet, whose header names at least src, dst and lost.

A log that also names step, phase and packet, as our own do, says when each packet was sent: it is read on the step
clock unless told otherwise.
"""

from __future__ import annotations

import csv
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lossproof.theory.laws.law import Clock, Phase

Ints = NDArray[np.int64]
PHASES: tuple[Phase, Phase] = ("gradients", "parameters")
TIMED = ("step", "phase", "packet")
_LINK = ("src", "dst", "lost")
_LIMITS = {"src": 1 << 16, "dst": 1 << 16, "lost": 2, "step": 1 << 32, "phase": 2, "packet": 1 << 32}
_ALLOWED = {
    "src": "a rank from 0 to 65535",
    "dst": "a rank from 0 to 65535",
    "lost": "0 (arrived) or 1 (lost)",
    "step": "a step number from 0",
    "phase": " or ".join(PHASES),
    "packet": "a packet number from 0",
}


def clock_of(path: str | Path) -> Clock:
    """`step` where the header names step, phase and packet, else `packet`."""
    return "step" if set(TIMED) <= set(_header(path)) else "packet"


def read(path: str | Path, timed: bool) -> Ints:
    """The columns src, dst and lost, and if `timed` step, phase (0 or 1) and packet, as rows of one table.

    Raises:
        ValueError: no such column, no rows, or a field that cannot be used, named by file, line and column.
    """
    names = _LINK + TIMED if timed else _LINK
    header = _header(path)
    if missing := sorted(set(names) - set(header)):
        needs = f"{', '.join(names[:-1])} and {names[-1]}"
        raise ValueError(f"{path}, line 1: the header must name {needs}; missing {', '.join(missing)}")
    columns = [header.index(name) for name in names]
    table = read_fast(path, columns)
    if table is None:
        table = read_careful(path, columns)
    if not table.shape[1]:
        raise ValueError(f"{path}: no packets after the header")
    return table


def read_fast(path: str | Path, columns: list[int]) -> Ints | None:
    """The table as integers, or None where a row is not plain and `read_careful` must judge."""
    phases: dict[int | str, Callable[[str], Any]] | None = {columns[4]: PHASES.index} if len(columns) > 4 else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a file without rows, an integer written as 1.0
        try:
            table: Ints = np.loadtxt(
                path,
                np.int64,
                comments=None,
                delimiter=",",
                quotechar='"',
                converters=phases,
                skiprows=1,
                usecols=columns,
                ndmin=2,
                encoding="utf-8-sig",
            ).T
        except (ValueError, Warning):
            return None
    limit = np.array(list(_LIMITS.values())[: len(columns)])[:, None]
    return table if table.size and (table >= 0).all() and (table < limit).all() else None


def read_careful(path: str | Path, columns: list[int]) -> Ints:
    found = [[_number(path, line, row, name, column) for name, column in zip(_LIMITS, columns, strict=False)]
             for line, row in _rows(path)]  # fmt: skip
    return np.array(found, dtype=np.int64).reshape(-1, len(columns)).T


def _number(path: str | Path, line: int, row: list[str], name: str, column: int) -> int:
    got = f"got {row[column]!r:.60}" if column < len(row) else f"but the row ends after {len(row)} of its fields"
    try:
        value = PHASES.index(row[column]) if name == "phase" else int(row[column])
    except (ValueError, IndexError):
        value = -1
    if not 0 <= value < _LIMITS[name]:
        other = f"; --clock packet does without {', '.join(TIMED)}" if name in TIMED else ""
        raise ValueError(f"{path}, line {line}: {name} must be {_ALLOWED[name]}, {got}{other}")
    return value


def step_by_step(path: str | Path, table: Ints) -> dict[tuple[int, int, Phase], list[Ints]]:
    """The losses of each packet, 0 or 1 for each step from the first to the last, by link and phase.

    A phase that has no row in a step lost nothing in it; a last step that lacks packets is left out.

    Raises:
        ValueError: the rows are not one for each packet in each step, named by the first step where they are not.
    """
    src, dst, lost, step, phase, packet = table
    steps = np.unique(step)
    if len(holes := np.flatnonzero(np.diff(steps) > 1)):
        raise ValueError(f"{path}: a replay needs every step, but there is no row of step {steps[holes[0]] + 1}")
    names_4K, key = np.unique(np.stack([src, dst, phase, packet]), axis=1, return_inverse=True)
    K, T = names_4K.shape[1], len(steps)
    if 10 * len(src) + 10**6 < K * T:
        raise ValueError(
            f"{path}: a replay needs the same packets in every step, but {K} packets of all links have {len(src)} rows "
            f"in {T} steps; --clock packet replays the rows of each link in order"
        )
    place = key.ravel() * T + (step - steps[0])
    times_KT = np.bincount(place, minlength=K * T).reshape(K, T)
    if (times_KT > 1).any():
        one, other = np.flatnonzero(place == np.flatnonzero(times_KT.ravel() > 1)[0])[:2].tolist()
        raise ValueError(twice(path, int(step[one]), one, other))
    lost_KT = np.zeros(K * T, dtype=np.int64)
    lost_KT[place] = lost
    lost_KT, lacks_KT = lost_KT.reshape(K, T), times_KT == 0
    for number in (0, 1):  # a phase without any row in a step lacks nothing
        of_phase = names_4K[2] == number
        lacks_KT[of_phase] &= ~lacks_KT[of_phase].all(axis=0)
    if T > 1 and lacks_KT[:, -1].any():
        lost_KT, lacks_KT = lost_KT[:, :-1], lacks_KT[:, :-1]
    if lacks_KT.any():
        t = int(np.flatnonzero(lacks_KT.any(axis=0))[0])
        s, d, number, which = names_4K[:, np.flatnonzero(lacks_KT[:, t])[0]].tolist()
        raise ValueError(
            f"{path}: a replay needs the same packets in every step, but step {steps[t]} has no row for packet {which} "
            f"of the {PHASES[number]} from {s} to {d}; --clock packet replays the rows of each link in order"
        )
    found: dict[tuple[int, int, Phase], list[Ints]] = defaultdict(list)
    for (s, d, number, _), lost_T in zip(names_4K.T.tolist(), lost_KT, strict=True):
        found[s, d, PHASES[number]].append(lost_T)
    return found


def twice(path: str | Path, step: int, one: int, other: int) -> str:
    """The reason to refuse a log whose rows of these numbers are of one packet in one step."""
    rows = {number: line for number, (line, _) in enumerate(_rows(path)) if number in (one, other)}
    return (
        f"{path}, lines {rows[one]} and {rows[other]}: step {step} is recorded twice for the same packet; a log is of "
        "one job, did two write into it?"
    )


def _header(path: str | Path) -> list[str]:
    with _opened(path) as rows:
        return next(rows, [])


def _rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields of the rows after the header that are not empty."""
    with _opened(path) as rows:
        next(rows, None)
        yield from ((rows.line_num, row) for row in rows if row)


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            yield csv.reader(file)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: must be a CSV file in UTF-8: {error}") from None
