"""lossproof: formal analysis and verification of distributed training under packet loss.

`lossproof.theory` is what is true, `lossproof.impl` what runs, `lossproof.proofs_checks` where the two meet.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossproof.proofs_checks.judge import Report, verify
    from lossproof.theory.plan import Plan, plan

__all__ = ["Plan", "Report", "plan", "verify"]
__version__ = version("lossproof")


def __getattr__(name: str) -> Any:
    """Loaded when first asked for: `verify` and `Report` need torch and SymPy, `plan` and `Plan` NumPy."""
    if name in ("Plan", "plan"):
        from lossproof.theory import plan as numbers

        return getattr(numbers, name)
    if name in __all__:
        from lossproof.proofs_checks import judge

        return getattr(judge, name)
    raise AttributeError(f"module 'lossproof' has no attribute {name!r}")
