"""Writes lossy-link.md and the README's tables from the records: `python -m docs.lossy_link`; `--check` says whether
both are current, `--print` shows what the README quotes.

sudo python -m benchmarks.transport; sudo python -m benchmarks.training_over_loss    # the records
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

from scipy.stats import sem
from scipy.stats import t as student

from lossproof.paper_figures import records

HERE = Path(__file__).resolve().parent
PAGE, README = HERE / "lossy-link.md", HERE.parent / "README.md"
_QUOTED = re.compile(r"(?<=<!-- lossy link -->\n)(.*?)(?=<!-- /lossy link -->)", flags=re.DOTALL)
HEAD = """# UDP and TCP on a link that really loses packets

Tables of two recorded runs, one of rounds and one of training; `python -m docs.lossy_link` makes this page.
[Two figures](../paper_figures/README.md) and [a notebook](../notebooks/5_a_real_lossy_link.ipynb) show the same.
Network namespaces of one kernel, a rank in each, {ranks} for the rounds and {nodes} for the training, are joined by a
router that drops packets by chance. UDP and gloo over TCP take turns, so ratios between them mean more than
milliseconds: all share the {cores} cores of one machine, whose load was {load:.1f} when the rounds ended and
{training_load:.1f} after the training.
"""
ROUNDS = """
## One round

A round over UDP is what training does: gradients to their owners, `aggregate`, parameters to all. Over TCP it is an
all-reduce of as many bytes. Each lasts as long as on the slowest rank. The 99th percentile of fewer than 100 rounds is
their slowest. *CPU*: milliseconds of a processor for a round on the busiest rank.

| size | loss | transport | rounds | p50 | p99 | slowest | MB/s | CPU |
|---|---|---|---|---|---|---|---|---|
"""
LOST = """
At which losses UDP is the faster of the two:

| size | in the median | in the 99th percentile |
|---|---|---|
{crossover}

UDP's slowest round is bound by its deadlines, TCP's by nothing. A round has two phases; the deadline of each is learned
from phases that ended by themselves, and is never more than `Limits.ceiling`.

## What UDP lost, and why

*Network*: dropped by the router, of all datagrams that came to it. *Overflow*: dropped by a receiving kernel for want
of room. *Deadline*: packets not sent, or not taken, because the phase was over or their receiver further. *Cut off*:
phases that a deadline ended, on all ranks together. *Deadlines*: of both phases together, as they stood in the end.
What is lost is counted over all rounds, those that were not timed included.

| size | loss | network | overflow | deadline | cut off | deadlines | slowest round |
|---|---|---|---|---|---|---|---|
"""
TARGETS = """
## Targets of the rounds

{targets}
"""
TRAINING = """
## Training

A LLaMA of {layers} layers, {seeds} seeds of {steps} steps. Over TCP it is plain DDP; over UDP the same model with
`attach(..., channel=UdpChannel(), drift_every=0)`; buffers, constants here, are broadcast by neither. Milliseconds of
a step. *Waiting*: those for small values that must arrive, such as norms. *To the target*: seconds until the training
loss, a mean of the last steps, first is {target:.2f} nats, which every run reaches; mean over seeds.

