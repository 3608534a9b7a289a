"""Cosine scores: how well a row points to an expert, whatever their lengths."""

from numbers import Real
from types import ModuleType

from moe_gates._array import Array, ArrayT, smallest_normal, stop_gradient, widen
from moe_gates._checks import check_axes, check_floating, check_shape, resolve

# Between these both the temperature and its inverse are ordinary float32 numbers.
MIN_TEMPERATURE = 1e-30
MAX_TEMPERATURE = 1e30


def cosine_scores(
    rows: ArrayT,
    expert_embeddings: Array,
    /,
    *,
    temperature: float | Array,
    xp: ModuleType | None = None,
) -> ArrayT:
    """Cosine of the angle between each row and each expert, divided by a temperature.

    Scores for any gate: a softmax over them is the routing of X-MoE.

    Parameters
    ----------
    rows : array, shape (*batch, num_features), real floating
        In any unit, of any length.
    expert_embeddings : array, shape (num_experts, num_features), real floating
        A direction for each expert, of any length.
    temperature : float, or array of shape ()
        Dimensionless, in ``[1e-30, 1e30]``; about 0.1 is usual. An array, which can be
        learned, must be real floating; its value is not checked.
    xp : array namespace, optional
        Inferred from `rows` and `expert_embeddings` by default.

    Returns
    -------
    array, shape (*batch, num_experts)
        In nats, in ``[-1 / temperature, 1 / temperature]`` up to rounding. A vector with
        no entry as large as the smallest normal number of its dtype, or 1.2e-38, counts
        as 0: its scores are 0, and so are its gradients. Same dtype and device as `rows`.

    Raises
    ------
    TypeError
        If an array is not real floating, or `temperature` neither a number nor an array.
    ValueError
        If shapes do not match, or a number `temperature` is out of range.

    References
    ----------
    Chi et al., NeurIPS 2022, arXiv:2204.09179. Its projection of the rows to few
    features is the caller's.

    Examples
    --------
    >>> import numpy as np
    >>> experts = np.asarray([[1.0, 0.0], [0.0, 5.0]])
    >>> cosine_scores(np.asarray([[3.0, 4.0], [0.0, 0.0]]), experts, temperature=0.5).tolist()
    [[1.2, 1.6], [0.0, 0.0]]
    """
    xp = resolve(xp, rows=rows, expert_embeddings=expert_embeddings)
    check_floating("rows", rows, xp)
    check_floating("expert_embeddings", expert_embeddings, xp)
    check_axes("rows", rows, ("num_features",))
    check_axes("expert_embeddings", expert_embeddings, ("num_experts", "num_features"))
    matching = (expert_embeddings.shape[0], rows.shape[-1])
    check_shape("expert_embeddings", expert_embeddings, matching, "the features of `rows`")
    _check_temperature(temperature, xp)

    directions = xp.matrix_transpose(_unit(widen(expert_embeddings, xp), xp))
    scores = xp.matmul(_unit(widen(rows, xp), xp), directions) / temperature
    narrow: ArrayT = xp.astype(scores, rows.dtype, copy=False)
    return narrow


def _check_temperature(temperature: float | Array, xp: ModuleType) -> None:
    is_number = isinstance(temperature, Real) and not isinstance(temperature, bool)
    if not is_number and hasattr(temperature, "dtype"):
        check_floating("temperature", temperature, xp)
        check_shape("temperature", temperature, (), "one for all")
    elif not is_number:
        msg = f"`temperature` must be a real number or an array, got {temperature!r}."
        raise TypeError(msg)
    elif not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        allowed = f"[{MIN_TEMPERATURE}, {MAX_TEMPERATURE}]"
        msg = f"`temperature` must be in {allowed}, got {temperature}."
        raise ValueError(msg)


def _unit(vectors: Array, xp: ModuleType) -> Array:
    """Divide each vector by its length; a vector of zeros stays, with a gradient of 0."""
    # By the largest entry first: squares of float32 overflow from 1.8e19 on, and
    # underflow below 1e-19. It cancels, so it needs no gradient.
    largest = stop_gradient(xp.max(xp.abs(vectors), axis=-1, keepdims=True), xp)
    has_length = largest >= smallest_normal(vectors.dtype, xp)
    scaled = xp.where(has_length, vectors / xp.where(has_length, largest, 1.0), 0.0)
    squares = xp.sum(scaled * scaled, axis=-1, keepdims=True)
    return scaled / xp.sqrt(xp.where(has_length, squares, 1.0))
