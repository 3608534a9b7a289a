"""How a model was converted, noted so that a dense model of its kind can be made like it."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from moe_runtime._checkpoint import CheckpointError
from moe_runtime._checks import check_type
from moe_runtime._mixture import MixtureOfExperts
from moe_runtime._pretrained import built, described
from moe_runtime.convert._describe import FeedForward
from moe_runtime.convert._layer import converted_layers, replace
from moe_runtime.convert._pytorch import run_modules
from moe_runtime.convert._tokens import Tokens

FORMAT_VERSION = 1
# The key of a transformers configuration, and so of its config.json, that holds the settings.
CONFIG_KEY = "moe_runtime"


def conversion_settings(model: nn.Module) -> dict[str, Any]:
    """Return what `convert_like` needs to convert a dense model of this kind: JSON.

    Which layers were replaced, and the settings of their routers and experts, as they are now;
    not the weights, which are in ``model.state_dict()``.
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    layers = converted_layers(model)
    if not layers:
        msg = "`model` must be a converted model, got one without converted layers."
        raise ValueError(msg)
    tokens = layers[0].tokens
    return {
        "format_version": FORMAT_VERSION,
        "mask_argument": tokens.mask_argument,
        "ids_argument": tokens.ids_argument,
        "layers": [
            {"replaced": asdict(each.replaced), "mixture": described(each.mixture)}
            for each in layers
        ],
    }


def note_settings(model: nn.Module) -> None:
    """Note the settings in a transformers configuration, which is saved with the model."""
    config = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        setattr(config, CONFIG_KEY, conversion_settings(model))
        # Weights are saved under the names that they have: transformers renames some as it saves
        # them, for its own way to load them, which knows nothing of mixtures.
        setattr(model, "_weight_conversions", [])  # noqa: B010 - not an attribute of every module


def convert_like(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Convert a dense model in place as another was; its mixtures await ``load_state_dict``.

    Parameters
    ----------
    model
        A dense model of the same kind.
    settings
        Of the other model, from `conversion_settings`.

    Raises
    ------
    CheckpointError
        If the settings do not fit this model, or are from a newer version.

    Examples
    --------
    >>> import torch, moe_runtime
    >>> from moe_runtime.convert import RandomSplit, conversion_settings, convert, convert_like
    >>> def dense():
    ...     linear, gelu = torch.nn.Linear, torch.nn.GELU()
    ...     return torch.nn.Sequential(torch.nn.Sequential(linear(4, 8), gelu, linear(8, 4)))
    >>> model, x = dense(), torch.randn(9, 4)
    >>> router = lambda dim: moe_runtime.CometRouter(dim, 4, k=1)
    >>> report = convert(model, x, router=router, split=RandomSplit())
    >>> again = dense()
    >>> convert_like(again, conversion_settings(model))
    >>> again.load_state_dict(model.state_dict())
    <All keys matched successfully>
    >>> torch.equal(again(x), model(x))
    True
    """
    check_type("settings", settings, Mapping, "a dict, from `conversion_settings`")
    version = settings.get("format_version")
    if version != FORMAT_VERSION:
        msg = f"`settings` must be of format_version {FORMAT_VERSION}, got {version!r}."
        raise CheckpointError(msg)
    with ExitStack() as undo:
        try:
            tokens = Tokens(settings["mask_argument"], settings["ids_argument"])
            undo.callback(run_modules(model))
            undo.callback(tokens.watch(model))
            for each in settings["layers"]:
                undo.callback(_replace(model, each, tokens))
        except (AttributeError, KeyError, TypeError) as error:
            msg = f"`settings` do not fit the model: {error}."
            raise CheckpointError(msg) from error
        note_settings(model)
        undo.pop_all()


def _replace(model: nn.Module, noted: Mapping[str, Any], tokens: Tokens) -> Callable[[], None]:
    replaced = {**noted["replaced"], "between": tuple(noted["replaced"]["between"])}
    found = FeedForward(**replaced)
    mixture = built(Path(CONFIG_KEY), found.name, noted["mixture"])
    assert isinstance(mixture, MixtureOfExperts)
    weight = model.get_submodule(found.up).weight
    assert isinstance(weight, Tensor)
    return replace(model, found, mixture.to(weight.device, weight.dtype), tokens)
