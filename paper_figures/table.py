"""Tables as CSV and back. A number keeps ten digits: enough for a plot, and the same on every machine.

Floating-point sums may differ in their last bits between processors; what is compared is what is written.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from typing import Any

from lossproof.paper_figures.figure import Table

DIGITS = 10


def to_csv(table: Table) -> str:
    """A header and a row for each entry; None is an empty field.

    Raises:
        ValueError: columns of different lengths, none at all, or a number that is not finite.

    >>> to_csv({"p": [0.1, 1 / 3], "series": ["measured", None]})
    'p,series\\n0.1,measured\\n0.3333333333,\\n'
    """
    if not table or len({len(column) for column in table.values()}) != 1:
        raise ValueError(f"table must have columns of one length, got { {k: len(v) for k, v in table.items()} }")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    for row in zip(*table.values(), strict=True):
        writer.writerow([_field(value) for value in row])
    return text.getvalue()


def _field(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str | bool | int):
        return str(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"table must hold finite numbers, got {number}; None is for what is missing")
    return f"{number:.{DIGITS}g}"


def from_csv(text: str) -> Table:
    """The table again: a column is of numbers if all that stands in it are numbers.

    >>> from_csv(to_csv({"p": [0.1, 1 / 3], "series": ["measured", None]}))
    {'p': [0.1, 0.3333333333], 'series': ['measured', None]}
    """
    header, *rows = csv.reader(io.StringIO(text))
    return {name: _column([row[i] for row in rows]) for i, name in enumerate(header)}


def _column(fields: list[str]) -> list[Any]:
    readings: tuple[Callable[[str], Any], ...] = (int, float, str)
    for reading in readings:
        try:
            return [None if field == "" else reading(field) for field in fields]
        except ValueError:
            continue
    raise AssertionError("every field is a text")


def select(table: Table, **values: Any) -> Table:
    """The rows in which the named columns have these values.

    >>> select({"p": [0.1, 0.2], "drift": [1, 2]}, p=0.2)
    {'p': [0.2], 'drift': [2]}
    """
    size = len(next(iter(table.values())))
    chosen = [i for i in range(size) if all(table[name][i] == value for name, value in values.items())]
    return {name: [column[i] for i in chosen] for name, column in table.items()}


def rows_to_table(rows: list[dict[str, Any]]) -> Table:
    """A table from rows; what a row does not name is None.

    >>> rows_to_table([{"a": 1}, {"b": 2}])
    {'a': [1, None], 'b': [None, 2]}
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in columns}
