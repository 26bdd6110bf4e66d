"""How figures look: six series that differ in colour, marker and dash, and equal bytes for equal data.

The colours follow Okabe and Ito, set apart further in lightness: `tests/test_figures.py` holds them to a least distance
in grey and to eyes that lack green.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lossproof.paper_figures.intervals import bars


@dataclass(frozen=True)
class Series:
    """A colour, a marker and a dash that no other series has; `line()` and `points()` are arguments for `plot`."""

    colour: str
    marker: str
    dash: Any

    def line(self, **more: Any) -> dict[str, Any]:
        """A curve without markers, for what is computed."""
        return {"color": self.colour, "linestyle": self.dash, **more}

    def points(self, **more: Any) -> dict[str, Any]:
        """Markers without a line, for what is measured; for `errorbar` or `plot`."""
        return {"color": self.colour, "linestyle": "none", "marker": self.marker, **more}

    def both(self, **more: Any) -> dict[str, Any]:
        return {"color": self.colour, "linestyle": self.dash, "marker": self.marker, **more}


SERIES = (
    Series("#000000", "o", "-"),
    Series("#0A3383", "s", (0, (6, 2))),
    Series("#A62708", "^", (0, (2, 1.5))),
    Series("#189C74", "D", (0, (6, 1.5, 1.5, 1.5))),
    Series("#E0971A", "v", (0, (1, 1.2))),
    Series("#98D6FB", "P", (0, (10, 2, 2, 2, 2, 2))),
)
GREY = "#6E6E6E"
"""For lines that explain: limits, reported values, zero."""

_DEFAULTS = {
    "figure.figsize": (7.0, 3.8),
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "savefig.dpi": 150,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that no machine draws another one
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "errorbar.capsize": 2.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "legend.handlelength": 3.2,
    "pdf.fonttype": 42,
}


@contextmanager
def paper() -> Iterator[None]:
    """Within it matplotlib draws in this style, whatever the user's own settings are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_DEFAULTS)
        yield


def new(width: float = 7.0, height: float = 3.8) -> Any:
    """An empty `matplotlib.figure.Figure` of this size in inches, without pyplot and its global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def heading(picture: Any, title: str) -> None:
    """The finding, above all panels."""
    picture.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")


def panel(axes: Any, title: str) -> None:
    """What is special about one of several panels."""
    axes.set_title(title, fontweight="normal", fontsize=9)


def compared(
    axes: Any, x: Any, exact: Any, measured: Any, low: Any, high: Any, label: str, series: Series
) -> None:  # fmt: skip
    """A line for what is exact and points with intervals for what is measured, one entry in the legend."""
    axes.plot(x, exact, **series.line())
    axes.errorbar(x, measured, bars(measured, low, high), **series.points(markerfacecolor="white", zorder=3))
    axes.plot([], [], label=label, **series.both(markerfacecolor="white"))


def plain(axis: Any, ticks: Sequence[float] | None = None) -> None:
    """Numbers as they are spoken, 0.01 and 100, on a logarithmic axis; at these places if they are given."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    if ticks is not None:
        axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1e5 else f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())


def legend_below(picture: Any, columns: int, title: str = "lines: exact; points: measured") -> None:
    """One legend for all panels, below them; its entries are those of the first panel."""
    labelled = picture.axes[0].get_legend_handles_labels()
    picture.legend(*labelled, loc="outside lower center", ncols=columns, title=title)


def save(picture: Any) -> tuple[bytes, bytes]:
    """PDF and PNG; without dates and names of programs, so that the same data give the same bytes."""
    pdf, png = io.BytesIO(), io.BytesIO()
    picture.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    picture.savefig(png, format="png", metadata={"Software": None})
    return pdf.getvalue(), png.getvalue()
