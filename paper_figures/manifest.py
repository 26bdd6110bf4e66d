"""What is written beside a figure: inputs, code, versions and processor that made it, and the hash of every file."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lossproof.paper_figures.figure import Effort, Figure, Table
from lossproof.paper_figures.table import DIGITS
from lossproof.proofs_checks import evidence

SCHEMA = 1
SUFFIXES = ("csv", "pdf", "png")
_PACKAGES = ("numpy", "scipy", "torch", "matplotlib")
_DIGITS_DEPEND_ON = {"exact": (), "sampled": ("numpy", "scipy", "torch"), "trained": ("numpy", "torch", "transformers"),
                     "measured": ()}  # fmt: skip
_DRAWN_BY = ("lossproof.paper_figures.style", "lossproof.paper_figures.manifest")
_KEYS = ("schema", "name", "kind", "effort", "inputs", "environment", "versions", "processor", "source", "drawing",
         "files", "numbers")  # fmt: skip


def of(figure: Figure, effort: Effort, files: Mapping[str, bytes], table: Table) -> dict[str, Any]:
    """The manifest of a figure that has just been computed by this code on this machine."""
    return {
        "schema": SCHEMA,
        "name": figure.name,
        "kind": figure.kind,
        "effort": effort,
        "command": f"lossproof figures {figure.name}" + (" --effort paper" if effort == "paper" else ""),
        "inputs": inputs(figure, effort),
        "environment": figure.environment(),
        "versions": versions(figure),
        "processor": processor(),
        "source": source(figure),
    } | presentation(figure, files, table)


def presentation(figure: Figure, files: Mapping[str, bytes], table: Table) -> dict[str, Any]:
    """The part of a manifest that follows from the table and the drawing."""
    found = numbers(figure, table)
    return {
        "title": figure.title,
        "claims": list(figure.claims),
        "caption": " ".join(figure.caption.format_map(found).split()),
        "drawing": drawing(figure),
        "files": {name: digest(content) for name, content in files.items()},
        "numbers": found,
    }


def numbers(figure: Figure, table: Table) -> dict[str, float | str]:
    """What documents may quote, with as many digits as the table."""
    found = figure.numbers(table)
    return {key: value if isinstance(value, str) else float(f"{value:.{DIGITS}g}") for key, value in found.items()}


def inputs(figure: Figure, effort: Effort) -> dict[str, Any]:
    """As they are read back from JSON, so that they can be compared."""
    found: dict[str, Any] = json.loads(json.dumps(figure.inputs(effort)))
    return found


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def versions(figure: Figure) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in dict.fromkeys(("lossproof", *_PACKAGES, *_DIGITS_DEPEND_ON[figure.kind])):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


@cache
def processor() -> str:
    """Its name, and the vector instructions that torch makes use of."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = named[0] if named else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def source(figure: Figure) -> str:
    """SHA-256 of all modules of lossproof that the computation imports, directly or not."""
    code = evidence.code_under(figure.compute.__module__)
    return digest(json.dumps({name: of for name, of in code.items() if name not in _DRAWN_BY}).encode())


def drawing(figure: Figure) -> str:
    """SHA-256 of the modules that hold the figure and draw it."""
    code = {**evidence.code_under(type(figure).__module__), **evidence.code_under(figure.draw.__module__)}
    here = {figure.draw.__module__, figure_module(figure), *_DRAWN_BY, "lossproof.paper_figures.table"}
    return digest(json.dumps({name: of for name, of in sorted(code.items()) if name in here}).encode())


def figure_module(figure: Figure) -> str:
    return f"lossproof.paper_figures.{figure.name}"


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """The manifest of a figure in this folder; None if there is none that can be read."""
    try:
        found = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    complete = isinstance(found, dict) and found.get("schema") == SCHEMA and all(key in found for key in _KEYS)
    return found if complete else None


def damaged(folder: Path, found: Mapping[str, Any]) -> list[str]:
    """The files that are not what the manifest says."""
    wrong = []
    for suffix in SUFFIXES:
        name = f"{found['name']}.{suffix}"
        file = folder / name
        if not file.is_file() or digest(file.read_bytes()) != found["files"].get(name):
            wrong.append(name)
    return wrong


def incomparable(figure: Figure, found: Mapping[str, Any]) -> list[str]:
    """Why this machine need not find the digits of a manifest again; nothing for exact figures."""
    here, why = versions(figure), []
    for package in _DIGITS_DEPEND_ON[figure.kind]:
        then = found["versions"].get(package, "none")
        if then != here[package]:
            why.append(f"{package} {then} there, {here[package]} here")
    if figure.kind == "trained":
        if found["processor"] != processor():
            why.append(f"processor {found['processor']!r} there, {processor()!r} here")
        now, then = figure.environment(), found["environment"]
        why += [f"{key} {then.get(key)} there, {now.get(key)} here"
                for key in sorted(now.keys() | then.keys()) if now.get(key) != then.get(key)]  # fmt: skip
    return why
