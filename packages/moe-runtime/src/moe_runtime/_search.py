"""Search the experts that routers' positions stand for, on rows of the training data.

Axes: T rows, E experts, K slots, R rows of a block, O output features.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import moe_localsearch
from moe_localsearch import RelabelingObjective, SearchResult, SharedObjective
from moe_runtime._checks import check_number, check_tensor, check_type
from moe_runtime._mixture import MultiGateMixtureOfExperts
from moe_runtime._router import Router, Routing

RowLoss = Callable[[Tensor, Tensor], Tensor]
Per = Literal["slot", "gate", "mixture"]
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# Rows that all experts are run on at once: bounds the hidden units that live at a time.
BLOCK_ROWS = 1024


class SearchRows(NamedTuple):
    """Rows of the training data that permutations are searched and confirmed on.

    Attributes
    ----------
    x : Tensor
        Experts' input, shape (T, D), of at least two rows; the last ones confirm. Expert outputs
        (T, E, O) are held once in float32 or wider, and copied once: T bounds the memory.
    row_loss : callable, or one a gate
        ``row_loss(output (R, O), rows (R,)) -> (R,)``: the loss of some rows of `x`, given what
        the gate makes of them. Whatever follows the mixture is in it: a head, or the rest
        of the model and its targets. It may only depend on the row itself. Where it is
        differentiable, the search follows its gradient and asks for far fewer losses.
        With several gates, a sequence, with None for a gate that is left as it is.
    router_input : Tensor, optional
        As in the mixture's ``forward``.
    """

    x: Tensor
    row_loss: RowLoss | Sequence[RowLoss | None]
    router_input: Tensor | None = None


@torch.no_grad()
def search_permutations(
    mixture: MultiGateMixtureOfExperts,
    rows: SearchRows,
    *,
    per: Per = "slot",
    method: moe_localsearch.Method = "auto",
    confirm_share: float = 0.5,
    move_standard_errors: float = 1.0,
    num_standard_errors: float = 1.0,
    progress: moe_localsearch.ProgressCallback | None = None,
) -> dict[int, SearchResult]:
    """Relabel the experts of a mixture's gates so that the loss drops, and set what was found.

    Every expert is run once on every row. The gain of each part of what is found must show on
    rows that the search has not seen, or that part is undone.

    Parameters
    ----------
    mixture
        The layer; in evaluation mode if it has dropout.
    rows
        What to search and confirm on.
    per
        What one permutation is for. ``"slot"``: each slot of each gate is searched with the
        others held fixed. ``"gate"``, ``"mixture"``: all slots of a gate, or of all gates, are
        relabelled alike, from wherever they are; the mixture's loss is the sum of its gates'.
    method
        As in `moe_localsearch.search`; ``"auto"`` chooses what fits the losses.
    confirm_share
        Share of the rows, the last ones, that confirm instead of being searched.
    move_standard_errors
        How many of its standard errors a move's paired gain must exceed on the searched rows. A
        gate that is trained begins near a good permutation, where 0 would follow noise.
    num_standard_errors
        How many standard errors of the paired gain it must exceed to be confirmed.
    progress
        Called with a ``moe_localsearch.SearchProgress`` as each search goes on; it may raise
        StopIteration, and the best so far is confirmed and set.

    Returns
    -------
    dict of int to moe_localsearch.SearchResult
        By gate: ``permutation`` of shape (K, E), now the router's, and ``confirmation``. With
        ``per="mixture"`` all costs are those of the mixture.

    Raises
    ------
    ValueError
        If an option is out of range, `rows` do not fit the mixture or are too few, or `per` does
        not fit it: gates that share a router, or slots whose sum a threshold cuts.
    TypeError
        If an argument is of another type.

    Examples
    --------
    >>> import torch, moe_runtime
    >>> router = moe_runtime.TopKRouter(6, 4, k=1, renormalize=False)
    >>> mixture = moe_runtime.MixtureOfExperts(router, moe_runtime.Experts(4, (6, 3)))
    >>> x = torch.randn(400, 6)
    >>> targets = mixture(x).output.detach()
    >>> router.set_permutation(torch.tensor([[1, 2, 3, 0]]))
    >>> rows = moe_runtime.SearchRows(
    ...     x, lambda output, rows: (output - targets[rows]).square().sum(-1)
    ... )
    >>> moe_runtime.search_permutations(mixture, rows)[0].permutation
    array([[0, 1, 2, 3]])
    """
    check_type("mixture", mixture, MultiGateMixtureOfExperts, "a mixture")
    check_search_options(per, method, confirm_share, move_standard_errors, num_standard_errors)
    _check_rows(rows)
    losses = _checked_losses(mixture, rows, per)
    _check_searchable(mixture, losses, per)
    num_searched = _num_searched(mixture, rows.x, confirm_share)
    with torch.autocast(rows.x.device.type, enabled=False):
        routings = [_answered(mixture, each) for each in mixture.route(rows.x, rows.router_input)]
        outputs_TEO = _every_output(mixture, rows.x)
    problem = _Problem(outputs_TEO, num_searched, losses)
    options = _Options(method, move_standard_errors, num_standard_errors, progress)
    before = {gate: router_of(mixture, gate).permutation.cpu().numpy() for gate in losses}
    if per == "slot":
        results = {
            gate: problem.by_slot(gate, routings[gate], before[gate], options) for gate in losses
        }
    else:
        groups = [list(losses)] if per == "mixture" else [[gate] for gate in losses]
        results = {
            gate: replace(found, permutation=found.permutation[before[gate]])
            for gates in groups
            for found in [problem.alike(gates, routings, options)]
            for gate in gates
        }
    for gate, result in results.items():
        router_of(mixture, gate).set_permutation(torch.from_numpy(result.permutation))
    return results


def router_of(mixture: MultiGateMixtureOfExperts, gate: int) -> Router:
    """Return the router of a gate, as the type checker can know it."""
    router = mixture.routers[gate]
    assert isinstance(router, Router)
    return router


def check_search_options(
    per: str,
    method: str,
    confirm_share: float,
    move_standard_errors: float,
    num_standard_errors: float,
) -> None:
    """Refuse options of a search that are of another type or out of range."""
    for name, value, allowed in (("per", per, Per), ("method", method, moe_localsearch.Method)):
        if value not in get_args(allowed):
            msg = f"`{name}` must be one of {list(get_args(allowed))}, got {value!r}."
            raise ValueError(msg)
    check_number("confirm_share", confirm_share)
    if not 0 < confirm_share < 1:
        msg = f"`confirm_share` must be in (0, 1), got {confirm_share!r}."
        raise ValueError(msg)
    check_number("move_standard_errors", move_standard_errors)
    check_number("num_standard_errors", num_standard_errors)


def _check_searchable(mixture: MultiGateMixtureOfExperts, gates: Collection[int], per: Per) -> None:
    """Refuse gates whose permutations cannot be searched apart."""
    routers = [router_of(mixture, gate) for gate in range(len(mixture.routers))]
    for gate, router in enumerate(routers):
        others = [other for other in gates if other != gate and routers[other] is router]
        if others and per != "mixture":
            msg = (
                f"`per` must be 'mixture' where gates share a router, as gates {gate} and "
                f"{others[0]} do, got {per!r}."
            )
            raise ValueError(msg)
        if mixture.threshold and per == "slot" and gate in gates and router.num_slots > 1:
            msg = (
                f"`per` must be 'gate' or 'mixture' with a threshold, which drops sums over slots, "
                f"got {per!r} for {router.num_slots} slots."
            )
            raise ValueError(msg)


def _answered(mixture: MultiGateMixtureOfExperts, routing: Routing) -> Routing:
    """Return a routing with the weights that the mixture answers with."""
    slot_weights = routing.slot_weights
    if slot_weights.shape[-2] == 1:
        slot_weights = mixture.above_threshold(slot_weights)
    return routing._replace(
        weights=mixture.above_threshold(routing.weights), slot_weights=slot_weights
    )


def _check_rows(rows: SearchRows) -> None:
    """Refuse rows that are no tensors, or router inputs of other rows."""
    check_type("rows", rows, SearchRows, "SearchRows")
    check_tensor("rows.x", rows.x)
    router_input = rows.router_input
    if router_input is not None:
        check_tensor("rows.router_input", router_input)
        if router_input.shape[:1] != rows.x.shape[:1]:
            msg = (
                f"`rows.router_input` must have the T={len(rows.x)} rows of `rows.x`, "
                f"got shape {tuple(router_input.shape)}."
            )
            raise ValueError(msg)


def _checked_losses(
    mixture: MultiGateMixtureOfExperts, rows: SearchRows, per: Per
) -> dict[int, "_Loss"]:
    """Return the loss of each gate that is searched."""
    num_gates = len(mixture.routers)
    if not callable(rows.row_loss):
        check_type("rows.row_loss", rows.row_loss, Sequence, "a function a gate")
    given = rows.row_loss if isinstance(rows.row_loss, Sequence) else [rows.row_loss]
    if len(given) != num_gates:
        msg = f"`rows.row_loss` must be a function a gate, {num_gates}, got {len(given)}."
        raise ValueError(msg)
    losses = {}
    for gate, row_loss in enumerate(given):
        if row_loss is None:
            if per == "mixture":
                msg = (
                    "`rows.row_loss` must be a function for each gate with `per`='mixture', "
                    f"got None for gate {gate}."
                )
                raise TypeError(msg)
            continue
        if not callable(row_loss):
            msg = f"`rows.row_loss` must be a function for gate {gate}, got {row_loss!r}."
            raise TypeError(msg)
        losses[gate] = _Loss(row_loss, rows.x)
    return losses


def _num_searched(mixture: MultiGateMixtureOfExperts, x: Tensor, confirm_share: float) -> int:
    dim = mixture.experts.in_features
    if x.ndim != 2 or x.shape[1] != dim:
        msg = f"`rows.x` must have shape (T, {dim}), got {tuple(x.shape)}."
        raise ValueError(msg)
    num_searched = x.shape[0] - round(confirm_share * x.shape[0])
    if not 0 < num_searched < x.shape[0]:
        msg = (
            f"`rows.x` must have rows to search and rows to confirm with `confirm_share`="
            f"{confirm_share}, got {x.shape[0]} rows."
        )
        raise ValueError(msg)
    return num_searched


def _every_output(mixture: MultiGateMixtureOfExperts, x_TD: Tensor) -> Floats:
    """Run all experts on all rows, (T, E, O), a block of rows at a time."""
    blocks = []
    for x_RD in torch.split(x_TD, BLOCK_ROWS):
        outputs_REO = mixture.experts.every(x_RD).transpose(0, 1)
        wide = torch.promote_types(outputs_REO.dtype, torch.float32)
        blocks.append(outputs_REO.to("cpu", wide).numpy())
    return np.concatenate(blocks)


class _Options(NamedTuple):
    """What the searches of all gates are told."""

    method: moe_localsearch.Method
    move_standard_errors: float
    num_standard_errors: float
    progress: moe_localsearch.ProgressCallback | None


class _Problem(NamedTuple):
    """What all gates of a mixture share: the experts' outputs, and which rows confirm."""

    outputs_TEO: Floats
    num_searched: int
    losses: dict[int, "_Loss"]

    def by_slot(
        self, gate: int, routing: Routing, start_KE: Rows, options: _Options
    ) -> SearchResult:
        """Search a permutation for each slot of one gate."""
        loss = self.losses[gate]
        return moe_localsearch.relabel_slots(
            routing.slot_weights.cpu().numpy(),
            self.outputs_TEO,
            loss.losses,
            permutations=start_KE,
            row_gradient=loss.gradients if self._differentiable(loss) else None,
            method=options.method,
            confirm_rows=np.arange(self.num_searched, len(self.outputs_TEO)),
            move_standard_errors=options.move_standard_errors,
            num_standard_errors=options.num_standard_errors,
            progress=options.progress,
        )

    def alike(
        self, gates: Sequence[int], routings: Sequence[Routing], options: _Options
    ) -> SearchResult:
        """Search one relabelling (E,) of the experts for some gates."""
        searched, confirm = (
            _sum([self._by_expert(gate, routings[gate], part) for gate in gates])
            for part in (slice(self.num_searched), slice(self.num_searched, None))
        )
        return moe_localsearch.search(
            searched,
            method=options.method,
            move_standard_errors=options.move_standard_errors,
            confirm=confirm,
            num_standard_errors=options.num_standard_errors,
            progress=options.progress,
        )

    def _by_expert(self, gate: int, routing: Routing, part: slice) -> RelabelingObjective:
        """Return the loss of a relabelling on neighbouring rows, which are not copied."""
        loss = self.losses[gate].shifted(part.start or 0)
        return RelabelingObjective(
            routing.weights.cpu().numpy()[part],
            self.outputs_TEO[part],
            loss.losses,
            row_gradient=loss.gradients if self._differentiable(self.losses[gate]) else None,
        )

    def _differentiable(self, loss: "_Loss") -> bool:
        return loss.differentiable(torch.from_numpy(self.outputs_TEO[:1, 0]))


