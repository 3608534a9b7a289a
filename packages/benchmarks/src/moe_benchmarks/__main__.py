"""`python -m moe_benchmarks` is `moe-bench`: what torchrun starts."""

from moe_benchmarks._cli import app

app()
