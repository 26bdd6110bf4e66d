"""The recorded evidence: a full run, with the hash of every file of code that each claim rests on.

`proofs_checks/evidence.json` holds the JSON of a `verify` run and, beside it, `code`: for each claim the SHA-256 of the
modules that its checks import, directly or not. A claim of which one has changed since is *stale*: what was found is
no longer evidence for the code at hand. `lossproof verify --effort full --record` renews the file.
"""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from lossproof.proofs_checks import claims as claims_package
from lossproof.proofs_checks.claim import Claim

RECORD = Path(__file__).with_name("evidence.json")
RENEW = "lossproof verify --effort full --record"
_ROOT = Path(__file__).parents[1]
_ENGINE = "lossproof.proofs_checks.judge"  # reaches the verdicts of all claims


def code_under_claims() -> dict[str, dict[str, str]]:
    """For each claim the modules under it and the SHA-256 of their files."""
    found: dict[str, set[str]] = {}
    for info in pkgutil.iter_modules(claims_package.__path__, claims_package.__name__ + "."):
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, Claim):
                found.setdefault(value.id, {_ENGINE}).update(_reached(info.name))
    return {id_: {name: _digest(name) for name in sorted(names)} for id_, names in sorted(found.items())}


def write(outcome: dict[str, Any], path: Path = RECORD) -> None:
    """Records the JSON of a run of all claims."""
    path.write_text(json.dumps(outcome | {"code": code_under_claims()}, indent=1) + "\n", encoding="utf-8")


def read(path: Path = RECORD) -> dict[str, Any]:
    """The record. Raises ValueError if there is none or it cannot be read."""
    try:
        recorded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"no recorded evidence: {error}; make it with `{RENEW}`") from None
    return recorded


def stale(recorded: dict[str, Any]) -> dict[str, list[str]]:
    """Claims whose code is not what was recorded, each with the modules that differ; new and vanished claims too."""
    now, then = code_under_claims(), recorded["code"]
    differing = {}
    for id_ in sorted(now.keys() | then.keys()):
        mine, theirs = now.get(id_, {}), then.get(id_, {})
        changed = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if changed:
            differing[id_] = changed
    return differing


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
    """The modules of lossproof that a module imports when it is loaded; what functions import later is not counted."""
    tree = ast.parse(_file(name).read_text(encoding="utf-8"))
    return frozenset(found for node in _statements(tree.body) for found in _named(node))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.Try):
            yield from _statements(node.body)


def _named(node: ast.stmt) -> Iterator[str]:
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
