"""What a figure is, and where figures are found: every module of this package that holds a `FIGURE`.

A figure is computed into a table, and drawn and quoted from that table alone, as it is read back from its CSV file: so
the picture shows what the file says, and can be drawn again without the computation.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Effort = Literal["quick", "paper"]
Kind = Literal["exact", "sampled", "trained", "measured"]
Table = dict[str, list[Any]]
"""Columns of equal length by name; an entry is a number, a text or None."""
Inputs = dict[str, Any]
"""What the data depend on beside the code, as JSON: sizes, rates, seeds."""
Progress = Callable[[int, int], None]
"""`progress(done, total)`, to be called now and then."""

_PACKAGE = "lossproof.paper_figures"


def nothing_more() -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Figure:
    """One figure.

    Args:
        name: the name of its module, of its files and on the command line.
        title: the finding, as a sentence; it stands above the picture.
        claims: the claims that it shows.
        kind: `exact`, no chance in it; `sampled`, from seeds, by arithmetic alone; `trained`, of a model that trains,
            where digits depend on the processor; `measured`, of a record of measurements, which is read and not made:
            see `records`.
        caption: what is drawn, how it was found, and what it does not say; `{key:.2f}` stands for one of `numbers`.
        inputs: the inputs of an effort. All seeds are among them. FileNotFoundError: their record is not here.
        compute: the table from the inputs. `work` is a folder that outlives an interruption; see `kept`. If it stands
            in a module of its own, that module's text is what decides whether data are up to date, and a change of the
            drawing does not compute anew.
        draw: a `matplotlib.figure.Figure` from the table, within `style.paper()`. It imports matplotlib itself.
        numbers: what documents may quote, from the table.
        environment: what a trained figure's digits depend on beside versions and processor: the hash of its text.
        requires: packages it needs beside lossproof's own, as `(import name, extra)`.
    """

    name: str
    title: str
    claims: tuple[str, ...]
    kind: Kind
    caption: str
    inputs: Callable[[Effort], Inputs]
    compute: Callable[[Inputs, Progress, Path], Table]
    draw: Callable[[Table], Any]
    numbers: Callable[[Table], Mapping[str, float | str]]
    environment: Callable[[], dict[str, str]] = nothing_more
    requires: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)}, got {self.kind!r}")


def kept(work: Path, name: str, make: Callable[[], Any]) -> Any:
    """What `make` returned, now or before an interruption: JSON in `work`, written whole or not at all."""
    file = work / f"{name}.json"
    if not file.exists():
        write(file, (json.dumps(make()) + "\n").encode())
    return json.loads(file.read_text(encoding="utf-8"))


def write(file: Path, content: bytes) -> None:
    """Writes a file whole or not at all, also if it is interrupted."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def names() -> list[str]:
    """The names of all figures, in alphabetical order; their modules are not imported."""
    package = Path(__file__).parent
    texts = {info.name: package / f"{info.name}.py" for info in pkgutil.iter_modules([str(package)])}
    return sorted(name for name, file in texts.items() if "\nFIGURE = " in file.read_text(encoding="utf-8"))


def find(wanted: Iterable[str] = ()) -> list[Figure]:
    """The figures of these names, all by default.

    Raises:
        ValueError: there is no figure of a name.

    >>> [figure.kind for figure in find(["redundancy"])]
    ['sampled']
    """
    known, wanted = names(), list(dict.fromkeys(wanted))
    for name in wanted:
        if name not in known:
            raise ValueError(f"name must be one of {', '.join(known)}, got {name!r}")
    found: list[Figure] = [importlib.import_module(f"{_PACKAGE}.{name}").FIGURE for name in wanted or known]
    for figure, name in zip(found, wanted or known, strict=True):
        if figure.name != name:
            raise ValueError(f"name must be that of its module, {name!r}, got {figure.name!r}")
    return found
