"""The recorded evidence: a full run, with the hash of every file of code that each claim rests on.

`proofs_checks/evidence.json` holds the JSON of a `verify` run and, beside it, `code`: for each claim the SHA-256 of the
modules that its checks import, directly or not. A claim of which one has changed since is *stale*: what was found is
no longer evidence for the code at hand. `lossproof verify --effort full --record` renews the file, and what the README
quotes of it.

Imports within functions count too: that is how a check reaches the training job. Two kinds do not, since no evidence
rests on them: the kernels, which stand in for the plain bodies on a GPU only, where no claim is checked; and the page.
A change of the libraries, whose versions are recorded, makes nothing stale.
"""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from lossproof.proofs_checks import claims as claims_package
from lossproof.proofs_checks.claim import Claim

RECORD = Path(__file__).with_name("evidence.json")
RENEW = "lossproof verify --effort full --record"
README = Path(__file__).resolve().parents[1] / "README.md"  # an installed package has none
_ROOT = Path(__file__).parents[1]
_ENGINE = "lossproof.proofs_checks.judge"  # reaches the verdicts of all claims
_ASIDE = ("lossproof.impl.kernels", "lossproof.proofs_checks.report")  # where a function imports them
_QUOTED = re.compile(r"(?<=<!-- evidence -->\n```text\n)(.*?)(?=```\n)", flags=re.DOTALL)


def code_under_claims() -> dict[str, dict[str, str]]:
    """For each claim the modules under it and the SHA-256 of their files."""
    found: dict[str, set[str]] = {}
    for info in pkgutil.iter_modules(claims_package.__path__, claims_package.__name__ + "."):
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, Claim):
                found.setdefault(value.id, {_ENGINE}).update(_reached(info.name))
    return {id_: {name: _digest(name) for name in sorted(names)} for id_, names in sorted(found.items())}


def write(outcome: dict[str, Any], code: dict[str, dict[str, str]], path: Path | None = None) -> None:
    """Records the JSON of a run of all claims, with the hashes of the code that ran."""
    (path or RECORD).write_text(json.dumps(outcome | {"code": code}, indent=1) + "\n", encoding="utf-8")


def read(path: Path | None = None) -> dict[str, Any]:
    """The record. Raises ValueError if there is none or it cannot be read."""
    path = path or RECORD
    try:
        recorded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        quotation(recorded), stale(recorded)  # whatever is asked of a record is there
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else repr(error)
        raise ValueError(f"no recorded evidence: {path.name}: {reason}; make it with `{RENEW}`") from None
    return recorded


def summary(found: dict[str, Any]) -> str:
    """A run in a line, from its JSON: how many hold, were caught, and the chance of a false alarm."""
    verdicts = [claim["verdict"] for claim in found["claims"]]
    planted, caught = (sum(claim["mutants"][key] for claim in found["claims"]) for key in ("planted", "caught"))
    failed = [claim["id"] for claim in found["claims"] if claim["verdict"] == "fails"]
    return (f"FAILED: {', '.join(failed)}; " if failed else "") + (
        f"{verdicts.count('holds')} of {len(verdicts)} claims hold; {caught} of {planted} planted mistakes caught; "
        f"false-alarm probability of the run <= {found['alpha_total']:.1g}; seed {found['seed']}, {found['effort']}, "
        f"{found['seconds']:.0f} s"
    )


def quotation(recorded: dict[str, Any]) -> str:
    """What the README says of a record: its summary, and with which versions it was found."""
    return f"{summary(recorded)}\n{', '.join(f'{name} {version}' for name, version in recorded['versions'].items())}\n"


def quoted(readme: str) -> str:
    """The recorded evidence as a README quotes it."""
    found = _QUOTED.search(readme)
    return found[0] if found else ""


def quote(recorded: dict[str, Any]) -> bool:
    """Puts a record's summary into the README; False where there is none."""
    if not README.exists():
        return False
    text = README.read_text(encoding="utf-8")
    README.write_text(_QUOTED.sub(lambda _: quotation(recorded), text), encoding="utf-8")
    return True


def stale(recorded: dict[str, Any]) -> dict[str, list[str]]:
    """Claims whose code is not what was recorded, each with the modules that differ; new and vanished claims too."""
    now, then = code_under_claims(), recorded["code"]
    differing = {}
    for id_ in sorted(now.keys() | then.keys(), key=lambda id_: (id_[:1], len(id_), id_)):
        mine, theirs = now.get(id_, {}), then.get(id_, {})
        changed = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if changed:
            differing[id_] = changed
    return differing


def code_under(module: str) -> dict[str, str]:
    """The modules of lossproof that one rests on, itself among them, and the SHA-256 of their files."""
    return {name: _digest(name) for name in sorted(_reached(module))}


def _reached(start: str) -> set[str]:
    reached, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(_imports(name))
    return reached


@cache
def _imports(name: str) -> frozenset[str]:
    """The modules of lossproof that a module imports, when it is loaded or in a function, but for those `_ASIDE`."""
    tree = ast.parse(_file(name).read_text(encoding="utf-8"))
    return frozenset(
        found for node, later in _statements(tree) for found in _named(node) if not (later and found.startswith(_ASIDE))
    )


def _statements(node: ast.AST, later: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every import, and whether a function makes it; what only type checkers read is skipped."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, later
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _statements(child, later or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def _named(node: ast.AST) -> Iterator[str]:
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    for name in names:
        if name.startswith("lossproof.") and _file(name).exists():
            yield name


def _file(name: str) -> Path:
    path = _ROOT.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _digest(name: str) -> str:
    return sha256(_file(name).read_bytes()).hexdigest()
