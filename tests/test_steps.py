"""Derivations as they are displayed; what their steps accept and refuse is claim X1."""

from __future__ import annotations

import re

import pytest

from lossproof.proofs_checks.judge import find_claims
from lossproof.theory.derive.steps import as_text


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
