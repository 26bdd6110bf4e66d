"""`lossproof verify`: the claims through every rung of evidence, as a table, JSON and a page."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lossproof.commands.errors import require_writable, unusable

if TYPE_CHECKING:
    from rich.table import Table

    from lossproof.proofs_checks.judge import Report

_CORES = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
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
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes that check; the outcome is the same. Default: the cores, at most 4.")
    ] = _CORES,
    record: Annotated[
        bool, typer.Option("--record", help="Keep the outcome of a full run of all claims as the recorded evidence.")
    ] = False,
) -> None:
    """Check every claim on every rung of evidence, and every rung on mistakes planted for it.

    Exits 1 if a rung fails or a planted mistake survives (with --strict: or a rung was not run), 2 for unusable input.
    """
    from rich.console import Console

    try:
        require_writable(json=json_file, report=report)
        code = _before_recording(claims, effort) if record else {}
    except ValueError as error:
        unusable(error)
    outcome = _run(claims, effort, seed, jobs)
    from lossproof.proofs_checks import evidence

    found = outcome.to_json()
    console = Console()
    for claim in found["claims"]:
        console.print(f"{claim['id']:>3}  {claim['title']}", markup=False, highlight=False, soft_wrap=True)
    console.print(table(found))
    for line in details(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(evidence.summary(found), highlight=False, soft_wrap=True)
    try:
        if json_file:
            json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        if record and outcome.ok:
            evidence.write(found, code)
            quoted = " and quoted in the README" if evidence.quote(found) else ""
            console.print(f"recorded in {evidence.RECORD}{quoted}", markup=False, highlight=False, soft_wrap=True)
        if report:
            from lossproof.proofs_checks.report import report_page

            report.write_text(report_page(outcome), encoding="utf-8")
    except OSError as error:
        unusable(f"not written: {error}")
    if record and not outcome.ok:
        console.print("not recorded: what is kept must hold", highlight=False)
    if not outcome.ok or (strict and not outcome.complete):
        raise typer.Exit(1)


def _before_recording(claims: list[str] | None, effort: str) -> dict[str, dict[str, str]]:
    """The hashes of the code that is about to run; what changes while it runs is then stale, as it should be."""
    if claims or effort != "full":
        raise ValueError("record needs all claims and --effort full")
    from lossproof.proofs_checks import evidence

    require_writable(record=evidence.RECORD)
    return evidence.code_under_claims()


def _run(claims: list[str] | None, effort: Literal["quick", "full"], seed: int, jobs: int) -> Report:
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
                jobs=jobs,
            )
        except (ValueError, TypeError) as error:
            bar.stop()
            unusable(error)


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
