"""What a search asks of a cost: the cost itself, and cheaper questions that it may answer."""

from typing import Protocol, runtime_checkable

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
