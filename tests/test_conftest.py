"""A skip is a failure where everything must run; a test that needs a device says that it was not run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SUITE = """
import pytest
def test_passes(): pass
@pytest.mark.skip(reason="lazy")
def test_marked(): pass
def test_inside(): pytest.skip("lazy")
@pytest.mark.xfail(strict=True)
def test_expected(): assert False
@pytest.mark.device
def test_device(): assert True
"""


def run(folder: Path, files: dict[str, str], strict: str) -> tuple[int, str]:
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    for name, text in files.items():
        (folder / name).write_text(text)
    options = ["-p", "no:cacheprovider", "-rs", "-o", "markers=device", "--rootdir", str(folder), str(folder)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "LOSSPROOF"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=folder,
        env=environment | {"LOSSPROOF_CI": strict},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


def test_a_skip_fails_where_everything_must_run(tmp_path: Path) -> None:
    code, text = run(tmp_path, {"test_suite.py": SUITE}, strict="1")
    assert code == 1
    device = "2 passed" if torch.cuda.is_available() else "1 passed, 1 skipped"
    assert f"1 failed, {device}, 1 xfailed, 1 error" in text
    assert text.count("LOSSPROOF_CI=1 demands that it runs") == 2
    assert torch.cuda.is_available() or "not run: no device here" in text


def test_a_file_that_skips_itself_fails_where_everything_must_run(tmp_path: Path) -> None:
    code, text = run(tmp_path, {"test_suite.py": "import pytest\npytest.importorskip('no_such_module')\n"}, strict="1")
    assert code != 0
    assert "LOSSPROOF_CI=1 demands that it runs" in text


@pytest.mark.parametrize("strict", ["", "0"])
def test_a_skip_is_a_skip_elsewhere(tmp_path: Path, strict: str) -> None:
    code, text = run(tmp_path, {"test_suite.py": SUITE}, strict=strict)
    assert code == 0
    assert "1 passed, 3 skipped, 1 xfailed" in text or torch.cuda.is_available()
