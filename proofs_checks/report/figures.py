"""The figures that illustrate a claim: those of `paper_figures/results` whose manifest names it.

A manifest is `NAME.json` beside `NAME.png` with the ids under `claims` and, where they are, a `title` and a `caption`.
An installed package has none of them.
"""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

from lossproof.proofs_checks.report.text import plain, tag

FOLDER = Path(__file__).resolve().parents[2] / "paper_figures" / "results"
LARGEST = 400_000  # bytes; dozens of figures still make a page that can be mailed


@dataclass(frozen=True)
class Figure:
    name: str
    claims: tuple[str, ...]
    caption: str
    png: bytes

    def html(self) -> str:
        source = f"data:image/png;base64,{b64encode(self.png).decode()}"
        image = f'<img alt="{plain(self.caption)}" src="{source}"/>'
        caption = tag("figcaption", f"{plain(self.caption)} <code>paper_figures/results/{plain(self.name)}.png</code>")
        return tag("figure", image + caption, id=f"figure-{self.name}")


def find(folder: Path | None = None) -> tuple[Figure, ...]:
    """Every figure whose manifest can be read and names a claim, by name."""
    found = (_read(manifest) for manifest in sorted((folder or FOLDER).glob("*.json")))
    return tuple(figure for figure in found if figure)


def _read(manifest: Path) -> Figure | None:
    try:
        entry = json.loads(manifest.read_text(encoding="utf-8"))
        png = manifest.with_suffix(".png").read_bytes()
        claims = tuple(map(str, entry["claims"]))
        caption = str(entry.get("caption") or entry.get("title") or manifest.stem.replace("_", " "))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # a figure is an illustration: the report is whole without it
    return Figure(manifest.stem, claims, caption, png) if len(png) <= LARGEST else None
