"""The command line. Commands import what they need when they run, so that `--help` answers at once."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from lossproof.commands.evidence import evidence
from lossproof.commands.figures import figures
from lossproof.commands.fit import fit
from lossproof.commands.plan import plan
from lossproof.commands.refute import refute
from lossproof.commands.train import train
from lossproof.commands.verify import verify

app = typer.Typer(
    name="lossproof",
    help="Formal analysis and verification of distributed training under packet loss.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(verify)
app.command()(evidence)
app.command()(train)
app.command()(plan)
app.command()(fit)
app.command()(refute)
app.command()(figures)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lossproof {version('lossproof')}")
        raise typer.Exit


@app.callback()
def _main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def main() -> None:
    app()
