"""`lossproof train`: trains a language model over the lossy protocol, and compares losses by paired seeds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lossproof.commands.errors import error_line, require_writable
from lossproof.commands.law_options import build_law

if TYPE_CHECKING:
    from lossproof.impl.distributed.launch import World
    from lossproof.impl.settings import Settings
    from lossproof.impl.train import Progress as Step
    from lossproof.theory.laws import Law

SCHEMA = 1
TOLERANCE = 0.05  # nats of validation log-perplexity; 0.05 is 5 % of perplexity
Run = dict[str, Any]


def train(
    ranks: Annotated[
        int | None, typer.Option(help="Ranks, each with its own replica. [default: 16; under torchrun one a process]")
    ] = None,
    loss: Annotated[list[float] | None, typer.Option(help="Packet loss; repeat it to compare. [default: 0.1]")] = None,
    law: Annotated[
        str | None,
        typer.Option(help="bernoulli, gilbert-elliott, per-sender or trace. [default: what the other options imply]"),
    ] = None,
    burst: Annotated[float | None, typer.Option(help="Gilbert-Elliott: mean length of a burst, in ticks.")] = None,
    losses: Annotated[Path | None, typer.Option(help="Per-sender: a file with one probability for each rank.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Trace: a CSV loss log with columns src, dst, lost; may have step, phase, packet."),
    ] = None,
    clock: Annotated[
        str | None,
        typer.Option(help="Gilbert-Elliott and trace: step or packet. [default: step; packet for a log without steps]"),
    ] = None,
    rule: Annotated[str, typer.Option(help="survivor_mean, inverse_probability or zero_fill.")] = "survivor_mean",
    no_survivor: Annotated[str, typer.Option(help="No gradient arrived: zero, hold, own or raise.")] = "zero",
    own_link: Annotated[str, typer.Option(help="The owner's own gradient: reliable or lossy.")] = "reliable",
    optimizer: Annotated[str, typer.Option(help="Any class of torch.optim; muon takes AdamW for vectors.")] = "adamw",
    lr: Annotated[float | None, typer.Option(help="Peak learning rate. [default: the optimizer's]")] = None,
    steps: Annotated[int, typer.Option(help="Rounds of training.")] = 300,
    seed: Annotated[int, typer.Option(help="First seed: start, order of the text, losses.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many seeds, each run at every loss.")] = 1,
    text: Annotated[
        Path | None, typer.Option(help="A text file or folder. [default: Python's own standard library]")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences of a rank in each step.")] = 1,
    context: Annotated[int, typer.Option(help="Tokens of a sequence: bytes without a tokenizer.")] = 128,
    model: Annotated[
        Path | None,
        typer.Option(help="A transformers folder: config.json; weights and tokenizer if any. [default: a small LLaMA]"),
    ] = None,
    hidden: Annotated[int, typer.Option(help="Width of the model.")] = 64,
    layers: Annotated[int, typer.Option(help="Layers of the model.")] = 2,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 4,
    intermediate: Annotated[int, typer.Option(help="Width of the feed-forward part.")] = 172,
    layout: Annotated[str, typer.Option(help="How parameters are cut and owned: tensors, flat or dim0.")] = "tensors",
    packet_bytes: Annotated[int, typer.Option(help="Payload of a packet.")] = 1024,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    transport: Annotated[
        str,
        typer.Option(
            help="simulated; or udp under torchrun, a rank a process: the losses are the network's. All ranks share a "
            "key, in the environment as LOSSPROOF_KEY, or in a file that LOSSPROOF_KEY_FILE names."
        ),
    ] = "simulated",
    out: Annotated[Path | None, typer.Option(help="Folder for checkpoints and results, one subfolder a run.")] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints in --out.")] = 100,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in --out, skipping finished runs.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results there.")] = None,
) -> None:
    """Train a language model over lossy links; exit 1 if a loss is clearly worse than the first one given."""
    note = Console(stderr=True, highlight=False, soft_wrap=True, quiet=int(os.environ.get("RANK", 0)) > 0)
    with _reasons(note), ExitStack() as stack:
        from lossproof.impl.corpus import Corpus
        from lossproof.impl.distributed.launch import hosted_ranks, processes, world
        from lossproof.impl.language_model import tokenized
        from lossproof.impl.settings import Settings
        from lossproof.impl.train import memory_budget, versions
        from lossproof.theory.laws import Bernoulli

        ranks = (processes() or 16) if ranks is None else ranks
        if started := processes():
            hosted_ranks(ranks, started, 0)
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}")
        if resume and out is None:
            raise ValueError("resume needs out, the folder of the interrupted run")
        require_writable(json=json_file)
        values: list[float] | list[None] = loss or (
            [None] if losses or trace or law in ("per-sender", "trace") or transport == "udp" else [0.1]
        )
        if transport == "udp" and any(option is not None for option in (loss, law, burst, losses, trace, clock)):
            raise ValueError(
                "transport 'udp' takes the losses of the network: leave out loss, law and what goes with it"
            )
        if len(set(values)) < len(values):
            raise ValueError(f"loss must not name a value twice, got {', '.join(map(str, values))}")
        laws: dict[float | None, Law] = {
            value: Bernoulli(0)
            if transport == "udp"
            else build_law(law, loss=value, burst=burst, losses=losses, trace=trace, clock=clock)
            for value in values
        }
        here, device = stack.enter_context(world(device))
        common: dict[str, Any] = {
            "ranks": ranks, "steps": steps, "optimizer": optimizer, "lr": lr, "rule": rule, "no_survivor": no_survivor,
            "own_link": own_link, "layout": layout, "packet_bytes": packet_bytes, "batch": batch, "context": context,
            "hidden": hidden, "layers": layers, "heads": heads, "intermediate": intermediate, "device": device,
            "model": str(model) if model else None, "transport": transport,
        }  # fmt: skip
        cases = [(value, Settings(law=laws[value], seed=seed + k, **common)) for k in range(seeds) for value in values]
        corpus = tokenized(Corpus.from_path(text) if text else Corpus.standard_library(), cases[0][1])
        note.print(
            f"{corpus.name}: {len(corpus.train):,} {corpus.unit}s to train on, {len(corpus.validation):,} held out"
        )
        note.print(f"Memory: {memory_budget(cases[0][1])}")

        runs = []
        for number, (value, settings) in enumerate(cases, 1):
            name = (
                f"loss-{value:g}"
                if value is not None
                else "udp"
                if transport == "udp"
                else law or ("trace" if trace else "per-sender")
            )
            folder = out / f"{name}-seed-{settings.seed}" if out else None
            label = f"{name}, seed {settings.seed} ({number}/{len(cases)})"
            record = _run(settings, corpus, folder, resume, checkpoint_every, label, note, here)
            drawn = "udp" if transport == "udp" else repr(settings.law)
            runs.append({"loss": value, "law": drawn, "seed": settings.seed, **record})
        comparison = compare(runs)
        if here.rank == 0:
            show(runs, comparison, corpus.unit)
        shared = {k: v for k, v in runs[0]["settings"].items() if k not in ("law", "seed")}
        report = {
            "schema": SCHEMA,
            "settings": shared | {"losses": values, "seeds": [seed + k for k in range(seeds)]},
            "runs": runs,
            "comparison": comparison,
            "versions": versions(),
        }
        if json_file and here.rank == 0:
            json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if any(row["verdict"] == "fails" for row in comparison):
        raise typer.Exit(1)


def _run(
    settings: Settings,
    corpus: Any,
    folder: Path | None,
    resume: bool,
    checkpoint_every: int,
    label: str,
    note: Console,
    here: World,
) -> Run:
    """One run's result; a finished one is read from its folder, which is rank 0's where there are several processes."""
    from lossproof.impl import train as job
    from lossproof.impl.checkpoint import check_same
    from lossproof.proofs_checks.realised_drift import DriftMeter

    finished = folder / "result.json" if folder and here.rank == 0 else None
    text = finished.read_text(encoding="utf-8") if finished and finished.exists() and resume else None
    if text := here.agreed(text):
        run: Run = json.loads(text)
        check_same(run["settings"] | {"text": run["text"]["digest"]}, settings.record() | {"text": corpus.digest})
        note.print(f"{label}: finished before")
        return run
    if resume:
        note.print(
            f"{label}: {'goes on from its checkpoint' if folder and any(folder.glob('*.pt')) else 'starts anew'}"
        )
    with _progress_bar(label, settings.steps, note) as progress:
        result = job.train(
            settings,
            corpus,
            out=folder,
            resume=resume,
            checkpoint_every=checkpoint_every,
            observer=DriftMeter.of if settings.transport == "simulated" else None,
            progress=progress,
        )
    run = asdict(result)
    if finished:
        finished.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    return run


def compare(runs: list[Run]) -> list[Run]:
    r"""The mean paired difference in validation log-perplexity of each later loss against the first, in nats.

    .. math:: \bar d \pm t_{0.975, n-1}\, s_d / \sqrt n, \qquad d_s = \log P_s(\text{loss}) - \log P_s(\text{first})

    over n seeds, each of which starts from the same weights and sees the same text at every loss. Verdict: `fails` if
    the whole interval lies above 0.05 nats, `holds` if below, `undecided` between, `not run` with fewer than two seeds.
    """
    losses = list(dict.fromkeys(run["loss"] for run in runs))
    found = {(run["loss"], run["seed"]): run["log_perplexity"] for run in runs}
    seeds = list(dict.fromkeys(run["seed"] for run in runs))
    rows = []
    for later in losses[1:]:
        differences = [found[later, s] - found[losses[0], s] for s in seeds]
        low, high = _interval(differences)
        verdict = "undecided"
        if low is None or high is None:
            verdict = "not run"
        elif low > TOLERANCE:
            verdict = "fails"
        elif high < TOLERANCE:
            verdict = "holds"
        rows.append({
            "loss": later,
            "against": losses[0],
            "differences": differences,
            "mean": sum(differences) / len(differences),
            "low": low,
            "high": high,
            "tolerance": TOLERANCE,
            "verdict": verdict,
        })  # fmt: skip
    return rows


def _interval(values: list[float]) -> tuple[float, float] | tuple[None, None]:
    """The 95 % t-interval of a mean; none from a single value."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return None, None
    mean = sum(values) / n
    half = float(t.ppf(0.975, n - 1)) * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return mean - half, mean + half


