"""`lossproof plan`: what packet loss will do to a deployment, in numbers, and what follows from the claims."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lossproof.commands.errors import unusable

if TYPE_CHECKING:
    from lossproof.theory.plan import Plan
    from lossproof.theory.stability import OwnLink


def plan(
    ranks: Annotated[int | None, typer.Option(help="Ranks, at least 2. [default: as many as --losses names]")] = None,
    loss: Annotated[float | None, typer.Option(help="Packet loss on every link, in both phases.")] = None,
    burst: Annotated[
        float | None, typer.Option(help="Mean length of a burst of losses, in steps. [default: independent losses]")
    ] = None,
    losses: Annotated[
        Path | None, typer.Option(help="Instead of --loss, a file with one probability for each rank, as a sender.")
    ] = None,
    own_link: Annotated[str, typer.Option(help="The owner's own gradient: reliable or lossy.")] = "reliable",
    budget: Annotated[
        int | None, typer.Option(help="Copies of a gradient and of a parameter packet together; with --step.")
    ] = None,
    step: Annotated[
        float | None, typer.Option(help="Step size times curvature, eta h, of the direction that --budget is for.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """What to expect of a deployment that loses packets: exact values in steady state, per packet.

    K is how many gradients reach the owner of a packet, u its step, sigma^2 = E|u|^2 for zero-mean steps. The advice
    names the claims that it rests on; `lossproof verify` checks them.
    """
    from lossproof.commands.law_options import read_losses
    from lossproof.theory.plan import plan as numbers

    try:
        links = None if losses is None else read_losses(losses)
        found = numbers(ranks, loss, burst, links, cast("OwnLink", own_link), budget, step)
    except (ValueError, TypeError, OSError) as error:
        unusable(error)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2, allow_nan=False))
    else:
        _print(found)


def _print(found: Plan) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lossproof.theory.plan import sender_rows

    console = Console(highlight=False)
    look: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 2, 0, 0), "pad_edge": False, "show_edge": False}
    table = Table(**look)
    for heading, justify in (("", "left"), ("value", "right"), ("meaning", "left")):
        table.add_column(heading, justify=cast(Any, justify), no_wrap=heading != "meaning")
    for row in found.rows():
        table.add_row(*row)
    console.print(table)
    if found.senders is not None:
        headings, rows = sender_rows(found.senders)
        names = ("ranks", "loss", "weight", "bias", "age_mean", "drift_pair", "drift_owner")
        shown = [headings.index(name) for name in names]
        table = Table(title="Links by sender; all figures with --json.", title_justify="left", **look)
        for k in shown:
            table.add_column(headings[k].replace("_", " "), justify="left" if k == 0 else "right", overflow="fold")
        for cells in rows:
            table.add_row(*(cells[k] for k in shown))
        console.print()
        console.print(table)
    console.print()
    for line in advice(found):
        console.print(f"- {line}", markup=False)


def advice(found: Plan) -> list[str]:
    """What the claims say about these numbers, a sentence or two each, with the claim's number."""
    return [*_weights(found), *_staleness(found), *_steps(found), *_copies(found)]


def _weights(found: Plan) -> Iterator[str]:
    from lossproof.theory import aggregation, variance

    N, p = found.ranks, found.loss
    if p == 0 or N == 1:
        return
    if p is None:
        senders = found.senders or ()
        high, low = (pick(range(N), key=lambda i: senders[i].weight) for pick in (max, min))
        yield (
            f"Unequal links bias the survivor mean by sum (weight_i - 1/N) g_i (A6): rank {high} weighs "
            f"{senders[high].weight:.4g}, rank {low} {senders[low].weight:.4g}, and 1/N is {1 / N:.4g}. Inverse "
            "probability has no such bias, whatever the dependence between links (A4)."
        )
        return
    if found.own_link == "reliable":
        yield (
            f"The reliable own link biases the survivor mean towards the owner (A3): its gradient weighs "
            f"{found.owner_weight:.4g} instead of {1 / N:.4g}, which shifts the estimate by "
            f"{aggregation.owner_bias(1, 0, N, p):.3g} (g_owner - mean). Losing it like the others (own link lossy) "
            "removes the bias given a survivor (A1), inverse probability removes it altogether (A4)."
        )
        return
    yield (
        f"The survivor mean is unbiased given a survivor (A1). No survivor, chance {found.p_no_survivor:.3g} a step: "
        "no update shrinks the mean step by that share (A2); inverse probability is unbiased over all steps (A4)."
    )
    inverse = cast(float, found.variance_inflation) / N
    above = variance.crossover_given_survivor(N, p, inverse)
    if above > 0:
        yield (
            f"Inverse probability spreads less than the survivor mean where |mean gradient|^2 < {above:.3g} s^2, more "
            "where it is larger (A5); s^2 is the variance of the gradients between the ranks."
        )
    else:
        yield "The survivor mean spreads less than inverse probability, whatever the gradients (A5)."


