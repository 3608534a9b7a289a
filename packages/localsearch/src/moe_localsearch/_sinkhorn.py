"""Sinkhorn: turn scores into an almost doubly stochastic matrix, differentiably."""

from types import ModuleType
from typing import Any, NamedTuple

from moe_localsearch._namespace import ArrayT, check_matrices, resolve
from moe_localsearch._schedule import RelaxationSettings, checked_settings


class SinkhornResult(NamedTuple):
    """A relaxed permutation, and how far it is from being doubly stochastic.

    `matrix`, shape (*batch, n, n), is dimensionless, >= 0, with columns that sum to 1.
    `marginal_error`, shape (*batch,), is the largest |row sum - 1|; 0 is doubly stochastic.
    """

    matrix: Any
    marginal_error: Any


def sinkhorn(
    log_weights: ArrayT,
    /,
    *,
    temperature: float,
    num_iterations: int,
    noise: ArrayT | None = None,
    xp: ModuleType | None = None,
) -> SinkhornResult:
    """Normalise ``exp((log_weights + noise) / temperature)`` by rows, then columns, repeatedly.

    Parameters
    ----------
    log_weights : array, shape (*batch, n, n), real floating
        Preference of position ``i`` (row) for ``j`` (column), in nats at temperature 1.
    temperature : float
        Dimensionless, > 0, finite. Towards 0 the limit is a permutation matrix.
    num_iterations : int
        Pairs of a row and a column normalisation, >= 1.
    noise : array, shape (*batch, n, n), real floating, optional
        Added to `log_weights`; standard Gumbel noise samples permutations.
    xp : array namespace, optional
        Inferred from `log_weights` by default; give it inside compiled functions.

    Returns
    -------
    SinkhornResult
        `matrix`, of the dtype and device of `log_weights`, columns sum to 1; and
        `marginal_error`, how far its rows are from that. Differentiable, in both.

    Raises
    ------
    TypeError
        If `log_weights` is not real floating, `noise` is of another library, or an option has
        the wrong type.
    ValueError
        If it is not square, `noise` has another shape, or an option is out of range.

    Notes
    -----
    Rows may not sum to 1 at the end (see `marginal_error`) because

    - the temperature is low: the error falls by a factor an iteration that tends to 1 as the
      ratios of the entries grow, so the iterations needed grow like 1 / temperature and
      worse. With `paper_schedule` it does not converge; `convergent_schedule` does;
    - two permutations have almost the same total, and the matrix is between them;
    - differences of ``log_weights / temperature`` exceed the range of the dtype's rounding;
    - -inf entries leave no permutation with finite weight, or there is a NaN, which is returned.

    A row or column that is -inf throughout gives 0, not NaN. Arithmetic is in the dtype of
    the input; use float32 or better.

    References
    ----------
    Mena et al., ICLR 2018, arXiv:1802.08665, section 2; Sinkhorn and Knopp, Pacific J. Math.
    21(2), 1967. Ibrahim et al., KDD 2023, arXiv:2306.02824, normalise in this order.

    Examples
    --------
    >>> import numpy as np
    >>> result = sinkhorn(np.array([[2.0, 0.0], [0.0, 1.0]]), temperature=1.0, num_iterations=9)
    >>> result.matrix.round(3)
    array([[0.818, 0.182],
           [0.182, 0.818]])
    """
    arrays = {"log_weights": log_weights} | ({} if noise is None else {"noise": noise})
    xp = resolve(xp, **arrays)
    check_matrices("log_weights", log_weights, xp)
    temperature, num_iterations = checked_settings(RelaxationSettings(temperature, num_iterations))
    perturbed = log_weights
    if noise is not None:
        if tuple(noise.shape) != tuple(log_weights.shape):
            allowed, got = tuple(log_weights.shape), tuple(noise.shape)
            msg = f"`noise` must have the shape of `log_weights`, {allowed}, got {got}."
            raise ValueError(msg)
        check_matrices("noise", noise, xp)
        perturbed = log_weights + xp.astype(noise, log_weights.dtype)

    log_matrix = perturbed / temperature
    for _ in range(num_iterations):
        log_matrix = log_matrix - _log_sum_exp(log_matrix, axis=-1, xp=xp)
        log_matrix = log_matrix - _log_sum_exp(log_matrix, axis=-2, xp=xp)
    matrix = xp.exp(log_matrix)
    marginal_error = xp.max(xp.abs(xp.sum(matrix, axis=-1) - 1), axis=-1)
    return SinkhornResult(matrix, marginal_error)


def _log_sum_exp(array: ArrayT, *, axis: int, xp: ModuleType) -> ArrayT:
    """Return log(sum(exp(array))) with the axis kept; 0 where every entry is -inf."""
    largest = xp.max(array, axis=axis, keepdims=True)
    # Finite everywhere: -inf - -inf is NaN, and so would be its gradient.
    nothing = largest == -xp.inf
    largest = xp.where(nothing, xp.zeros_like(largest), largest)
    total = xp.sum(xp.exp(array - largest), axis=axis, keepdims=True)
    total = xp.where(nothing, xp.ones_like(total), total)
    result: ArrayT = largest + xp.log(total)
    return result
