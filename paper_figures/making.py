"""Making a figure in a folder, and checking the one that is there.

What is up to date is left alone; what an interruption cut short goes on from the parts that its computation kept in
`.work/`. Files are written whole, the manifest last: one whose hashes are right stands for a figure that is done.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lossproof.paper_figures import manifest, style
from lossproof.paper_figures.figure import Effort, Figure, Progress, Table, write
from lossproof.paper_figures.table import from_csv, to_csv

RESULTS = Path(__file__).resolve().parent / "results"
"""The committed figures; an installed package has none."""


def unheard(done: int, total: int) -> None:
    """Progress that nobody watches."""


def make(
    figure: Figure, effort: Effort, folder: Path, progress: Progress = unheard
) -> Literal["up to date", "drawn", "made", "no record here"]:
    """Sees to it that the figure is in the folder as this code makes it.

    Data of equal inputs and source are kept; if only the drawing has changed, they are drawn again. A figure that was
    made with more effort than asked for is other data, and is made anew. Records stay behind in the source tree: what
    is drawn from one is left alone where there is none.
    """
    found = manifest.read(folder, figure.name)
    source = manifest.source(figure)
    try:
        inputs = manifest.inputs(figure, effort)
    except FileNotFoundError:
        return "no record here"
    if found and found["source"] == source and found["inputs"] == inputs:
        damaged = manifest.damaged(folder, found)
        table_is_good = f"{figure.name}.csv" not in damaged
        if table_is_good and not damaged and found["drawing"] == manifest.drawing(figure):
            return "up to date"
        if table_is_good:
            text = (folder / f"{figure.name}.csv").read_text(encoding="utf-8")
            files, table = _files(figure, text)
            _write(folder, figure, files, found | manifest.presentation(figure, files, table))
            return "drawn"
    key = manifest.digest(json.dumps([source, inputs]).encode())[:16]
    work = folder / ".work" / f"{figure.name}-{key}"
    work.mkdir(parents=True, exist_ok=True)
    files, table = _files(figure, to_csv(figure.compute(inputs, progress, work)))
    _write(folder, figure, files, manifest.of(figure, effort, files, table))
    shutil.rmtree(work)
    if not any(work.parent.iterdir()):
        work.parent.rmdir()
    return "made"


def _files(figure: Figure, text: str) -> tuple[dict[str, bytes], Table]:
    """CSV, PDF and PNG, and the table as the CSV has it."""
    table = from_csv(text)
    with style.paper():
        pdf, png = style.save(figure.draw(table))
    return {f"{figure.name}.csv": text.encode(), f"{figure.name}.pdf": pdf, f"{figure.name}.png": png}, table


def _write(folder: Path, figure: Figure, files: Mapping[str, bytes], found: Mapping[str, Any]) -> None:
    for name, content in files.items():
        write(folder / name, content)
    write(folder / f"{figure.name}.json", (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())


@dataclass(frozen=True)
class Checked:
    """What a check found: `equal` to what is derived again, `differs`, or `not comparable` here; and why."""

    outcome: Literal["equal", "differs", "not comparable"]
    detail: str = ""


def check(figure: Figure, folder: Path, progress: Progress = unheard) -> Checked:
    """Derives the data of a figure again, and compares every digit of its table and of the numbers to quote.

    Pictures are compared with the hashes in the manifest: other versions of matplotlib draw other bytes.
    """
    found = manifest.read(folder, figure.name)
    if found is None:
        return Checked("differs", f"{figure.name}.json is not there or cannot be read")
    if damaged := manifest.damaged(folder, found):
        return Checked("differs", f"not what the manifest says: {', '.join(damaged)}")
    effort = found["effort"]
    try:
        inputs = manifest.inputs(figure, effort)
    except (KeyError, ValueError):
        return Checked("differs", f"effort: {effort!r} is none")
    except FileNotFoundError as error:
        return Checked("not comparable", str(error))
    if found["inputs"] != inputs:
        names = sorted(k for k in found["inputs"].keys() | inputs.keys() if found["inputs"].get(k) != inputs.get(k))
        return Checked("differs", f"made of other inputs: {', '.join(names)}")
    then = (folder / f"{figure.name}.csv").read_text(encoding="utf-8")
    quoted = manifest.numbers(figure, from_csv(then))
    if found["numbers"] != quoted:
        return Checked("differs", "the numbers to quote are not those of the table")
    if why := manifest.incomparable(figure, found):
        return Checked("not comparable", "; ".join(why))
    with tempfile.TemporaryDirectory() as work:
        now = to_csv(figure.compute(inputs, progress, Path(work)))
    if now != then:
        return Checked("differs", _first_difference(figure.name, then, now))
    how = "as recorded; nothing is measured again" if figure.kind == "measured" else effort
    return Checked("equal", f"{then.count(chr(10)) - 1} rows, {how}")


def _first_difference(name: str, then: str, now: str) -> str:
    before, after = (list(csv.reader(io.StringIO(text))) for text in (then, now))
    if before[0] != after[0] or len(before) != len(after):
        return f"{name}.csv: {len(before) - 1} rows of {before[0]} there, {len(after) - 1} of {after[0]} here"
    for number, (old, new) in enumerate(zip(before, after, strict=True), start=1):
        for column, was, is_ in zip(before[0], old, new, strict=True):
            if was != is_:
                return f"{name}.csv line {number}, {column}: {was} there, {is_} here"
    return f"{name}.csv is written in another way"
