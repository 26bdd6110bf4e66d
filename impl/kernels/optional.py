"""Triton, or where it is not installed, stand-ins that let the kernels' modules be imported (and no kernel run)."""

# mypy: disable-error-code="import-untyped, import-not-found, no-redef"

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:  # an optional extra, which exists for Linux only
    triton: Any = SimpleNamespace(jit=lambda function=None, **_: function or (lambda decorated: decorated))
    tl: Any = SimpleNamespace(float32=None, float64=None)

__all__ = ["tl", "triton"]
