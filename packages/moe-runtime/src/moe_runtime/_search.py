"""Search the experts that a router's positions stand for, on rows of the training data.

Axes: T rows, E experts, K slots, R rows of a block, O output features.
"""

from collections.abc import Callable
from numbers import Integral

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import moe_localsearch
from moe_runtime._checks import check_number, check_tensor, check_type
from moe_runtime._mixture import MultiGateMixtureOfExperts
from moe_runtime._router import Router

RowLoss = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def search_permutation(
    mixture: MultiGateMixtureOfExperts,
    gate: int,
    x: Tensor,
    row_loss: RowLoss,
    *,
    router_input: Tensor | None = None,
    confirm_share: float = 0.5,
    num_standard_errors: float = 1.0,
) -> moe_localsearch.SearchResult:
    """Relabel the experts of one gate so that the loss drops, and set what was found.

    Every expert is run once on every row; then each slot's permutation is searched with the
    others held fixed, exactly where the slot uses one expert a row. The gain must show on
    rows that the search has not seen, or nothing changes.

    Parameters
    ----------
    mixture
        The layer; in evaluation mode if it has dropout.
    gate
        Which of its routers.
    x
        Training rows, shape (T, D).
    row_loss
        ``row_loss(output (R, O), rows (R,)) -> (R,)``: the loss of some rows, given the
        gate's output for them. Head and targets are the caller's.
    router_input
        As in the mixture's ``forward``.
    confirm_share
        Share of the rows, the last ones, that confirm instead of being searched.
    num_standard_errors
        How many standard errors of the paired gain it must exceed to be confirmed.

    Returns
    -------
    moe_localsearch.SearchResult
        With ``permutation`` of shape (K, E), now the router's, and ``confirmation``.

    Raises
    ------
    ValueError
        If `gate` or `confirm_share` is out of range, or `x` is not (T, D) with rows for both.
    TypeError
        If an argument is of another type.
    """
    check_type("mixture", mixture, MultiGateMixtureOfExperts, "a mixture")
    check_type("gate", gate, Integral, "an integer")
    check_tensor("x", x)
    check_type("row_loss", row_loss, Callable, "a function")  # type: ignore[arg-type]
    check_number("confirm_share", confirm_share)
    check_number("num_standard_errors", num_standard_errors)
    num_gates = len(mixture.routers)
    if not 0 <= gate < num_gates:
        msg = f"`gate` must be in [0, {num_gates - 1}], got {gate!r}."
        raise ValueError(msg)
    if not 0 < confirm_share < 1:
        msg = f"`confirm_share` must be in (0, 1), got {confirm_share!r}."
        raise ValueError(msg)
    if x.ndim != 2 or x.shape[1] != mixture.experts.in_features:
        msg = f"`x` must have shape (T, {mixture.experts.in_features}), got {tuple(x.shape)}."
        raise ValueError(msg)
    num_searched = x.shape[0] - round(confirm_share * x.shape[0])
    if not 0 < num_searched < x.shape[0]:
        msg = (
            f"`x` must have rows to search and rows to confirm with `confirm_share`="
            f"{confirm_share}, got {x.shape[0]} rows."
        )
        raise ValueError(msg)
    router = mixture.routers[gate]
    assert isinstance(router, Router)
    slot_weights_TKE = mixture.route(x, router_input)[gate].slot_weights
    outputs_TEO = mixture.experts.every(x).transpose(0, 1)

    def numpy_loss(mixed: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        output = torch.from_numpy(mixed).to(x)
        losses = row_loss(output, torch.from_numpy(rows).to(x.device))
        return losses.double().cpu().numpy()

    result = moe_localsearch.relabel_slots(
        slot_weights_TKE.cpu().numpy(),
        outputs_TEO.float().cpu().numpy(),
        numpy_loss,
        permutations=router.permutation.cpu().numpy(),
        confirm_rows=np.arange(num_searched, x.shape[0]),
        num_standard_errors=num_standard_errors,
    )
    router.set_permutation(torch.from_numpy(result.permutation))
    return result
