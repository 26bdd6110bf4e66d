"""README and CONTRIBUTING run: their Python, their commands, the list of claims; the recorded evidence is quoted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from typer.main import get_command

from lossproof.cli import app
from lossproof.proofs_checks import evidence
from lossproof.proofs_checks.judge import find_claims

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


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


def test_the_laws_and_the_rule_of_contributing_pass_their_checks(tmp_path):
    """As a newcomer would: the two laws in mine.py, the tests beside it, and pytest; the first law too."""
    odd, sticky, tests = blocks("python", CONTRIBUTING)
    (tmp_path / "mine.py").write_text(f"{odd}\n\n{sticky}", encoding="utf-8")
    (tmp_path / "test_mine.py").write_text(
        f"{tests}\n\ndef test_other():\n    import mine\n    check_law(mine.OddLinks())\n", encoding="utf-8"
    )
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    done = subprocess.run(pytest, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_the_readme_quotes_the_recorded_evidence():
    """`lossproof verify --effort full --record` writes both; without a record this fails."""
    assert evidence.quoted(README) == evidence.quotation(evidence.read())
