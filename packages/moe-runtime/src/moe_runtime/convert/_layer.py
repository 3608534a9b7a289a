"""A mixture in the place of a dense feed-forward layer.

Axes: B sequences, S tokens, D features.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moe_runtime._checks import check_type
from moe_runtime._hash_router import HashRouter
from moe_runtime._mixture import MixtureOfExperts
from moe_runtime.convert._describe import FeedForward
from moe_runtime.convert._tokens import Tokens


class SparseFeedForward(nn.Module):
    """A mixture that takes and returns hidden states alone, as the layer did whose place it has.

    Padding is left out of routing and penalties. A `HashRouter` reads the tokens' ids.
    """

    def __init__(self, mixture: MixtureOfExperts, replaced: FeedForward, tokens: Tokens) -> None:
        super().__init__()
        self.mixture = mixture
        self.output_dropout = nn.Dropout(replaced.output_dropout)
        self.replaced = replaced
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        """Mix the experts' outputs for tokens (B, S, D)."""
        with self.tokens.call_of_layer():
            ids = self.tokens.ids_required(x) if reads_ids(self.mixture) else None
            mask = self.tokens.mask_for(x)
        mixed = self.mixture(x, ids, mask)
        self.tokens.add(mixed.penalty)
        output: Tensor = self.output_dropout(mixed.output)
        return output


def reads_ids(mixture: MixtureOfExperts) -> bool:
    """Whether the router reads the tokens' ids instead of their features."""
    return isinstance(mixture.routers[0], HashRouter)


def replace(
    model: nn.Module, found: FeedForward, mixture: MixtureOfExperts, tokens: Tokens
) -> Callable[[], None]:
    """Put a mixture where a feed-forward layer was; returns what puts the layer back."""
    sparse = SparseFeedForward(mixture, found, tokens)
    modules: dict[str, nn.Module]
    if found.whole:
        modules = dict.fromkeys(_names_of(model, found.name), sparse)
    else:
        # The first map gives the layer's output, which what follows it passes on.
        passed = (*found.between, *_names_of(model, found.down))
        modules = dict.fromkeys(_names_of(model, found.up), sparse)
        modules |= {name: nn.Identity() for name in passed}
    before = {name: model.get_submodule(name) for name in modules}
    for name, module in modules.items():
        model.set_submodule(name, module.train(before[name].training), strict=True)

    def put_back() -> None:
        for name, module in before.items():
            model.set_submodule(name, module, strict=True)

    return put_back


def _names_of(model: nn.Module, name: str) -> list[str]:
    """List all names that a module has: a layer that is shared stays shared."""
    module = model.get_submodule(name)
    named = model.named_modules(remove_duplicate=False)
    return [other for other, each in named if each is module]


def converted_layers(model: nn.Module) -> list[SparseFeedForward]:
    """List the mixtures that took the place of feed-forward layers."""
    return [each for each in model.modules() if isinstance(each, SparseFeedForward)]


def penalty(model: nn.Module) -> Tensor:
    """Return the penalty of a converted model's last call, a scalar, to be added to a loss.

    In training mode the ``loss`` that a model of transformers gives has it already.
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    every = {layer.tokens: None for layer in converted_layers(model)}
    called = [tokens for tokens in every if tokens.penalties]
    if not called:
        msg = "`model` must be a converted model that was called."
        raise ValueError(msg)
    like = called[0].penalties[0]
    return torch.stack([tokens.penalty(like) for tokens in called]).sum()
