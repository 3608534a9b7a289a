"""Binary trees in logarithms: no path is so unlikely that it underflows."""

from collections.abc import Sequence
from types import ModuleType

from moe_gates._array import Array


def leaf_log_probabilities(
    levels: Sequence[tuple[Array, Array]], *, num_leaves: int, xp: ModuleType
) -> Array:
    """Logarithm of the probability of each leaf, from left to right.

    Parameters
    ----------
    levels : sequence of (left, right)
        Logarithms of the probabilities of going left and right at each level, root
        first, in the shapes of `moe_gates._tree.leaf_probabilities`.
    num_leaves : int
        Leaves of the tree.
    xp : array namespace
        That of the arrays.

    Returns
    -------
    array, shape (*batch, num_leaves)
        Sums along the paths.
    """
    root_left, _ = levels[0]
    reached = xp.zeros_like(root_left)
    for level, (left, right) in enumerate(levels):
        num_nodes = 2**level
        num_splits = min(num_nodes, num_leaves - num_nodes)
        parents = reached[..., :num_splits]
        children = xp.stack([parents + left, parents + right], axis=-1)
        children = xp.reshape(children, (*children.shape[:-2], 2 * num_splits))
        # Nodes without children are leaves already, to the right of the last level.
        reached = xp.concat([children, reached[..., num_splits:]], axis=-1)
    return reached
