"""A LLaMA that trains over a link that loses packets: UDP against plain DDP over TCP, from the record of both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lossproof.paper_figures import records, style
from lossproof.paper_figures.figure import Figure, Inputs, Progress, Table
from lossproof.paper_figures.intervals import bars, mean_interval
from lossproof.paper_figures.lossy_link import LOOKS
from lossproof.paper_figures.table import rows_to_table, select


def compute(inputs: Inputs, progress: Progress, work: Path) -> Table:
    found = records.read(inputs["record"])
    rows: list[dict[str, Any]] = []
    for row in found["table"]:
        for transport in LOOKS:
            of = row[transport]
            there = mean_interval(of["seconds_to_target"])
            rows.append({
                "part": "steps", "loss": row["loss"], "transport": transport, "seeds": len(of["log_perplexity"]),
                "steps": of["steps"], "p50_ms": of["p50_ms"], "p99_ms": of["p99_ms"], "mean_ms": of["mean_ms"],
                "target": found["target_log_perplexity"],
                "reliable_ms": of.get("reliable_ms"), "seconds_to_target": there["mean"],
                "seconds_to_target_low": there["low"], "seconds_to_target_high": there["high"],
                "perplexity": math.exp(sum(of["log_perplexity"]) / len(of["log_perplexity"])),
            })  # fmt: skip
    low, high = found["difference"]["interval"]
    rows.append({"part": "difference", "nats": found["difference"]["mean"], "nats_low": low, "nats_high": high})
    for curve in found.get("curves", ()):
        rows += [{"part": "curve", "loss": curve["loss"], "transport": curve["transport"], "seconds": at, "nats": nats}
                 for at, nats in zip(curve["seconds"], curve["train_loss"], strict=True)]  # fmt: skip
    progress(1, 1)
    return rows_to_table(rows)


def draw(table: Table) -> Any:
    steps, curves = select(table, part="steps"), select(table, part="curve")
    losses = sorted(set(steps["loss"]))
    picture = style.new(8.0, 5.6 if curves["part"] else 3.4)
    style.heading(picture, FIGURE.title)
    above, below = picture.subfigures(2, 1) if curves["part"] else (None, picture)
    first, *_ = panels = below.subplots(1, 2)
    for axes, what in zip(panels, ("mean_ms", "seconds_to_target"), strict=True):
        for place, (transport, (name, series)) in enumerate(LOOKS.items()):
            of = select(steps, transport=transport)
            at = [losses.index(loss) + 0.06 * (2 * place - 1) for loss in of["loss"]]
            if what == "mean_ms":
                axes.plot(at, of[what], **series.both(label=f"{name}, mean"))
                axes.plot(at, of["p99_ms"], **series.points(markerfacecolor="white", label=f"{name}, p99"))
            else:
                axes.errorbar(at, of[what], bars(of[what], of[f"{what}_low"], of[f"{what}_high"]),
                              **series.both(label=f"{name}, mean"))  # fmt: skip
        axes.set(xlabel="loss (%)", xticks=range(len(losses)))
        axes.set_xticklabels([f"{100 * loss:g}" for loss in losses])
    first.set(yscale="log", ylabel="time of a step (ms)")
    style.plain(first.yaxis, [step * 10**power for power in range(5) for step in (1, 2, 5)])
    panels[1].set(ylim=(0, None), ylabel="time to the target (s)")
    style.panel(panels[1], f"until the training loss is {steps['target'][0]:.2f}: mean, 95 %")
    style.panel(first, "mean and 99th percentile")
    first.legend()
    if above:
        for axes, loss in zip(above.subplots(1, len(losses), sharex=True, sharey=True), losses, strict=True):
            for transport, (name, series) in LOOKS.items():
                of = select(curves, transport=transport, loss=loss)
                axes.plot(of["seconds"], of["nats"], **series.line(label=name))
            axes.axhline(steps["target"][0], color=style.GREY, linewidth=0.9)
            axes.set_xlabel("time (s)")
            style.panel(axes, f"{100 * loss:g} % loss")
        above.axes[0].set_ylabel("training loss (nats per byte)")
        above.axes[0].legend()
    return picture


def numbers(table: Table) -> dict[str, float | str]:
    steps, difference = select(table, part="steps"), select(table, part="difference")
    losses = sorted(set(steps["loss"]))
    udp, tcp = (select(steps, transport=transport) for transport in LOOKS)
    found: dict[str, float | str] = {
        "seeds": steps["seeds"][0], "steps": steps["steps"][0] / steps["seeds"][0], "worst": losses[-1],
        "worst_percent": 100 * losses[-1], "target": steps["target"][0], "nats": difference["nats"][0],
        "nats_from": difference["nats_low"][0], "nats_to": difference["nats_high"][0],
        "faster": records.faster(udp["loss"], udp["mean_ms"], tcp["mean_ms"]),
        "sooner": records.faster(udp["loss"], udp["seconds_to_target"], tcp["seconds_to_target"]),
    }  # fmt: skip
    found["reliable_ms"] = udp["reliable_ms"][udp["loss"].index(losses[-1])]
    for transport, of in (("udp", udp), ("tcp", tcp)):
        for name, loss in (("clean", losses[0]), ("lossy", losses[-1])):
            place = of["loss"].index(loss)
            found |= {f"{transport}_{name}_ms": of["mean_ms"][place], f"{transport}_{name}_p99": of["p99_ms"][place],
                      f"{transport}_{name}_seconds": of["seconds_to_target"][place]}  # fmt: skip
    return found


FIGURE = Figure(
    name="training_over_link",
    title="Where the link loses, steps grow long over TCP, not over UDP; what that lets go costs little",
    claims=(),
    kind="measured",
    caption="""A small LLaMA under DDP, over UDP (`attach` with `UdpChannel`) and over gloo's TCP, in turns on one link
        that drops packets by chance; {seeds:.0f} seeds of {steps:.0f} steps. At {worst_percent:g} % loss a step takes
        {udp_lossy_ms:.0f} ms over UDP (without loss {udp_clean_ms:.0f}) and {tcp_lossy_ms:.0f} over TCP
        ({tcp_clean_ms:.0f}), and the target, which every run reaches, {udp_lossy_seconds:.1f} s
        ({udp_clean_seconds:.1f}) and {tcp_lossy_seconds:.1f} s ({tcp_clean_seconds:.1f}). UDP is the faster of the two
        {faster} in the mean step, and {sooner} to the target. What {worst_percent:g} % loss costs over UDP in
        log-perplexity on validation text, against the same seed without: {nats:+.4f} nats ({nats_from:+.4f} to
        {nats_to:+.4f}, 95 %). Of that step over UDP {reliable_ms:.0f} ms are the wait for
        small values that must arrive, such as norms. Measured once, on one
        machine whose cores all ranks share: ratios carry over, seconds do not. The record is of
        `python -m benchmarks.training_over_loss`.""",
    inputs=records.inputs("training_over_loss"),
    compute=compute,
    draw=draw,
    numbers=numbers,
)
