"""Derivations as they are displayed; what their steps accept and refuse is claim X1."""

from __future__ import annotations

import re

import pytest
import sympy as sp

from lossproof.proofs_checks.judge import find_claims
from lossproof.theory.derive.steps import as_text, given


@pytest.mark.parametrize("claim", find_claims(), ids=lambda claim: claim.id)
def test_reasons_are_text_and_mathematics_to_tex(claim):
    latex = claim.derive()._repr_latex_()
    assert "aligned" in latex
    for step in claim.derive().steps:
        text = as_text(step.because)
        assert text in latex
        plain = re.sub(r"\$[^$]*\$", "", text.replace(r"\$", ""))
        assert "$" not in plain
        assert not re.search(r"[_^]|(?<!\\)[%&#{}]", plain)


@pytest.mark.parametrize("claim", find_claims(), ids=lambda claim: claim.id)
def test_names_are_not_cut_in_tex(claim):
    r"""SymPy's own printer makes E[m_{i/K]} of E[m_i/K]: brackets must close in the group that they open in."""
    for step in claim.derive().steps:
        latex = re.sub(r"\\(left|right)[()\[\]|.]", "", step.latex())
        depths = [0]
        for character in latex:
            if character == "{":
                depths.append(0)
            elif character == "}":
                assert depths.pop() == 0, latex
            else:
                depths[-1] += (character in "([") - (character in ")]")
        assert depths == [0], latex


def test_tex_of_names():
    w, name, power = sp.symbols(r"eta E[m_i/K] \sigma^2")
    step = given(w * name, power**2 + sp.Symbol("V_{t-1}"), "")
    assert step.latex() == r"E[m_i/K] \eta = V_{t-1} + \left(\sigma^2\right)^{2}"
    assert repr(step) == r"E[m_i/K]*eta = V_{t-1} + \sigma^2**2    [assumed: ]"
