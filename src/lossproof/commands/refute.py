"""`lossproof refute`: an aggregation rule of the user's own, against exact enumeration and a search."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lossproof.commands.errors import require_writable, unusable

if TYPE_CHECKING:
    from lossproof.proofs_checks.counterexample import Source
    from lossproof.proofs_checks.refutation import Refutation


def refute(
    target: Annotated[str, typer.Argument(metavar="FILE.py:RULE", help="A Python file, and the function in it.")],
    loss: Annotated[
        list[str] | None,
        typer.Option(
            help="Loss, read exactly (0.1 or 1/10); repeat it. Name the one that the rule knows. [default: 0.1, 0.5]"
        ),
    ] = None,
    ranks: Annotated[list[int] | None, typer.Option(help="Ranks, 1 to 10; repeat it. [default: 2, 3, 4]")] = None,
    owner: Annotated[
        int | None, typer.Option(help="The rank whose own gradient needs no network: the rule may read it though lost.")
    ] = None,
    unbiased: Annotated[
        Literal["either", "given_survivor", "always"], typer.Option(help="The convention that the rule must satisfy.")
    ] = "either",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the outcome as JSON.")] = None,
) -> None:
    """Try to refute an aggregation rule. FILE.py IS EXECUTED, with your rights: run it on code that you trust.

    A rule maps (payload_NPE, arrived_NP), a float tensor (N, P, E) and a bool mask (N, P), to estimate_PE. Every
    arrival pattern is summed in exact rationals; then gradients and masks are searched for the smallest
    counterexample, which is printed as a Python program. Unbiased has two conventions: given a survivor, and over all
    rounds.

    Exits 0 if the rule is not refuted, 1 if it is, 2 for unusable input.
    """
    path, _, name = target.rpartition(":")
    if not path or not name:
        unusable(f"the target must be FILE.py:RULE, got {target!r}")
    if not Path(path).is_file():
        unusable(f"the file must exist, got {path!r}")
    losses = [_loss(text) for text in loss] if loss else None

    from lossproof.proofs_checks import refutation

    try:  # the user's file runs last: nothing that was typed may be wrong by then
        require_writable(json=json_file)
        options = refutation.Options.of(losses, ranks or refutation.RANKS, owner, unbiased)
    except (ValueError, TypeError) as error:
        unusable(error)
    typer.echo(f"executing {path} (it runs with your rights)")
    rule, source = _load(Path(path), name)
    found = refutation.attempt(rule, options, source)
    show(found)
    if json_file:
        try:
            json_file.write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            unusable(f"not written: {error}")
    if found.refuted:
        raise typer.Exit(1)


def _loss(text: str) -> Any:
    from fractions import Fraction

    from lossproof.theory.laws import probability

    try:
        return probability("loss", Fraction(text))
    except (ValueError, ZeroDivisionError):
        unusable(f"loss must be a number in [0, 1), such as 0.1 or 1/10, got {text!r}")


def _load(path: Path, name: str) -> tuple[Any, Source]:
    """The rule: the file is executed as an import would, with its own folder first among the places of imports."""
    from lossproof.proofs_checks.counterexample import Source

    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(f"lossproof_refute_{path.stem}", path.resolve())
    if spec is None or spec.loader is None:
        unusable(f"the file must be Python source, got {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        unusable(f"{path} could not be executed: {type(error).__name__}: {error}")
    rule = getattr(module, name, None)
    if not callable(rule):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        unusable(f"{path} must define a function {name!r}; it has {', '.join(functions) or 'none'}")
    return rule, Source(name, str(path.resolve()))


def show(found: Refutation) -> None:
    """The outcome as text: the table, the verdict, the snippets."""
    from lossproof.proofs_checks.counterexample import fraction
    from lossproof.proofs_checks.refutation import WORDS

    head = ("N", "loss", "law", "bias given K >= 1", "bias always", "variance given K>=1", "survivor mean's")
    lines = [
        (
            str(len(row.gradients)),
            str(row.loss),
            row.law.name + ("" if row.law.exchangeable else " *"),
            fraction(row.rule.bias("given_survivor")),
            fraction(row.rule.bias("always")),
            fraction(row.rule.variance_given),
            fraction(row.survivor_mean.variance_given),
        )
        for row in found.rows
    ]
    if lines:
        typer.echo("Exact, over every pattern of arrivals; K counts them.")
        for row in {len(row.gradients): row for row in found.rows}.values():
            typer.echo(f"N = {len(row.gradients)}: gradients {row.gradients}, mean {row.rule.mean}")
        typer.echo(_table([head, *lines]))
        typer.echo("* treats senders unequally, which biases the survivor mean too (claims A3, A6): shown, not counted")
        for convention, words in WORDS.items():
            if found.unbiased in ("either", convention):
                typer.echo(
                    f"unbiased {words}: {'yes, in all enumerated cases' if convention in found.standing else 'NO'}"
                )
    else:
        typer.echo("Not enumerated: the rule gives no finite number for some pattern of arrivals.")
    typer.echo(found.verdict())
    for number, example in enumerate(found.counterexamples, 1):
        typer.echo(f"\n# ---- counterexample {number} of {len(found.counterexamples)}: run it with python ----")
        typer.echo(example.snippet, nl=False)


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
