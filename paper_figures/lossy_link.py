"""How long a round takes over a link that loses packets: UDP against gloo over TCP, from the record of both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lossproof.paper_figures import records, style
from lossproof.paper_figures.figure import Figure, Inputs, Progress, Table
from lossproof.paper_figures.table import rows_to_table, select

UDP, TCP = style.SERIES[1], style.SERIES[2]
LOOKS = {"udp": ("UDP", UDP), "tcp": ("TCP", TCP)}


def compute(inputs: Inputs, progress: Progress, work: Path) -> Table:
    results = records.read(inputs["record"])["results"]
    worst, rows = max(row["loss"] for row in results), []
    for place, row in enumerate(results):
        for transport in LOOKS:
            found = row[transport]
            of = {"mib": row["mib"], "loss": row["loss"], "transport": transport}
            deadline = 1e3 * max(sum(rank["deadlines"]) for rank in row["statistics"]) if transport == "udp" else None
            rows.append({"part": "latency", **of, "rounds": found["rounds"], "p50_ms": found["p50_ms"],
                         "p99_ms": found["p99_ms"], "max_ms": found["max_ms"], "deadline_ms": deadline})  # fmt: skip
            if row["loss"] == worst:
                rows += [{"part": "tail", **of, "ms": ms, "share": share} for ms, share in tail(found)]
        progress(place + 1, len(results))
    return rows_to_table(rows)


def tail(found: dict[str, Any]) -> list[tuple[float, float]]:
    """Times in ms, and the share of rounds that lasted at least so long; quantile q is round ceil(q (n - 1)) of n."""
    n = found["rounds"]
    kept = found.get("quantiles_ms") or [[0.5, found["p50_ms"]], [0.99, found["p99_ms"]], [1.0, found["max_ms"]]]
    return [(ms, 1 - math.ceil(round(q * (n - 1), 6)) / n) for q, ms in kept]


def draw(table: Table) -> Any:
    latency, tails = select(table, part="latency"), select(table, part="tail")
    sizes, losses = sorted(set(latency["mib"])), sorted(set(latency["loss"]))
    picture = style.new(8.0, 5.6)
    style.heading(picture, FIGURE.title)
    above, below = picture.subplots(2, len(sizes), sharey="row", squeeze=False)
    for mib, top, bottom in zip(sizes, above, below, strict=True):
        for transport, (name, series) in LOOKS.items():
            of = select(latency, mib=mib, transport=transport)
            at = [losses.index(loss) for loss in of["loss"]]
            top.plot(at, of["p50_ms"], **series.both(linestyle="-", label=f"{name}, median"))
            top.plot(at, of["p99_ms"], **series.both(linestyle=(0, (2, 2)), markerfacecolor="white",
                                                     label=f"{name}, p99"))  # fmt: skip
            slow = select(tails, mib=mib, transport=transport)
            bottom.plot(slow["ms"], slow["share"], **series.line(label=name))
            bottom.plot(slow["ms"][-1:], slow["share"][-1:], **series.points())
        deadline = select(latency, mib=mib, transport="udp", loss=losses[-1])["deadline_ms"][0]
        bottom.axvline(deadline, color=style.GREY, linewidth=0.9, linestyle=(0, (1, 2)), label="UDP's deadlines")
        bottom.sharex(below[0])
        style.panel(top, f"{mib:g} MiB")
        style.panel(bottom, f"{mib:g} MiB, {100 * losses[-1]:g} % loss")
        top.set(yscale="log", xlabel="loss (%)", xticks=range(len(losses)))
        top.set_xticklabels([f"{100 * loss:g}" for loss in losses])
        bottom.set(xscale="log", yscale="log", xlabel="time of a round (ms)")
        style.plain(top.yaxis)
        style.plain(bottom.xaxis)
        style.plain(bottom.yaxis)
    below[0].set_xlim(0.8 * min(tails["ms"]), 1.25 * max(tails["ms"]))
    above[0].set_ylabel("time of a round (ms)")
    below[0].set_ylabel("share of rounds at least so slow")
    handles, labels = (
        [*of, last[-1]]
        for of, last in zip(above[0].get_legend_handles_labels(), below[0].get_legend_handles_labels(), strict=True)
    )
    picture.legend(handles, labels, loc="outside lower center", ncols=5)
    return picture


def numbers(table: Table) -> dict[str, float | str]:
    latency = select(table, part="latency")
    sizes, losses = sorted(set(latency["mib"])), sorted(set(latency["loss"]))
    found: dict[str, float | str] = {"small": sizes[0], "large": sizes[-1], "worst": losses[-1],
                                     "worst_percent": 100 * losses[-1]}  # fmt: skip
    for size, mib in (("small", sizes[0]), ("large", sizes[-1])):
        udp, tcp = (select(latency, mib=mib, transport=transport) for transport in LOOKS)
        for what in ("p50", "p99"):
            found[f"{size}_faster_{what}"] = records.faster(udp["loss"], udp[f"{what}_ms"], tcp[f"{what}_ms"])
        for transport, of in (("udp", udp), ("tcp", tcp)):
            clean, lossy = of["loss"].index(losses[0]), of["loss"].index(losses[-1])
            found |= {f"{size}_{transport}_clean": of["p50_ms"][clean], f"{size}_{transport}_p50": of["p50_ms"][lossy],
                      f"{size}_{transport}_p99": of["p99_ms"][lossy], f"{size}_{transport}_max": of["max_ms"][lossy],
                      f"{size}_{transport}_rounds": of["rounds"][lossy]}  # fmt: skip
        found[f"{size}_deadline"] = udp["deadline_ms"][udp["loss"].index(losses[-1])]
    return found


FIGURE = Figure(
    name="lossy_link",
    title="Where the link loses, TCP's slow rounds wait for what was lost, and UDP's do not",
    claims=(),
    kind="measured",
    caption="""A round over UDP (gradients to their owners, `aggregate`, parameters to all) against an all-reduce of as
        many bytes by gloo over TCP, in turns on one link that drops packets by chance; each as long as on the slowest
        rank. Top: median and 99th percentile; UDP is the faster of the two, of {small:.0f} MiB, {small_faster_p50} in
        the median and {small_faster_p99} in the 99th percentile; of {large:.0f} MiB {large_faster_p50} and
        {large_faster_p99}. Without loss the medians are {small_udp_clean:.1f} ms over UDP and {small_tcp_clean:.1f}
        over TCP at {small:.0f} MiB, {large_udp_clean:.0f} and {large_tcp_clean:.0f} at {large:.0f} MiB. Bottom: the
        slow rounds at {worst_percent:g} % loss, the slowest as a point. One in 100 of {small:.0f} MiB takes at least
        {small_udp_p99:.0f} ms over UDP ({small_udp_rounds:.0f} rounds measured) and {small_tcp_p99:.0f} over TCP
        ({small_tcp_rounds:.0f}); of {large:.0f} MiB {large_udp_p99:.0f} ({large_udp_rounds:.0f}) and
        {large_tcp_p99:.0f} ({large_tcp_rounds:.0f}); the 99th percentile of fewer than 100 rounds is their slowest.
        UDP's slowest round is bound by the deadlines of its two phases, here as they stood in the end. Measured once,
        on one machine whose cores all ends of the link share: ratios carry over, milliseconds do not. The record is of
        `python -m benchmarks.transport`.""",
    inputs=records.inputs("transport"),
    compute=compute,
    draw=draw,
    numbers=numbers,
)
