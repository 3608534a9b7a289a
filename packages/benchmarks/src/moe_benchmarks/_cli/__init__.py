"""The `moe-bench` command."""

from moe_benchmarks._cli._main import app

__all__ = ["app"]
