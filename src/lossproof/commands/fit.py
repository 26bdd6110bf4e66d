"""`lossproof fit`: which loss law a measured log follows, with intervals, ready for `plan` and `train`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lossproof.commands.errors import require_writable, unusable

if TYPE_CHECKING:
    from lossproof.theory.fit import Fit

_MOST_LINKS = 40


def fit(
    log: Annotated[Path, typer.Argument(metavar="LOG.csv", help="The loss log, a CSV file as above.")],
    clock: Annotated[
        Literal["packet", "step"] | None,
        typer.Option(
            help="What losses follow each other in: the packets of a link, or the steps of each packet number. "
            "[default: step if the header names step, phase and packet, else packet]"
        ),
    ] = None,
    level: Annotated[float, typer.Option(help="Chance of rejecting a family of laws that is the true one.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="Of each interval.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the random logs that the tests compare with.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON.")] = None,
    losses: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write each sender's loss, for plan --losses; with any verdict.")
    ] = None,
) -> None:
    """Fit Bernoulli and Gilbert-Elliott to a loss log; the verdict is bernoulli, gilbert-elliott or neither.

    The log is a CSV file whose header names at least src, dst and lost. Each row is one packet: the sending and the
    receiving rank, and 0 (arrived) or 1 (lost); rows of a link in the order of sending. Where the header also names
    step, phase (gradients or parameters) and packet, as in our own logs, losses follow each other step by step: of each
    packet number, phase and link. Further columns are ignored. `train --trace` replays the same file.

    The tests are exact: a log of either family is denied that family with a chance of at most --level. Not rejected
    does not mean true: a short log allows much. Exits 0 with any verdict, 2 for a log that cannot be used.
    """
    try:
        require_writable(json=json_file, losses=losses)
        from lossproof.theory.fit import fit as estimate

        found = estimate(log, clock, level, confidence, seed)
        commands, notes = suggestions(found, log, losses)
        if losses is not None:
            losses.write_text("\n".join(map(str, sender_table(found))) + "\n", encoding="utf-8")
            notes += _about_table(found, losses)
        if json_file is not None:
            json_file.write_text(
                json.dumps(found.to_json() | {"commands": commands}, indent=2) + "\n", encoding="utf-8"
            )
    except (ValueError, OSError) as error:
        unusable(error)
    _show(found, commands, _why(found, log, clock), notes)


def sender_table(found: Fit) -> list[float]:
    """Each sender's loss: the law's where one Bernoulli law holds for all links, else the share that was lost."""
    from lossproof.theory.laws import Bernoulli

    law, rates = found.law(), []
    if isinstance(law, Bernoulli):
        return [float(law.loss)] * found.ranks
    for rank, share in enumerate(found.shares()):
        if share is None or share == 1:
            lacks = "no packet" if share is None else "no packet that arrived"
            raise ValueError(
                f"losses needs a loss below 1 for every sender; {found.source} has {lacks} from rank {rank}"
            )
        rates.append(share)
    return rates


def _about_table(found: Fit, losses: Path) -> list[str]:
    from lossproof.theory.laws import Bernoulli, PerSender

    if isinstance(found.law(), (Bernoulli, PerSender)):
        return []
    about = {
        "bernoulli": "a sender's links differ by receiver, and this is their average.",
        "gilbert-elliott": "`plan --losses` takes losses for independent, so its ages and drift leave the bursts out.",
        "neither": "`plan --losses` takes losses for independent, which these are not.",
    }
    return [f"{losses} holds the share that each sender lost, not a law: {about[found.verdict]}"]


def suggestions(found: Fit, log: Path, losses: Path | None = None) -> tuple[dict[str, str | None], list[str]]:
    """What to type next: `plan` and `train` with the law found, the law in Python, and the replay of the log; notes."""
    from lossproof.theory.laws import GilbertElliott, PerSender
    from lossproof.theory.logfile import clock_of

    law, ranks = found.law(), max(2, found.ranks)
    file = shlex.quote(str(log))
    clock = "" if found.clock == clock_of(log) else f" --clock {found.clock}"
    options = table = None
    if isinstance(law, PerSender):
        options = f"--losses {shlex.quote(str(losses or 'LOSSES.txt'))}"
        table = None if losses else f"lossproof fit {file}{clock} --level {found.level:g} {options}"
    elif law is not None:
        options = f"--loss {law.loss}" + (f" --burst {law.burst}" if isinstance(law, GilbertElliott) else "")
    kind = f" --law gilbert-elliott --clock {law.clock}" if isinstance(law, GilbertElliott) else ""
    replay, python, notes = _replay(found, log)
    return {
        "losses": table,
        "plan": f"lossproof plan --ranks {ranks} {options}" if options else None,
        "train": f"lossproof train --ranks {ranks}{kind} {options}" if options else None,
        "replay": f"lossproof train --ranks {ranks} --trace {file}{replay}" if replay is not None else None,
        "python": repr(law) if law else python,
    }, notes


def _replay(found: Fit, log: Path) -> tuple[str | None, str | None, list[str]]:
    """The options of `train --trace` that replay all links, a law in Python that replays some, and what to know."""
    from lossproof.theory.laws import Trace
    from lossproof.theory.logfile import clock_of

    if any(link.lost == link.packets for link in found.links):
        return None, None, []  # a link without an arrival
    clock, notes = found.clock, []
    try:
        trace = Trace.from_csv(log, clock)
    except ValueError as error:
        clock, notes = "packet", [f"The log cannot be replayed step by step: {error}"]
        trace = Trace.from_csv(log, clock)
    options, argument = ("", "") if clock == clock_of(log) else (f" --clock {clock}", f', "{clock}"')
    python = f"Trace.from_csv({json.dumps(str(log))}{argument})"
    assert not isinstance(trace.recorded, str)
    replayed = sum(len(rows) if isinstance(rows, str) else sum(map(len, rows)) for _, rows in trace.recorded)
    if (more := replayed - found.pooled.packets) > 0:
        notes.append(
            f"{more:,} packets are missing where all of a phase is: they travelled reliably or not at all (a resync, a "
            "skipped step), and a replay loses none of them."
        )
    elif more < 0:
        notes.append(f"The last step is not whole; a replay leaves its {-more:,} packets out.")
    linked = {(link.src, link.dst) for link in found.links}
    if {(src, dst) for src in range(found.ranks) for dst in range(found.ranks) if src != dst} <= linked:
        return options, python, notes
    one = trace.recorded[0][1]  # one link's losses, or one packet's, for all links
    python = f"Trace({python}.recorded[0][1])" if isinstance(one, str) else f'Trace({python}.recorded[0][1][0], "step")'
    return None, python if "0" in (one if isinstance(one, str) else one[0]) else None, notes


def _why(found: Fit, log: Path, asked: str | None) -> str:
    from lossproof.theory.logfile import clock_of

    names = "names" if clock_of(log) == "step" else "does not name"
    return f"{found.clock} ({'--clock' if asked else f'the header {names} step, phase and packet'})"


def _show(found: Fit, commands: dict[str, Any], clock: str, notes: list[str]) -> None:
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
        f"{pooled.lost:,} lost; clock {clock}, {found.chains:,} chain{'s' * (found.chains != 1)}"
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
    for line in [*_words(found, clock), *notes]:
        console.print(line)
    for what, command in commands.items():
        if command:
            console.print(f"{what + ':':8} {command}")


def _words(found: Fit, clock: str) -> list[str]:
    """The verdict in words, and what the reader must know to use it."""
    test, pooled = found.tests[1], found.pooled
    words = [f"verdict: {found.verdict} (each family at level {found.level:g})"]
    if found.verdict == "neither":
        words.append(f"Most telling: {test.remark}. No figure of `plan` holds for such losses.")
        if found.clock == "packet" and "--clock" in clock:
            words.append("Leave --clock out: where the log has steps, it is then read step by step. Else replay it.")
        else:
            words.append("Replay the log instead.")
    elif pooled.lost == 0:
        words.append(
            f"Nothing was lost: the loss is at most {found.at_most:.3g} with {found.confidence:.0%} confidence."
        )
    elif pooled.lost == pooled.packets:
        words.append("Everything was lost: no law here has loss 1, and there is nothing to plan with.")
    elif found.law() is None:
        words.append("No single law holds for links that differ; replay the log.")
    if found.verdict == "gilbert-elliott" and found.clock == "packet":
        words.append(
            "Bursts are in packets of a link; `plan` reads steps: fewer, where a link carries several packets a step."
        )
    return words
