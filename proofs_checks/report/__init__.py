"""The report: claims and their evidence as one self-contained page, or in pieces for a notebook."""

from lossproof.proofs_checks.report.claims import claim_html
from lossproof.proofs_checks.report.page import report_html, report_page

__all__ = ["claim_html", "report_html", "report_page"]
