"""The report of studies: one HTML page that needs nothing else, and the same in Markdown."""

from moe_benchmarks._study_report._page import render_study

__all__ = ["render_study"]
