# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The three products of a grouped linear map: its output, its input's and its weight's gradient.

All are persistent: a fixed number of programs shares the tiles, whose number only the device
knows. No tile holds pairs of two experts, none is added to by two programs, and each is
added up in one order, so that repeats are equal to the bit.

M counts pairs, N columns of what is computed, K what is summed over. All arrays are
contiguous along their last axis. Pairs are sorted by expert; `row_ptr` names each pair's row.
"""

import triton
import triton.language as tl

from moe_runtime._triton._kernel_common import (
    activate,
    find_pairs,
    halve,
    multiply,
    place,
    slope,
    tile_ends,
)


@triton.jit
def store_outputs(
    z,
    z_2,
    bias_ptr,
    z_ptr,
    y_ptr,
    first,
    end,
    column,
    size_n,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STORES_Z: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add the bias to a part of a tile, and store z and its activation."""
    width = size_n
    if IS_GATED:
        width = 2 * size_n
    # Offsets within the tile are small; its place may not be.
    local_m, local_n = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    used = (local_m < end - first) & (local_n < size_n - column)
    if HAS_BIAS:
        bias = bias_ptr + column + local_n
        z += tl.load(bias, mask=local_n < size_n - column, other=0.0).to(tl.float32)
        if IS_GATED:
            bias += size_n
            z_2 += tl.load(bias, mask=local_n < size_n - column, other=0.0).to(tl.float32)
    if STORES_Z:
        out = z_ptr + (first.to(tl.int64) * width + column) + (local_m * width + local_n)
        tl.store(out, z.to(z_ptr.dtype.element_ty), mask=used)
        if IS_GATED:
            tl.store(out + size_n, z_2.to(z_ptr.dtype.element_ty), mask=used)
    y = activate(z, ACTIVATION)
    if IS_GATED:
        y *= z_2
    out = y_ptr + (first.to(tl.int64) * size_n + column) + (local_m * size_n + local_n)
    tl.store(out, y.to(y_ptr.dtype.element_ty), mask=used)


