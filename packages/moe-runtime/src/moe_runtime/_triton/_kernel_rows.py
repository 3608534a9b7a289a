# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""What moves rows and does no products: combine, its gradient, and the gradient of biases.

Each number is added up by one program in one order. The pairs of row t are
`by_row[row_start[t]:row_start[t + 1]]`, in the order of the experts.
"""

import triton
import triton.language as tl

from moe_runtime._triton._kernel_common import activate, slope


@triton.jit
def sum_by_row_kernel(
    y_ptr,
    gate_ptr,
    by_row_ptr,
    row_start_ptr,
    out_ptr,
    num_rows,
    num_pairs,
    size_n,
    WEIGHS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute out (G, T, N) = sum over a row's pairs of gate (G, P) * y (P, N), or of y alone."""
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    of_gate = tl.program_id(2).to(tl.int64)
    is_row = row < num_rows
    first = tl.load(row_start_ptr + row, mask=is_row, other=0)
    end = tl.load(row_start_ptr + row + 1, mask=is_row, other=0)
    total = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for number in range(tl.max(end - first, 0)):
        used = first + number < end
        pair = tl.load(by_row_ptr + first + number, mask=used, other=0)
        mask = used[:, None] & (column < size_n)[None, :]
        y = y_ptr + pair.to(tl.int64)[:, None] * size_n + column[None, :]
        term = tl.load(y, mask=mask, other=0.0).to(tl.float32)
        if WEIGHS:
            gate = tl.load(gate_ptr + of_gate * num_pairs + pair, mask=used, other=0.0)
            term *= gate[:, None]
        total += term
    out = out_ptr + (of_gate * num_rows + row)[:, None] * size_n + column[None, :]
    mask = is_row[:, None] & (column < size_n)[None, :]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gate_gradient_kernel(
    grad_ptr,
    y_ptr,
    expert_ptr,
    by_row_ptr,
    row_start_ptr,
    grad_gate_ptr,
    num_rows,
    num_pairs,
    size_n,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
    BY_EXPERT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute grad_gate (G, P) = <grad (G, T, N), activation(y)> of each pair's row.

    y (P, N or 2N) by pair; or, BY_EXPERT, (E, N): the part of a bias.
    """
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    of_gate = tl.program_id(1).to(tl.int64)
    is_row = row < num_rows
    first = tl.load(row_start_ptr + row, mask=is_row, other=0)
    end = tl.load(row_start_ptr + row + 1, mask=is_row, other=0)
    grad = grad_ptr + (of_gate * num_rows + row)[:, None] * size_n
    width = size_n
    if IS_GATED:
        width = 2 * size_n
    for number in range(tl.max(end - first, 0)):
        used = first + number < end
        pair = tl.load(by_row_ptr + first + number, mask=used, other=0)
        source = pair
        if BY_EXPERT:
            source = tl.load(expert_ptr + pair, mask=used, other=0)
        total = tl.zeros((BLOCK_T,), tl.float32)
        for start in range(0, size_n, BLOCK_N):
            column = start + tl.arange(0, BLOCK_N)[None, :]
            mask = used[:, None] & (column < size_n)
            y = y_ptr + source.to(tl.int64)[:, None] * width + column
            value = activate(tl.load(y, mask=mask, other=0.0).to(tl.float32), ACTIVATION)
            if IS_GATED:
                value *= tl.load(y + size_n, mask=mask, other=0.0).to(tl.float32)
            total += tl.sum(value * tl.load(grad + column, mask=mask, other=0.0).to(tl.float32), 1)
        tl.store(grad_gate_ptr + of_gate * num_pairs + pair, total, mask=used)


@triton.jit
def pair_gradient_kernel(
    grad_ptr,
    gate_ptr,
    z_ptr,
    row_ptr,
    pair_end_ptr,
    grad_z_ptr,
    num_gates,
    num_rows,
    num_pairs,
    size_n,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute grad_z of y = activation(z): a pair's sum of gate (G, P) * grad (G, T, N).

    z and grad_z (P, N or 2N).
    """
    pair = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    used = pair < tl.load(pair_end_ptr)
    mask = used[:, None] & (column < size_n)
    row = tl.load(row_ptr + pair, mask=used, other=0)
    total = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for of_gate in range(num_gates):
        wide = tl.full((), 0, tl.int64) + of_gate
        gate = tl.load(gate_ptr + wide * num_pairs + pair, mask=used, other=0.0)
        grad = grad_ptr + (wide * num_rows + row)[:, None] * size_n + column
        total += gate[:, None] * tl.load(grad, mask=mask, other=0.0).to(tl.float32)
    width = size_n
    if IS_GATED:
        width = 2 * size_n
    place = pair.to(tl.int64)[:, None] * width + column
    if IS_GATED or ACTIVATION != "identity":
        z = tl.load(z_ptr + place, mask=mask, other=0.0).to(tl.float32)
        if IS_GATED:
            z_2 = tl.load(z_ptr + place + size_n, mask=mask, other=0.0).to(tl.float32)
            grad_2 = (total * activate(z, ACTIVATION)).to(grad_z_ptr.dtype.element_ty)
            tl.store(grad_z_ptr + place + size_n, grad_2, mask=mask)
            total *= z_2
        total *= slope(z, ACTIVATION)
    tl.store(grad_z_ptr + place, total.to(grad_z_ptr.dtype.element_ty), mask=mask)


@triton.jit
def bias_gradient_kernel(
    grad_ptr,
    gate_ptr,
    row_ptr,
    grad_bias_ptr,
    pair_start_ptr,
    size_n,
    WEIGHS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute grad_bias (E, N) = sum over an expert's pairs of (gate *) grad.

    grad (P, N) by pair, or (T, N) by row, which gate (P,) weighs.
    """
    expert = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    end = tl.load(pair_start_ptr + expert + 1)
    total = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for start in range(tl.load(pair_start_ptr + expert), end, BLOCK_P):
        pair = start + tl.arange(0, BLOCK_P)
        used = pair < end
        row = pair
        if WEIGHS:
            row = tl.load(row_ptr + pair, mask=used, other=0)
        mask = used[:, None] & (column < size_n)[None, :]
        grad = grad_ptr + row.to(tl.int64)[:, None] * size_n + column[None, :]
        term = tl.load(grad, mask=mask, other=0.0).to(tl.float32)
        if WEIGHS:
            term *= tl.load(gate_ptr + pair, mask=used, other=0.0)[:, None]
        total += term
    out = grad_bias_ptr + expert.to(tl.int64) * size_n + column
    tl.store(out, tl.sum(total, 0).to(grad_bias_ptr.dtype.element_ty), mask=column < size_n)
