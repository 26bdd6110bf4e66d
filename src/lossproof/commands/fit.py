"""`lossproof fit`: which loss law a measured log follows, with intervals, ready for `plan` and `train`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from lossproof.theory.fit import Fit

_MOST_LINKS = 40


def fit(
    log: Annotated[Path, typer.Argument(metavar="LOG.csv", help="The loss log, a CSV file as above.")],
    clock: Annotated[
        Literal["packet", "step"],
        typer.Option(
            help="What losses follow each other in: the packets of a link, or the steps of each packet number."
        ),
    ] = "packet",
    level: Annotated[float, typer.Option(help="Chance of rejecting a family of laws that is the true one.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="Of each interval.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the random logs that the tests compare with.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON.")] = None,
    losses: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write each sender's loss, for plan --losses.")
    ] = None,
) -> None:
    """Fit Bernoulli and Gilbert-Elliott to a loss log; the verdict is bernoulli, gilbert-elliott or neither.

    The log is a CSV file whose header names at least src, dst and lost. Each row is one packet: the sending and the
    receiving rank, and 0 (arrived) or 1 (lost); rows of a link in the order of sending. Further columns are ignored,
    but --clock step needs three that our own logs have: step, phase (gradients or parameters) and packet, numbers from
    0. `train --trace` replays the same file.

    The tests are exact: a log of either family is denied that family with a chance of at most --level. Not rejected
    does not mean true: a short log allows much. Exits 0 with any verdict, 2 for a log that cannot be used.
    """
    try:
        for option, path in (("json", json_file), ("losses", losses)):
            if path is not None and (path.is_dir() or not path.parent.is_dir()):
                raise ValueError(f"{option} must be a file in a folder that can be written to, got {path}")
        from lossproof.theory.fit import fit as estimate

        found = estimate(log, clock, level, confidence, seed)
        senders = found.sender_losses()
        if losses is not None:
            rates = senders or [getattr(found.law(), "loss", None)] * found.ranks
            if found.verdict != "bernoulli" or None in rates:
                raise ValueError(
                    f"losses cannot be written: the verdict is {found.verdict}, and --losses needs a Bernoulli loss "
                    "below 1 for every sender"
                )
            losses.write_text("\n".join(map(str, rates)) + "\n", encoding="utf-8")
        commands = suggestions(found, log, losses)
        if json_file is not None:
            json_file.write_text(
                json.dumps(found.to_json() | {"commands": commands}, indent=2) + "\n", encoding="utf-8"
            )
    except (ValueError, OSError) as unusable:
        typer.echo(f"error: {' '.join(str(unusable).split())}", err=True)
        raise typer.Exit(2) from None
    _show(found, commands)


def suggestions(found: Fit, log: Path, losses: Path | None = None) -> dict[str, str | None]:
    """What to type next: `plan` and `train` with the law found, the law in Python, and the replay of the log."""
    from lossproof.theory.laws import GilbertElliott, PerSender

    law, ranks = found.law(), max(2, found.ranks)
    file = shlex.quote(str(log))
    every = {(src, dst) for src in range(ranks) for dst in range(ranks) if src != dst}
    whole = every <= {(link.src, link.dst) for link in found.links}
    replay = f"Trace.from_csv({json.dumps(str(log))})"
    replay = replay if whole else f"Trace({replay}.recorded[0][1])"  # one link's losses, for all links
    never = any(link.lost == link.packets for link in found.links)
    options = None
    if isinstance(law, PerSender):
        options = f"--losses {shlex.quote(str(losses or 'LOSSES.txt'))}"
    elif law is not None:
        options = f"--loss {law.loss}" + (f" --burst {law.burst}" if isinstance(law, GilbertElliott) else "")
    kind = f" --law gilbert-elliott --clock {law.clock}" if isinstance(law, GilbertElliott) else ""
    return {
        "plan": f"lossproof plan --ranks {ranks} {options}" if options else None,
        "train": f"lossproof train --ranks {ranks}{kind} {options}" if options else None,
        "replay": f"lossproof train --ranks {ranks} --trace {file}" if whole and not never else None,
        "python": repr(law) if law else None if never else replay,
    }


def _show(found: Fit, commands: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True, markup=False)

    def grid(*names: str) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
        for name in names:
            table.add_column(name, no_wrap=True)
        return table

    pooled = found.pooled
    console.print(
        f"{found.source}: {pooled.packets:,} packets on {len(found.links)} link{'s' * (len(found.links) != 1)}, "
        f"{pooled.lost:,} lost; clock {found.clock}, {found.chains:,} chain{'s' * (found.chains != 1)}"
    )
    table = grid("family", f"loss [{found.confidence:.0%}]", f"mean burst [{found.confidence:.0%}]", "p-value")
    for row in found.rows():
        table.add_row(*row)
    console.print(table)
    if found.verdict != "neither" and not found.equal_links:
        console.print("The links differ; the values above are their average. Each by itself:")
        each = grid("src", "dst", "packets", "lost", "loss", "mean burst")
        for link in found.links[:_MOST_LINKS]:
            loss, burst = (
                (link.bernoulli, "") if found.verdict == "bernoulli" else (link.loss or link.bernoulli, link.burst)
            )
            each.add_row(str(link.src), str(link.dst), str(link.packets), str(link.lost), str(loss), str(burst or "-"))
        console.print(each)
        if len(found.links) > _MOST_LINKS:
            console.print(f"... and {len(found.links) - _MOST_LINKS} more links (--json has all)")
    for line in _words(found):
        console.print(line)
    for what, command in commands.items():
        if command:
            console.print(f"{what + ':':8} {command}")


def _words(found: Fit) -> list[str]:
    """The verdict in words, and what the reader must know to use it."""
    test, pooled = found.tests[1], found.pooled
    words = [f"verdict: {found.verdict} (each family at level {found.level:g})"]
    if found.verdict == "neither":
        words.append(f"Most telling: {test.remark}. No figure of `plan` holds for such losses.")
        if found.clock == "packet":
            words.append("First try --clock step if the log has the columns step, phase and packet; else replay it.")
    elif pooled.lost == 0:
        words.append(
            f"Nothing was lost: the loss is at most {found.at_most:.3g} with {found.confidence:.0%} confidence."
        )
    elif pooled.lost == pooled.packets:
        words.append("Everything was lost: no law here has loss 1, and there is nothing to plan with.")
    elif found.law() is None:
        words.append("No single law holds for links that differ; replay the log.")
    if found.clock == "step":
        words.append("A replay goes by the order of packets on a link, so it does not keep bursts in steps.")
    if found.verdict == "gilbert-elliott" and found.clock == "packet":
        words.append(
            "Bursts are in packets of a link; `plan` reads steps: fewer, where a link carries several packets a step."
        )
    return words
