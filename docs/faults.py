"""Writes faults.md from what the tests of faults wrote: `python -m docs.faults`; `--check` says whether it is current.

LOSSPROOF_FAULTS=benchmarks/results/faults.json pytest tests/system/test_udp_faults.py    # as root
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "benchmarks" / "results" / "faults.json"
PAGE = HERE / "faults.md"
HEAD = """# What was done to the UDP transport, and what was lost

Three ranks exchange rounds over UDP between network namespaces, 120 packets of 1400 bytes a round, and are disturbed:
`tests/system/test_udp_faults.py` does it in CI, `python -m docs.faults` makes this page from one recorded run. Every
rank compares each packet that arrives with the one that was sent, and would end on a wrong one: none did. A phase is
cut off after {ceiling:g} s at most and a round has two, so the slowest round lasts at most {twice:g} s and what the
machine takes. These are rounds alone: a step of DDP also waits for norms, up to `patience`. The machine had two
cores, much other work and, in floods, the flood. Packets lost are those of the whole time of the fault, the recovery
included; the ranks counted are those that were not hit, but for bursts, a dead link, asymmetric loss and the first
flood, where all are.

| fault | times | rounds | packets lost | slowest round | refused | down, back | what came of it |
|---|---|---|---|---|---|---|---|
"""
TAIL = """
*Refused*: datagrams of another job, impossible ones, forged ones and those of a round that is over, none of which was
used; and what the kernel dropped for want of room in the receive buffer. *Down, back*: how often a rank reported
another one as down, and as back. Of fuzzed datagrams, a million in `tests/system/test_fuzzed_datagrams.py`, none is
taken.

"""


def page(found: dict[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        refused = [f"{row[name]:,} {name}" for name in ("foreign", "malformed", "forged", "late") if row[name]]
        if row["overflowed"]:
            refused.append(f"{row['overflowed']:,} dropped by the kernel")
        times = f"{row['times']:,} datagrams" if "sent" in row else str(row["times"])
        share = f" ({row['lost'] / row['offered']:.1%})"
        rows.append(
            f"| {row['fault']} | {times} | {row['rounds']} | {row['lost']:,} of {row['offered']:,}{share} | "
            f"{row['slowest_ms']:.0f} ms | {', '.join(refused) or '-'} | {row['downs']}, {row['returns']} | "
            f"{row['outcome']} |"
        )
    return (
        HEAD.format(ceiling=found["ceiling_seconds"], twice=2 * found["ceiling_seconds"])
        + "\n".join(rows)
        + "\n"
        + TAIL
    )


def main() -> int:
    text = page(json.loads(RESULTS.read_text(encoding="utf-8")))
    if "--check" in sys.argv[1:]:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        print(f"{PAGE.name} is {'current' if current else 'not of ' + RESULTS.name + ': python -m docs.faults'}")
        return 0 if current else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
