"""What a search asks of a cost: the cost itself, and cheaper questions that it may answer."""

from typing import NamedTuple, Protocol, runtime_checkable

from moe_localsearch._changes import Changes
from moe_localsearch._checks import FloatArray, IntArray


@runtime_checkable
class Objective(Protocol):
    """A cost of permutations of `size` entries, to be minimised.

    Any object with a `size` and a call that takes a batch is one; nothing is inherited.
    ``permutation[i]`` is what position ``i`` uses.
    """

    @property
    def size(self) -> int:
        """Entries in a permutation, n >= 1."""
        ...

    def __call__(self, permutations: IntArray, /) -> FloatArray:
        """Return the mean cost, shape (B,), of each row of `permutations`, shape (B, n), int64."""
        ...


@runtime_checkable
class SupportsReplacementCosts(Objective, Protocol):
    """An objective that knows what moving one position alone would cost."""

    def replacement_costs(self, permutation: IntArray, /) -> FloatArray:
        """Return the exact costs, shape (n, n), of every single replacement.

        Entry ``[i, j]`` is the cost when position ``i`` alone uses ``j`` and the others
        stay as in `permutation`, shape (n,): no permutation, unless ``j`` is what ``i`` uses.
        """
        ...


@runtime_checkable
class SupportsSwapCosts(Objective, Protocol):
    """An objective that knows what exchanging two positions would cost."""

    def swap_costs(self, permutation: IntArray, /) -> FloatArray:
        """Return the exact costs, shape (n, n), after exchanging positions ``i`` and ``j``.

        Symmetric, with the cost of `permutation` itself on the diagonal.
        """
        ...


@runtime_checkable
class SupportsChanges(Objective, Protocol):
    """An objective that knows what a few changed positions do, and how sure that is.

    The searches prefer it to `replacement_costs` and `swap_costs`: it answers both
    questions, with standard errors, and may leave a hopeless candidate early.
    """

    def changes(
        self, permutation: IntArray, candidates: IntArray, /, *, give_up_at: float
    ) -> Changes:
        """Return by how much the cost of each candidate differs from that of `permutation`.

        `candidates`, shape (B, n), hold 0, ..., n - 1 but need not be permutations. One that
        costs more by over `give_up_at` standard errors on a part of the rows may be left there.
        """
        ...


@runtime_checkable
class SupportsRowCosts(Objective, Protocol):
    """An objective that is a mean over rows, for paired statistics."""

    def row_costs(self, permutation: IntArray, /) -> FloatArray:
        """Return the cost, shape (T,), of each row under `permutation`, shape (n,)."""
        ...


@runtime_checkable
class SupportsSeparable(Objective, Protocol):
    """An objective that knows whether one linear assignment solves it."""

    @property
    def separable(self) -> bool:
        """Whether the cost is a sum over positions of terms of (i, permutation[i]) alone."""
        ...


class RelaxedCost(NamedTuple):
    """A cost between permutations, and its gradient, shape (n, n), in the unit of the cost."""

    cost: float
    gradient: FloatArray


@runtime_checkable
class SupportsRelaxation(Objective, Protocol):
    """An objective that is also defined between permutations, with gradients."""

    @property
    def differentiable(self) -> bool:
        """Whether `relaxed_cost` can be asked."""
        ...

    def relaxed_cost(self, matrix: FloatArray, /) -> RelaxedCost:
        """Return cost and gradient where position ``i`` uses ``j`` with share ``matrix[i, j]``.

        `matrix`, shape (n, n), has entries >= 0 and about doubly stochastic. On the matrix of a
        permutation the cost is that of the permutation.
        """
        ...
