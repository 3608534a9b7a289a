"""Binary trees: from the probability of each split to that of each leaf.

Nodes are numbered as a heap: splits 0..E-2, leaves E-1..2E-2, children of q are
2q+1 (left) and 2q+2 (right). A heap fills its last level from the left, so leaves
of the last level come first from left to right, then those of the level above.
Working level by level gives the leaves in that order: nothing is gathered.
"""

from collections.abc import Callable, Sequence
from types import ModuleType

from moe_gates._array import Array
from moe_gates._checks import check_num_experts
from moe_gates._smooth_step import smooth_step_pair


def leaf_order(num_experts: int) -> tuple[int, ...]:
    """Heap leaf of each expert: expert j is heap leaf ``leaf_order(num_experts)[j]``.

    Experts are the leaves of a tree from left to right, which is heap order only
    when `num_experts` is a power of two. Needed to read parameters kept in heap order.

    Parameters
    ----------
    num_experts : int
        Leaves of the tree, at least 2.

    Returns
    -------
    tuple of int, length num_experts
        A permutation of ``range(num_experts)``.

    Raises
    ------
    TypeError
        If `num_experts` is not an integer.
    ValueError
        If `num_experts` is below 2.

    References
    ----------
    Ibrahim et al., KDD 2023, arXiv:2306.02824; numbering of the authors' code.

    Examples
    --------
    >>> leaf_order(5)
    (3, 4, 0, 1, 2)
    """
    check_num_experts(num_experts)
    above_last_level = 2 ** depth(num_experts) - num_experts
    return (*range(above_last_level, num_experts), *range(above_last_level))


def depth(num_leaves: int) -> int:
    """Return the number of levels of splits, ceil(log2(num_leaves))."""
    return (num_leaves - 1).bit_length()


def split_levels(left: Array, right: Array, num_leaves: int) -> list[tuple[Array, Array]]:
    """Cut the last axes, splits in heap order, into levels, root first, left beside right."""
    return list(zip(_levels(left, num_leaves), _levels(right, num_leaves), strict=True))


def _levels(splits: Array, num_leaves: int) -> list[Array]:
    levels = []
    # From the last level on, each cut from what is left: the gradient of a cut is as large
    # as what was cut, so that all together cost two times the splits, not one a level.
    for level in reversed(range(1, depth(num_leaves))):
        first = 2**level - 1
        levels.append(splits[..., first:])
        splits = splits[..., :first]
    return [splits, *reversed(levels)]


def split_probabilities(
    scores: Array, *, gamma: float, hard: bool, xp: ModuleType
) -> tuple[Array, Array]:
    """Return the probabilities of going left and right; `hard` rounds them to 0 or 1."""
    if hard:
        left = xp.astype(scores >= 0, scores.dtype)
        return left, 1 - left
    return smooth_step_pair(scores, gamma, xp)


def combine_paths(
    levels: Sequence[tuple[Array, Array]],
    join: Callable[[Array, Array], Array],
    *,
    num_leaves: int,
    xp: ModuleType,
) -> Array:
    """Join what the splits on the path to each leaf say, leaves from left to right.

    Products of probabilities (`join` is `operator.mul`), or sums of their logarithms.

    Parameters
    ----------
    levels : sequence of (left, right)
        What going left and right counts at each level, root first: arrays of shape
        (*batch, num_splits), or (*batch, 1) where all splits of the level share one score.
    join : callable
        Joins what a path has so far with its next split.
    num_leaves : int
        Leaves of the tree.
    xp : array namespace
        That of the arrays.

    Returns
    -------
    array, shape (*batch, num_leaves)
        Products of probabilities sum to 1 in each row where left + right is 1.
    """
    root, *below = levels
    reached = xp.concat(root, axis=-1)
    for level, (left, right) in enumerate(below, start=1):
        num_nodes = 2**level
        num_splits = num_leaves - num_nodes
        if num_splits >= num_nodes:
            reached = _interleave(join(reached, left), join(reached, right), xp)
        else:
            # Only the first nodes of the last level are splits, the others are leaves.
            parents, leaves = reached[..., :num_splits], reached[..., num_splits:]
            children = _interleave(join(parents, left), join(parents, right), xp)
            reached = xp.concat([children, leaves], axis=-1)
    return reached


def _interleave(left: Array, right: Array, xp: ModuleType) -> Array:
    """Return left[..., 0], right[..., 0], left[..., 1] and so on."""
    # In PyTorch (2.13) this is twice as fast as stacking along a new last axis. `moveaxis` has
    # no batching rule there.
    pairs = xp.permute_dims(xp.stack([left, right]), (*range(1, len(left.shape) + 1), 0))
    return xp.reshape(pairs, (*left.shape[:-1], 2 * left.shape[-1]))