def show(runs: list[Run], comparison: list[Run], unit: str = "byte") -> None:
    """One row for each run, then the comparison."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table(
        title=f"Perplexity per {unit} of validation text: the owners' model and the worst replica.\n"
        "Train: loss of the last tenth. Empty: packets without a survivor.\n"
        "Pair, owner: drift between replicas and to the owner, measured / predicted.",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        show_edge=False,
    )
    for heading in ("loss", "seed", "perplexity", "worst", "train", "lost", "empty", "pair", "owner", "tokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        counts, tail = run["counts"], run["train_losses"][-max(1, len(run["train_losses"]) // 10) :]
        offered = counts["gradients_offered"] + counts["parameters_offered"]
        lost = (counts["gradients_lost"] + counts["parameters_lost"]) / max(1, offered)
        table.add_row(
            run["law"].split("(")[0] if run["loss"] is None else f"{run['loss']:g}",
            str(run["seed"]),
            f"{run['perplexity']:.3f}",
            f"{max(run['replica_perplexity']):.3f}",
            f"{sum(tail) / len(tail):.3f}",
            f"{lost:.2%}",
            str(counts["no_survivor"]),
            _ratio(run, "pair"),
            _ratio(run, "owner"),
            f"{run['tokens_per_second']:,.0f}",
        )
    console.print(table)
    for row in comparison:
        about = f"loss {row['loss']:g} against {row['against']:g}: mean difference in log-perplexity {row['mean']:+.4f}"
        if row["verdict"] == "not run":
            console.print(f"{about} nats; not run: an interval needs at least two seeds (--seeds)")
            continue
        place = {"fails": "above", "holds": "below", "undecided": "on both sides of"}[row["verdict"]]
        console.print(
            f"{about} nats, 95 % interval [{row['low']:+.4f}, {row['high']:+.4f}] "
            f"over {len(row['differences'])} paired seeds: {place} {TOLERANCE} nats"
        )


def _ratio(run: Run, which: str) -> str:
    drift = (run["observed"] or {}).get(which)
    return f"{drift['ratio']:.3f}" if drift and drift["ratio"] is not None else "-"


@contextmanager
def _progress_bar(label: str, steps: int, note: Console) -> Iterator[Callable[[Step], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("loss {task.fields[loss]:.3f}"))  # fmt: skip
    with Progress(*columns, console=note, transient=True, disable=not note.is_terminal) as bar:
        task = bar.add_task(label, total=steps, loss=math.nan)
        yield lambda step: bar.update(task, completed=step.step, loss=step.loss)


@contextmanager
def _reasons(note: Console) -> Iterator[None]:
    """Turns errors into one line and an exit status: 2 unusable input, 1 a run that diverged, 130 interrupted."""

    def leave(reason: str, status: int) -> NoReturn:
        note.print(reason, markup=False)
        raise typer.Exit(status) from None

    try:
        yield
    except KeyboardInterrupt:
        leave("Interrupted. With --out, the same command and --resume go on from the last step that was saved.", 130)
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        leave(error_line('train needs the extra llm: install "lossproof[llm]"'), 2)
    except FloatingPointError as error:
        leave(error_line(error), 1)
    except (ValueError, TypeError, OSError) as error:
        leave(error_line(error), 1 if type(error).__name__ == "NonFiniteGradient" else 2)
