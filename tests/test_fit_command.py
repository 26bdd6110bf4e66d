"""`lossproof fit` from outside, and the logs that it reads: what is written, read, refused and suggested."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lossproof.cli import app
from lossproof.impl.loss import Arrivals
from lossproof.impl.losslog import LossLog, log_arrivals, merge
from lossproof.theory.fit import fit
from lossproof.theory.laws import Bernoulli, GilbertElliott, HeavyTailed, PerSender, Trace
from lossproof.theory.logfile import read_careful, read_fast
from lossproof.theory.recorded import Recorded


def call(*arguments):
    return CliRunner().invoke(app, ["fit", *map(str, arguments)])


def log(tmp_path, law, steps=150, ranks=3, seed=0, **options) -> Path:
    owner = np.tile(np.arange(ranks), 2)
    return log_arrivals(Arrivals(law, owner, ranks, seed=seed, **options), steps, tmp_path / "log.csv")


def strings(path) -> dict:
    return dict(Trace.from_csv(str(path), "packet").recorded)


# -- logs


def test_our_logs_are_the_masks(tmp_path):
    path, twin = log(tmp_path, Bernoulli(0.3), steps=4), Arrivals(Bernoulli(0.3), np.tile(np.arange(3), 2), 3)
    expected = {(src, dst): "" for src in range(3) for dst in range(3) if src != dst}
    for step in range(4):
        gradients, parameters = twin.gradients(step), twin.parameters(step)
        for src, dst in expected:
            for packet in (dst, dst + 3):  # the receiver owns the gradients
                expected[src, dst] += str(int(not gradients[src, packet]))
            for packet in (src, src + 3):  # the sender owns the parameters
                expected[src, dst] += str(int(not parameters[dst, packet]))
    assert strings(path) == expected


def test_the_logs_of_the_ranks_put_together_are_the_log_of_all(tmp_path):
    whole, parts = log(tmp_path, Bernoulli(0.3), steps=5), []
    for rank in range(3):
        arrivals = Arrivals(Bernoulli(0.3), np.tile(np.arange(3), 2), 3, receiver=rank)
        parts.append(log_arrivals(arrivals, 5, tmp_path / f"rank-{rank}.csv"))
    assert strings(merge(parts, tmp_path / "merged.csv")) == strings(whole)
    for clock in ("packet", "step"):
        one, other = (Recorded.from_csv(path, clock) for path in (whole, tmp_path / "merged.csv"))
        assert (one.lost_n == other.lost_n).all()
        assert one.links == other.links


def test_a_second_call_goes_on_and_rewinding_takes_back(tmp_path):
    whole = log(tmp_path, GilbertElliott(0.3, 2), steps=6).read_text()
    path = tmp_path / "twice.csv"
    arrivals = Arrivals(GilbertElliott(0.3, 2), np.tile(np.arange(3), 2), 3)
    log_arrivals(arrivals, 4, path)
    four = path.read_text()
    log_arrivals(arrivals, 2, path)
    assert path.read_text() == whole
    LossLog(path).rewind(4)
    assert path.read_text() == four


def test_packets_that_travelled_reliably_are_not_logged(tmp_path):
    arrived = {"gradients": np.array([[True], [False]]), "parameters": np.array([[True, True]])}
    LossLog(tmp_path / "log.csv").add_step(7, arrived, [0, 1], rank=0, reliable=True)
    assert (tmp_path / "log.csv").read_text() == "src,dst,lost,step,phase,packet\n1,0,1,7,gradients,0\n"


WRITER = """
import sys
from lossproof.impl.losslog import LossLog
log = LossLog(sys.argv[1])
for step in range(200):
    log.add(step, "gradients", [[int(sys.argv[2])]], 9, list(range(50)), [[step % 2 == 1] * 50])
