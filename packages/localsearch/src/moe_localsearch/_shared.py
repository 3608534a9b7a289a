"""One permutation for several objectives, such as the tasks of a multi-gate mixture."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._changes import Changes
from moe_localsearch._checks import FloatArray, check_finite, check_real, check_shape
from moe_localsearch._objective import (
    RelaxedCost,
    SupportsChanges,
    SupportsRelaxation,
    SupportsRowCosts,
    SupportsSeparable,
)

ANSWERS = ("size", "changes", "row_costs", "separable", "differentiable", "relaxed_cost")


@runtime_checkable
class Relabeling(
    SupportsChanges, SupportsRowCosts, SupportsSeparable, SupportsRelaxation, Protocol
):
    """An objective that answers every question, as `RelabelingObjective` does."""


class SharedObjective:
    """Weighted sum of objectives over one permutation that they share.

    For a permutation a task, search each objective alone instead.

    Parameters
    ----------
    objectives : sequence of RelabelingObjective
        Or others that answer every question of the protocols here; of one size, over the same
        rows in the same order.
    weights : array, shape (len(objectives),), real, optional
        Dimensionless factor of each cost, >= 0, one of them > 0; 1 by default.

    Raises
    ------
    TypeError
        If an objective does not offer what is needed.
    ValueError
        If there are no objectives, sizes differ, `weights` do not match, or, once the rows are
        asked about, their numbers differ.

    Notes
    -----
    Standard errors of `changes` are bounds from above: the sum of those of the parts, which
    is reached where the tasks agree about every row. No candidate is given up early.

    Examples
    --------
    >>> import numpy as np
    >>> from moe_localsearch import search
    >>> from moe_localsearch.testing import planted_problem
    >>> tasks = [planted_problem(num_rows=300, size=6, num_nonzero=2, seed=s) for s in (0, 1)]
    >>> both = SharedObjective([task.objective for task in tasks], weights=[0.9, 0.1])
    >>> result = search(both)
    >>> float(both(result.permutation[None])[0]) == result.cost_after < result.cost_before
    True
    """

    def __init__(
        self, objectives: Sequence[Relabeling], *, weights: ArrayLike | None = None
    ) -> None:
        if not isinstance(objectives, Sequence):
            msg = f"`objectives` must be a sequence, got {type(objectives).__name__}."
            raise TypeError(msg)
        self._objectives = list(objectives)
        if not self._objectives:
            msg = "`objectives` must hold at least one, got none."
            raise ValueError(msg)
        for index, each in enumerate(self._objectives):
            if not isinstance(each, Relabeling):
                missing = [f"`{name}`" for name in ANSWERS if not hasattr(each, name)]
                missing += [] if callable(each) else ["a call"]
                msg = (
                    f"`objectives[{index}]` must offer {', '.join(missing)}, "
                    f"got {type(each).__name__}."
                )
                raise TypeError(msg)
            if each.size != self.size:
                msg = f"`objectives[{index}].size` must be {self.size}, got {each.size}."
                raise ValueError(msg)
        count = len(self._objectives)
        given = np.ones(count) if weights is None else check_real("weights", weights, ["G"])
        check_shape("weights", given, [("G", count)])
        check_finite("weights", given)
        if given.min() < 0:
            msg = f"`weights` must be >= 0, got {given.min()}."
            raise ValueError(msg)
        if given.max() == 0:
            msg = "`weights` must have one > 0, got zeros only."
            raise ValueError(msg)
        self._weights = [float(weight) for weight in given]

    @property
    def size(self) -> int:
        """Entries in a permutation."""
        return self._objectives[0].size

    @property
    def separable(self) -> bool:
        """Whether all parts are."""
        return all(each.separable for each in self._objectives)

    @property
    def differentiable(self) -> bool:
        """Whether all parts are."""
        return all(each.differentiable for each in self._objectives)

    def __call__(self, permutations: ArrayLike, /) -> FloatArray:
        """Return the weighted sum of costs, shape (B,), of permutations, shape (B, n)."""
        batch = np.asarray(permutations)
        total: FloatArray = np.sum([w * f(batch) for w, f in self._parts()], axis=0)
        return total

    def row_costs(self, permutation: ArrayLike, /) -> FloatArray:
        """Return the weighted sum of the costs of each row, shape (T,)."""
        rows = [weight * each.row_costs(np.asarray(permutation)) for weight, each in self._parts()]
        lengths = sorted({len(each) for each in rows})
        if len(lengths) > 1:
            msg = f"`objectives` must be over the same rows, got {lengths} rows."
            raise ValueError(msg)
        total: FloatArray = np.sum(rows, axis=0)
        return total

    def changes(
        self,
        permutation: ArrayLike,
        candidates: ArrayLike,
        /,
        *,
        give_up_at: float = np.inf,  # noqa: ARG002  a candidate may be bad for one part alone
    ) -> Changes:
        """Return by how much the cost of each candidate differs, shapes (B,); all exact."""
        current, others = np.asarray(permutation), np.asarray(candidates)
        mean, error = np.zeros(len(others)), np.zeros(len(others))
        for weight, each in self._parts():
            part = each.changes(current, others, give_up_at=np.inf)
            mean += weight * part.mean
            error += weight * part.standard_error
        return Changes(mean, error, np.ones(len(others), dtype=bool))

    def relaxed_cost(self, matrix: FloatArray, /) -> RelaxedCost:
        """Return the weighted sum of relaxed costs and of their gradients."""
        cost, gradient = 0.0, np.zeros((self.size, self.size))
        for weight, each in self._parts():
            part = each.relaxed_cost(matrix)
            cost += weight * part.cost
            gradient += weight * part.gradient
        return RelaxedCost(cost, gradient)

    def on_rows(self, rows: ArrayLike, /) -> "SharedObjective":
        """Return the objective on some rows, if every part has `on_rows`, as relabelling has."""
        for index, each in enumerate(self._objectives):
            if not hasattr(each, "on_rows"):
                msg = f"`objectives[{index}]` must offer `on_rows`, got {type(each).__name__}."
                raise TypeError(msg)
        parts = [each.on_rows(rows) for each in self._objectives]  # type: ignore[attr-defined]
        return SharedObjective(parts, weights=self._weights)

    def _parts(self) -> list[tuple[float, Relabeling]]:
        """Return the objectives that count: 0 times an infinite cost would be NaN."""
        parts = zip(self._weights, self._objectives, strict=True)
        return [(weight, each) for weight, each in parts if weight > 0]
