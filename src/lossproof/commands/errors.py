"""How every command ends on input that it cannot use: one line on stderr, `error: ...`, and exit status 2."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import typer

_OPTIONS = {"recorded": "trace", "arrived_NP:": "loss:"}  # what others call that the user gave as an option


def error_line(reason: object) -> str:
    """The reason as one line, in the words of the command line."""
    first, *others = str(reason).split() or ["no reason was given"]
    return " ".join(["error:", _OPTIONS.get(first, first), *others])


def unusable(reason: object) -> NoReturn:
    """Says why, and leaves with status 2."""
    typer.echo(error_line(reason), err=True)
    raise typer.Exit(2) from None


def require_writable(**files: Path | None) -> None:
    """Raises ValueError, naming the option, unless each file that was asked for can be written: before the work."""
    for option, path in files.items():
        if path is not None and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
            raise ValueError(f"{option} must be a file in a folder that can be written to, got {str(path)!r}")
