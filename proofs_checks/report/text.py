"""Text as markup: every string of a claim comes through here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML cannot hold
_GREEK = "alpha|beta|eta|kappa|lambda|mu|rho|sigma|tau|theta|xi"
_SCRIPTED = re.compile(
    rf"(?<![^\W_])(?P<base>[^\W_]{{1,2}}|{_GREEK}|[)|\]])_(?:\((?P<sub>[^()]*)\)|(?P<sub1>[^\W_]+))"
    r"|\^(?:\((?P<sup>[^()]*)\)|(?P<sup1>-?[^\W_]+))"
)


def plain(text: object) -> str:
    """Escaped, for an element or an attribute."""
    return escape(_FORBIDDEN.sub("\ufffd", str(text)), quote=True)


def prose(text: str) -> str:
    """Escaped, with indices and powers set as such; a name such as `own_link` stays one.

    >>> prose("A_(t-1) < p^2, own_link")
    'A<sub>t-1</sub> &lt; p<sup>2</sup>, own_link'
    """
    pieces, end = [], 0
    for found in _SCRIPTED.finditer(text):
        pieces.append(plain(text[end : found.start()]))
        low, high = found["sub"] or found["sub1"], found["sup"] or found["sup1"]
        pieces.append(
            f"{plain(found['base'])}<sub>{plain(low)}</sub>" if found["base"] else f"<sup>{plain(high)}</sup>"
        )
        end = found.end()
    return "".join(pieces) + plain(text[end:])


def tag(name: str, inner: str, **attributes: str) -> str:
    """An element around markup; attributes are text (`class_` stands for `class`)."""
    words = "".join(f' {key.rstrip("_").replace("_", "-")}="{plain(value)}"' for key, value in attributes.items())
    return f"<{name}{words}>{inner}</{name}>"


def items(texts: Iterable[str]) -> str:
    return tag("ul", "".join(tag("li", prose(text)) for text in texts))
