"""The report of a run folder: one HTML file that a person wants to look at, and that needs nothing else.

Knows: the files of a run folder. Does not know: how they were made. Imports nothing heavy until a report is rendered.
"""

from __future__ import annotations

from optative.evaluation.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
