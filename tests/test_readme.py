"""The README runs: its Python, its commands, and its list of claims."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from typer.main import get_command

from lossproof.cli import app
from lossproof.proofs_checks.judge import find_claims

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_runs_as_it_stands(tmp_path):
    (code,) = blocks("python")
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("True 0.2020")


def test_every_command_and_option_exists():
    commands = get_command(app).commands
    lines = [line.split("#")[0] for block in blocks("console") for line in block.splitlines()]
    used = [line.removeprefix("$ lossproof ").split() for line in lines if line.startswith("$ lossproof ")]
    assert used
    for name, *arguments in used:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in arguments if word.startswith("--")} <= known


def test_every_claim_is_listed_with_its_title():
    for claim in find_claims():
        assert f"| {claim.id} | {claim.title} |" in README