def _sum(objectives: list[RelabelingObjective]) -> RelabelingObjective | SharedObjective:
    """Add up objectives; one alone may give up candidates early, a sum may not."""
    return objectives[0] if len(objectives) == 1 else SharedObjective(objectives)


class _Loss:
    """The caller's loss, on NumPy arrays, with the dtype and device of the rows."""

    def __init__(self, row_loss: RowLoss, like: Tensor, first_row: int = 0) -> None:
        self._row_loss = row_loss
        self._like = like
        self._first_row = first_row

    def shifted(self, first_row: int) -> "_Loss":
        """Return the loss that is told of rows by their number from `first_row` on."""
        return _Loss(self._row_loss, self._like, first_row)

    def losses(self, mixed_RO: Floats, rows_R: Rows) -> Floats:
        """Return the loss of each row, shape (R,)."""
        losses_R = self._row_loss(torch.from_numpy(mixed_RO).to(self._like), self._rows(rows_R))
        return losses_R.double().cpu().numpy()

    @torch.enable_grad()
    def gradients(self, mixed_RO: Floats, rows_R: Rows) -> Floats:
        """Return the gradient of each row's loss, shape (R, O); parameters get none."""
        output_RO = torch.from_numpy(mixed_RO).to(self._like).requires_grad_()
        losses_R = self._row_loss(output_RO, self._rows(rows_R))
        (gradient_RO,) = torch.autograd.grad(losses_R.sum(), output_RO)
        return gradient_RO.double().cpu().numpy()

    @torch.enable_grad()
    def differentiable(self, output_RO: Tensor) -> bool:
        """Whether the loss of the first row leads back to its output."""
        output_RO = output_RO.detach().to(self._like).requires_grad_()
        return self._row_loss(output_RO, self._rows(np.zeros(1, dtype=np.int64))).requires_grad

    def _rows(self, rows_R: Rows) -> Tensor:
        return torch.from_numpy(rows_R + self._first_row).to(self._like.device)
