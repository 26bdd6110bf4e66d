"""Where theory and implementation meet: claims, their evidence, the planted mistakes, the verdict, the report."""

from lossproof.proofs_checks.claim import Claim, Evidence, Refuted, plant, require
from lossproof.proofs_checks.judge import Report, verify

__all__ = ["Claim", "Evidence", "Refuted", "Report", "plant", "require", "verify"]