"""


def test_processes_that_share_a_log_neither_tear_nor_reorder_rows(tmp_path):
    path = tmp_path / "shared.csv"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, str(rank)]) for rank in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    rows = path.read_text().splitlines()
    assert rows[0] == "src,dst,lost,step,phase,packet"
    assert len(rows) == 1 + 3 * 200 * 50
    assert strings(path) == dict.fromkeys([(0, 9), (1, 9), (2, 9)], ("0" * 50 + "1" * 50) * 100)
    assert os.listdir(tmp_path) == ["shared.csv"]


def test_a_file_of_another_kind_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n")
    for attempt in (lambda: LossLog(path), lambda: merge([path], tmp_path / "merged.csv")):
        with pytest.raises(ValueError, match="not a loss log"):
            attempt()
    assert path.read_text() == "dear diary\n"


TIMED = "src,dst,lost,step,phase,packet\n"


@pytest.mark.parametrize(
    "text",
    [
        "src,dst,lost\n0,1,0\n",
        "lost,note,dst,src\n0,x,1,0\n1,,1,0\n0,z,0,1\n",
        "\ufeffsrc,dst,lost\r\n0,1,1\r\n0,1,0\r\n",
        'src,dst,lost\n"0","1","1"\n\n 0,1 ,0\n',
        'src,dst,lost,why\n0,1,1,"a, b # c"\n0,1,0,\n',
    ],
)
def test_the_log_is_read_as_trace_reads_it(tmp_path, text):
    path = tmp_path / "log.csv"
    path.write_bytes(text.encode())
    found, expected = Recorded.from_csv(path), strings(path)
    assert found.links == tuple(expected)
    assert "".join(map(str, found.lost_n.astype(int))) == "".join(expected.values())


def test_both_readers_agree(tmp_path):
    path = log(tmp_path, Bernoulli(0.3))
    for columns in ([0, 1, 2], [0, 1, 2, 3, 4, 5]):
        fast = read_fast(path, columns)
        assert fast is not None
        assert (fast == read_careful(path, columns)).all()


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", (), "line 1: the header must name src, dst and lost; missing dst, lost, src"),
        ("src,dst\n0,1\n", (), "line 1: the header must name src, dst and lost; missing lost"),
        ("src,dst,lost\n", (), "log.csv: no packets after the header"),
        ("src,dst,lost\n0,1,0\n0,1,2\n", (), "log.csv, line 3: lost must be 0 (arrived) or 1 (lost), got '2'"),
        ("src,dst,lost\n0,1,0\n\n0,-1,1\n", (), "log.csv, line 4: dst must be a rank from 0 to 65535, got '-1'"),
        ("src,dst,lost\n70000,1,0\n", (), "log.csv, line 2: src must be a rank from 0 to 65535, got '70000'"),
        ("src,dst,lost\n0,1,0\n0,1\n", (), "line 3: lost must be 0 (arrived) or 1 (lost), but the row ends after 2 of"),
        ("src,dst,lost\n0,1,1.0\n", (), "line 2: lost must be 0 (arrived) or 1 (lost), got '1.0'"),
        ("src,dst,lost\n0,1,nan\n", (), "line 2: lost must be"),
        ("src,dst,lost\n0,1,0\nsrc,dst,lost\n", (), "line 3: src must be a rank from 0 to 65535, got 'src'"),
        ("src,dst,lost\n0,1,0\n", ("--clock", "step"), "line 1: the header must name src, dst, lost, step, phase and "),
        (
            TIMED + "0,1,0,0,warmup,0\n",
            (),
            "line 2: phase must be gradients or parameters, got 'warmup'; --clock packet",
        ),
        (TIMED + "0,1,0,9999999999,gradients,0\n", (), "line 2: step must be a step number from 0, got '9999999999'"),
        (TIMED + "0,1,0,0,gradients,-1\n", (), "line 2: packet must be a packet number from 0, got '-1'"),
        (
            TIMED + "0,1,0,5,gradients,0\n\n" * 2,
            (),
            "log.csv, lines 2 and 4: step 5 is recorded twice for the same pac",
        ),
        ("src,dst,lost\n0,1," + "x" * 200_000 + "\n", (), "log.csv: must be a CSV file in UTF-8: field larger than"),
        ("src,dst,lost\n0,1,0\n", ("--level", "0"), "level must lie in (0, 1), got 0.0"),
        ("src,dst,lost\n0,1,0\n", ("--json", "/nowhere/x.json"), "json must be a file"),
    ],
)
def test_unusable_input_is_one_line_and_exit_status_2(tmp_path, text, options, words):
    path = tmp_path / "log.csv"
    path.write_text(text)
    found = call(path, *options)
    assert found.exit_code == 2
    assert words in found.stderr
    assert found.stderr.count("\n") == 1
    assert found.stdout == ""


def test_a_missing_file_and_one_that_is_no_text(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.csv", tmp_path / "binary", tmp_path):
        found = call(path)
        assert (found.exit_code, found.stderr.count("\n")) == (2, 1), found.output
        assert str(path) in found.stderr


def test_the_header_says_the_clock_and_the_option_overrides_it(tmp_path):
    """A log of bursts in steps: read in the order of packets they are no bursts, or not these."""
    path, bare = log(tmp_path, GilbertElliott(0.2, 5), steps=300), tmp_path / "bare.csv"
    bare.write_text("\n".join(",".join(line.split(",")[:3]) for line in path.read_text().splitlines()) + "\n")
    for file, options, clock, verdict in (
        (path, (), "clock step (the header names step, phase and packet), 24 chains", "gilbert-elliott"),
        (path, ("--clock", "packet"), "clock packet (--clock), 6 chains", "neither"),
        (path, ("--clock", "step"), "clock step (--clock), 24 chains", "gilbert-elliott"),
        (bare, (), "clock packet (the header does not name step, phase and packet), 6 chains", "neither"),
    ):
        found = call(file, *options)
        assert clock in found.stdout
        assert f"verdict: {verdict} " in found.stdout
        assert ("Leave --clock out" in found.stdout) == (file == path and verdict == "neither")


# -- the command


SMALL = ["--steps", "2", "--context", "16", "--hidden", "8", "--layers", "1", "--heads", "1", "--intermediate", "8"]


def by_receiver(path, rows=3000):
    """Bernoulli links whose loss depends on the receiver."""
    rng = np.random.default_rng(3)
    links = [(src, dst) for src in range(3) for dst in range(3) if src != dst] * (rows // 6)
    path.write_text("src,dst,lost\n" + "".join(f"{s},{d},{int(rng.random() < 0.1 + 0.2 * d)}\n" for s, d in links))
    return path


@pytest.mark.parametrize(
    ("law", "clock", "verdict", "table"),
    [
        (Bernoulli(0.1), None, "bernoulli", True),
        (Bernoulli(0.1), "packet", "bernoulli", False),
        (GilbertElliott(0.1, 4, clock="packet"), "packet", "gilbert-elliott", False),
        (GilbertElliott(0.1, 4), None, "gilbert-elliott", True),
        (PerSender((0.05, 0.2, 0.35)), None, "bernoulli", True),
        (PerSender((0.05, 0.2, 0.35)), None, "bernoulli", False),
        (HeavyTailed(0.1), None, "neither", True),
        (None, None, "bernoulli", True),
    ],
    ids=repr,
)
def test_what_is_suggested_runs(tmp_path, monkeypatch, law, clock, verdict, table):
    """Every line that is printed is run, in that order; what it trains with is the law that was found, or the log."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog; " * 40)
    path = log(tmp_path, law, steps=400) if law else by_receiver(tmp_path / "log.csv")
    options = () if clock is None else ("--clock", clock)
    found = call("log.csv", "--json", "fit.json", *options, *(("--losses", "table.txt") if table else ()))
    assert found.exit_code == 0, found.output
    result, expected = json.loads(Path("fit.json").read_text()), fit("log.csv", clock, simulations=200)
    assert (result["schema"], result["verdict"], result["log"]) == (1, verdict, "log.csv")
    assert f"verdict: {verdict}" in found.stdout
    commands, replayed = result["commands"], Trace.from_csv(path, clock)
    names = {"Bernoulli": Bernoulli, "GilbertElliott": GilbertElliott, "PerSender": PerSender, "Trace": Trace}
    assert eval(commands["python"], names) == (expected.law() or replayed)
    assert (commands["plan"] is None) == (commands["train"] is None) == (result["law"] is None)
    assert commands["replay"]
    assert (commands["losses"] is not None) == (isinstance(law, PerSender) and not table)
    for name in ("losses", "plan", "train", "replay"):
        if commands[name] is None:
            continue
        assert f"{name + ':':8} {commands[name]}" in found.stdout
        program, *words = shlex.split(commands[name])
        assert program == "lossproof"
        if words[0] == "train":
            words += [*SMALL, "--text", "text.txt", "--json", f"{name}.json"]
        ran = CliRunner().invoke(app, words)
        assert ran.exit_code == 0, (commands[name], ran.output)
        if words[0] == "train":
            (run,) = json.loads(Path(f"{name}.json").read_text())["runs"]
            assert run["settings"]["ranks"] == 3
            assert run["law"] == repr(replayed if name == "replay" else expected.law())
    if table:
        shares = [float(line) for line in Path("table.txt").read_text().split()]
        if isinstance(law, Bernoulli):
            assert shares == [expected.law().loss] * 3
        else:
            sent = [[link for link in expected.links if link.src == rank] for rank in range(3)]
            shares_of = [sum(link.lost for link in some) / sum(link.packets for link in some) for some in sent]
            assert shares == pytest.approx(shares_of, rel=1e-5)
        note = "table.txt holds the share that each sender lost, not a law: "
        word = {"gilbert-elliott": "bursts out", "neither": "which these are not", "bernoulli": "differ by receiver"}
        assert (note in found.stdout) == (not isinstance(law, (Bernoulli, PerSender)))
        assert note not in found.stdout or word[verdict] in found.stdout.split(note)[1].splitlines()[0]
        planned = CliRunner().invoke(app, ["plan", "--losses", "table.txt"])
        assert planned.exit_code == 0, planned.output


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("0,1,0\n0,2,1\n0,1,0\n" * 40 + "1,0,1\n1,0,0\n" * 60, "has no packet from rank 2"),
        ("0,1,0\n0,1,1\n" * 40 + "1,0,1\n" * 60, "has no packet that arrived from rank 1"),
    ],
)
def test_a_sender_without_a_loss_below_1_has_no_place_in_the_table(tmp_path, rows, words):
    (tmp_path / "log.csv").write_text("src,dst,lost\n" + rows)
    found = call(tmp_path / "log.csv", "--losses", tmp_path / "table.txt")
    assert (found.exit_code, found.stdout) == (2, "")
    assert words in found.stderr
    assert not (tmp_path / "table.txt").exists()


