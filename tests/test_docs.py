"""The pages in docs/ that are read off the code are of this code, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from pages import generator

from lossproof.proofs_checks.judge import find_claims

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return generator("build")


def test_the_pages_are_of_this_code(build: ModuleType) -> None:
    assert build.outdated() == [], "run: python -m docs.build"


def test_every_claim_has_its_row_and_none_is_without_evidence_or_tests(build: ModuleType) -> None:
    rows = re.findall(r"^\| \*\*(\w+)\*\* (.*)$", build.paper_page(), re.MULTILINE)
    assert [name for name, _ in rows] == [claim.id for claim in find_claims()]
    for name, row in rows:
        derivation, forms, evidence, implementation, tests, _ = re.split(r"(?<!\\)\|", row.rstrip(" |") + " ")[1:]
        assert "theory/derive/" in derivation, name
        assert "theory/" in forms or name in ("U1", "X1"), name
        assert "proofs_checks/claims/" in evidence, name
        assert "impl/" in implementation, name
        assert "tests/" in tests, name


def test_a_claim_leads_to_its_own_closed_forms_and_derivation(build: ModuleType) -> None:
    row = next(line for line in build.paper_page().splitlines() if line.startswith("| **B3**"))
    assert "[owner](../theory/derive/drift.py)" in row
    assert "[drift.owner](../theory/drift.py)" in row
    assert "[drift](../proofs_checks/claims/drift.py)" in row
    assert "[retain](../impl/retain.py)" in row
    assert "drift.pair" not in row


def test_ranges_and_lists_of_claims_are_read(build: ModuleType) -> None:
    assert build._named("claims A1, B2 to B4 and D10") == {"A1", "B2", "B3", "B4", "D10"}


@pytest.mark.parametrize("page", sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]), ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_an_outdated_page_is_noticed(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (ROOT / "docs").glob("*.md"):
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8").replace("survivor", "survivors", 1))
    pages = {name: page() for name, page in build.PAGES.items()}
    monkeypatch.setattr(build, "PAGES", {name: (lambda text=text: text) for name, text in pages.items()})
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert build.outdated() == sorted(pages)
