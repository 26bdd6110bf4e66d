"""Equations of a derivation as MathML that breaks between its terms, as text does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from xml.etree import ElementTree

from latex2mathml.converter import convert

from lossproof.theory.derive.steps import Step

_NAMESPACE = "http://www.w3.org/1998/Math/MathML"
_SCRIPT_SIZE, _SCRIPTS = 0.7, ("msub", "msup", "msubsup", "munder", "mover", "munderover")
_BREAK_FROM = 24  # letters; a shorter sum stays in one piece


def equation(step: Step) -> str:
    """`left = right` as a run of MathML pieces: one for each term of a long sum, so that lines break between them.

    What is no TeX that we know is shown as it is written.
    """
    try:
        pieces = [_mathml(piece) for piece in _pieces(_tidy(step.latex()))]
        for piece in pieces[1:]:  # first in its piece, but no sign of a number
            next(piece.iter(f"{{{_NAMESPACE}}}mo")).attrib |= {"form": "infix"}
    except Exception:  # the converter raises what it likes
        return f'<code class="eq">{escape(step.latex())}</code>'
    widest = max(_width(piece) for piece in pieces)
    return f'<div class="eq" style="--width: {widest:.0f}">{" ".join(map(_text, pieces))}</div>'


def _tidy(tex: str) -> str:
    r"""Symbols' names are TeX as people write it; this is what a strict reader needs on top.

    >>> _tidy(r"n_00 E[x|past] x_0_{\mathrm{lossy}} P(K<=k)")
    'n_{00} E[x|\\mathrm{past}] x_0{}_{\\mathrm{lossy}} P(K\\le k)'
    """
    tex = re.sub(r"_(\d\d+)", r"_{\1}", tex).replace("<=", r"\le ").replace(">=", r"\ge ")
    tex = re.sub(r"(?<=[^\\])\b(logL)\b", r"\\log L", " " + tex)[1:]
    tex = re.sub(r"(?<![\\A-Za-z])(?<!\\mathrm\{)(?<!\\mathrm\{zero\\ )([a-z]{3,})(?![A-Za-z])", r"\\mathrm{\1}", tex)
    return re.sub(r"([_^](?:[^{\\]|\\[A-Za-z]+|\{(?:[^{}]|\{[^{}]*\})*\}))(?=_)", r"\1{}", tex)


def _pieces(tex: str) -> Iterator[str]:
    """An equation cut before `=`, and before the + and - of a long sum, where no bracket is open."""
    depth, start = 0, 0
    for token in re.finditer(r"\\(?:left|right|begin|end)\b|[{}()\[\]]| (=|\+|-) ", tex):
        if token[1]:
            here = token.start()
            if depth == 0 and (token[1] == "=" or (here - start >= _BREAK_FROM and tex[start:here].strip() != "=")):
                yield tex[start:here]
                start = here
        elif token[0] in "{([":
            depth += 1
        elif token[0] in "})]":
            depth -= 1
    yield tex[start:]


def _mathml(tex: str) -> ElementTree.Element:
    return ElementTree.fromstring(convert(tex, display="block"))


def _text(piece: ElementTree.Element) -> str:
    """Markup without a namespace, which HTML supplies; each piece is shown large but stands in a line."""
    for element in piece.iter():
        element.tag = element.tag.rpartition("}")[2]
        if element.tag == "mi" and element.text in ("⟨", "⟩", ";", "…"):
            element.tag, element.attrib = "mo", {"lspace": "0", "rspace": "0", "stretchy": "false"}
        if element.tag == "mo" and element.text == "|":  # a norm's bars and the one before a condition look alike
            element.attrib |= {"lspace": "0.08em", "rspace": "0.08em"}
        if element.tag == "mo" and element.text == "/":
            element.attrib |= {"lspace": "0", "rspace": "0"}
        if element.tag == "mover":  # a hat is an accent, no arch over a word
            element[1].attrib |= {"stretchy": "false"}
        if element.tag in ("msub", "munder") and element[0].text in ("lim", "max", "min"):
            element.tag = "munder"
            element[0].attrib |= {"movablelimits": "false"}
        _join_words(element)
    piece.attrib = {"displaystyle": "true"}
    return ElementTree.tostring(piece, encoding="unicode")


def _join_words(row: ElementTree.Element) -> None:
    """Upright letters side by side are a word: one identifier, also for who hears it."""
    if row.tag.rpartition("}")[2] not in ("mrow", "math"):
        return
    for before, after in zip([*row], [*row][1:], strict=False):
        if before.get("mathvariant") == after.get("mathvariant") == "normal" and before.tag == after.tag:
            after.text = (before.text or "") + (after.text or "")
            row.remove(before)


def _width(element: ElementTree.Element) -> float:
    """Roughly, in letters: what a page of paper needs to know to shrink what does not fit."""
    name = element.tag.rpartition("}")[2]
    inner = [_width(child) for child in element]
    if name == "mfrac":
        return max(inner)
    if name in _SCRIPTS:
        scripts = inner[1:] if name in ("msub", "msup", "munder", "mover") else [max(inner[1:])]
        return inner[0] + _SCRIPT_SIZE * sum(scripts)
    if name == "mo":
        return 1.0 if (element.text or "").strip() in "()[]|" else 1.8
    return sum(inner) or len((element.text or "").strip())
