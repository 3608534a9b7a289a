"""What torch.func's transforms (vmap, grad) leave of a tensor: no values to look at."""

import torch


def is_transformed() -> bool:
    """Whether the code runs inside a transform of torch.func."""
    # PyTorch (2.13) has no public way to ask, and to Dynamo the stack is never empty.
    compiling = torch.compiler.is_compiling()
    return not compiling and torch._C._functorch.peek_interpreter_stack() is not None  # noqa: SLF001
