"""Which experts a row keeps: the largest, and the lower index of a tie."""

from types import ModuleType

from moe_gates._array import Array, count_up


def is_among_largest(scores: Array, k: int, xp: ModuleType) -> Array:
    """Mark the `k` largest scores of each row; a tie marks the lower index."""
    if k == scores.shape[-1]:
        return xp.ones_like(scores, dtype=xp.bool)
    # k passes of argmax, the first of equal scores each: torch.onnx (2.13) cannot
    # export the sort that argsort needs, and comparing all pairs takes E times the memory.
    index = count_up(scores.shape[-1], scores, xp)
    marked = index == xp.argmax(scores, axis=-1, keepdims=True)
    for _ in range(k - 1):
        best = xp.argmax(xp.where(marked, -xp.inf, scores), axis=-1, keepdims=True)
        marked = marked | (index == best)
    return marked
