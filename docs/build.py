"""Writes the two pages that are read off the code: `python -m docs.build`; `--check` says whether they are current.

`from-paper-to-code.md` takes each claim's derivation from the claim, closed forms from the functions whose docstring
names it, implementation from what its evidence imports, tests from those that name it or import its closed forms,
figures from their own lists of claims. `reference.md` takes the public names from `__all__`.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from lossproof.paper_figures.figure import find
from lossproof.proofs_checks.claim import Claim
from lossproof.proofs_checks.judge import find_claims

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PUBLIC = (
    ("lossproof", None),
    ("lossproof.theory.laws", None),
    ("lossproof.impl.aggregate", ("aggregate", "NonFiniteGradient")),
    ("lossproof.impl.retain", ("retain",)),
    ("lossproof.impl.loss", ("Arrivals",)),
    ("lossproof.impl.layout", ("Layout",)),
    ("lossproof.impl.cluster", ("Cluster",)),
    ("lossproof.impl.distributed", None),
    ("lossproof.impl.transport", None),
    ("lossproof.impl.transport.peers", ("Limits",)),
    ("lossproof.impl.transport.channel", ("UdpEnd",)),
    ("lossproof.proofs_checks", None),
)

PLUMBING = {"channel", "philox", "round", "optimizers", "settings", "corpus"}
NAME_ALL = {"test_claims", "test_evidence", "test_plan_command"}  # tests that name claims as examples

# From the paper to the code ------------------------------------------------------------------------------------------


def paper_page() -> str:
    """The page, from its head, which is written by hand, and the table of claims."""
    head = (HERE / "from-paper-to-code.head.md").read_text(encoding="utf-8")
    rows = [_row(claim) for claim in find_claims()]
    columns = "| claim | derivation | closed forms | evidence | implementation it runs | tests | figures |"
    return "\n".join([head, columns, "|---" * 7 + "|", *rows]) + "\n"


def _row(claim: Claim) -> str:
    derivation = _link(_source(claim.derive), claim.derive.__name__)
    evidence = _evidence_of(claim)
    forms = [_link(file, name) for file, name in _closed_forms(claim.id)]
    implementation = [_link(file) for file in _implementation(evidence)]
    tests = [_link(file) for file in _tests(claim.id, evidence)]
    figures = [_link(ROOT / "paper_figures" / f"{figure.name}.py") for figure in find() if claim.id in figure.claims]
    cells = [derivation, *map(", ".join, (forms, [_link(evidence)], implementation, tests, figures))]
    title = claim.title.replace("|", "\\|")
    return f"| **{claim.id}** {title} | " + " | ".join(cell or "-" for cell in cells) + " |"


def _link(file: Path, text: str = "") -> str:
    """Without a line number: the pages would be outdated by every edit."""
    where = os.path.relpath(file, HERE).replace(os.sep, "/")
    return f"[{text or file.stem}]({where})"


def _source(thing: Any) -> Path:
    return Path(sys.modules[thing.__module__].__file__ or "").resolve()  # also of what a decorator has wrapped


def _evidence_of(claim: Claim) -> Path:
    for file in sorted((ROOT / "proofs_checks/claims").glob("*.py")):
        if re.search(rf"^{claim.id} = Claim\(", file.read_text(encoding="utf-8"), re.MULTILINE):
            return file
    raise LookupError(f"no file of proofs_checks/claims defines {claim.id}")


def _closed_forms(claim: str) -> list[tuple[Path, str]]:
    """Functions of theory/ whose docstring names the claim, as in "B3: E|x - theta|^2 = ..."; else modules that do."""
    return list(_functions(claim)) or [
        (file, file.stem) for file in _theory() if claim in _named(ast.get_docstring(_tree(file)) or "")
    ]


def _theory() -> list[Path]:
    return sorted((ROOT / "theory").glob("*.py"))


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _named(text: str) -> set[str]:
    """The claims that a text names, singly or as a range: "C1, B2 to B4"."""
    found = set(re.findall(r"\b[A-FPUX]\d+\b", text))
    for letter, first, last in re.findall(r"\b([A-FPUX])(\d+) to [A-FPUX](\d+)\b", text):
        found |= {f"{letter}{number}" for number in range(int(first), int(last) + 1)}
    return found


def _functions(claim: str) -> Iterator[tuple[Path, str]]:
    for file in _theory():
        for node in _tree(file).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if claim in _named((ast.get_docstring(node) or "").split(":")[0]):
                yield file, f"{file.stem}.{node.name}"


def _modules(file: Path) -> set[Path]:
    """The files of lossproof that a file imports, its functions included."""
    found = set()
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lossproof."):
            base = ROOT.joinpath(*(node.module or "").split(".")[1:])
            found |= {base.with_suffix(".py"), *(base / f"{alias.name}.py" for alias in node.names)}
    return {candidate for candidate in found if candidate.is_file()}


def _implementation(evidence: Path) -> list[Path]:
    """What the evidence imports of impl/, itself or through its instruments; of a round, its stages alone are named."""
    reached = _modules(evidence)
    for instrument in [file for file in reached if file.parent.name == "instruments"]:
        reached |= _modules(instrument)
    found = {file for file in reached if ROOT / "impl" in file.parents}
    if ROOT / "impl/round.py" in found:
        found |= {ROOT / "impl/aggregate.py", ROOT / "impl/retain.py"}
    named = {file for file in found if file.stem not in PLUMBING}
    return sorted(named or found)


def _tests(claim: str, evidence: Path) -> list[Path]:
    """Tests that name the claim or import its closed forms; else its module of evidence or the implementation."""
    forms = {file for file, _ in _closed_forms(claim)}
    telling = {file for file in forms if len({found for found, _ in _claims_by_file() if _ == file}) <= 3}
    every = sorted((ROOT / "tests").rglob("test_*.py"))
    naming = [f for f in every if f'"{claim}"' in f.read_text(encoding="utf-8") and f.stem not in NAME_ALL]
    found = [file for file in every if file in naming or _modules(file) & telling]
    names = {f"test_{file.stem}" for file in _implementation(evidence)}
    return (
        found
        or [file for file in every if _modules(file) & (forms | {evidence})]
        or [file for file in every if file.stem in names]
    )


@cache
def _claims_by_file() -> list[tuple[str, Path]]:
    return [(claim.id, file) for claim in find_claims() for file, _ in _closed_forms(claim.id)]


# The reference -------------------------------------------------------------------------------------------------------


def reference_page() -> str:
    """Every public name: what it is, its signature, its docstring."""
    lines = [(HERE / "reference.head.md").read_text(encoding="utf-8")]
    for module_name, only in PUBLIC:
        module = import_module(module_name)
        names = only or sorted(module.__all__)
        lines += [f"## {module_name}", "", _prose(module.__doc__ or ""), ""]
        for name in names:
            lines += [*_entry(name, getattr(module, name)), ""]
    return "\n".join(lines).rstrip() + "\n"


def _entry(name: str, thing: Any) -> Iterator[str]:
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        yield f"### {name}"
        yield f"\n`{thing}`".replace("typing.", "")
        return
    yield f"### [{name}]({_link(_source(thing), 'x')[4:-1]})"
    yield ""
    yield f"```python\n{name}{_signature(thing)}\n```"
    yield ""
    yield _prose(inspect.getdoc(thing) or "")
    if inspect.isclass(thing):
        for method, body in sorted(vars(thing).items()):
            body = body.__func__ if isinstance(body, classmethod | staticmethod) else body
            said = inspect.getdoc(body.fget if isinstance(body, property) else body) if body is not None else None
            if method.startswith("_") or not said or not (inspect.isfunction(body) or isinstance(body, property)):
                continue
            shown = "" if isinstance(body, property) else _signature(body)
            yield f"- `.{method}{shown}`: {said.splitlines()[0]}"


def _signature(thing: Any) -> str:
    if getattr(thing, "_is_protocol", False):
        return ""
    try:
        shown = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(thing)))  # annotations, not defaults
    except ValueError:
        return "(...)"
    return shown.replace("lossproof.", "").replace("typing.", "")


def _prose(docstring: str) -> str:
    """Examples and sections of a docstring as Markdown code; the rest as it is."""
    return f"```text\n{inspect.cleandoc(docstring)}\n```" if docstring else ""


PAGES: dict[str, Callable[[], str]] = {"from-paper-to-code.md": paper_page, "reference.md": reference_page}


def outdated() -> list[str]:
    """The pages that differ from what this code says."""
    return [name for name, page in PAGES.items() if (HERE / name).read_text(encoding="utf-8") != page()]


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        wrong = outdated()
        print(f"outdated, run python -m docs.build: {', '.join(wrong)}" if wrong else "the pages are of this code")
        raise SystemExit(bool(wrong))
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
