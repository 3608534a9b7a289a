"""How much the loss depends on each hidden unit of feed-forward layers.

Axes: B examples, S tokens, H hidden units.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_runtime._checks import check_type
from moe_runtime._modes import evaluating
from moe_runtime.convert._calls import Batch, run_model
from moe_runtime.convert._find import find_feed_forwards
from moe_runtime.convert._pytorch import running_modules, sequences_second


class _Map(NamedTuple):
    """A linear map to the hidden units, whose output counts, or from them, whose input does."""

    name: str
    to_hidden: bool
    sequences_second: bool


def hidden_unit_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    names: str = "*",
    loss: Callable[[Any, Any], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Sum over examples how much the loss would change, to first order, without a hidden unit.

    The absolute value of each example's sum, over a unit's weights into it and out of it, of
    weight times gradient. Weights are left alone and get no gradient: the sum is that of
    activation times gradient over the example's tokens.

    Parameters
    ----------
    model
        The dense model; it is run in evaluation mode and left as it was.
    batches
        Of the training data, never of the data that is reported on: dicts of keyword arguments,
        tuples or tensors, examples along the first axis. An iterator goes on as it is consumed,
        so that a progress bar around it works.
    names
        Pattern of the feed-forward layers' names, as in `find_feed_forwards`.
    loss
        ``loss(output, batch) -> (B,)``, the loss of each example, or their sum, in any unit. By
        default ``output.loss`` times B, which is right where that is a mean over examples, as a
        classifier of transformers has it.

    Returns
    -------
    dict of str to Tensor
        By layer: importance of each hidden unit (H,), float64 on the CPU, in the loss's unit.

    References
    ----------
    Zuo et al., NAACL 2022, arXiv:2204.07675, eq. (6).
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    if isinstance(batches, Tensor | Mapping):
        msg = f"`batches` must be several, such as a list of one, got {type(batches).__name__}."
        raise TypeError(msg)
    totals: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    maps: dict[str, list[_Map]] = {}
    for batch in batches:
        if not maps:
            found_layers = find_feed_forwards(model, batch, names=names)
            if not found_layers:
                msg = f"`names` must name dense feed-forward layers of the model, got {names!r}."
                raise ValueError(msg)
            for found in found_layers:
                second = sequences_second(model, found.up)
                maps[found.name] = [
                    _Map(each, to_hidden=each != found.down, sequences_second=second)
                    for each in (found.up, found.gate, found.down)
                    if each is not None
                ]
        with running_modules(model), evaluating(model):
            parts = _parts(model, modules, maps, batch, loss or _loss_of_output)
        for name, part in parts.items():
            totals[name] = totals[name] + part if name in totals else part
    if not totals:
        msg = (
            f"`batches` must hold batches, and `names`={names!r} name feed-forward layers; found "
            "none."
        )
        raise ValueError(msg)
    return totals


@torch.enable_grad()
def _parts(
    model: nn.Module,
    modules: dict[str, nn.Module],
    maps: dict[str, list[_Map]],
    batch: Batch,
    loss: Callable[[Any, Any], Tensor],
) -> dict[str, Tensor]:
    """Return the importance of one batch, (H,) a layer."""
    hidden: dict[_Map, list[Tensor]] = {}
    with ExitStack() as stack:
        for each in (each for several in maps.values() for each in several):
            hook = _keep(hidden, each)
            stack.callback(modules[each.name].register_forward_hook(hook).remove)
        losses = loss(run_model(model, batch), batch)
    num_examples = _num_examples(batch)
    if losses.ndim and len(losses) != num_examples:
        msg = (
            f"`loss` must give one for each example along the first axis of a batch, or their sum; "
            f"got {tuple(losses.shape)} for {num_examples}."
        )
        raise ValueError(msg)
    in_order = [each for several in maps.values() for each in several]
    values = [value for each in in_order for value in hidden.get(each, [])]
    gradients = iter(torch.autograd.grad(losses.sum(), values, materialize_grads=True))
    by_layer: dict[str, Tensor] = {}
    for name, several in maps.items():
        by_example = [
            _by_example(modules[each.name], each, value, next(gradients), num_examples)
            for each in several
            for value in hidden.get(each, [])
        ]
        if by_example:
            by_layer[name] = torch.stack(by_example).sum(0).abs().sum(0).cpu()
    return by_layer


def _by_example(
    module: nn.Module, which: _Map, value: Tensor, gradient: Tensor, num_examples: int
) -> Tensor:
    """Sum weight times gradient over the tokens of each example, (B, H)."""
    bias = getattr(module, "bias", None) if which.to_hidden else None
    # What the weights alone make of their input.
    product = (value.detach() if bias is None else value.detach() - bias.detach()) * gradient
    if which.sequences_second and product.ndim > 2:
        product = product.transpose(0, 1)
    flat = product.ndim == 2 and len(product) % num_examples == 0
    if len(product) != num_examples and not flat:
        msg = (
            f"`batches` must have examples along the first axis of all hidden states, got "
            f"{num_examples} examples and hidden states {tuple(product.shape)} in {which.name!r}."
        )
        raise ValueError(msg)
    # Layers may be given sequences one after the other.
    return product.double().reshape(num_examples, -1, product.shape[-1]).sum(1)


def _keep(hidden: dict[_Map, list[Tensor]], wanted: _Map) -> Callable[..., Any]:
    """Return a hook that keeps a map's output, or its input, where gradients go through it."""

    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        value = output if wanted.to_hidden else args[0]
        if not value.requires_grad:
            value.requires_grad_()
        hidden.setdefault(wanted, []).append(value)
        # An activation that writes where it reads would change what was kept.
        return output.clone() if wanted.to_hidden else output

    return hook


def _loss_of_output(output: Any, batch: Batch) -> Tensor:  # noqa: ANN401 - whatever a model gives
    loss = getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        msg = "`loss` must be given where the model's output has none; labels may be missing."
        raise TypeError(msg)
    return loss * _num_examples(batch)


def _num_examples(batch: Batch) -> int:
    """Return the length of a batch's first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    values = batch.values() if isinstance(batch, Mapping) else batch
    return len(next(each for each in values if isinstance(each, Tensor) and each.ndim))
