"""Group-limited selection: a row keeps experts of its best groups only."""

from types import ModuleType

from moe_gates._array import Array
from moe_gates._checks import check_integer
from moe_gates._selection import is_among_largest

# The released code of DeepSeek-V3; its paper says experts kept / groups kept, which is 2 there.
EXPERTS_THAT_SPEAK_FOR_A_GROUP = 2


def check_groups(k: int, num_groups: int, num_groups_kept: int, num_experts: int) -> None:
    """Refuse groups of unequal size, or too few to keep `k` experts of."""
    check_integer("num_groups", num_groups, 1, num_experts, high_name="num_experts")
    if num_experts % num_groups:
        msg = f"`num_groups` must divide num_experts={num_experts}, got {num_groups}."
        raise ValueError(msg)
    check_integer("num_groups_kept", num_groups_kept, 1, num_groups, high_name="num_groups")
    num_left = num_groups_kept * (num_experts // num_groups)
    if k > num_left:
        msg = f"`k` must be in [1, {num_left}], the experts of the groups kept, got {k}."
        raise ValueError(msg)


def keep_best_groups(ranks: Array, num_groups: int, num_groups_kept: int, xp: ModuleType) -> Array:
    """Set the ranks of all but the `num_groups_kept` best groups to -inf.

    A group is as good as the sum of its two largest ranks, and never kept before
    another if all of them are -inf.
    """
    if num_groups_kept == num_groups:
        return ranks
    *batch, num_experts = ranks.shape
    grouped = xp.reshape(ranks, (*batch, num_groups, num_experts // num_groups))
    num_best = min(EXPERTS_THAT_SPEAK_FOR_A_GROUP, grouped.shape[-1])
    speaks = is_among_largest(grouped, num_best, xp) & (grouped > -xp.inf)
    total = xp.sum(xp.where(speaks, grouped, 0.0), axis=-1)
    goodness = xp.where(xp.any(speaks, axis=-1), total, -xp.inf)
    kept = is_among_largest(goodness, num_groups_kept, xp)
    return xp.reshape(xp.where(kept[..., None], grouped, -xp.inf), ranks.shape)
