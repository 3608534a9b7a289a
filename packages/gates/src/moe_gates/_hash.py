"""Hash routing: each id has its expert, drawn once."""

from types import ModuleType
from typing import Any

from moe_gates._array import Array, count_up
from moe_gates._checks import (
    check_floating_dtype,
    check_integer,
    check_integral,
    check_num_experts,
    check_one_axis,
    resolve,
)

WORD = 2**64
# Constants of splitmix64 (Steele, Lea and Flood, OOPSLA 2014; public domain code of Vigna).
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def hash_table(
    num_ids: int,
    /,
    *,
    num_experts: int,
    seed: int,
    xp: ModuleType,
    device: Any = None,  # noqa: ANN401 each library has its own
) -> Any:  # noqa: ANN401 an array of the library `xp`
    """Draw an expert for each id, the same on every library and machine.

    Parameters
    ----------
    num_ids : int
        Ids there are, at least 0. A longer table starts with the shorter one.
    num_experts : int
        Experts there are, at least 2.
    seed : int
        In ``[0, 2**64 - 1]``. Each seed gives another table.
    xp : array namespace
        Library of the table.
    device : optional
        Device of the table; the default of `xp` by default.

    Returns
    -------
    array, shape (num_ids,), int32
        Independent, uniform experts in ``[0, num_experts)``.

    Raises
    ------
    TypeError
        If a number is not an integer.
    ValueError
        If a number is out of range.

    References
    ----------
    Roller et al., NeurIPS 2021, arXiv:2106.04426, random hash.

    Examples
    --------
    >>> import array_api_compat.numpy as xp
    >>> hash_table(8, num_experts=4, seed=0, xp=xp).tolist()
    [3, 1, 0, 3, 0, 1, 0, 3]
    """
    check_integer("num_ids", num_ids, 0)
    check_num_experts(num_experts)
    check_integer("seed", seed, 0, WORD - 1)
    num_experts, seed = int(num_experts), int(seed)  # NumPy's would wrap around
    # The high word of a product is uniform in [0, num_experts) without a division.
    experts = [_splitmix64(seed, index) * num_experts // WORD for index in range(num_ids)]
    return xp.asarray(experts, dtype=xp.int32, device=device)


def hash_gate(
    ids: Array,
    table: Array,
    /,
    *,
    num_experts: int,
    dtype: Any,  # noqa: ANN401 each library has its own
    xp: ModuleType | None = None,
) -> Any:  # noqa: ANN401 an array of the library of `ids`
    """Weight 1 for the expert of each id, 0 for every other.

    Parameters
    ----------
    ids : array, any shape, integer
        In ``[0, num_ids)``. Not checked, since that would stop a compiler; what an id
        outside does is up to the array library.
    table : array, shape (num_ids,), integer
        Expert of each id, in ``[0, num_experts)``: see `hash_table`.
    num_experts : int
        Experts there are, at least 2.
    dtype : real floating dtype
        Of the weights.
    xp : array namespace, optional
        Inferred from `ids` and `table` by default.

    Returns
    -------
    array, shape (*ids.shape, num_experts)
        Dimensionless weights, one-hot rows. Same device as `ids`.

    Raises
    ------
    TypeError
        If `ids` or `table` is not integer, or `dtype` not real floating.
    ValueError
        If `table` has not exactly one axis or is empty, or `num_experts` is below 2.

    References
    ----------
    Roller et al., NeurIPS 2021, arXiv:2106.04426.

    Examples
    --------
    >>> import numpy as np
    >>> table = np.asarray([2, 0, 2])
    >>> hash_gate(np.asarray([0, 1]), table, num_experts=3, dtype=np.float32).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    xp = resolve(xp, ids=ids, table=table)
    check_integral("ids", ids, xp)
    check_integral("table", table, xp)
    check_floating_dtype("dtype", dtype, xp)
    check_num_experts(num_experts)
    check_one_axis("table", table)
    # PyTorch takes at indices of 32 or 64 bits only.
    index = xp.astype(ids, count_up(1, ids, xp).dtype, copy=False)
    experts = xp.reshape(xp.take(table, xp.reshape(index, (-1,)), axis=0), ids.shape)
    return xp.astype(experts[..., None] == count_up(num_experts, ids, xp), dtype)


def _splitmix64(seed: int, index: int) -> int:
    """Return number `index` of the stream of `seed`, in [0, 2**64)."""
    word = (seed + (index + 1) * GOLDEN_GAMMA) % WORD
    word = ((word ^ (word >> 30)) * MIX_1) % WORD
    word = ((word ^ (word >> 27)) * MIX_2) % WORD
    return word ^ (word >> 31)
