"""Numbers in documents come from manifests: the gallery is generated, and marked numbers are compared or renewed.

A document marks a number as `<!-- number NAME.KEY -->0.202<!-- / -->`: the value KEY of the `numbers` of figure NAME,
rounded to the digits that are shown; with `%` behind them, of a hundred times the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from lossproof.paper_figures import manifest
from lossproof.paper_figures.figure import names, write
from lossproof.paper_figures.making import RESULTS

GALLERY = RESULTS.parent / "README.md"
_MARKED = re.compile(r"(<!-- number (\w+)\.(\w+) -->)(.*?)(<!-- / -->)", flags=re.DOTALL)
_DIGITS = re.compile(r"([+-]?)(\d+(?:,\d{3})*)(?:\.(\d+))?(\s*%)?")
_GENERATED = re.compile(r"(<!-- gallery -->\n).*(<!-- /gallery -->)", flags=re.DOTALL)


def documents(root: Path) -> list[Path]:
    """Where numbers are quoted: the README, the documentation, the gallery."""
    found = [root / "README.md", *sorted((root / "docs").glob("*.md")), root / "paper_figures" / "README.md"]
    return [file for file in found if file.exists()]


def known(folder: Path = RESULTS) -> dict[str, dict[str, float | str]]:
    """The numbers of all manifests in a folder, by figure."""
    found = ((file.stem, manifest.read(folder, file.stem)) for file in sorted(folder.glob("*.json")))
    return {name: read["numbers"] for name, read in found if read}


def shown(value: float | str, like: str) -> str:
    """A value as a document shows it, with the digits and the sign of `like`.

    Raises:
        ValueError: `like` shows no number.

    >>> shown(0.20202, "0.1"), shown(0.0123, "+2.0 %"), shown(1234.5, "1,000"), shown("LLaMA", "?")
    ('0.2', '+1.2 %', '1,234', 'LLaMA')
    """
    if isinstance(value, str):
        return value
    pattern = _DIGITS.fullmatch(like)
    if not pattern:
        raise ValueError(f"a number must stand between the marks, got {like!r}")
    sign, whole, decimals, percent = pattern.groups()
    try:
        exact = (Decimal(repr(value)) * (100 if percent else 1)).quantize(
            Decimal(1).scaleb(-len(decimals or "")), rounding=ROUND_HALF_EVEN
        )
    except InvalidOperation:
        raise ValueError(f"{value} cannot be shown like {like!r}") from None
    form = ("+" if sign == "+" else "") + ("," if "," in whole else "")
    return f"{exact:{form}f}{percent or ''}"


def renewed(text: str, numbers: dict[str, dict[str, float | str]]) -> str:
    """The text with every marked number as the manifests have it.

    Raises:
        ValueError: a mark names a number that no manifest has.

    >>> renewed("<!-- number a.b -->0.1<!-- / -->", {"a": {"b": 0.26}})
    '<!-- number a.b -->0.3<!-- / -->'
    """

    def replace(found: re.Match[str]) -> str:
        opening, name, key, content, closing = found.groups()
        if key not in numbers.get(name, {}):
            raise ValueError(
                f"number {name}.{key} is in no manifest; figure {name} has {sorted(numbers.get(name, {}))}"
            )
        return opening + shown(numbers[name][key], content) + closing

    marks = text.count("<!-- number ")
    changed, replaced = _MARKED.subn(replace, text)
    if replaced != marks:
        raise ValueError(f"{marks - replaced} of {marks} marked numbers are not of the form <!-- number NAME.KEY -->")
    return changed


def wrong(text: str, numbers: dict[str, dict[str, float | str]]) -> list[str]:
    """What a text quotes otherwise than the manifests have it, for people; an unknown number raises ValueError."""
    marks = [f"{match[2]}.{match[3]}" for match in _MARKED.finditer(text)]
    quoted, right = ([match[4] for match in _MARKED.finditer(each)] for each in (text, renewed(text, numbers)))
    return [f"{mark}: {was!r}, but the manifest has {now!r}"
            for mark, was, now in zip(marks, quoted, right, strict=True) if was != now]  # fmt: skip


def gallery(folder: Path = RESULTS) -> str:
    """Markdown: the picture of every figure in the folder, its finding, what is drawn, its command and its files."""
    parts = []
    for name in names():
        found = manifest.read(folder, name)
        if found:
            parts.append(_entry(found))
    return "\n".join(parts)


def _entry(found: dict[str, Any]) -> str:
    name, claims = found["name"], f"Claims {', '.join(found['claims'])}; " if found["claims"] else ""
    files = ", ".join(f"[{suffix.upper()}](results/{name}.{suffix})" for suffix in ("pdf", "csv", "json"))
    return (
        f"## {found['title']}\n\n![{found['title']}](results/{name}.png)\n\n{found['caption']}\n\n"
        f"{claims}{found['kind']}; `{found['command']}`; {files}\n"
    )


def with_gallery(text: str, entries: str) -> str:
    """A gallery page with its generated part replaced.

    >>> with_gallery("<!-- gallery -->\\nold\\n<!-- /gallery -->", "new\\n")
    '<!-- gallery -->\\nnew\\n<!-- /gallery -->'
    """
    return _GENERATED.sub(lambda found: f"{found[1]}{entries}{found[2]}", text)


def renew(root: Path, folder: Path = RESULTS) -> list[Path]:
    """Renews the gallery and every marked number; returns the documents that have changed."""
    changed, numbers = [], known(folder)
    for file in documents(root):
        before = file.read_text(encoding="utf-8")
        after = renewed(with_gallery(before, gallery(folder)) if file.parent == folder.parent else before, numbers)
        if after != before:
            write(file, after.encode())
            changed.append(file)
    return changed


def stale(root: Path, folder: Path = RESULTS) -> Iterable[str]:
    """What documents quote otherwise than the manifests have it, with the document's name."""
    numbers = known(folder)
    for file in documents(root):
        text = file.read_text(encoding="utf-8")
        yield from (f"{file.relative_to(root)}: {line}" for line in wrong(text, numbers))
        if file.parent == folder.parent and with_gallery(text, gallery(folder)) != text:
            yield f"{file.relative_to(root)}: the gallery is not that of the manifests"
