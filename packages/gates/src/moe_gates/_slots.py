"""The answer of a gate with several slots."""

from typing import Generic, NamedTuple

from moe_gates._array import ArrayT


class SlotGate(NamedTuple, Generic[ArrayT]):
    """Weights of a gate, and the share of each slot in them.

    A slot is a tree of COMET or a selector of DSelect-k. All fields are
    dimensionless, >= 0, and have the dtype and device of the scores.

    Attributes
    ----------
    weights : array, shape (*batch, num_experts)
        Weight of each expert. Zero means: not selected.
    slot_weights : array, shape (*batch, num_slots, num_experts)
        The part of each slot; their sum over slots gives `weights`.
    slot_probabilities : array, shape (*batch, num_slots, num_experts)
        Probability with which each slot reaches each expert, before slots are
        weighted against each other. The penalties act on these.

    Examples
    --------
    >>> import numpy as np
    >>> from moe_gates import comet_gate
    >>> gate = comet_gate(np.zeros((1, 2, 3)), np.zeros((1, 2, 4)), gamma=1.0)
    >>> gate.weights.tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    weights: ArrayT
    slot_weights: ArrayT
    slot_probabilities: ArrayT
