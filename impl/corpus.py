"""Text to train on, as bytes: every byte is a token, so there is nothing to download and nothing to fit.

A batch is a function of (seed, step, rank) alone, drawn with Philox under a phase number of its own: a resume needs no
state of the data, and runs that differ in their losses only see the same text in the same order.

Legend: N ranks; B sequences of a rank's batch; C tokens (bytes) of a sequence; V validation batches.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lossproof.impl.philox import philox4x32, split_seed

_DATA = int.from_bytes(b"data")  # the phase number of these draws; those of losses are small
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}


@dataclass(frozen=True, eq=False)
class Corpus:
    """Training and validation text; no byte is in both.

    Args:
        name: where it came from, for reports.
        train, validation: bytes, uint8 vectors; or the numbers of other tokens.
        unit: what they are, `byte` or `token`.

    >>> corpus = Corpus("digits", np.arange(50, dtype=np.uint8), np.arange(50, 60, dtype=np.uint8))
    >>> corpus.batch(step=0, ranks=2, sequences=1, context=4, seed=0).shape
    torch.Size([2, 1, 4])
    """

    name: str
    train: NDArray[np.integer[Any]]
    validation: NDArray[np.integer[Any]]
    unit: str = "byte"

    @classmethod
    def standard_library(cls) -> Corpus:
        """The source of the running Python's own standard library, its tests left out."""
        root = Path(sysconfig.get_path("stdlib"))
        files = (path for path in root.rglob("*.py") if not _NOT_LIBRARY & set(path.relative_to(root).parts))
        return cls._from_files(f"Python {sysconfig.get_python_version()} standard library", root, files)

    @classmethod
    def from_path(cls, path: str | Path) -> Corpus:
        """One text file, whose last tenth is held out, or a folder, a tenth of whose text files is held out.

        In a folder, files that are not UTF-8 and those whose path has a part that starts with a dot are passed over.

        Raises:
            ValueError: there is nothing to read at `path`.
        """
        path = Path(path)
        if path.is_file():
            text = np.frombuffer(path.read_bytes(), dtype=np.uint8)
            cut = len(text) - len(text) // 10
            return cls(str(path), text[:cut], text[cut:])
        if not path.is_dir():
            raise ValueError(f"text must be a file or a folder, got {str(path)!r}, which does not exist")
        visible = (file for file in path.rglob("*") if not any(p.startswith(".") for p in file.relative_to(path).parts))
        return cls._from_files(str(path), path, visible)

    @classmethod
    def _from_files(cls, name: str, root: Path, files: Iterable[Path]) -> Corpus:
        """Holds out whole files, so that no validation text is the continuation of what was trained on.

        Which files depends on the hashes of their relative names only, not on their order in the file system.
        """
        texts = {file.relative_to(root).as_posix(): _text(file) for file in files if file.is_file()}
        names = sorted((n for n in texts if texts[n]), key=lambda n: sha256(n.encode()).hexdigest())
        if len(names) < 2:
            raise ValueError(f"text must hold at least two files of UTF-8 text, got {len(names)} in {str(root)!r}")
        held_out = -(-len(names) // 10)
        validation, train = (b"".join(texts[n] for n in sorted(part)) for part in (names[:held_out], names[held_out:]))
        return cls(name, np.frombuffer(train, dtype=np.uint8), np.frombuffer(validation, dtype=np.uint8))

    @property
    def digest(self) -> str:
        """Names the text itself: a resume refuses another."""
        return sha256(self.train.tobytes() + b"|" + self.validation.tobytes()).hexdigest()[:16]

    def require(self, context: int) -> None:
        """Raises ValueError unless both parts hold at least one sequence of `context` bytes."""
        for part, text in (("training", self.train), ("validation", self.validation)):
            if len(text) < context:
                raise ValueError(
                    f"text must hold at least {context} {self.unit}s of {part} text for one sequence, "
                    f"got {len(text)} from {self.name}"
                )

    def batch(self, step: int, ranks: int, sequences: int, context: int, seed: int) -> torch.Tensor:
        """The tokens of one step, int64 (N, B, C): sequences from uniform positions of the training text.

        Rank i's part depends on (seed, step, i) only, not on the number of ranks.
        """
        self.require(context)
        rank_N1, sequence_B = np.arange(ranks)[:, None], np.arange(sequences)
        word_NB = philox4x32((sequence_B, rank_N1, _DATA, step), split_seed(seed))[0]
        start_NB = word_NB * (len(self.train) - context + 1) >> 32
        return _windows(self.train, start_NB, context)

    def validation_batches(self, tokens: int, sequences: int, context: int) -> torch.Tensor:
        """The same for every seed: int64 (V, B, C), about `tokens` tokens spread evenly over the validation text."""
        self.require(context)
        count = max(1, tokens // (sequences * context)) * sequences
        start_VB = np.linspace(0, len(self.validation) - context, count).astype(np.int64).reshape(-1, sequences)
        return _windows(self.validation, start_VB, context)


def _windows(text: NDArray[np.integer[Any]], start: NDArray[np.int64], length: int) -> torch.Tensor:
    return torch.from_numpy(text[start[..., None] + np.arange(length)].astype(np.int64))


def _text(file: Path) -> bytes:
    content = file.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return b""
    return content