@triton.jit
def output_kernel(
    x_ptr,
    row_ptr,
    weight_ptr,
    bias_ptr,
    z_ptr,
    y_ptr,
    pair_start_ptr,
    num_experts,
    size_n,
    size_k,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
    GATHERS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STORES_Z: tl.constexpr,
    IS_EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    PADDED_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Compute z = x weight^T + bias and y = activation(z).

    Gated, y = activation(first half of z) * second half.

    x (T, K) by row or (P, K) by pair, weight (E, N or 2N, K), z (P, N or 2N), y (P, N).
    """
    tile_end = tile_ends(pair_start_ptr, num_experts, BLOCK_M, PADDED_E)
    num_m, num_n = tl.max(tile_end, 0), tl.cdiv(size_n, BLOCK_N)
    width = size_n
    if IS_GATED:
        width = 2 * size_n
    for index in range(tl.program_id(0), num_m * num_n, tl.num_programs(0)):
        tile_m, tile_n = place(index, num_m, num_n, GROUP)
        expert, first, end = find_pairs(tile_m, tile_end, pair_start_ptr, BLOCK_M)
        pair = first + tl.arange(0, BLOCK_M)
        column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        # What is outside reads something that exists, and is not stored.
        row = tl.minimum(pair, end - 1)
        if GATHERS:
            row = tl.load(row_ptr + row)
        column = tl.minimum(column, size_n - 1)
        k = tl.arange(0, BLOCK_K)
        x = x_ptr + row.to(tl.int64)[:, None] * size_k + k[None, :]
        weight = weight_ptr + expert.to(tl.int64) * width * size_k
        weight += column[None, :] * size_k + k[:, None]
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if IS_GATED:
            total_2 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, size_k, BLOCK_K):
            if IS_EVEN:
                x_MK = tl.load(x + start)
                weight_KN = tl.load(weight + start)
            else:
                left = size_k - start
                x_MK = tl.load(x + start, mask=(k < left)[None, :], other=0.0)
                weight_KN = tl.load(weight + start, mask=(k < left)[:, None], other=0.0)
            total = multiply(x_MK, weight_KN, total, PRECISION, UPCAST)
            if IS_GATED:
                second = weight + size_n * size_k + start
                if IS_EVEN:
                    weight_KN = tl.load(second)
                else:
                    weight_KN = tl.load(second, mask=(k < left)[:, None], other=0.0)
                total_2 = multiply(x_MK, weight_KN, total_2, PRECISION, UPCAST)
        # In two halves: what storing keeps in registers comes on top of the product.
        halves = halve(total, BLOCK_M, BLOCK_N)
        halves_2 = halves
        if IS_GATED:
            halves_2 = halve(total_2, BLOCK_M, BLOCK_N)
        for half in tl.static_range(2):
            store_outputs(
                halves[half],
                halves_2[half],
                bias_ptr + expert * width,
                z_ptr,
                y_ptr,
                first,
                end,
                tile_n * BLOCK_N + half * (BLOCK_N // 2),
                size_n,
                ACTIVATION,
                IS_GATED,
                HAS_BIAS,
                STORES_Z,
                BLOCK_M,
                BLOCK_N // 2,
            )


@triton.jit
def store_gradients(
    grad,
    z_ptr,
    gate,
    grad_z_ptr,
    y_ptr,
    first,
    end,
    column,
    size_n,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Store the gradient of z and the weighted y for a part of a tile; return <grad, y>."""
    width = size_n
    if IS_GATED:
        width = 2 * size_n
    local_m, local_n = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    used = (local_m < end - first) & (local_n < size_n - column)
    start_z = first.to(tl.int64) * width + column
    local_z = local_m * width + local_n
    if IS_FIRST:
        grad = grad.to(grad_z_ptr.dtype.element_ty)
        tl.store(grad_z_ptr + start_z + local_z, grad, mask=used)
        return tl.zeros((BLOCK_M,), tl.float32)
    else:
        z = tl.load(z_ptr + start_z + local_z, mask=used, other=0.0).to(tl.float32)
        activated = activate(z, ACTIVATION)
        y = activated
        if IS_GATED:
            z_2 = tl.load(z_ptr + start_z + size_n + local_z, mask=used, other=0.0)
            z_2 = z_2.to(tl.float32)
            y = activated * z_2
        part = tl.sum(grad * y, 1)
        grad *= gate[:, None]
        y = (y * gate[:, None]).to(y_ptr.dtype.element_ty)
        start_y = y_ptr + first.to(tl.int64) * size_n + column
        tl.store(start_y + (local_m * size_n + local_n), y, mask=used)
        if IS_GATED:
            grad_2 = (grad * activated).to(grad_z_ptr.dtype.element_ty)
            tl.store(grad_z_ptr + start_z + size_n + local_z, grad_2, mask=used)
            grad *= z_2
        grad = (grad * slope(z, ACTIVATION)).to(grad_z_ptr.dtype.element_ty)
        tl.store(grad_z_ptr + start_z + local_z, grad, mask=used)
        return part


@triton.jit
def input_gradient_kernel(
    grad_ptr,
    row_ptr,
    weight_ptr,
    z_ptr,
    gate_ptr,
    grad_z_ptr,
    y_ptr,
    grad_gate_ptr,
    pair_start_ptr,
    num_experts,
    size_n,
    size_k,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_FIRST: tl.constexpr,
    WEIGHS: tl.constexpr,
    IS_EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    PADDED_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Gradient of a layer's input y = activation(z), and from it that of z.

    Without WEIGHS, grad (P, K) is that of the layer's output by pair. With it, grad (T, K) is
    that of the mixture's output by row, and gate (P,) the weight of each pair: the
    gradient of the weight is <grad weight, y>, of which each tile writes its part to
    grad_gate (P, tiles of N), and y is multiplied by the weight.
    With IS_FIRST the input is no layer's output: grad_z is its gradient, and that is all.

    weight (E, K, N), z and grad_z (P, N or 2N), y (P, N).
    """
    tile_end = tile_ends(pair_start_ptr, num_experts, BLOCK_M, PADDED_E)
    num_m, num_n = tl.max(tile_end, 0), tl.cdiv(size_n, BLOCK_N)
    for index in range(tl.program_id(0), num_m * num_n, tl.num_programs(0)):
        tile_m, tile_n = place(index, num_m, num_n, GROUP)
        expert, first, end = find_pairs(tile_m, tile_end, pair_start_ptr, BLOCK_M)
        pair = first + tl.arange(0, BLOCK_M)
        column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        row = tl.minimum(pair, end - 1)
        if WEIGHS:
            row = tl.load(row_ptr + row)
        k = tl.arange(0, BLOCK_K)
        grad = grad_ptr + row.to(tl.int64)[:, None] * size_k + k[None, :]
        weight = weight_ptr + expert.to(tl.int64) * size_k * size_n
        weight += k[:, None] * size_n + column[None, :]
        inside = (column < size_n)[None, :]
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, size_k, BLOCK_K):
            if IS_EVEN:
                grad_MK = tl.load(grad + start)
                weight_KN = tl.load(weight + start * size_n, mask=inside, other=0.0)
            else:
                left = size_k - start
                grad_MK = tl.load(grad + start, mask=(k < left)[None, :], other=0.0)
                mask = inside & (k < left)[:, None]
                weight_KN = tl.load(weight + start * size_n, mask=mask, other=0.0)
            total = multiply(grad_MK, weight_KN, total, PRECISION, UPCAST)
        # In two halves: what the rest keeps in registers is twice as much as the product.
        halves = halve(total, BLOCK_M, BLOCK_N)
        gate = tl.full((BLOCK_M,), 1.0, tl.float32)
        if WEIGHS:
            gate = tl.load(gate_ptr + pair, mask=pair < end, other=0.0)
        part = tl.zeros((BLOCK_M,), tl.float32)
        for half in tl.static_range(2):
            part += store_gradients(
                halves[half],
                z_ptr,
                gate,
                grad_z_ptr,
                y_ptr,
                first,
                end,
                tile_n * BLOCK_N + half * (BLOCK_N // 2),
                size_n,
                ACTIVATION,
                IS_GATED,
                IS_FIRST,
                BLOCK_M,
                BLOCK_N // 2,
            )
        if WEIGHS:
            tl.store(grad_gate_ptr + pair.to(tl.int64) * num_n + tile_n, part, mask=pair < end)


@triton.jit
def weight_gradient_kernel(
    grad_ptr,
    grad_row_ptr,
    x_ptr,
    x_row_ptr,
    grad_weight_ptr,
    pair_start_ptr,
    num_experts,
    size_m,
    size_n,
    GATHERS_GRAD: tl.constexpr,
    GATHERS_X: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Compute grad_weight (E, M, N) = grad^T x over the pairs of each expert; 0 without pairs.

    grad (T, M) by row or (P, M) by pair, x (T, N) by row or (P, N) by pair.
    """
    num_m, num_n = tl.cdiv(size_m, BLOCK_M), tl.cdiv(size_n, BLOCK_N)
    per_expert = num_m * num_n
    for index in range(tl.program_id(0), num_experts * per_expert, tl.num_programs(0)):
        expert = index // per_expert
        tile_m, tile_n = place(index % per_expert, num_m, num_n, GROUP)
        first = tl.load(pair_start_ptr + expert)
        end = tl.load(pair_start_ptr + expert + 1)
        m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(first, end, BLOCK_K):
            pair = start + tl.arange(0, BLOCK_K)
            used = pair < end
            grad_row = pair
            if GATHERS_GRAD:
                grad_row = tl.load(grad_row_ptr + pair, mask=used, other=0)
            x_row = pair
            if GATHERS_X:
                x_row = tl.load(x_row_ptr + pair, mask=used, other=0)
            grad = grad_ptr + grad_row.to(tl.int64)[:, None] * size_m + m[None, :]
            x = x_ptr + x_row.to(tl.int64)[:, None] * size_n + n[None, :]
            grad_KM = tl.load(grad, mask=used[:, None] & (m < size_m)[None, :], other=0.0)
            x_KN = tl.load(x, mask=used[:, None] & (n < size_n)[None, :], other=0.0)
            total = multiply(tl.trans(grad_KM), x_KN, total, PRECISION, UPCAST)
        out = grad_weight_ptr + expert.to(tl.int64) * size_m * size_n
        out += m[:, None] * size_n + n[None, :]
        used = (m < size_m)[:, None] & (n < size_n)[None, :]
        tl.store(out, total.to(grad_weight_ptr.dtype.element_ty), mask=used)
