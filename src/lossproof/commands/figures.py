"""`lossproof figures`: every figure from its data, and its data from their seeds."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lossproof.commands.errors import unusable

if TYPE_CHECKING:
    from rich.progress import Progress

    from lossproof.paper_figures.figure import Figure


def figures(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="All figures if none is given.")
    ] = None,
    effort: Annotated[
        Literal["quick", "paper"], typer.Option(help="quick: ten minutes for all; paper: as long as it takes.")
    ] = "quick",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to. [default: paper_figures/results of the source tree]")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Derive the data in DIR again and compare them, digit by digit.")
    ] = False,
) -> None:
    """Make the figures: NAME.pdf, .png, .csv, and .json with all that they were made of.

    What is up to date is left alone, and an interrupted run goes on where it stopped. --check writes nothing: it
    derives the data that are there again, with the effort they were made with. Exact data must come out equal; sampled
    data where the versions are those of the manifest, trained data where text, versions and processor are; elsewhere
    it says `not comparable`, which is not `equal`.

    Exits 0 if all is well, 1 if data differ, 2 for unusable input.
    """
    from lossproof.paper_figures import making
    from lossproof.paper_figures.figure import find

    try:
        chosen = find(names or ())
        _require(chosen)
        if out is None and not making.RESULTS.is_dir():
            raise ValueError("out must be given where there is no source tree, e.g. --out figures")
        folder = making.RESULTS if out is None else out
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"out must be a folder, got {str(folder)!r}")
    except ValueError as error:
        unusable(error)
    if check:
        _check(chosen, folder)
        return
    try:
        _make(chosen, effort, folder)
        if folder.resolve() == making.RESULTS:
            _renew()
    except OSError as error:
        unusable(f"not written: {error}")


def _require(chosen: Sequence[Figure]) -> None:
    """Raises ValueError if a package is missing, and names the extra that has it."""
    needed = [("matplotlib", "figures"), *(pair for figure in chosen for pair in figure.requires)]
    for package, extra in dict.fromkeys(needed):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"figures needs {package}; install it with: pip install 'lossproof[{extra}]'")


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _make(chosen: Sequence[Figure], effort: Literal["quick", "paper"], folder: Path) -> None:
    from lossproof.paper_figures import making

    with _bar() as bar:
        for figure in chosen:
            task = bar.add_task(figure.name, total=None)
            outcome = making.make(figure, effort, folder, lambda n, of: bar.update(task, completed=n, total=of))
            bar.remove_task(task)
            typer.echo(f"{figure.name}: {outcome}")


def _renew() -> None:
    """The gallery and the numbers that documents quote, in a source tree."""
    from lossproof.paper_figures import making, quoting

    root = making.RESULTS.parents[1]
    try:
        for file in quoting.renew(root):
            typer.echo(f"renewed: {file.relative_to(root)}")
    except ValueError as error:
        unusable(error)


def _check(chosen: Sequence[Figure], folder: Path) -> None:
    from lossproof.paper_figures import making

    outcomes = []
    with _bar() as bar:
        for figure in chosen:
            task = bar.add_task(figure.name, total=None)
            found = making.check(figure, folder, lambda n, of: bar.update(task, completed=n, total=of))
            bar.remove_task(task)
            outcomes.append(found.outcome)
            typer.echo(f"{figure.name}: {found.outcome}" + (f": {found.detail}" if found.detail else ""))
    equal, differ, neither = (outcomes.count(outcome) for outcome in ("equal", "differs", "not comparable"))
    typer.echo(f"{equal} equal, {differ} differ, {neither} not comparable here")
    if differ:
        raise typer.Exit(1)
