"""`lossproof verify`: the claims through every rung of evidence, as a table, JSON and a page."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from lossproof.proofs_checks.judge import Report

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
    record: Annotated[
        bool, typer.Option("--record", help="Keep the outcome of a full run of all claims as the recorded evidence.")
    ] = False,
) -> None:
    """Check every claim on every rung of evidence, and every rung on mistakes planted for it.

    Exits 1 if a rung fails or a planted mistake survives (with --strict: or a rung was not run), 2 for unusable input.
    """
    from rich.console import Console

    if record and (claims or effort != "full"):
        typer.echo("error: record needs all claims and --effort full", err=True)
        raise typer.Exit(2)
    for option, path in (("json", json_file), ("report", report)):
        if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            typer.echo(f"error: {option} must be a file in a folder that can be written to, got {path}", err=True)
            raise typer.Exit(2)
    outcome = _run(claims, effort, seed)
    found = outcome.to_json()
    console = Console()
    for claim in found["claims"]:
        console.print(f"{claim['id']:>3}  {claim['title']}", markup=False, highlight=False, soft_wrap=True)
    console.print(table(found))
    for line in details(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(summary(found), highlight=False, soft_wrap=True)
    try:
        if json_file:
            json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        if report:
            from lossproof.proofs_checks.page import report_page

            report.write_text(report_page(outcome), encoding="utf-8")
        if record and outcome.ok:
            from lossproof.proofs_checks import evidence

            evidence.write(found)
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


def table(found: dict[str, Any], stale: Collection[str] = ()) -> Table:
    """Claims by rungs, from the JSON of a run."""
    from rich import box
    from rich.table import Table

    kinds = [rung["kind"] for rung in found["claims"][0]["rungs"]] if found["claims"] else []
    rows = Table("claim", *kinds, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    rows.add_column("caught", justify="right")
    rows.add_column("tight", justify="right")
    rows.add_column("verdict")
    for claim in found["claims"]:
        rows.add_row(
            claim["id"],
            *(_SIGNS[rung["verdict"]] for rung in claim["rungs"]),
            f"{claim['mutants']['caught']}/{claim['mutants']['planted']}",
            "" if claim["tightness"] is None else f"{claim['tightness']:.2f}",
            "[bold red]STALE[/]" if claim["id"] in stale else _SIGNS[claim["verdict"]],
        )
    return rows


def details(found: dict[str, Any]) -> list[str]:
    """What failed, survived or was not run, a line each."""
    return [
        f"{claim['id']} {rung['kind']}: {rung['verdict']}: {rung['detail']}"
        for claim in found["claims"]
        for rung in claim["rungs"]
        if rung["verdict"] in ("fails", "not run") or "SURVIVED" in rung["detail"]
    ]


def summary(found: dict[str, Any]) -> str:
    """The last line: how many hold, were caught, and the chance of a false alarm."""
    verdicts = [claim["verdict"] for claim in found["claims"]]
    planted, caught = (sum(claim["mutants"][key] for claim in found["claims"]) for key in ("planted", "caught"))
    failed = [claim["id"] for claim in found["claims"] if claim["verdict"] == "fails"]
    return (f"FAILED: {', '.join(failed)}; " if failed else "") + (
        f"{verdicts.count('holds')} of {len(verdicts)} claims hold; {caught} of {planted} planted mistakes caught; "
        f"false-alarm probability of the run <= {found['alpha_total']:.1g}; seed {found['seed']}, {found['effort']}, "
        f"{found['seconds']:.0f} s"
    )
