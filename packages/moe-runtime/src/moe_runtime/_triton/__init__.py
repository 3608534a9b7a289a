"""Experts on a GPU by Triton kernels. Needs the extra: ``pip install "moe-runtime[gpu]"``.

The kernels are compiled for sm_90 and run in Triton's interpreter by the tests; they have not
been run on a GPU.
"""

from moe_runtime._triton._run import run_experts

__all__ = ["run_experts"]
