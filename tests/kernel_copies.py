"""The kernels' package, and copies of it with one planted mistake: files, for Triton reads its kernels' source."""

from __future__ import annotations

import atexit
import importlib
import shutil
import sys
import tempfile
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NAME = "lossproof.impl.kernels"
MODULES = ("launch", "masks", "stage1", "stage2")
_number = count()


def original() -> Any:
    return _modules(NAME)


def with_mistake(module: str, right: str, wrong: str) -> Any:
    """A copy in which `right`, which must occur exactly once in the module, reads `wrong`."""
    source = Path(str(importlib.import_module(NAME).__file__)).parent
    folder, name = Path(tempfile.mkdtemp(prefix="kernels-")), f"kernels_with_mistake_{next(_number)}"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (folder / name).glob("*.py"):
        text = file.read_text(encoding="utf-8").replace(NAME, name)
        if file.stem == module:
            assert text.count(right) == 1, f"{right!r} occurs {text.count(right)} times in {module}"
            text = text.replace(right, wrong)
        file.write_text(text, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        return _modules(name)
    finally:
        sys.path.remove(str(folder))


def _modules(package: str) -> Any:
    return SimpleNamespace(**{name: importlib.import_module(f"{package}.{name}") for name in MODULES})
