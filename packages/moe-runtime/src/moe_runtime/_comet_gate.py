"""COMET's gate in a few passes instead of many small operations: numba, on the CPU.

Axes: T rows, E experts, K trees, N splits (E - 1) of a tree.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

# About what the passes of one direction take for a leaf, on one core of an x86 CPU.
NANOSECONDS_A_LEAF = 2.0
# Of a float: bits of the mantissa, bias of the exponent, and the integer of the same size.
_LAYOUTS = {torch.float32: (23, 127, torch.int32), torch.float64: (52, 1023, torch.int64)}


def fused_comet_gate(
    split_scores: Tensor, leaf_scores: Tensor, *, gamma: float, hard: bool
) -> tuple[Tensor, Tensor]:
    """Compute `moe_gates.comet_gate` with numba: the same but for the rounding of weights.

    Parameters
    ----------
    split_scores
        Shape (..., K, E - 1), float32 or float64, on the CPU, in heap order.
    leaf_scores
        Shape (..., K, E), same dtype.
    gamma
        Width of the band in which a split is soft.
    hard
        Round each split; splits then get a gradient of 0.

    Returns
    -------
    slot_weights, slot_probabilities
        Shape (..., K, E) each. The probabilities are those of `moe_gates` to the bit. First
        derivatives only.
    """
    num_slots, num_experts = leaf_scores.shape[-2:]
    slot_weights, probabilities = _FusedGate.apply(  # type: ignore[no-untyped-call]
        split_scores.reshape(-1, num_slots * (num_experts - 1)),
        leaf_scores.reshape(-1, num_slots * num_experts),
        num_slots,
        gamma,
        hard,
    )
    return slot_weights.view(leaf_scores.shape), probabilities.view(leaf_scores.shape)


class _FusedGate(Function):
    """Over arrays (T, K N) and (T, K E)."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        split: Tensor,
        score: Tensor,
        num_slots: int,
        gamma: float,
        hard: bool,  # noqa: FBT001 - autograd's functions take no keywords
    ) -> tuple[Tensor, Tensor]:
        from moe_runtime import _numba_gate, _numba_rows  # noqa: PLC0415 - an extra, at use

        split, score = split.contiguous(), score.contiguous()
        probability, weight = torch.empty_like(score), torch.empty_like(score)
        mantissa_bits, exponent_bias, integer = _LAYOUTS[score.dtype]
        num_rows, nanoseconds = len(score), NANOSECONDS_A_LEAF * score.shape[1]
        _numba_rows.over_rows(
            _numba_gate.reach,
            num_rows,
            nanoseconds,
            split.numpy(),
            score.numpy(),
            num_slots,
            gamma,
            hard,
            mantissa_bits,
            exponent_bias,
            probability.numpy(),
            probability.view(integer).numpy(),
            weight.numpy(),
        )
        # PyTorch's exponential is vectorised; a compiled loop would call a scalar one.
        weight.exp_()
        _numba_rows.over_rows(
            _numba_gate.share, num_rows, nanoseconds, probability.numpy(), weight.numpy()
        )
        ctx.save_for_backward(split, probability, weight)
        ctx.num_slots, ctx.gamma, ctx.hard = num_slots, gamma, hard
        return weight, probability

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        from moe_runtime import _numba_gate, _numba_rows  # noqa: PLC0415

        split, probability, weight = ctx.saved_tensors
        grad_split, grad_score = torch.empty_like(split), torch.empty_like(weight)
        _numba_rows.over_rows(
            _numba_gate.grads,
            len(weight),
            NANOSECONDS_A_LEAF * weight.shape[1],
            split.numpy(),
            probability.numpy(),
            weight.numpy(),
            ctx.num_slots,
            ctx.gamma,
            *(grad.contiguous().numpy() for grad in grads),
            grad_split.numpy(),
            grad_score.numpy(),
        )
        return grad_split.zero_() if ctx.hard else grad_split, grad_score, None, None, None