| loss | transport | step, mean | p50 | p99 | slowest | waiting | to the target | validation perplexity |
|---|---|---|---|---|---|---|---|---|
"""
COST = """
Over UDP, against the same seed without loss, mean and 95 % interval over {seeds} seeds: log-perplexity changes by
{changes} nats.
"""


def page(transport: dict[str, Any], training: dict[str, Any]) -> str:
    machine, rows = transport["machine"], transport["results"]
    return "".join([
        HEAD.format(ranks=transport["settings"]["ranks"], nodes=training["settings"]["nodes"], cores=machine["cores"],
                    load=machine["load"], training_load=training["machine"]["load"]),
        ROUNDS, *(_latency(row, name) for row in rows for name in ("udp", "tcp")),
        LOST.format(crossover="\n".join(
            f"| {mib:g} MiB | {_faster(of, 'p50_ms')} | {_faster(of, 'p99_ms')} |" for mib, of in _by_size(rows)
        )),
        *(_lost(row) for row in rows),
        TARGETS.format(targets="\n".join(f"- {line}" for line in transport["targets"])),
        _training(training),
    ])  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _ms(value: float) -> str:
    """Milliseconds or seconds to three digits or so.

    >>> _ms(6.236), _ms(46.85), _ms(1734.2)
    ('6.2', '47', '1,734')
    """
    return f"{value:.1f}" if value < 20 else f"{value:,.0f}"


def _by_size(rows: list[dict[str, Any]]) -> list[tuple[float, list[dict[str, Any]]]]:
    """The rows of each size, by rising loss."""
    sizes = sorted({row["mib"] for row in rows})
    return [(mib, sorted((row for row in rows if row["mib"] == mib), key=lambda row: row["loss"])) for mib in sizes]


def _faster(rows: list[dict[str, Any]], what: str) -> str:
    return records.faster(
        [row["loss"] for row in rows], [row["udp"][what] for row in rows], [row["tcp"][what] for row in rows]
    )


def _latency(row: dict[str, Any], name: str) -> str:
    of = row[name]
    times = " | ".join(_ms(of[f"{what}_ms"]) for what in ("p50", "p99", "max"))
    return (f"| {row['mib']:g} MiB | {_percent(row['loss'])} | {name.upper()} | {of['rounds']:,} | {times} | "
            f"{_ms(of['mb_per_s'])} | {_ms(of['processor_ms'])} |\n")  # fmt: skip


def _deadlines(row: dict[str, Any]) -> float:
    """Of both phases together, in ms, as they stood in the end."""
    return 1e3 * max(sum(rank["deadlines"]) for rank in row["statistics"])


def _lost(row: dict[str, Any]) -> str:
    ranks, (passed, dropped) = row["statistics"], row["router"]["udp"]
    overflow, late, withheld, cut_off = (
        sum(rank[name] for rank in ranks) for name in ("overflowed", "late", "withheld", "cut_off")
    )
    return (f"| {row['mib']:g} MiB | {_percent(row['loss'])} | {dropped:,} of {passed:,} ({dropped / passed:.2%}) | "
            f"{overflow:,} | {late + withheld:,} | {cut_off:,} | {_ms(_deadlines(row))} ms | "
            f"{_ms(row['udp']['max_ms'])} ms |\n")  # fmt: skip


def _training(found: dict[str, Any]) -> str:
    settings = found["settings"]
    lines = [TRAINING.format(target=found["target_log_perplexity"], **settings)]
    for row in found["table"]:
        for name in ("udp", "tcp"):
            of = row[name]
            times = " | ".join(_ms(of[f"{what}_ms"]) for what in ("mean", "p50", "p99", "max"))
            waiting = _ms(of["reliable_ms"]) if "reliable_ms" in of else "-"
            lines.append(f"| {_percent(row['loss'])} | {name.upper()} | {times} | {waiting} | "
                         f"{_mean(of['seconds_to_target']):.2f} | {_perplexity(of):.2f} |\n")  # fmt: skip
    return "".join([*lines, COST.format(changes=changes(found), seeds=len(found["difference"]["values"]))])


def changes(training: dict[str, Any]) -> str:
    """At each loss, what it costs over UDP in log-perplexity: mean and Student's interval over paired seeds."""
    clean, *lossy = sorted(training["table"], key=lambda row: row["loss"])
    found = []
    for row in lossy:
        pairs = zip(row["udp"]["log_perplexity"], clean["udp"]["log_perplexity"], strict=True)
        differences = [here - there for here, there in pairs]
        reach = float(student.ppf(0.975, len(differences) - 1) * sem(differences))
        mean = _mean(differences)
        found.append(f"{mean:+.4f} ({mean - reach:+.4f} to {mean + reach:+.4f}) at {_percent(row['loss'])}")
    return ", ".join(found)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _perplexity(of: dict[str, Any]) -> float:
    return math.exp(_mean(of["log_perplexity"]))


