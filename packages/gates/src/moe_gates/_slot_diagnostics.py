"""What slots and gates do together: experts they share."""

from types import ModuleType
from typing import Any

from moe_gates._array import Array
from moe_gates._checks import check_axes, check_floating, resolve


def count_union(weights: Array, /, *, xp: ModuleType | None = None) -> Any:  # noqa: ANN401
    """Count the experts of each row that at least one of several gates selects.

    Parameters
    ----------
    weights : array, shape (*batch, num_gates, num_experts), real floating
        Weights of the gates, one a task, over the same experts; or of the slots of a gate.
    xp : array namespace, optional
        Inferred from `weights` by default.

    Returns
    -------
    array, shape (*batch,), the default integer dtype
        Experts that a row computes if each is computed once, in ``[0, num_experts]``.

    Raises
    ------
    TypeError
        If `weights` is not real floating.
    ValueError
        If `weights` has fewer than two axes.

    Examples
    --------
    >>> import numpy as np
    >>> two_tasks = np.asarray([[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]])
    >>> count_union(two_tasks).tolist()
    [2]
    """
    xp = resolve(xp, weights=weights)
    check_floating("weights", weights, xp)
    check_axes("weights", weights, ("num_gates", "num_experts"))
    used = xp.any(weights != 0, axis=-2)
    return xp.sum(xp.astype(used, xp.int32), axis=-1)


def count_duplicates(slot_weights: Array, /, *, xp: ModuleType | None = None) -> Any:  # noqa: ANN401
    """Count the hard slots of each row that select an expert which another one has.

    Parameters
    ----------
    slot_weights : array, shape (*batch, num_slots, num_experts), real floating
        The `slot_weights` of a hard gate, or its `slot_probabilities`.
    xp : array namespace, optional
        Inferred from `slot_weights` by default.

    Returns
    -------
    array, shape (*batch,), the default integer dtype
        Non-zero entries beyond the first of each expert: 0 if all slots differ, up to
        ``num_slots - 1`` for a hard gate. Their share of the slots is what the bound of
        `num_slots` experts a row leaves unused.

    Raises
    ------
    TypeError
        If `slot_weights` is not real floating.
    ValueError
        If `slot_weights` has fewer than two axes.

    Examples
    --------
    >>> import numpy as np
    >>> from moe_gates import comet_gate
    >>> gate = comet_gate(np.zeros((2, 3)), np.zeros((2, 4)), gamma=1.0, hard=True)
    >>> int(count_duplicates(gate.slot_weights))
    1
    """
    xp = resolve(xp, slot_weights=slot_weights)
    check_floating("slot_weights", slot_weights, xp)
    check_axes("slot_weights", slot_weights, ("num_slots", "num_experts"))
    selected = slot_weights != 0
    num_selected = xp.sum(xp.astype(selected, xp.int32), axis=(-2, -1))
    return num_selected - xp.sum(xp.astype(xp.any(selected, axis=-2), xp.int32), axis=-1)
