"""A hash table that shares the load evenly, given how often each id occurs."""

import math
from collections.abc import Sequence
from heapq import heapify, heapreplace
from numbers import Real
from types import ModuleType
from typing import Any

from moe_gates._array import Array
from moe_gates._checks import check_num_experts


def balanced_hash_table(
    counts: Sequence[float] | Array,
    /,
    *,
    num_experts: int,
    xp: ModuleType,
    device: Any = None,  # noqa: ANN401 each library has its own
) -> Any:  # noqa: ANN401 an array of the library `xp`
    """Give each id an expert such that experts get about equally many rows.

    Ids go, the most frequent first, to the expert with the least load so far. Ids that
    do not occur are dealt out in turn.

    Parameters
    ----------
    counts : sequence or array of numbers, length num_ids
        How often each id occurs in the training data, in any unit; finite, >= 0.
        An array must have `tolist`, which copies it to the host.
    num_experts : int
        Experts there are, at least 2.
    xp : array namespace
        Library of the table.
    device : optional
        Device of the table; the default of `xp` by default.

    Returns
    -------
    array, shape (num_ids,), int32
        Experts in ``[0, num_experts)``, for `hash_gate`; the same on every library and
        machine. The largest load is at most ``4/3 - 1/(3 num_experts)`` times the
        smallest that any table has. A tie takes the lower id, and the lower expert.

    Raises
    ------
    TypeError
        If `counts` holds anything but real numbers, or `num_experts` is not an integer.
    ValueError
        If a count is negative or not finite, or `num_experts` is below 2.

    References
    ----------
    Roller et al., NeurIPS 2021, arXiv:2106.04426, balanced assignment. Bound: Graham,
    SIAM J. Appl. Math. 17, 1969.

    Examples
    --------
    >>> import array_api_compat.numpy as xp
    >>> balanced_hash_table([5, 1, 4, 2, 2], num_experts=2, xp=xp).tolist()
    [0, 1, 1, 1, 0]
    """
    check_num_experts(num_experts)
    # From an array at once: number by number takes a second for 100,000 of them.
    numbers = counts.tolist() if hasattr(counts, "tolist") else list(counts)
    _check_counts(numbers)
    numbers = [count.item() if hasattr(count, "item") else count for count in numbers]
    return xp.asarray(_assign(numbers, num_experts), dtype=xp.int32, device=device)


def _check_counts(counts: list[Any]) -> None:
    if not isinstance(counts, list):
        msg = f"`counts` must be a sequence of numbers, one for each id, got {counts!r}."
        raise TypeError(msg)
    for index, count in enumerate(counts):
        is_number = isinstance(count, Real) and not isinstance(count, bool)
        if not is_number:
            msg = f"`counts` must be real numbers, got {count!r} for id {index}."
            raise TypeError(msg)
        if not 0 <= count < math.inf:
            msg = f"`counts` must be finite and >= 0, got {count} for id {index}."
            raise ValueError(msg)


def _assign(counts: list[float], num_experts: int) -> list[int]:
    """Return the expert of each id."""
    experts = [0] * len(counts)
    loads: list[tuple[float, int]] = [(0, expert) for expert in range(num_experts)]
    heapify(loads)
    by_falling_count = sorted(range(len(counts)), key=lambda index: (-counts[index], index))
    for rank, index in enumerate(by_falling_count):
        if counts[index] > 0:
            load, experts[index] = loads[0]
            heapreplace(loads, (load + counts[index], experts[index]))
        else:
            # All would go to one expert, whose load they do not change.
            experts[index] = rank % num_experts
    return experts
