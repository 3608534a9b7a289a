"""Training and evaluation mode of a whole model."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model in a mode inside, and leave each module in the one that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def evaluating(model: nn.Module) -> AbstractContextManager[None]:
    """Put a model in evaluation mode inside."""
    return in_mode(model, training=False)
