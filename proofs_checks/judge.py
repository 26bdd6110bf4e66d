"""Runs the rungs of the claims and their planted mistakes, and reaches the verdicts.

The algebra of verdicts: a rung `holds`, `fails`, is `not run` or `not applicable`. A claim `fails` if a rung fails or a
planted mistake survives; it `holds` if at least one rung ran, all that ran hold and all mistakes were caught; otherwise
it is `not run`.
"""

from __future__ import annotations

import importlib
import pkgutil
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch

from lossproof.impl.philox import split_seed
from lossproof.proofs_checks import claims as claims_package
from lossproof.proofs_checks.claim import KINDS, Claim, Effort, Evidence, Kind, Mutant, Refuted, Run, Rung, Verdict
from lossproof.proofs_checks.workers import spread

SCHEMA = 1
_QUICK_MISTAKES = 4
Progress = Callable[[str, int, int], None]
"""Called with what comes next, the number of checks done and the number of all."""


class MissingExtra(Exception):
    """A rung needs an optional dependency that is not installed; it is then `not run`."""


@dataclass(frozen=True)
class RungResult:
    kind: Kind
    verdict: Verdict
    detail: str
    alpha: float | None = None
    planted: int = 0
    survivors: tuple[str, ...] = ()
    tightness: float | None = None


@dataclass(frozen=True)
class ClaimResult:
    claim: Claim
    rungs: tuple[RungResult, ...]

    @property
    def verdict(self) -> Verdict:
        return claim_verdict([rung.verdict for rung in self.rungs], any(rung.survivors for rung in self.rungs))

    @property
    def planted(self) -> int:
        return sum(rung.planted for rung in self.rungs)

    @property
    def caught(self) -> int:
        return self.planted - sum(len(rung.survivors) for rung in self.rungs)

    @property
    def tightness(self) -> float | None:
        return next((rung.tightness for rung in self.rungs if rung.tightness is not None), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.claim.id,
            "title": self.claim.title,
            "verdict": self.verdict,
            "rungs": [{k: asdict(rung)[k] for k in ("kind", "verdict", "detail", "alpha")} for rung in self.rungs],
            "mutants": {"planted": self.planted, "caught": self.caught},
            "tightness": self.tightness,
        }


@dataclass(frozen=True)
class Report:
    """The outcome of a run. Everything but `seconds` and `versions` depends on claims, effort and seed only."""

    results: tuple[ClaimResult, ...]
    effort: Effort
    seed: int
    seconds: float

    @property
    def alpha_total(self) -> float:
        """The probability that this run would have refuted at least one true claim: at most the sum over its checks."""
        return sum(rung.alpha or 0.0 for result in self.results for rung in result.rungs)

    @property
    def ok(self) -> bool:
        """No rung failed and no planted mistake survived."""
        return all(result.verdict != "fails" for result in self.results)

    @property
    def complete(self) -> bool:
        """Nothing was left unrun."""
        return all(rung.verdict != "not run" for result in self.results for rung in result.rungs)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "claims": [result.to_json() for result in self.results],
            "alpha_total": self.alpha_total,
            "effort": self.effort,
            "seed": self.seed,
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("lossproof", "torch", "sympy", "numpy", "scipy")},
            "seconds": round(self.seconds, 1),
        }

    def _repr_html_(self) -> str:
        from lossproof.proofs_checks.report import report_html

        return report_html(self)


def claim_verdict(rungs: Iterable[Verdict], survivors: bool) -> Verdict:
    """The verdict of a claim from those of its rungs."""
    rungs = list(rungs)
    if "fails" in rungs or survivors:
        return "fails"
    return "holds" if "holds" in rungs else "not run"


def find_claims() -> tuple[Claim, ...]:
    """All claims of `proofs_checks/claims/`, in the order of their ids."""
    found: dict[str, Claim] = {}
    for module in pkgutil.iter_modules(claims_package.__path__, claims_package.__name__ + "."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Claim) and found.setdefault(value.id, value) is not value:
                raise ValueError(f"two claims have the id {value.id}")
    return tuple(sorted(found.values(), key=lambda claim: (claim.id[0], int(claim.id[1:]))))


def select_claims(ids: Iterable[str] | None) -> tuple[Claim, ...]:
    """The claims of these ids (any case), all of them for None; raises ValueError naming an unknown one."""
    known = {claim.id: claim for claim in find_claims()}
    wanted = [name.upper() for name in ids] if ids is not None else list(known)
    for name in wanted:
        if name not in known:
            raise ValueError(f"claims must be among {', '.join(known)}, got {name!r}")
    return tuple(claim for claim in known.values() if claim.id in wanted)


