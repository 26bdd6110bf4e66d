"""From command-line options to a loss law."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossproof.theory.laws import Law

LAWS = {  # the options that go with each law
    "bernoulli": ("loss",),
    "gilbert-elliott": ("loss", "burst", "clock"),
    "per-sender": ("losses",),
    "trace": ("trace", "clock"),
}


def build_law(name: str | None = None, **options: Any) -> Law:
    """The loss law that the options describe.

    Args:
        name: one of the four in `LAWS`; None takes the one that the options imply.
        options: `loss`, `burst`, `clock`, `losses` (a file of probabilities, one for each rank, separated by white
            space or commas) and `trace` (a loss log, see `Trace`); None or absent if not given.

    Raises:
        ValueError: an unknown law, an option that does not go with it or is missing, a file that cannot be used.

    >>> build_law(loss=0.1, burst=4.0)
    GilbertElliott(loss=0.1, burst=4.0, clock='step', loss_good=0, loss_bad=1)
    """
    from lossproof.theory.laws import Bernoulli, GilbertElliott, PerSender, Trace

    given = {option: value for option, value in options.items() if value is not None}
    if name is None:
        name = next((n for n, mark in (("trace", "trace"), ("per-sender", "losses"), ("gilbert-elliott", "burst"))
                     if mark in given), "bernoulli")  # fmt: skip
    if name not in LAWS:
        raise ValueError(f"law must be one of {', '.join(LAWS)}, got {name!r}")
    for option in given:
        if option not in LAWS[name]:
            raise ValueError(f"{option} does not go with the law {name}, which takes {', '.join(LAWS[name])}")
    for option in LAWS[name]:
        if option not in given and option != "clock":
            raise ValueError(f"{option} must be given for the law {name}")
    clock = {"clock": given["clock"]} if "clock" in given else {}
    match name:
        case "bernoulli":
            return Bernoulli(given["loss"])
        case "gilbert-elliott":
            return GilbertElliott(given["loss"], given["burst"], **clock)
        case "per-sender":
            return PerSender(read_losses(given["losses"]))
        case _:
            return Trace.from_csv(_readable("trace", given["trace"]), **clock)


def read_losses(path: str | Path) -> tuple[float, ...]:
    """Probabilities from a file, one for each rank, separated by white space or commas."""
    losses = []
    text = Path(_readable("losses", path)).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        for word in line.replace(",", " ").split():
            try:
                losses.append(float(word))
            except ValueError:
                raise ValueError(f"losses must be a file of numbers, got {word!r} in {path}, line {number}") from None
    return tuple(losses)


def _readable(option: str, path: str | Path) -> str:
    if not Path(path).is_file():
        raise ValueError(f"{option} must be a file, got {str(path)!r}, which is none")
    return str(path)
