"""`lossproof verify`: the claims through every rung of evidence, as a table, JSON and a page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from lossproof.proofs_checks.judge import Report, RungResult

_SIGNS = {
    "holds": "[green]holds[/]",
    "fails": "[bold red]FAILS[/]",
    "not run": "[yellow]not run[/]",
    "not applicable": "[dim]n/a[/]",
}


def verify(
    claims: Annotated[list[str] | None, typer.Argument(help="Ids such as A1 B2; all claims if none is given.")] = None,
    effort: Annotated[Literal["quick", "full"], typer.Option(help="quick: a minute; full: at most ten.")] = "quick",
    seed: Annotated[int, typer.Option(help="64-bit seed; the same seed gives the same digits.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the outcome as JSON.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a self-contained HTML page.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Also fail if any rung was not run.")] = False,
) -> None:
    """Check every claim on every rung of evidence, and every rung on mistakes planted for it.

    Exits 1 if a rung fails or a planted mistake survives (with --strict: or a rung was not run), 2 for unusable input.
    """
    from rich.console import Console

    for option, path in (("json", json_file), ("report", report)):
        if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            typer.echo(f"error: {option} must be a file in a folder that can be written to, got {path}", err=True)
            raise typer.Exit(2)
    outcome = _run(claims, effort, seed)
    console = Console()
    for result in outcome.results:
        console.print(f"{result.claim.id:>3}  {result.claim.title}", markup=False, highlight=False, soft_wrap=True)
    console.print(_table(outcome))
    for line in _details(outcome):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_summary(outcome), highlight=False, soft_wrap=True)
    try:
        if json_file:
            json_file.write_text(json.dumps(outcome.to_json(), indent=2) + "\n", encoding="utf-8")
        if report:
            from lossproof.proofs_checks.page import report_page

            report.write_text(report_page(outcome), encoding="utf-8")
    except OSError as unwritable:
        typer.echo(f"error: not written: {unwritable}", err=True)
        raise typer.Exit(2) from None
    if not outcome.ok or (strict and not outcome.complete):
        raise typer.Exit(1)


def _run(claims: list[str] | None, effort: Literal["quick", "full"], seed: int) -> Report:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)
        from lossproof.proofs_checks.judge import verify as run

        try:
            return run(
                claims or None,
                effort,
                seed,
                progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
            )
        except (ValueError, TypeError) as unusable:
            bar.stop()
            typer.echo(f"error: {unusable}", err=True)
            raise typer.Exit(2) from None


def _table(outcome: Report) -> Table:
    from rich import box
    from rich.table import Table

    from lossproof.proofs_checks.claim import KINDS

    table = Table("claim", *KINDS, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("caught", justify="right")
    table.add_column("tight", justify="right")
    table.add_column("verdict")
    for result in outcome.results:
        tightness = "" if result.tightness is None else f"{result.tightness:.2f}"
        table.add_row(
            result.claim.id,
            *(_SIGNS[rung.verdict] for rung in result.rungs),
            f"{result.caught}/{result.planted}",
            tightness,
            _SIGNS[result.verdict],
        )
    return table


def _details(outcome: Report) -> list[str]:
    """What failed, survived or was not run, a line each."""

    def worth_telling(rung: RungResult) -> bool:
        return rung.verdict in ("fails", "not run") or bool(rung.survivors)

    return [
        f"{result.claim.id} {rung.kind}: {rung.verdict}: {rung.detail}"
        for result in outcome.results
        for rung in result.rungs
        if worth_telling(rung)
    ]


def _summary(outcome: Report) -> str:
    verdicts = [result.verdict for result in outcome.results]
    planted, caught = sum(r.planted for r in outcome.results), sum(r.caught for r in outcome.results)
    failed = [result.claim.id for result in outcome.results if result.verdict == "fails"]
    return (f"FAILED: {', '.join(failed)}; " if failed else "") + (
        f"{verdicts.count('holds')} of {len(verdicts)} claims hold; {caught} of {planted} planted mistakes caught; "
        f"false-alarm probability of the run <= {outcome.alpha_total:.1g}; seed {outcome.seed}, {outcome.effort}, "
        f"{outcome.seconds:.0f} s"
    )
