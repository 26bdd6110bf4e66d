"""Text, once more: where it comes from, how it is split, which windows of it are read; from the documentation alone.

Legend: B sequences of C tokens (bytes); V windows of validation text.
"""

from __future__ import annotations

import math
import tempfile
from hashlib import sha256
from pathlib import Path
from unittest import mock

import torch

from lossproof.impl.corpus import Corpus
from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments.scalar_masks import key_of, philox

TEXTS = {f"part{i % 3}/text{i}.txt": f"<{i}>" + chr(97 + i) * (9 + i) for i in range(21)}


def write(root: Path) -> None:
    for name, text in TEXTS.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    (root / "picture").write_bytes(b"\xff\xfe")  # no text
    (root / ".hidden").write_text("hidden")
    (root / "part0" / "empty.txt").write_text("")


def split(names: list[str]) -> tuple[bytes, bytes]:
    """A tenth of the files, rounded up, is held out: those whose names have the smallest hashes."""
    hashed = sorted((sha256(name.encode()).hexdigest(), name) for name in names)
    held = {name for _, name in hashed[: math.ceil(len(names) / 10)]}
    parts = (b"".join(TEXTS[name].encode() for name in sorted(names) if (name in held) == out) for out in (False, True))
    train, validation = parts
    return train, validation


def require_corpus() -> None:
    """Where text comes from, how it is split, which windows of it are read."""
    with tempfile.TemporaryDirectory() as folder:
        root, one = Path(folder) / "text", Path(folder) / "one.txt"
        root.mkdir()
        write(root)
        _require_text("a folder", Corpus.from_path(root), *split(list(TEXTS)))
        text = bytes(range(128))
        one.write_bytes(text)
        _require_text("a file", Corpus.from_path(one), text[: -(len(text) // 10)], text[-(len(text) // 10) :])
        library = {name for name in TEXTS if name.startswith("part0")}
        for name in library:  # the library's modules; its tests and what is installed beside it are left out
            (root / name).rename((root / name).with_suffix(".py"))
        for other in ("site-packages", "test", "part0/tests", "part0/__pycache__"):
            (root / other).mkdir()
            (root / other / "no.py").write_text("no")
        with mock.patch("sysconfig.get_path", return_value=str(root)):
            made = Corpus.standard_library()
        texts = {name.replace(".txt", ".py"): TEXTS[name] for name in library}
        with mock.patch.dict(TEXTS, texts):
            _require_text("the library", made, *split(list(texts)))


def _require_text(what: str, corpus: Corpus, train: bytes, validation: bytes) -> None:
    require(corpus.train.tobytes() == train, f"{what}: {len(corpus.train)} bytes to train on, not {len(train)}")
    require(corpus.validation.tobytes() == validation, f"{what}: {len(corpus.validation)} bytes held out")
    kind = type(corpus).__dataclass_params__  # type: ignore[attr-defined]
    require(kind.frozen and not kind.eq, f"{what}: a corpus is itself, and stays what it is")
    for tokens in (1, 9, 16):
        found = corpus.validation_batches(tokens, 2, 2).shape
        require(tuple(found) == (max(1, tokens // 4), 2, 2), f"{what}: validation text of {tuple(found)}")
    digest = sha256(train + b"|" + validation).hexdigest()[:16]
    require(corpus.digest == digest, f"{what}: digest {corpus.digest}")
    for step, seed in ((0, 0), (5, 2**32 + 1)):
        got = corpus.batch(step, 3, 2, 2, seed)
        wanted = [windows(train, rank, step, 2, 2, seed) for rank in range(3)]
        require(got.dtype == torch.int64 and got.tolist() == wanted, f"{what}: the text of step {step}, seed {seed}")


def windows(text: bytes, rank: int, step: int, B: int, C: int, seed: int) -> list[list[int]]:
    """A rank's sequences: each starts at a uniform position, drawn at counter (sequence, rank, "data", step)."""
    number = int.from_bytes(b"data", "big")
    words = [philox((sequence, rank, number, step), key_of(seed))[0] for sequence in range(B)]
    starts = [word * (len(text) - C + 1) // 2**32 for word in words]
    return [list(text[start : start + C]) for start in starts]


def validation_windows(text: bytes, tokens: int, B: int, C: int) -> list[list[list[int]]]:
    """About so many tokens, in whole batches, at least one; windows spread evenly from the first to the last."""
    number = max(1, tokens // (B * C)) * B
    starts = [i * (len(text) - C) // (number - 1) for i in range(number)]
    every = [list(text[start : start + C]) for start in starts]
    return [every[i : i + B] for i in range(0, number, B)]
