"""Compile the kernels for sm_90, products at every tile of the table; print what they take.

A script of its own: in a process that interprets kernels they cannot be compiled.
"""

import itertools
import json
import re
import subprocess
import tempfile
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moe_runtime._triton import _kernel_products as products
from moe_runtime._triton import _kernel_rows as rows
from moe_runtime._triton._blocks import GROUP, HOPPER, Blocks, Kind
from moe_runtime._triton._launch import COLUMNS, FEW_ROWS

FLOAT32_POINTERS = {"gate_ptr", "grad_gate_ptr"}
INT32_POINTERS = {
    *("row_ptr", "grad_row_ptr", "x_row_ptr", "by_row_ptr"),
    *("row_start_ptr", "pair_start_ptr", "pair_end_ptr", "expert_ptr"),
}
NUM_EXPERTS = 64
COLUMNS_OF_ROWS = {"BLOCK_T": FEW_ROWS, "BLOCK_N": COLUMNS}
# Each way through the kernels without products.
ROW_KERNELS: list[tuple[Any, dict[str, Any]]] = [
    *((rows.sum_by_row_kernel, {"WEIGHS": each, **COLUMNS_OF_ROWS}) for each in (False, True)),
    *(
        (rows.bias_gradient_kernel, {"WEIGHS": each, "BLOCK_P": 32, "BLOCK_N": 64})
        for each in (False, True)
    ),
    *(
        (
            rows.gate_gradient_kernel,
            {"ACTIVATION": name, "IS_GATED": is_gated, "BY_EXPERT": by_expert, **COLUMNS_OF_ROWS},
        )
        for name, is_gated, by_expert in (("identity", False, True), ("silu", True, False))
    ),
    *(
        (
            rows.pair_gradient_kernel,
            {"ACTIVATION": name, "IS_GATED": is_gated, "BLOCK_P": FEW_ROWS, "BLOCK_N": COLUMNS},
        )
        for name, is_gated in (("identity", False), ("silu", True))
    ),
]


def kernel_of(product: str) -> Any:
    """Return the kernel of a product."""
    if product.endswith("output"):
        return products.output_kernel
    names = {
        "input gradient": products.input_gradient_kernel,
        "weight gradient": products.weight_gradient_kernel,
    }
    return names[product]


def constants_of(product: str, *, is_gated: bool) -> dict[str, Any]:
    """Return the constants that make a kernel do all it can."""
    if product == "weight gradient":
        return {"GATHERS_GRAD": True, "GATHERS_X": True}
    shared = {
        "ACTIVATION": "gelu",
        "IS_GATED": is_gated,
        "IS_EVEN": True,
        "PADDED_E": NUM_EXPERTS,
    }
    if product == "input gradient":
        return {"IS_FIRST": False, "WEIGHS": True, **shared}
    return {"GATHERS": True, "HAS_BIAS": True, "STORES_Z": True, **shared}


def compile_kernel(
    kernel: Any, constants: dict[str, Any], number: str, options: dict[str, int]
) -> dict[str, Any]:
    """Compile a kernel, and read what the compiler says about it."""
    signature, values, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(position,)] = "constexpr", constants[name]
            continue
        kinds = {"*fp32": FLOAT32_POINTERS, "*i32": INT32_POINTERS}
        pointer = next((each for each, names in kinds.items() if name in names), number)
        signature[name] = pointer if name.endswith("_ptr") else "i32"
        if name.endswith("_ptr") or name.startswith("size_"):
            attributes[(position,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, values, attributes),
        target=GPUTarget("cuda", 90, 32),
        options={**options, "enable_fp_fusion": True},
    )
    return {
        **resources(compiled.asm["cubin"]),
        "name": kernel.__name__,
        "shared": compiled.metadata.shared,
        "wgmma": "wgmma.mma_async" in compiled.asm["ptx"],
    }


def compile_product(kind: Kind, blocks: Blocks, *, is_gated: bool) -> dict[str, Any]:
    """Compile the kernel of a product with a tile of the table."""
    constants = constants_of(kind.product, is_gated=is_gated) | {
        "PRECISION": "ieee",
        "UPCAST": False,
        "BLOCK_M": blocks.m,
        "BLOCK_N": blocks.n,
        "BLOCK_K": blocks.k,
        "GROUP": GROUP,
    }
    number = "*bf16" if kind.itemsize == 2 else "*fp32"
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    return {
        **compile_kernel(kernel_of(kind.product), constants, number, options),
        "kind": [*kind],
        "is_gated": is_gated,
        "threads": 32 * blocks.warps,
        "programs": blocks.programs,
    }


def resources(cubin: bytes) -> dict[str, int]:
    """Return registers of a thread, and bytes of its stack, which is where registers spill."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found, report
    return {"registers": int(found[1]), "stack": int(found[2])}


if __name__ == "__main__":
    cases = [
        (kind, blocks, is_gated)
        for (kind, blocks), is_gated in itertools.product(HOPPER.items(), (False, True))
        if is_gated == (kind.product == "gated output") or kind.product == "input gradient"
    ]
    answer = {
        "products": [compile_product(*case[:2], is_gated=case[2]) for case in cases],
        "rows": [
            compile_kernel(kernel, constants, "*bf16", {"num_warps": 4})
            for kernel, constants in ROW_KERNELS
        ],
    }
    print(json.dumps(answer))  # noqa: T201 - its answer
