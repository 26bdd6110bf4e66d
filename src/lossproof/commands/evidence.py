"""`lossproof evidence`: the recorded full run, and whether the code is still the one that it was found for."""

from __future__ import annotations

from typing import Annotated

import typer


def evidence(
    check: Annotated[bool, typer.Option("--check", help="One line instead of the table.")] = False,
) -> None:
    """Show the recorded evidence; exit 1 if the code under a claim has changed since."""
    from rich.console import Console

    from lossproof.commands.verify import details, summary, table
    from lossproof.proofs_checks import evidence as record

    try:
        found = record.read()
    except ValueError as none:
        typer.echo(f"error: {none}", err=True)
        raise typer.Exit(1) from None
    stale = record.stale(found)
    if not check:
        console = Console()
        console.print(table(found, stale))
        for line in [*details(found), summary(found)]:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if stale:
        changed = sorted({name.removeprefix("lossproof.") for names in stale.values() for name in names})
        shown = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
        typer.echo(f"evidence: stale: {', '.join(stale)} (changed: {shown}); renew it with `{record.RENEW}`", err=True)
        raise typer.Exit(1)
    if check:
        typer.echo(f"evidence: of this code: {summary(found)}")
