"""Penalties that push a soft gate towards one expert a slot."""

import math
from types import ModuleType

from moe_gates._array import ArrayT, widen
from moe_gates._checks import check_axes, check_floating, resolve

# Dimensionless; the authors' values. They bound log(p) and 1 / sum at 0.
ENTROPY_OFFSET = 1e-6
UNREACHABLE_OFFSET = 1e-6


def entropy_penalty(probabilities: ArrayT, /, *, xp: ModuleType | None = None) -> ArrayT:
    """Mean over rows of the entropy of the slots: 0 when each slot reaches one expert.

    Parameters
    ----------
    probabilities : array, shape (*batch, num_slots, num_experts), real floating
        The `slot_probabilities` of a gate.
    xp : array namespace, optional
        Inferred from `probabilities` by default.

    Returns
    -------
    array, shape ()
        In nats: mean over rows of the sum over slots and experts of
        ``-p log(p + 1e-6)``; 0 without rows. Down to -1e-6 per slot for one-hot
        slots. Same dtype and device as `probabilities`.

    Raises
    ------
    TypeError
        If `probabilities` is not real floating.
    ValueError
        If `probabilities` has fewer than two axes.

    References
    ----------
    Ibrahim et al., KDD 2023, arXiv:2306.02824; offset of the authors' code.

    Examples
    --------
    >>> import numpy as np
    >>> half = np.full((3, 1, 2), 0.5)  # one coin toss: log(2) nats
    >>> round(float(entropy_penalty(half)), 4)
    0.6931
    """
    xp = resolve(xp, probabilities=probabilities)
    check_floating("probabilities", probabilities, xp)
    check_axes("probabilities", probabilities, ("num_slots", "num_experts"))
    wide = widen(probabilities, xp)
    total = -xp.sum(wide * xp.log(wide + ENTROPY_OFFSET))
    num_rows = math.prod(wide.shape[:-2])
    penalty: ArrayT = xp.astype(total / max(num_rows, 1), probabilities.dtype, copy=False)
    return penalty


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
