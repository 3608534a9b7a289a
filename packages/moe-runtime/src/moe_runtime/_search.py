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
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@torch.no_grad()
def search_permutation(
    mixture: MultiGateMixtureOfExperts,
    gate: int,
    x: Tensor,
    row_loss: RowLoss,
    *,
    router_input: Tensor | None = None,
    confirm_share: float = 0.5,
    move_standard_errors: float = 1.0,
    num_standard_errors: float = 1.0,
    progress: moe_localsearch.ProgressCallback | None = None,
) -> moe_localsearch.SearchResult:
    """Relabel the experts of one gate so that the loss drops, and set what was found.

    Every expert is run once on every row; then each slot's permutation is searched with the
    others held fixed. The gain of each part of it must show on rows that the search has not
    seen, or that part is undone.

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
        gate's output for them. Head and targets are the caller's. Where it is differentiable,
        the search follows its gradient and asks for far fewer losses.
    router_input
        As in the mixture's ``forward``.
    confirm_share
        Share of the rows, the last ones, that confirm instead of being searched.
    move_standard_errors
        How many of its standard errors a move's paired gain must exceed on the searched rows. A
        gate that is trained begins near a good permutation, where 0 would follow noise.
    num_standard_errors
        How many standard errors of the paired gain it must exceed to be confirmed.
    progress
        Called with a ``moe_localsearch.SearchProgress`` as the search goes on; it may raise
        StopIteration, and the best so far is confirmed and set.

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
    check_number("move_standard_errors", move_standard_errors)
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
    slot_weights_TKE = router(mixture.checked_router_input(x, router_input)).slot_weights
    outputs_TEO = mixture.experts.every(x).transpose(0, 1)
    outputs_TEO = outputs_TEO.to(torch.promote_types(outputs_TEO.dtype, torch.float32))
    loss = _Loss(row_loss, x)
    result = moe_localsearch.relabel_slots(
        slot_weights_TKE.cpu().numpy(),
        outputs_TEO.cpu().numpy(),
        loss.losses,
        permutations=router.permutation.cpu().numpy(),
        row_gradient=loss.gradients if loss.differentiable(outputs_TEO[:1, 0]) else None,
        confirm_rows=np.arange(num_searched, x.shape[0]),
        move_standard_errors=move_standard_errors,
        num_standard_errors=num_standard_errors,
        progress=progress,
    )
    router.set_permutation(torch.from_numpy(result.permutation))
    return result


class _Loss:
    """The caller's loss, on NumPy arrays, with the dtype and device of the rows."""

    def __init__(self, row_loss: RowLoss, like: Tensor) -> None:
        self._row_loss = row_loss
        self._like = like

    def losses(self, mixed_RO: Floats, rows_R: Rows) -> Floats:
        """Return the loss of each row, shape (R,)."""
        rows = torch.from_numpy(rows_R).to(self._like.device)
        losses_R = self._row_loss(torch.from_numpy(mixed_RO).to(self._like), rows)
        return losses_R.double().cpu().numpy()

    @torch.enable_grad()
    def gradients(self, mixed_RO: Floats, rows_R: Rows) -> Floats:
        """Return the gradient of each row's loss, shape (R, O); parameters get none."""
        rows = torch.from_numpy(rows_R).to(self._like.device)
        output_RO = torch.from_numpy(mixed_RO).to(self._like).requires_grad_()
        (gradient_RO,) = torch.autograd.grad(self._row_loss(output_RO, rows).sum(), output_RO)
        return gradient_RO.double().cpu().numpy()

    @torch.enable_grad()
    def differentiable(self, output_RO: Tensor) -> bool:
        """Whether the loss of the first row leads back to its output."""
        output_RO = output_RO.detach().to(self._like).requires_grad_()
        losses_R = self._row_loss(
            output_RO, torch.zeros(1, dtype=torch.int64, device=self._like.device)
        )
        return losses_R.requires_grad
