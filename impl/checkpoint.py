"""Checkpoints of a run: written whole or not at all, between steps, and refused where the settings differ."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def save(state: dict[str, Any], path: Path, together: Callable[[], Any] | None = None) -> None:
    """Writes a checkpoint so that at every moment `path` is either the old one or the new one, whole.

    `together` waits for the other ranks, so that all files are of one step: they appear once all have been written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    if together:
        together()
    os.replace(partial, path)


class BetweenSteps:
    """Ctrl-C, or a scheduler's SIGTERM, waits for the end of the step, so that a checkpoint holds whole steps.

    A second one waits for nothing.
    """

    asked = False

    def __enter__(self) -> BetweenSteps:
        self._main = threading.current_thread() is threading.main_thread()  # no other thread may handle signals
        if self._main:
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error: object) -> None:
        if self._main:
            for number, handler in self._previous.items():
                signal.signal(number, handler or signal.SIG_DFL)


def check_same(saved: dict[str, Any], mine: dict[str, Any]) -> None:
    """Raises ValueError naming the first setting whose value differs from the saved one."""
    for name, value in mine.items():
        if saved.get(name) != value:
            raise ValueError(
                f"{name} must be {saved.get(name)!r} as in the saved run in order to resume it, got {value!r}"
            )
