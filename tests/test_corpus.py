"""The text: deterministic batches, whole files held out, clear refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lossproof.impl.corpus import Corpus


@pytest.fixture(scope="module")
def library() -> Corpus:
    return Corpus.standard_library()


def folder(root: Path, names: list[str]) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<{name}>" * 20, encoding="utf-8")
    return root


def test_the_standard_library_is_there_and_split(library: Corpus) -> None:
    assert len(library.train) > 1_000_000
    assert 0.02 < len(library.validation) / len(library.train) < 0.3
    assert b"class OrderedDict" in library.train.tobytes() + library.validation.tobytes()
    assert library.digest == Corpus.standard_library().digest


def test_a_batch_depends_on_seed_step_and_rank_alone(library: Corpus) -> None:
    before = torch.random.get_rng_state()
    batch = library.batch(step=7, ranks=4, sequences=2, context=32, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert batch.shape == (4, 2, 32)
    assert batch.dtype == torch.int64
    assert torch.equal(batch, library.batch(7, 4, 2, 32, 3))
    assert torch.equal(batch[:2], library.batch(7, 2, 2, 32, 3)), "the number of ranks must not matter"
    assert torch.equal(batch[:, :1], library.batch(7, 4, 1, 32, 3))
    for other in (library.batch(8, 4, 2, 32, 3), library.batch(7, 4, 2, 32, 4)):
        assert not (batch == other).all(-1).any()
    assert len({bytes(row.tolist()) for row in batch.reshape(-1, 32)}) == 8, "ranks or sequences share their text"


def test_sequences_are_stretches_of_the_training_text_from_end_to_end() -> None:
    corpus = Corpus("count", np.arange(20, dtype=np.uint8), np.arange(100, 120, dtype=np.uint8))
    starts = set()
    for step in range(60):
        batch = corpus.batch(step, ranks=2, sequences=2, context=5, seed=0).reshape(-1, 5)
        assert torch.equal(batch, batch[:, :1] + torch.arange(5))
        starts |= set(batch[:, 0].tolist())
    assert starts == set(range(16))


def test_validation_is_fixed_and_covers_the_held_out_text() -> None:
    corpus = Corpus("count", np.arange(20, dtype=np.uint8), np.arange(100, 200, dtype=np.uint8))
    batches = corpus.validation_batches(tokens=40, sequences=2, context=5)
    assert batches.shape == (4, 2, 5)
    assert torch.equal(batches, corpus.validation_batches(40, 2, 5))
    assert int(batches.min()) == 100
    assert int(batches.max()) == 199
    assert corpus.validation_batches(1, 1, 5).shape == (1, 1, 5)


def test_files_are_held_out_whole_by_their_names(tmp_path: Path) -> None:
    names = [f"part{i}/text{i}.txt" for i in range(25)]
    one = Corpus.from_path(folder(tmp_path / "one", names))
    other = Corpus.from_path(folder(tmp_path / "other", names[::-1]))
    assert one.digest == other.digest, "the order of creation must not matter"
    train, validation = one.train.tobytes(), one.validation.tobytes()
    held_out = [name for name in names if f"<{name}>".encode() in validation]
    assert len(held_out) == 3
    assert held_out not in (names[:3], names[-3:], sorted(names)[:3])
    assert not any(f"<{name}>".encode() in train for name in held_out)
    assert sum(len(f"<{name}>" * 20) for name in names) == len(train) + len(validation)


def test_what_is_not_text_is_passed_over(tmp_path: Path) -> None:
    root = folder(tmp_path, ["a.txt", "b.txt", ".git/c.txt"])
    (root / "picture").write_bytes(b"\xff\xfe\x00")
    corpus = Corpus.from_path(root)
    assert {corpus.train[1], corpus.validation[1]} == {ord("a"), ord("b")}


def test_one_file_loses_its_last_tenth(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(bytes(range(200)))
    corpus = Corpus.from_path(path)
    assert corpus.train.tolist() == list(range(180))
    assert corpus.validation.tolist() == list(range(180, 200))


def test_missing_or_short_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text must be a file or a folder"):
        Corpus.from_path(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="at least two files"):
        Corpus.from_path(folder(tmp_path, ["only.txt"]))
    short = Corpus("short", np.arange(9, dtype=np.uint8), np.arange(3, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"at least 10 bytes of training text .* got 9 from short"):
        short.batch(0, 1, 1, 10, 0)
    with pytest.raises(ValueError, match="at least 4 bytes of validation text"):
        short.require(4)
