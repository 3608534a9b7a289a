"""Experiments with sparse mixtures of experts: train, search, compare, export, report."""

from importlib.metadata import version

from moe_benchmarks._quickstart import run_quickstart
from moe_benchmarks._settings import QuickstartSettings

__version__ = version("moe-benchmarks")

__all__ = ["QuickstartSettings", "__version__", "run_quickstart"]
