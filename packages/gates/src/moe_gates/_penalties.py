"""Penalties that push a soft gate towards one expert a slot."""

import math
from types import ModuleType
from typing import Literal

from moe_gates._array import Array, ArrayT, mean_over_rows, widen
from moe_gates._checks import check_axes, check_choice, check_floating, resolve

# Dimensionless; the authors' values. They bound log(p) and 1 / sum at 0.
ENTROPY_OFFSET = 1e-6
UNREACHABLE_OFFSET = 1e-6


def entropy_penalty(
    probabilities: ArrayT,
    /,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    xp: ModuleType | None = None,
) -> ArrayT:
    """Mean or sum over rows of the entropy of the slots: 0 when each reaches one expert.

    Parameters
    ----------
    probabilities : array, shape (*batch, num_slots, num_experts), real floating
        The `slot_probabilities` of a gate.
    reduction : {"mean", "sum"}, default "mean"
        Over rows. A sum grows with the batch.
    xp : array namespace, optional
        Inferred from `probabilities` by default.

    Returns
    -------
    array, shape ()
        In nats: mean or sum over rows of the sum over slots and experts of
        ``-p log(p + 1e-6)``; 0 without rows. Down to -1e-6 per slot for one-hot
        slots. Same dtype and device as `probabilities`; a sum can overflow in float16.

    Raises
    ------
    TypeError
        If `probabilities` is not real floating.
    ValueError
        If `probabilities` has fewer than two axes, or `reduction` is another one.

    See Also
    --------
    mutual_information_penalty : Also keeps the slots from reaching the same experts always.

    References
    ----------
    Ibrahim et al., KDD 2023, arXiv:2306.02824; offset of the authors' code.

    Examples
    --------
    >>> import numpy as np
    >>> half = np.full((3, 1, 2), 0.5)  # one coin toss: log(2) nats
    >>> round(float(entropy_penalty(half)), 4)
    0.6931

    The permutation penalty of the paper, which multiplies it by 1e-4, for a matrix whose
    columns sum to 1: its entropy plus that of its normalised rows.

    >>> from moe_gates import normalize
    >>> matrix = np.full((2, 2), 0.5)
    >>> both = entropy_penalty(matrix, reduction="sum")
    >>> both += entropy_penalty(normalize(matrix), reduction="sum")
    >>> round(float(both), 4)
    2.7726
    """
    xp = resolve(xp, probabilities=probabilities)
    check_floating("probabilities", probabilities, xp)
    check_axes("probabilities", probabilities, ("num_slots", "num_experts"))
    check_choice("reduction", reduction, ("mean", "sum"))
    entropies = xp.sum(_entropies(widen(probabilities, xp), xp), axis=-1)
    total = mean_over_rows(entropies, xp) if reduction == "mean" else xp.sum(entropies)
    penalty: ArrayT = xp.astype(total, probabilities.dtype, copy=False)
    return penalty


def mutual_information_penalty(probabilities: ArrayT, /, *, xp: ModuleType | None = None) -> ArrayT:
    """Mean entropy of a row minus the entropy of the mean row, summed over slots.

    The entropy penalty alone is 0 as well if all rows reach the same experts. This one
    is lowest if each row reaches one expert, and the rows together all of them.

    Parameters
    ----------
    probabilities : array, shape (*batch, num_slots, num_experts), real floating
        The `slot_probabilities` of a gate; for weights w of a gate without slots,
        ``w[..., None, :]``.
    xp : array namespace, optional
        Inferred from `probabilities` by default.

    Returns
    -------
    array, shape ()
        In nats: minus the mutual information of rows and experts, with the offset of
        `entropy_penalty`. From ``-num_slots log(num_experts)`` to 0, which it also is
        without rows and for a single one. Same dtype and device as `probabilities`.

    Raises
    ------
    TypeError
        If `probabilities` is not real floating.
    ValueError
        If `probabilities` has fewer than two axes.

    Notes
    -----
    Of a batch, not of a row: the mean over batches is not that of all rows together.

    References
    ----------
    Bridle, Heading and MacKay, "Unsupervised classifiers, mutual information and 'phantom
    targets'", NeurIPS 1991.

    Examples
    --------
    >>> import numpy as np
    >>> rows = np.asarray([[[1.0, 0.0]], [[0.0, 1.0]]])  # each its own expert
    >>> round(float(mutual_information_penalty(rows)), 4)
    -0.6931
    >>> abs(float(mutual_information_penalty(rows[[0, 0]]))) < 1e-12  # both the same one
    True
    """
    xp = resolve(xp, probabilities=probabilities)
    check_floating("probabilities", probabilities, xp)
    check_axes("probabilities", probabilities, ("num_slots", "num_experts"))
    *batch, num_slots, num_experts = probabilities.shape
    wide = xp.reshape(widen(probabilities, xp), (math.prod(batch), num_slots, num_experts))
    mean_row = xp.sum(wide / max(wide.shape[0], 1), axis=0)
    of_rows = mean_over_rows(xp.sum(_entropies(wide, xp), axis=-1), xp)
    information = xp.sum(_entropies(mean_row, xp)) - of_rows
    penalty: ArrayT = xp.astype(-information, probabilities.dtype, copy=False)
    return penalty


def _entropies(probabilities: Array, xp: ModuleType) -> Array:
    """Entropy over the last axis, with the offset."""
    return -xp.sum(probabilities * xp.log(probabilities + ENTROPY_OFFSET), axis=-1)


def unreachable_penalty(slot_probabilities: ArrayT, /, *, xp: ModuleType | None = None) -> ArrayT:
    """Sum over rows and selectors of 1 / (1e-6 + probability of selecting any expert).

    Parameters
    ----------
    slot_probabilities : array, shape (*batch, num_slots, num_experts), real floating
        Those of `dselect_k_gate` with a number of experts that is no power of two;
        otherwise the penalty is constant.
    xp : array namespace, optional
        Inferred from `slot_probabilities` by default.

    Returns
    -------
    array, shape ()
        Dimensionless, from 1 (every code reachable) to 1e6 (none) per row and
        selector; 0 without rows. A sum, not a mean, as the authors': it grows with
        the batch. Same dtype and device as `slot_probabilities`, so that it can
        overflow in float16.

    Raises
    ------
    TypeError
        If `slot_probabilities` is not real floating.
    ValueError
        If `slot_probabilities` has fewer than two axes.

    References
    ----------
    Hazimeh et al., NeurIPS 2021, arXiv:2106.03760; offset of the authors' code.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(unreachable_penalty(np.full((1, 1, 3), 0.25))), 4)
    1.3333
    """
    xp = resolve(xp, slot_probabilities=slot_probabilities)
    check_floating("slot_probabilities", slot_probabilities, xp)
    check_axes("slot_probabilities", slot_probabilities, ("num_slots", "num_experts"))
    reached = xp.sum(widen(slot_probabilities, xp), axis=-1)
    total = xp.sum(1 / (UNREACHABLE_OFFSET + reached))
    penalty: ArrayT = xp.astype(total, slot_probabilities.dtype, copy=False)
    return penalty
