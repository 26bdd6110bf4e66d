"""Writing loss logs, in the format that `lossproof.theory.laws.Trace` replays and `lossproof fit` reads.

A log is a CSV file with the columns src, dst, lost, step, phase and packet. Each row is one packet, rows of a link in
the order of sending: by step, the gradients first, by packet. A rank's messages to itself are not logged.

Legend: N ranks; P packets, Q of them owned by the receiving rank.
"""

from __future__ import annotations

import contextlib
import csv
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lossproof.theory.laws import Phase

if TYPE_CHECKING:
    from lossproof.impl.loss import Arrivals

COLUMNS = ("src", "dst", "lost", "step", "phase", "packet")
_HEADER = ",".join(COLUMNS) + "\n"


class LossLog:
    """A log to which rows are appended; the file and its header are made if there is none.

    The file appears with its header at once, and the rows of an `add` reach it in a single append. So several
    processes of one machine may share a file (a link's rows come from one rank, its receiver, in order), an interrupted
    job leaves whole rows, and a resumed one goes on after `rewind`. A log is of one job: a job that starts at step 0
    calls `require_fresh` before any of its ranks adds rows.

    Raises:
        ValueError: the file is there and is no such log. OSError: it cannot be written.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = LossLog(folder + "/rank-1.csv")
    ...     log.add(step=0, phase="gradients", src=[0, 2], dst=1, packet=5, lost=[False, True])
    ...     print(log.path.read_text(), end="")
    src,dst,lost,step,phase,packet
    0,1,0,0,gradients,5
    2,1,1,0,gradients,5
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, prefix=".", encoding="utf-8") as file:
                file.write(_HEADER)
                file.flush()
                os.chmod(file.name, 0o644)
                with contextlib.suppress(FileExistsError):  # another process just began the log; a rename would undo it
                    os.link(file.name, self.path)
        _check(self.path)

    @property
    def fresh(self) -> bool:
        """Whether the file holds no rows yet."""
        with self.path.open(encoding="utf-8") as file:
            next(file)
            return not file.readline()

    def require_fresh(self) -> None:
        """Raises ValueError if the file holds rows, which are those of another job."""
        if not self.fresh:
            raise ValueError(used(self.path))

    def add(self, step: int, phase: Phase, src: Any, dst: Any, packet: Any, lost: Any) -> None:
        """Appends a row for each element of the integers src, dst, packet and the bools lost, broadcast together."""
        if phase not in ("gradients", "parameters"):
            raise ValueError(f"phase must be 'gradients' or 'parameters', got {phase!r}")
        columns = np.broadcast_arrays(src, dst, packet, lost)
        if columns[3].dtype != np.bool_:
            raise TypeError(f"lost must be bool, got {columns[3].dtype}")
        away = columns[0] != columns[1]
        rows = zip(*(column[away].tolist() for column in columns), strict=True)
        text = "".join(f"{s},{d},{int(gone)},{step},{phase},{p}\n" for s, d, p, gone in rows)
        if not text:
            return
        data = text.encode()
        out = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            if (written := os.write(out, data)) != len(data):
                raise OSError(f"{self.path}: only {written} of {len(data)} bytes of step {step} could be written")
        finally:
            os.close(out)

    def add_step(
        self,
        step: int,
        arrived: Mapping[Phase, Any],
        owner_P: Any,
        rank: int | range | None = None,
        *,
        reliable: bool = False,
    ) -> None:
        """Appends one step's masks, as `Stages.arrived` and `Arrivals` give them.

        Args:
            arrived: `gradients`, whether each sender's packet reached its owner: (N, Q), or (N, P) for all ranks;
                `parameters`, whether the owner's packet reached each receiver: (H, P), or (N, P) for all ranks.
            owner_P: the owner of each packet.
            rank: whose links these are, or of which H ranks (a range); None for those into all ranks.
            reliable: the parameters of this step travelled reliably, so their packets say nothing about the links.
        """
        owner_P = np.asarray(owner_P)
        packet_P = np.arange(len(owner_P))
        gradients = ~np.asarray(arrived["gradients"])
        ranks = range(len(gradients)) if rank is None else rank if isinstance(rank, range) else range(rank, rank + 1)
        received_Q = packet_P[np.isin(owner_P, ranks)]
        sender_N1 = np.arange(len(gradients))[:, None]
        self.add(step, "gradients", sender_N1, owner_P[received_Q], received_Q, gradients)
        if not reliable:
            receiver_H1 = np.asarray(ranks)[:, None]
            self.add(step, "parameters", owner_P, receiver_H1, packet_P, ~np.asarray(arrived["parameters"]))

    def rewind(self, step: int) -> None:
        """Removes the rows of `step` and later ones, all ranks' in a shared file: what a resumed job will log again."""
        at = COLUMNS.index("step")
        with self.path.open(encoding="utf-8") as old:
            kept = [next(old), *(line for line in old if int(line.split(",")[at]) < step)]
        _replace(self.path, kept)


def used(path: str | Path) -> str:
    """The reason to refuse a log that holds rows to a job that starts at step 0."""
    return (
        f"loss_log must be a new file, or the job's own where it resumes, but {path} holds the rows of another job: "
        "remove it or give another name"
    )


def log_arrivals(arrivals: Arrivals, steps: int, path: str | Path) -> Path:
    """Logs the next `steps` steps of masks from the first one on that `arrivals` has not given; returns the path.

    Raises:
        ValueError: `arrivals` starts at step 0, and the file holds rows.

    >>> from lossproof.impl.loss import Arrivals
    >>> from lossproof.theory.laws import Bernoulli, Trace
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = log_arrivals(Arrivals(Bernoulli(0.5), [0, 1], ranks=2), 8, folder + "/log.csv")
    ...     Trace.from_csv(str(path)).recorded
    (((0, 1), '1110110101111000'), ((1, 0), '0001001110110011'))
    """
    log, first = LossLog(path), arrivals.next_step
    if first == 0:
        log.require_fresh()
    for step in range(first, first + steps):
        arrived = {"gradients": arrivals.gradients(step), "parameters": arrivals.parameters(step)}
        log.add_step(step, arrived, arrivals.owner_P, arrivals.receiver)  # type: ignore[arg-type]
    return log.path


def merge(paths: Iterable[str | Path], path: str | Path) -> Path:
    """Puts the logs of several ranks into one file with one header; returns its path."""
    lines = [_HEADER]
    for part in paths:
        _check(Path(part))
        lines += Path(part).read_text(encoding="utf-8").splitlines(keepends=True)[1:]
    return _replace(Path(path), lines)


def _check(path: Path) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        header = next(csv.reader(file), [])
    if tuple(header) != COLUMNS:
        raise ValueError(
            f"{path}: not a loss log of ours, whose header is {_HEADER.strip()}; got {','.join(header)!r:.60}"
        )


def _replace(path: Path, lines: list[str]) -> Path:
    """Writes a file that is there as a whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text("".join(lines), encoding="utf-8")
    os.replace(fresh, path)
    return path
