"""PyTorch's own transformer layers, brought to run their modules one by one.

As they evaluate they hand their weights to a fused function, and padding to nested tensors; their
activation may be a function.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
# What people add to the scores of padding instead of minus infinity, at least.
PADDING = -1e4


class Function(nn.Module):
    """A function as a module, which a mixture can take the place of."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Call the function."""
        return self.function(x)


def run_modules(model: nn.Module) -> Callable[[], None]:
    """Let PyTorch's layers in a model run all of their modules; returns what undoes it."""
    undo = ExitStack()
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            undo.callback(_set(module, "use_nested_tensor", value=False))
        elif isinstance(module, LAYERS):
            if not isinstance(module.activation, nn.Module):
                undo.callback(_set(module, "activation", Function(module.activation)))
            undo.callback(_set(module, "activation_relu_or_gelu", 0))  # neither: not fused
    return undo.close


@contextmanager
def running_modules(model: nn.Module) -> Iterator[None]:
    """Do so inside."""
    undo = run_modules(model)
    try:
        yield
    finally:
        undo()


def _set(module: nn.Module, name: str, value: object) -> Callable[[], None]:
    """Set an attribute that there is, a submodule or not; returns what sets it back."""
    if not hasattr(module, name):
        return lambda: None
    before = getattr(module, name)

    def assign(value: object) -> None:
        delattr(module, name)
        setattr(module, name, value)

    assign(value)
    return lambda: assign(before)


def sequences_second(model: nn.Module, name: str) -> bool:
    """Whether a module's inputs are (S, B, D), since it is in one of PyTorch's layers that says so.

    Of other modules nobody says it.
    """
    paths = name.split(".")
    around = (model.get_submodule(".".join(paths[:end])) for end in range(len(paths) + 1))
    return any(isinstance(each, LAYERS) and not each.self_attn.batch_first for each in around)


def counted(module: nn.Module, given: Mapping[str, Any]) -> Tensor | None:
    """Return which tokens count in a call of one of PyTorch's layers, bool, as they are arranged.

    Its own mask says so: true, or very negative, for padding, with sequences first.
    """
    assert isinstance(module, LAYERS)
    source = "src" if isinstance(module, nn.TransformerEncoderLayer) else "tgt"
    padding = given.get(f"{source}_key_padding_mask")
    if not isinstance(padding, Tensor):
        return None
    counts = padding > PADDING if padding.is_floating_point() else ~padding
    return counts if module.self_attn.batch_first or counts.ndim == 1 else counts.T
