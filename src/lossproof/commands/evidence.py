"""`lossproof evidence`: the recorded full run, and whether the code is still the one that it was found for."""

from __future__ import annotations

from typing import Annotated

import typer

from lossproof.commands.errors import unusable

STALE = 3  # a status of its own: a crash, which is 1, must not pass for stale


def evidence(
    check: Annotated[bool, typer.Option("--check", help="One line instead of the table.")] = False,
) -> None:
    """Show the recorded evidence, and of which claims the code has changed since it was found.

    Exits 0 if the evidence is of this code, 3 if the code under a claim has changed since, 1 if a recorded claim does
    not hold, 2 if there is no record that can be read. `make lint` runs it with --check and goes on after 3.
    """
    from lossproof.proofs_checks import evidence as record

    try:
        found = record.read()
    except ValueError as error:
        unusable(error)
    stale = record.stale(found)
    if not check:
        from rich.console import Console

        from lossproof.commands.verify import details, table

        console = Console()
        console.print(table(found, stale))
        for line in [*details(found), record.quotation(found).rstrip()]:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    wrong = [claim["id"] for claim in found["claims"] if claim["verdict"] == "fails"]
    if wrong:
        typer.echo(f"evidence: does not hold: {', '.join(wrong)}; renew it with `{record.RENEW}`", err=True)
        raise typer.Exit(1)
    if stale:
        changed = sorted({name.removeprefix("lossproof.") for names in stale.values() for name in names})
        shown = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
        ids = "all claims" if stale.keys() >= found["code"].keys() else ", ".join(stale)
        typer.echo(f"evidence: stale: {ids} (changed: {shown}); renew it with `{record.RENEW}`", err=True)
        raise typer.Exit(STALE)
    if check:
        typer.echo(f"evidence: of this code: {record.summary(found)}")
