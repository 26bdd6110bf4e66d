"""`lossproof train` under torchrun: the run of one process, in several, a rank each or more; resumed, refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SMALL = [
    "--steps=60", "--loss=0.2", "--hidden=8", "--layers=1", "--heads=1", "--intermediate=8", "--context=16",
    "--packet-bytes=64",
]  # fmt: skip
PROCESSES = 3
KEY = "a secret of this test, which is seen nowhere"
HOSTED = ["--ranks", 8, "--layout=flat", "--law=gilbert-elliott", "--burst=3", "--steps=20"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(f"{n} times {n} is {n * n}. " for n in range(4000)), encoding="utf-8")
    return file


def command(*arguments, processes=PROCESSES):
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    return [*launcher, "lossproof", "train", *map(str, arguments)]


def environment():
    kept = {k: v for k, v in os.environ.items() if k not in ("TORCHELASTIC_RUN_ID", "LOSSPROOF_KEY_FILE")}
    return kept | {"OMP_NUM_THREADS": "1", "LOSSPROOF_KEY": KEY}


def call(*arguments, processes=PROCESSES, good=True):
    done = subprocess.run(
        command(*arguments, processes=processes), capture_output=True, text=True, timeout=300, env=environment()
    )
    assert (done.returncode == 0) == good, done.stderr[-3000:]
    return done


def records(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))["runs"]


@pytest.fixture(scope="module")
def together(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("together")
    call(*SMALL, "--text", text, "--out", out / "runs", "--json", out / "all.json")
    return out


def require_the_run_of_one(one, several, ranks):
    assert several["counts"] == one["counts"]
    assert one["counts"]["parameters_lost"] > 0
    assert several["train_losses"] == pytest.approx(one["train_losses"], abs=2e-6)
    assert several["replica_perplexity"] == pytest.approx(one["replica_perplexity"], rel=1e-5)
    assert len(several["replica_perplexity"]) == several["settings"]["ranks"] == ranks
    assert several["perplexity"] == pytest.approx(one["perplexity"], rel=1e-5)


def test_several_processes_train_the_run_of_one(text, together, tmp_path):
    call(*SMALL, "--text", text, "--ranks", PROCESSES, "--json", tmp_path / "one.json", processes=1)
    (one,), (several,) = records(tmp_path / "one.json"), records(together / "all.json")
    require_the_run_of_one(one, several, PROCESSES)


def test_two_processes_with_four_ranks_each_train_the_run_of_one(text, tmp_path):
    for processes in (1, 2):
        call(*SMALL, *HOSTED, "--text", text, "--json", tmp_path / f"{processes}.json", processes=processes)
    (one,), (several,) = (records(tmp_path / f"{processes}.json") for processes in (1, 2))
    require_the_run_of_one(one, several, 8)
    assert "replicas 4 x" in several["memory"]
    assert "replicas 8 x" in one["memory"]


def test_an_interrupted_run_goes_on_with_the_same_digits(text, together, tmp_path):
    runs = tmp_path / "runs"
    arguments = (*SMALL, "--text", text, "--out", runs, "--checkpoint-every", 3)
    with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True, env=environment()) as job:
        folder = runs / "loss-0.2-seed-0"
        while job.poll() is None and not list(folder.glob("*.pt")):
            time.sleep(0.01)
        job.send_signal(signal.SIGINT)
        _, errors = job.communicate(timeout=300)
    assert job.returncode != 0
    assert "Interrupted" in errors
    files = sorted(folder.glob("*.pt"))
    assert [file.name for file in files] == [f"checkpoint-{r}-of-{PROCESSES}.pt" for r in range(PROCESSES)]
    steps = {len(torch.load(file, weights_only=True)["losses"]) for file in files}
    assert len(steps) == 1
    assert 0 < steps.pop() < 60
    done = call(*arguments, "--resume", "--json", tmp_path / "again.json")
    assert "goes on from its checkpoint" in done.stderr
    (again,), (whole,) = records(tmp_path / "again.json"), records(together / "all.json")
    for name in ("train_losses", "replica_perplexity", "perplexity", "counts"):
        assert again[name] == whole[name], name


def test_the_number_of_ranks_is_a_multiple_of_that_of_the_processes(text):
    done = call(*SMALL, "--text", text, "--ranks", 5, processes=2, good=False)
    assert "ranks must be a multiple of the number of processes, 2, got 5" in done.stderr


def test_over_udp_it_trains_and_counts_and_shows_the_key_to_nobody(text, tmp_path):
    """Twelve steps: each of the first 16 turns of a kind has two seconds, so that loopback loses nothing."""
    small = [option for option in SMALL if not option.startswith(("--loss", "--steps"))]
    done = call(*small, "--steps=12", "--lr=0.05", "--transport=udp", "--text", text, "--out", tmp_path / "runs",
                "--json", tmp_path / "run.json", processes=2)  # fmt: skip
    (run,) = records(tmp_path / "run.json")
    assert run["law"] == run["settings"]["transport"] == "udp"
    assert run["train_losses"][-1] < run["train_losses"][0] - 1
    counts, ends = run["counts"], run["datagrams"]
    offered, lost = (counts[f"gradients_{of}"] + counts[f"parameters_{of}"] for of in ("offered", "lost"))
    assert counts["gradients_offered"] == counts["parameters_offered"] > 1000
    assert offered - lost == sum(end["accepted"] for end in ends)
    assert lost == 0 or any(end["cut_off"] for end in ends)  # a machine that stands still for two seconds
    assert f"{lost / offered:.2%}" in done.stdout
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 4  # two checkpoints and the result twice
    seen = [done.stdout.encode(), done.stderr.encode(), *(file.read_bytes() for file in files)]
    for shown in (KEY.encode(), KEY.encode().hex().encode()):
        assert not any(shown in one for one in seen)