def verify(
    claims: Iterable[str] | None = None,
    effort: Effort = "quick",
    seed: int = 0,
    progress: Progress | None = None,
    jobs: int = 1,
) -> Report:
    """Carries claims through every rung of evidence and plants the mistakes that each rung must reject.

    Args:
        claims: ids such as "A1", any case; None for all.
        effort: `quick` (a minute in all) or `full` (ten minutes): the sizes of enumerations and samples.
        seed: 64-bit; the same seed gives the same digits.
        progress: called before every check.
        jobs: how many processes check; the outcome is the same. A script that asks for more than one must be guarded
            by `if __name__ == "__main__"`, since they start by importing it.

    Raises:
        ValueError, TypeError: an unknown claim or effort, an unusable seed.

    >>> verify(["B1"]).ok
    True
    """
    if effort not in ("quick", "full"):
        raise ValueError(f"effort must be 'quick' or 'full', got {effort!r}")
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs!r}")
    split_seed(seed)
    selected = select_claims([claims] if isinstance(claims, str) else claims)
    run, began = Run(effort, seed), time.perf_counter()
    total = sum(1 + len(planted(rung, effort)) for claim in selected for rung in claim.rungs.values())
    done = 0

    def tick(what: str) -> None:
        nonlocal done
        if progress:
            progress(what, done, total)
        done += 1

    jobs = min(jobs, len(selected))
    if jobs > 1:
        rungs = spread([claim.id for claim in selected], run, jobs, tick)
    else:
        try:
            rungs = [check_claim(claim, run, tick) for claim in selected]
        finally:
            end_processes()
    results = tuple(ClaimResult(*found) for found in zip(selected, rungs, strict=True))
    if progress:
        progress("", total, total)
    return Report(results, effort, seed, time.perf_counter() - began)


def planted(rung: Rung, effort: Effort) -> tuple[Mutant, ...]:
    """The mistakes that a run plants: all at full effort; at quick at most four of a rung, spread over its list."""
    every = 1 if effort == "full" else -(-len(rung.mutants) // _QUICK_MISTAKES) or 1
    return rung.mutants[::every]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order whatever the host; and the tensors of a check are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def end_processes() -> None:
    """Ends the processes that checks have started."""
    if started := sys.modules.get("lossproof.proofs_checks.instruments.processes"):
        started.close()


def check_claim(claim: Claim, run: Run, tick: Callable[[str], None]) -> tuple[RungResult, ...]:
    """All rungs of a claim; `tick` hears what comes next."""
    with _one_thread():
        return tuple(_run_rung(claim, kind, run, tick) for kind in KINDS)


def _run_rung(claim: Claim, kind: Kind, run: Run, tick: Callable[[str], None]) -> RungResult:
    if kind not in claim.rungs:
        verdict, reason = claim.absent.get(kind, ("not run", "no check is written yet"))
        return RungResult(kind, verdict, reason)
    rung = claim.rungs[kind]
    tick(f"{claim.id} {kind}")
    verdict, evidence = _judge(rung, run)
    if verdict == "not run":
        return RungResult(kind, verdict, evidence.detail)
    survivors = []
    mutants = planted(rung, run.effort)
    for mutant in mutants:
        tick(f"{claim.id} {kind}, planted: {mutant.description}")
        with mutant.planted():
            try:
                rung.check(run)
            except Refuted:
                continue
            except Exception as error:  # a crash is no rejection: the mistake might as well have run elsewhere
                survivors.append(f"{mutant.description} (crashed: {error!r:.80})")
            else:
                survivors.append(mutant.description)
    detail = evidence.detail + (f"; SURVIVED: {', '.join(survivors)}" if survivors else "")
    return RungResult(kind, verdict, detail, evidence.alpha, len(mutants), tuple(survivors), evidence.tightness)


def _judge(rung: Rung, run: Run) -> tuple[Verdict, Evidence]:
    try:
        return "holds", rung.check(run)
    except MissingExtra as missing:
        return "not run", Evidence(str(missing))
    except Refuted as refuted:
        return "fails", Evidence(str(refuted))
    except Exception as error:
        return "fails", Evidence(f"the check crashed: {error!r}")
