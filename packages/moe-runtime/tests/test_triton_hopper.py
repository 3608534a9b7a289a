"""Without a GPU: what the compiler makes of the kernels for sm_90."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs the extra: pip install 'moe-runtime[gpu]'")

# Of one multiprocessor: 32-bit registers, and bytes of shared memory for all its programs,
# each of which takes one KiB more than it asks for (CUDA C++ guide, compute capability 9.0).
REGISTERS, SHARED_MEMORY, RESERVED = 65536, 228 * 1024, 1024


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[dict[str, Any]]]:
    script = Path(__file__).with_name("_compile_for_hopper.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    cases: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return cases


@pytest.fixture
def products(compiled: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    assert len(compiled["products"]) == 20
    return compiled["products"]


def test_nothing_spills(compiled: dict[str, list[dict[str, Any]]]) -> None:
    cases = [*compiled["products"], *compiled["rows"]]
    assert [case for case in cases if case["stack"]] == []


def test_products_of_16_bits_are_warpgroup_products(products: list[dict[str, Any]]) -> None:
    assert {(case["kind"][1], case["wgmma"]) for case in products} == {(2, True), (4, False)}


def test_the_programs_of_a_multiprocessor_fit(products: list[dict[str, Any]]) -> None:
    for case in products:
        # Registers are given out in units of 8 a thread.
        registers = -(-case["registers"] // 8) * 8 * case["threads"]
        assert case["programs"] * registers <= REGISTERS, case
        assert case["programs"] * (case["shared"] + RESERVED) <= SHARED_MEMORY, case