def block(transport: dict[str, Any], training: dict[str, Any]) -> str:
    """What the README quotes: a table of rounds, one of training."""
    by_size = _by_size(transport["results"])
    losses = sorted({row["loss"] for row in transport["results"]})
    names = " | ".join(f"{mib:g} MiB, p50 | p99" for mib, _ in by_size)
    lines = [f"| a round, ms, UDP / TCP | {names} |", "|---" * (1 + 2 * len(by_size)) + "|"]
    for loss in losses:
        cells = []
        for _, rows in by_size:
            of = next(row for row in rows if row["loss"] == loss)
            cells += [f"{_ms(of['udp'][what])} / {_ms(of['tcp'][what])}" for what in ("p50_ms", "p99_ms")]
        lines.append(f"| {_percent(loss)} | {' | '.join(cells)} |")
    faster = " | ".join(f"{_faster(rows, 'p50_ms')} | {_faster(rows, 'p99_ms')}" for _, rows in by_size)
    udp, tcp = (max(transport["results"], key=lambda row: row[name]["max_ms"]) for name in ("udp", "tcp"))
    deadlines = _ms(_deadlines(udp))
    lines += [
        f"| UDP is the faster | {faster} |",
        "",
        f"The slowest round of all took {_ms(udp['udp']['max_ms'])} ms over UDP, whose two phases are cut off by their "
        f"deadlines ({deadlines} ms together in the end), and {_ms(tcp['tcp']['max_ms'])} ms over TCP, which has none.",
        "",
    ]
    lines += ["| training, UDP / TCP | ms a step | s to the target | validation perplexity |", "|---|---|---|---|"]
    for row in training["table"]:
        udp, tcp = row["udp"], row["tcp"]
        lines.append(
            f"| {_percent(row['loss'])} | {_ms(udp['mean_ms'])} / {_ms(tcp['mean_ms'])} | "
            f"{_mean(udp['seconds_to_target']):.2f} / {_mean(tcp['seconds_to_target']):.2f} | "
            f"{_perplexity(udp):.2f} / {_perplexity(tcp):.2f} |"
        )
    reached = sum(line.endswith("reached") for line in transport["targets"])
    lines += [
        "",
        f"Log-perplexity over UDP, against the same seed without loss, with 95 % intervals: {changes(training)}. "
        f"Of the {len(transport['targets'])} targets for rounds {reached} are reached ([which](docs/lossy-link.md)). "
        "Of fewer than 100 rounds the 99th percentile is the slowest one.",
    ]
    return "\n".join(lines) + "\n"


def quoted(readme: str, tables: str) -> str:
    """A README with the block between its marks as it should be; without marks as it is.

    >>> quoted("<!-- lossy link -->\\nold\\n<!-- /lossy link -->", "new\\n")
    '<!-- lossy link -->\\nnew\\n<!-- /lossy link -->'
    """
    return _QUOTED.sub(lambda _: tables, readme)


def wanted() -> dict[Path, str]:
    """The page and the README as the records have it."""
    found = records.read("transport"), records.read("training_over_loss")
    return {PAGE: page(*found), README: quoted(README.read_text(encoding="utf-8"), block(*found))}


def main() -> int:
    if "--print" in sys.argv[1:]:
        print(block(records.read("transport"), records.read("training_over_loss")), end="")
        return 0
    texts = wanted()
    if "--check" in sys.argv[1:]:
        wrong = [file.name for file, text in texts.items()
                 if not file.exists() or file.read_text(encoding="utf-8") != text]  # fmt: skip
        print(f"not of the records, run python -m docs.lossy_link: {', '.join(wrong)}" if wrong else "current")
        return 1 if wrong else 0
    for file, text in texts.items():
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
