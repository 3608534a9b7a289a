# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""What the kernels share: activations, one product, and which tile is whose.

Arithmetic is float32, whatever is loaded and stored. Capitals are constants of compilation.
"""

import triton
import triton.language as tl


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """Return the value of an activation, in float32."""
    if ACTIVATION == "relu":
        return tl.maximum(z, 0.0)
    elif ACTIVATION == "silu":
        return z * tl.sigmoid(z)
    elif ACTIVATION == "gelu":
        return 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh u) / 2 is the sigmoid of 2 u.
        return z * tl.sigmoid(1.5957691216057308 * z * (1.0 + 0.044715 * z * z))
    else:
        return z


@triton.jit
def slope(z, ACTIVATION: tl.constexpr):
    """Return the derivative of an activation, in float32; of ReLU at 0 it is 0, as in PyTorch."""
    if ACTIVATION == "relu":
        return tl.where(z > 0.0, 1.0, 0.0)
    elif ACTIVATION == "silu":
        share = tl.sigmoid(z)
        return share * (1.0 + z * (1.0 - share))
    elif ACTIVATION == "gelu":
        share = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        return share + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    elif ACTIVATION == "gelu_tanh":
        share = tl.sigmoid(1.5957691216057308 * z * (1.0 + 0.044715 * z * z))
        inner = 1.5957691216057308 * (1.0 + 3.0 * 0.044715 * z * z)
        return share + z * share * (1.0 - share) * inner
    else:
        return tl.full(z.shape, 1.0, tl.float32)


@triton.jit
def multiply(a, b, total, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """Add the product of two tiles to a float32 total."""
    if UPCAST:
        # The interpreter (Triton 3.9) keeps bfloat16 as integers, and multiplies those.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def halve(tile, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the left and the right columns of a tile."""
    return tl.permute(tl.reshape(tile, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)).split()


@triton.jit
def tile_ends(pair_start_ptr, num_experts, BLOCK_M: tl.constexpr, PADDED_E: tl.constexpr):
    """Count the tiles of all experts up to each one; no tile holds pairs of two experts."""
    expert = tl.arange(0, PADDED_E)
    inside = expert < num_experts
    first = tl.load(pair_start_ptr + expert, mask=inside, other=0)
    last = tl.load(pair_start_ptr + expert + 1, mask=inside, other=0)
    return tl.cumsum((last - first + BLOCK_M - 1) // BLOCK_M, 0)


@triton.jit
def find_pairs(tile, tile_end, pair_start_ptr, BLOCK_M: tl.constexpr):
    """Return the expert of a tile, its first pair, and where the expert's pairs end."""
    is_before = tile_end <= tile
    expert = tl.sum(is_before.to(tl.int32), 0)
    first_tile = tl.max(tl.where(is_before, tile_end, 0), 0)
    first = tl.load(pair_start_ptr + expert) + (tile - first_tile) * BLOCK_M
    return expert, first, tl.load(pair_start_ptr + expert + 1)


@triton.jit
def place(index, num_m, num_n, GROUP: tl.constexpr):
    """Walk down groups of GROUP rows of tiles, so that neighbours share what the cache holds."""
    width = GROUP * num_n
    first_m = (index // width) * GROUP
    height = tl.minimum(num_m - first_m, GROUP)
    within = index % width
    return first_m + within % height, within // height