def test_a_log_of_one_link_is_replayed_on_all(tmp_path):
    path, out = tmp_path / "log.csv", tmp_path / "fit.json"
    path.write_text("src,dst,lost\n" + "".join(f"0,1,{int(i % 10 == 0)}\n" for i in range(1000)))
    assert call(path, "--json", out).exit_code == 0
    result = json.loads(out.read_text())
    assert (result["verdict"], result["commands"]["replay"]) == ("neither", None)
    assert eval(result["commands"]["python"], {"Trace": Trace}).marginal(5, 3) == Fraction(1, 10)


@pytest.mark.parametrize(
    ("lost", "words"),
    [("0" * 100, "Nothing was lost: the loss is at most 0.0295 with 95% confidence"), ("1" * 9, "Everything was lost"),
     ("0", "Nothing was lost"), ("1", "Everything was lost")],
)  # fmt: skip
def test_logs_without_a_change(tmp_path, lost, words):
    path, out = tmp_path / "log.csv", tmp_path / "fit.json"
    path.write_text("src,dst,lost\n" + "".join(f"0,1,{bit}\n" for bit in lost))
    found = call(path, "--json", out)
    assert found.exit_code == 0
    assert words in found.stdout
    plan = json.loads(out.read_text())["commands"]["plan"]
    assert plan == ("lossproof plan --ranks 2 --loss 0.0" if "0" in lost else None)


def test_help_needs_no_torch_and_fit_neither(tmp_path):
    path = log(tmp_path, Bernoulli(0.2), steps=20)
    code = (
        "import sys; from lossproof.cli import app; app(['fit', *sys.argv[1:]], standalone_mode=False);"
        "print(sorted({'torch', 'sympy', 'scipy.stats', 'transformers'} & set(sys.modules)))"
    )
    for argument in ("--help", str(path)):
        ran = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines()[-1] == "[]"
