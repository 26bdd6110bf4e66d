"""What is shipped, and who may import whom.

The distributions are built from a copy of the tree and tried in a process that sees nothing of the tree.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("theory", "impl", "proofs_checks", "paper_figures")
NOT_SHIPPED = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "runs", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "shared"
)


def python(*arguments: str, cwd: Path, path: Path | None = None, timeout: int = 240) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel built from the tree, and the one built from the source distribution; both unpacked."""
    tree, work = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=NOT_SHIPPED)
    build = ("-m", "build", "--no-isolation", "--outdir")
    python(*build, str(work / "via sdist"), str(tree), cwd=work)
    python(*build, str(work / "direct"), "--wheel", str(tree), cwd=work)
    unpacked = {}
    for kind in ("via sdist", "direct"):
        (wheel,) = (work / kind).glob("*.whl")
        unpacked[kind] = work / kind / "site"
        zipfile.ZipFile(wheel).extractall(unpacked[kind])
    return unpacked


def modules() -> set[str]:
    """Every module of the tree by its path in the package; the rooms are links there, which rglob does not follow."""
    places = [(ROOT / "src" / "lossproof", ROOT / "src" / "lossproof"), *((ROOT / room, ROOT) for room in ROOMS)]
    return {str(file.relative_to(base)) for place, base in places for file in place.rglob("*.py") if file.is_file()}


@pytest.mark.parametrize("kind", ["via sdist", "direct"])
def test_a_wheel_holds_every_module(wheels: dict[str, Path], kind: str) -> None:
    package = wheels[kind] / "lossproof"
    assert {str(path.relative_to(package)) for path in package.rglob("*.py")} == modules()
    assert not any((package / room).is_symlink() for room in ROOMS)
    assert (package / "py.typed").is_file()
    assert all((package / "proofs_checks/report" / name).is_file() for name in ("style.css", "script.js"))
    (info,) = wheels[kind].glob("*.dist-info")
    assert {path.name for path in wheels[kind].iterdir()} == {"lossproof", info.name}
    assert (info / "licenses" / "LICENSE").is_file()
    assert "lossproof = lossproof.cli:main" in (info / "entry_points.txt").read_text()


def test_both_wheels_are_the_same(wheels: dict[str, Path]) -> None:
    def contents(site: Path) -> dict[str, bytes]:
        return {str(p.relative_to(site)): p.read_bytes() for p in (site / "lossproof").rglob("*") if p.is_file()}

    assert contents(wheels["direct"]) == contents(wheels["via sdist"])


# Imports everything, then asks whether a file was loaded under two names, and where everything came from.
IMPORT_EVERYTHING = """
import collections, importlib, os, pkgutil, sys
import lossproof, lossproof.theory.laws, lossproof.impl.aggregate, lossproof.proofs_checks

def fail(name):
    raise ImportError(name)

for module in pkgutil.walk_packages(lossproof.__path__, "lossproof.", onerror=fail):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
names = collections.defaultdict(set)
for name, module in list(sys.modules.items()):
    file = getattr(module, "__file__", None)
    if file and (name.split(".")[0] in ("lossproof", "theory", "impl", "proofs_checks", "paper_figures")):
        names[os.path.realpath(file)].add(name)
twice = {file: sorted(loaded) for file, loaded in names.items() if len(loaded) > 1}
assert not twice, twice
assert all(name.startswith("lossproof") for loaded in names.values() for name in loaded), names
home = os.path.realpath(sys.argv[1])
assert all(file.startswith(home + os.sep) for file in names), (home, sorted(names))
print(len(names))
"""


@pytest.mark.parametrize("kind", ["via sdist", "direct"])
def test_a_wheel_imports_by_itself(wheels: dict[str, Path], kind: str, tmp_path: Path) -> None:
    loaded = int(python("-c", IMPORT_EVERYTHING, str(wheels[kind]), cwd=tmp_path, path=wheels[kind]))
    assert loaded == sum(not path.endswith("__main__.py") for path in modules())


def test_no_file_of_the_tree_is_loaded_under_two_names(tmp_path: Path) -> None:
    """Through the links of src/lossproof, as an editable installation sees them; the tree is the working directory."""
    python("-c", IMPORT_EVERYTHING, str(ROOT), cwd=ROOT, path=ROOT / "src")


def test_the_laws_import_neither_torch_nor_sympy(wheels: dict[str, Path], tmp_path: Path) -> None:
    code = "import sys, lossproof.theory.laws; print(sorted({'torch', 'sympy', 'scipy.stats'} & set(sys.modules)))"
    assert python("-c", code, cwd=tmp_path, path=wheels["direct"]).strip() == "[]"


# -- who may import whom


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, at the top or inside a function, with the line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def breaches(room: str, file: Path) -> list[str]:
    """The imports of a file that its room may not make; `room` is empty for what lies in none."""
    allowed = {
        "theory": ("lossproof.theory.",),
        "impl": ("lossproof.impl.", "lossproof.theory.laws."),
    }
    found = []
    for name, line in imports(file):
        inside = f"{name}."
        wrong = name.startswith(".") or name.split(".")[0] in ROOMS
        if room in ROOMS and room != "paper_figures":
            wrong = wrong or inside.startswith("lossproof.paper_figures.")
        if room in allowed and inside.startswith("lossproof."):
            wrong = wrong or not inside.startswith(allowed[room])
        if wrong:
            found.append(f"{file}:{line} imports {name}")
    return found


def test_the_rooms_keep_to_their_doors() -> None:
    for room in (*ROOMS, "src/lossproof", "tests", "benchmarks", "notebooks"):
        assert [breach for file in (ROOT / room).rglob("*.py") for breach in breaches(room, file)] == []


@pytest.mark.parametrize(
    ("room", "line", "wrong"),
    [
        ("theory", "import lossproof.impl.loss", True),
        ("theory", "def f():\n    from lossproof.impl import loss", True),
        ("theory", "from lossproof import proofs_checks", True),
        ("theory", "from lossproof.theory.laws import Bernoulli", False),
        ("impl", "from lossproof.theory.laws import Bernoulli", False),
        ("impl", "from lossproof.theory.laws.law import Law", False),
        ("impl", "from lossproof.theory import laws", False),
        ("impl", "from lossproof.theory import drift", True),
        ("impl", "import lossproof.proofs_checks.judge", True),
        ("impl", "import impl.loss", True),
        ("impl", "from . import loss", True),
        ("proofs_checks", "from lossproof.impl.loss import Arrivals", False),
        ("proofs_checks", "from theory import laws", True),
        ("proofs_checks", "from lossproof.paper_figures import making", True),
        ("paper_figures", "from lossproof.proofs_checks.claim import require", False),
        ("tests", "import proofs_checks", True),
        ("tests", "import paper_figures", True),
    ],
)
def test_the_doors_are_watched(room: str, line: str, wrong: bool, tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(line)
    assert bool(breaches(room, file)) == wrong
