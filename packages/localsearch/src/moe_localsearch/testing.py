"""Planted relabelling problems: a known permutation, hidden, for tests and benchmarks.

Needs nothing but the package itself, so that other projects can test with it.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from moe_localsearch._checks import FloatArray, IntArray, check_count, check_number
from moe_localsearch._relabeling import RelabelingObjective

__all__ = [
    "CrossEntropyLoss",
    "PlantedProblem",
    "PlantedSlots",
    "SquaredLoss",
    "planted_problem",
    "planted_slots",
]

Head = Literal["squared", "cross_entropy"]

NUM_FEATURES = 12
SCORE_SCALE = 2.0
"""Spread of the router scores in nats: sharp weights, but not one-hot."""


@dataclass(frozen=True, eq=False)
class SquaredLoss:
    """Mean over outputs of the squared error, in squared units of `targets`, shape (T, O)."""

    targets: FloatArray

    def __call__(self, mixed: FloatArray, rows: IntArray) -> FloatArray:
        """Return the loss, shape (R,), of ``rows[r]`` with output ``mixed[r]``."""
        loss: FloatArray = np.mean((mixed - self.targets[rows]) ** 2, axis=-1)
        return loss

    def gradient(self, mixed: FloatArray, rows: IntArray) -> FloatArray:
        """Return the gradient of the loss with respect to `mixed`, shape (R, O)."""
        slope: FloatArray = 2 * (mixed - self.targets[rows]) / mixed.shape[-1]
        return slope


@dataclass(frozen=True, eq=False)
class CrossEntropyLoss:
    """Negative log-likelihood in nats of `labels`, shape (T,), under outputs as logits."""

    labels: IntArray

    def __call__(self, mixed: FloatArray, rows: IntArray) -> FloatArray:
        """Return the loss, shape (R,), of ``rows[r]`` with output ``mixed[r]``."""
        largest = mixed.max(axis=-1)
        log_total = largest + np.log(np.exp(mixed - largest[:, None]).sum(axis=-1))
        loss: FloatArray = log_total - mixed[np.arange(len(rows)), self.labels[rows]]
        return loss

    def gradient(self, mixed: FloatArray, rows: IntArray) -> FloatArray:
        """Return the gradient of the loss with respect to `mixed`, shape (R, O)."""
        exps = np.exp(mixed - mixed.max(axis=-1, keepdims=True))
        slope: FloatArray = exps / exps.sum(axis=-1, keepdims=True)
        slope[np.arange(len(rows)), self.labels[rows]] -= 1
        return slope


class PlantedProblem(NamedTuple):
    """A relabelling problem in which `permutation` made the targets."""

    slot_weights: FloatArray  # (T, n)
    outputs: FloatArray  # (T, n, O)
    row_loss: SquaredLoss | CrossEntropyLoss
    permutation: IntArray  # (n,)

    @property
    def objective(self) -> RelabelingObjective:
        """The objective over all rows, differentiable."""
        loss = self.row_loss
        return RelabelingObjective(
            self.slot_weights, self.outputs, loss, row_gradient=loss.gradient
        )


class PlantedSlots(NamedTuple):
    """A relabelling problem in which each slot has its own planted permutation."""

    slot_weights: FloatArray  # (T, K, n)
    outputs: FloatArray  # (T, n, O)
    row_loss: SquaredLoss | CrossEntropyLoss
    permutations: IntArray  # (K, n)


def planted_problem(
    *,
    num_rows: int,
    size: int,
    num_nonzero: int,
    num_outputs: int = 4,
    correlation: float = 0.5,
    noise: float = 0.5,
    head: Head = "squared",
    seed: int,
) -> PlantedProblem:
    """Make rows, correlated experts, a sparse gate, and targets from a hidden relabelling.

    Parameters
    ----------
    num_rows : int
        Rows, T >= 1.
    size : int
        Experts, n >= 1.
    num_nonzero : int
        Non-zero weights in each row, in [1, size]; they sum to 1.
    num_outputs : int
        Outputs (or classes), O >= 1.
    correlation : float
        Correlation of the outputs of two experts, in [0, 1]. At 1 they are equal and nothing
        is planted.
    noise : float
        Standard deviation of what is added to the planted outputs, >= 0; the outputs of one
        expert have standard deviation 1.
    head : {"squared", "cross_entropy"}
        Targets are the noisy outputs, or their largest class.
    seed : int
        Equal seeds and settings give equal problems.

    Returns
    -------
    PlantedProblem
        With ``problem.objective``; the planted permutation is near the optimum, and is it
        without noise under the squared head.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> problem = planted_problem(num_rows=50, size=4, num_nonzero=2, noise=0.0, seed=1)
    >>> problem.objective(problem.permutation[None])
    array([0.])
    """
    planted = planted_slots(
        num_rows=num_rows,
        num_slots=1,
        size=size,
        num_nonzero=num_nonzero,
        num_outputs=num_outputs,
        correlation=correlation,
        noise=noise,
        head=head,
        seed=seed,
    )
    weights, permutation = planted.slot_weights[:, 0], planted.permutations[0]
    return PlantedProblem(weights, planted.outputs, planted.row_loss, permutation)


def planted_slots(
    *,
    num_rows: int,
    num_slots: int,
    size: int,
    num_nonzero: int,
    num_outputs: int = 4,
    correlation: float = 0.5,
    noise: float = 0.5,
    head: Head = "squared",
    seed: int,
) -> PlantedSlots:
    """Make a problem as `planted_problem` does, with `num_slots` gates whose outputs are added.

    Parameters
    ----------
    num_slots : int
        Slots, K >= 1, each with its own gate and planted permutation; its weights sum to
        1 / K in each row. All other arguments are those of `planted_problem`.

    Returns
    -------
    PlantedSlots
        Arrays for `relabel_slots`.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> planted_slots(num_rows=9, num_slots=2, size=4, num_nonzero=1, seed=0).slot_weights.shape
    (9, 2, 4)
    """
    _check_settings(size, num_nonzero, correlation, noise, head)
    check_count("num_rows", num_rows, minimum=1)
    check_count("num_slots", num_slots, minimum=1)
    check_count("num_outputs", num_outputs, minimum=1)
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_rows, NUM_FEATURES))
    outputs = _correlated_outputs(rng, features, size, num_outputs, correlation)
    weights = np.stack(
        [_sparse_weights(rng, features, size, num_nonzero) for _ in range(num_slots)], axis=1
    )
    weights /= num_slots
    permutations = np.stack([rng.permutation(size) for _ in range(num_slots)])

    targets = noise * rng.normal(size=(num_rows, num_outputs))
    for slot, permutation in enumerate(permutations):
        targets += np.einsum("ti,tio->to", weights[:, slot], outputs[:, permutation])
    loss: SquaredLoss | CrossEntropyLoss = SquaredLoss(targets)
    if head == "cross_entropy":
        loss = CrossEntropyLoss(targets.argmax(axis=-1))
    return PlantedSlots(weights, outputs, loss, permutations)


def _check_settings(
    size: int, num_nonzero: int, correlation: float, noise: float, head: str
) -> None:
    check_count("size", size, minimum=1)
    check_count("num_nonzero", num_nonzero, minimum=1)
    if num_nonzero > size:
        msg = f"`num_nonzero` must be in [1, size={size}], got {num_nonzero}."
        raise ValueError(msg)
    check_number("correlation", correlation)
    check_number("noise", noise)
    if not 0 <= correlation <= 1:
        msg = f"`correlation` must be in [0, 1], got {correlation}."
        raise ValueError(msg)
    if not 0 <= noise < np.inf:
        msg = f"`noise` must be finite and >= 0, got {noise}."
        raise ValueError(msg)
    if head not in {"squared", "cross_entropy"}:
        msg = f"`head` must be 'squared' or 'cross_entropy', got {head!r}."
        raise ValueError(msg)


def _correlated_outputs(
    rng: np.random.Generator, features: FloatArray, size: int, num_outputs: int, correlation: float
) -> FloatArray:
    """Return linear experts of unit output variance that share a part, shape (T, n, O)."""
    num_features = features.shape[1]
    shared = rng.normal(size=(num_features, 1, num_outputs))
    own = rng.normal(size=(num_features, size, num_outputs))
    matrices = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    outputs: FloatArray = np.tensordot(features, matrices, axes=1) / np.sqrt(num_features)
    return outputs


def _sparse_weights(
    rng: np.random.Generator, features: FloatArray, size: int, num_nonzero: int
) -> FloatArray:
    """Return a linear router's softmax over its largest scores, shape (T, n)."""
    num_features = features.shape[1]
    router = rng.normal(size=(num_features, size)) * (SCORE_SCALE / np.sqrt(num_features))
    scores = features @ router
    smallest_kept = np.sort(scores, axis=-1)[:, -num_nonzero, None]
    weights = np.where(scores >= smallest_kept, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    normalized: FloatArray = weights / weights.sum(axis=-1, keepdims=True)
    return normalized
