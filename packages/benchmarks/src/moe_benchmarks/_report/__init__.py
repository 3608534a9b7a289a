"""The quickstart's report: one HTML file that needs nothing else."""

from moe_benchmarks._report._page import render_report

__all__ = ["render_report"]
