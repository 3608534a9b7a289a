"""The float32 form of what is bfloat16, with the same numbers.

ONNX Runtime (1.32) has no products of bfloat16 on the CPU, so that arithmetic is float32.
"""

import copy

import torch
from torch import Tensor, nn


def without_bfloat16(model: nn.Module) -> nn.Module:
    """Return the model with its bfloat16 weights as float32, or as it is."""
    # The state may hold what is no tensor.
    tensors = (*model.parameters(), *model.buffers())
    if all(each.dtype is not torch.bfloat16 for each in tensors):
        return model
    try:
        return copy.deepcopy(model).float()
    except RuntimeError as error:
        msg = (
            "`model` must be one that can be copied, to compute in float32 what it stores in "
            "bfloat16; one that keeps tensors of an earlier forward pass as attributes cannot: "
            f"{error}"
        )
        raise ValueError(msg) from error


def widened(example: Tensor) -> Tensor:
    """Return a bfloat16 tensor as float32, another as it is."""
    return example.float() if example.dtype is torch.bfloat16 else example
