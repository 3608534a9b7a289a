"""The plan of a batch, made where the weights are, without waiting for the device.

Axes: T rows, E experts, G gates, P room for (row, expert) pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class DevicePlan(NamedTuple):
    """The (row, expert) pairs with a non-zero weight, sorted by expert and then by row.

    Only the device knows how many there are: arrays have room for the most there can be, and
    what is behind the last pair means nothing.
    """

    row_P: Tensor  # int32, row of each pair
    expert_P: Tensor  # int32, expert of each pair
    pair_start: Tensor  # int32 (E + 1,), where each expert's pairs begin, and the last end
    by_row_P: Tensor  # int32, the pairs again, sorted by row and then by expert
    row_start: Tensor  # int32 (T + 1,), where each row begins in `by_row_P`, and the last ends
    is_pair_TE: Tensor  # bool
    pair_TE: Tensor  # int32, number of the pair, where there is one

    @property
    def num_rows(self) -> int:
        """Number of rows, those without any expert included."""
        return self.is_pair_TE.shape[0]

    @property
    def num_experts(self) -> int:
        """Number of experts, those without any row included."""
        return self.is_pair_TE.shape[1]

    @property
    def room(self) -> int:
        """Most pairs there can be."""
        return self.row_P.shape[0]


def make_device_plan(weights_GTE: Tensor, *, max_active: int | None) -> DevicePlan:
    """List the pairs that at least one gate gives a non-zero weight.

    Parameters
    ----------
    weights_GTE
        Gate weights with exact zeros.
    max_active
        Room is made for ``T * max_active`` pairs, and nothing waits for the device. If there
        are more, PyTorch raises: at once on the CPU, at the next synchronisation on a GPU. With
        None the pairs are counted, and the host waits for that once.
    """
    is_pair_TE = (weights_GTE != 0).any(0)
    num_rows, num_experts = is_pair_TE.shape
    # A running count along an order is each pair's number in it, and searching that count for
    # a number finds the pair: no sort, no scatter, and no length that depends on data.
    until_ET = _running_count(is_pair_TE.T.reshape(-1))
    until_TE = _running_count(is_pair_TE.reshape(-1))
    num_pairs = until_TE[-1]
    if max_active is None:
        room = int(num_pairs)
    else:
        room = num_rows * min(max_active, num_experts)
        torch._assert_async(num_pairs <= room, "`max_active` is exceeded")  # noqa: SLF001 - the only check that does not wait
    number_P = torch.arange(room, dtype=torch.int32, device=weights_GTE.device)
    pair_TE = until_ET[1:].view(num_experts, num_rows).T - 1
    place_P = _find(until_ET, number_P)
    return DevicePlan(
        row_P=place_P % max(num_rows, 1),
        expert_P=place_P // max(num_rows, 1),
        pair_start=until_ET[torch.arange(num_experts + 1, device=until_ET.device) * num_rows],
        by_row_P=pair_TE.reshape(-1)[_find(until_TE, number_P)],
        row_start=until_TE[::num_experts].contiguous(),
        is_pair_TE=is_pair_TE,
        pair_TE=pair_TE,
    )


def _running_count(is_pair: Tensor) -> Tensor:
    """Count the pairs before each place and, last, all of them."""
    count = is_pair.new_zeros(is_pair.shape[0] + 1, dtype=torch.int32)
    torch.cumsum(is_pair, 0, dtype=torch.int32, out=count[1:])
    return count


def _find(until: Tensor, number_P: Tensor) -> Tensor:
    """Return the place of each pair; of a number behind the last pair, the last place."""
    place_P = torch.searchsorted(until[1:], number_P, right=True, out_int32=True)
    return place_P.clamp_(max=max(until.shape[0] - 2, 0))


def gather_gates(weights_GTE: Tensor, plan: DevicePlan) -> Tensor:
    """Weight of each pair in each gate, float32, shape (G, P)."""
    place_P = plan.row_P.long() * plan.num_experts + plan.expert_P
    return weights_GTE.flatten(1).index_select(1, place_P).float()


def spread_gates(grad_GP: Tensor, plan: DevicePlan) -> Tensor:
    """Gradient of the weights from that of the pairs' weights, shape (G, T, E)."""
    if plan.room == 0:
        return grad_GP.new_zeros(grad_GP.shape[0], *plan.is_pair_TE.shape)
    place = plan.pair_TE.clamp(min=0).reshape(-1)
    grad_GTE = grad_GP.index_select(1, place).view(-1, *plan.is_pair_TE.shape)
    return torch.where(plan.is_pair_TE, grad_GTE, 0)
