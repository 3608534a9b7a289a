"""Which experts a row keeps: the largest, and the lower index of a tie."""

from types import ModuleType

from moe_gates._array import Array, count_up

# Beyond, PyTorch's topk and what its ties take are faster (one core of a Zen 5, 1024 x 64 scores:
# 0.6 against 1.2 ms for 8 of them, and 0.6 against 0.2 ms for 2).
MOST_PASSES = 4


def is_among_largest(scores: Array, k: int, xp: ModuleType) -> Array:
    """Mark the `k` largest scores of each row; a tie marks the lower index."""
    if k == scores.shape[-1]:
        return xp.ones_like(scores, dtype=xp.bool)
    if k > MOST_PASSES and hasattr(xp, "topk"):
        return _by_the_last(scores, k, xp)
    # k passes of argmax, the first of equal scores each: torch.onnx (2.13) cannot
    # export the sort that argsort needs, and comparing all pairs takes E times the memory.
    index = count_up(scores.shape[-1], scores, xp)
    marked = index == xp.argmax(scores, axis=-1, keepdims=True)
    for _ in range(k - 1):
        best = xp.argmax(xp.where(marked, -xp.inf, scores), axis=-1, keepdims=True)
        marked = marked | (index == best)
    return marked


def _by_the_last(scores: Array, k: int, xp: ModuleType) -> Array:
    """Mark what is above the k-th largest score, and of its equals the first that are missing."""
    # Which of equal scores topk takes is not said, but their value is.
    smallest = xp.topk(scores, k).values[..., -1:]
    above, equal = scores > smallest, scores == smallest
    missing = k - xp.sum(above, axis=-1, keepdims=True)
    return above | (equal & (xp.cumsum(equal, -1) <= missing))