def _staleness(found: Plan) -> Iterator[str]:
    from lossproof.theory import contrast

    p = found.loss if found.senders is None else max(sender.loss for sender in found.senders)
    if not p:
        return
    about = "" if found.loss is not None else f", at the largest loss, {p:g}"
    if found.burst is None or found.stable_step is not None:  # a burst of 1/(1-p) is independent loss
        most = contrast.resync_pair_saved(p)
        yield (
            "A reliable broadcast of the parameters every R steps helps only for R up to about "
            f"{1 / (1 - p):.3g}{about} (B12): it saves at most {most:.3g}/R of the drift between replicas."
        )
    else:
        factor = found.burst * (1 - p)
        yield (
            f"Bursts change age and drift to the owner by a factor of {factor:.3g} (B8). What counts "
            "is the burst in steps, not in packets: a channel that ticks many times a step forgets more. Bursts whose "
            "length varies more than these cost more still, without bound if its variance is infinite."
        )
    if found.age_max_mean is not None and found.age_mean:
        yield (
            f"The oldest of {found.ranks} replicas is {found.age_max_mean / found.age_mean:.3g} times as old as the "
            "mean one; its age grows like log N and not with time (B7)." + _without_the_owner(found, found.age_max_mean)
        )
    if found.ranks == 2:
        yield "With 2 ranks a packet has one replica: drift_pair is what a second one would see."


def _without_the_owner(found: Plan, of_all: float) -> str:
    """The oldest of the N - 1 stale copies that a packet has, where two digits show the difference."""
    from lossproof.theory import burst_ages
    from lossproof.theory.laws import exact

    p = exact(cast(float, found.loss))
    L = 1 / (1 - p) if found.burst is None else exact(found.burst)
    stale = burst_ages.worst_mean(found.ranks - 1, p, L)
    if f"{stale:.2g}" == f"{of_all:.2g}":
        return ""
    return (
        f" The owner's copy of a packet is fresh: the oldest of the N - 1 = {found.ranks - 1} others is {stale:.3g} "
        f"steps old on average, against {of_all:.3g} in age_max_mean."
    )


def _steps(found: Plan) -> Iterator[str]:
    s, lossless = found.stable_step, found.stable_step_lossless
    if s is not None and abs(s - lossless) > 1e-3:
        yield (
            f"SGD on a quadratic bears {'larger' if s > lossless else 'only smaller'} steps than without loss, by the "
            f"factor {s / lossless:.3g}: beyond stable_step its mean square grows (D2)."
        )


def _copies(found: Plan) -> Iterator[str]:
    spent = found.redundancy
    if spent is None or not found.loss:
        return
    from lossproof.theory import redundancy

    aim = redundancy.advantage(found.ranks, found.loss, spent.eta_h, cast(Any, found.own_link))
    small = spent.eta_h < found.stable_step_lossless / 4
    yield f"Send gradient packets {spent.gradients} times and parameter packets {spent.parameters} times" + (
        ": losing gradients costs in proportion to the loss, losing parameters eta h times that, so gradients deserve "
        f"about {aim:.2g} copies more (D3)."
        if small and aim > 0
        else " (D3): eta h is not small, so it is the exact risk that decides."
    )
