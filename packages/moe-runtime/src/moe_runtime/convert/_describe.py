"""What a feed-forward layer consists of, and whether a mixture can take its place.

Axes: T rows, D input features, H hidden units.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from torch.nn.modules.dropout import _DropoutNd

from moe_runtime._activations import ACTIVATIONS
from moe_runtime.convert._calls import Call
from moe_runtime.convert._linear import Linear, as_linear, relative_error

# A function is tried on its own inputs and on larger ones, where a clipped one shows.
SCALES = (1.0, 8.0, 64.0)
# Relative error of two ways to compute the same in float32; on a GPU they may round to TF32.
SAME = 2e-3


class Parts(NamedTuple):
    """The linear maps of a layer and the activation between them."""

    activation: str
    up: str
    gate: str | None
    down: str
    transposed: bool

    @property
    def maps(self) -> list[str]:
        """Names of the linear maps that there are."""
        return [each for each in (self.up, self.gate, self.down) if each is not None]


@dataclass(frozen=True)
class FeedForward:
    """Where a dense feed-forward layer is in a model: linear maps around an activation.

    Attributes
    ----------
    name : str
        The smallest module that holds all of it.
    up, down : str
        The linear maps to the hidden units, and from them.
    gate : str or None
        The linear map whose activated output multiplies that of `up`, where there is one.
    activation : str
        As `moe_runtime.Experts` names it; a gated one where there is a gate.
    transposed : bool
        Whether weights are stored as (inputs, outputs).
    whole : bool
        Whether the module `name` computes this and nothing else.
    between : tuple of str
        Modules between the linear maps: the activation, and dropout.
    dropout, output_dropout : float
        Probability after the hidden units; and after all, where the module is replaced whole.
    obstacle : str or None
        Why it cannot be converted.
    """

    name: str
    up: str
    down: str
    gate: str | None
    activation: str
    transposed: bool
    whole: bool
    between: tuple[str, ...]
    dropout: float
    output_dropout: float
    obstacle: str | None = None


def describe(modules: dict[str, nn.Module], calls: dict[str, Call], parts: Parts) -> FeedForward:
    """Say what surrounds and separates the linear maps of a layer."""
    name = _common(parts.maps)
    hidden, output = calls[parts.down].input, calls[parts.down].output
    simple = [each for each in calls if _is_simple(modules, each, inside=name)]
    dropouts = [each for each in simple if isinstance(modules[each], nn.Dropout)]
    inner = [each for each in dropouts if _same(calls[each].input, hidden)]
    outer = [each for each in dropouts if _same(calls[each].input, output)]
    activations = [
        each for each in simple if each not in dropouts and _same(calls[each].output, hidden)
    ]
    whole = _is_whole(modules, calls, parts, name, [*inner, *outer])
    between = (*activations, *inner)
    return FeedForward(
        name,
        parts.up,
        parts.down,
        parts.gate,
        parts.activation,
        transposed=parts.transposed,
        whole=whole,
        between=between,
        dropout=_probability(modules, inner),
        output_dropout=_probability(modules, outer) if whole else 0.0,
        obstacle=_obstacle(modules, calls, parts, name, between, activations, whole=whole),
    )


def _is_whole(
    modules: dict[str, nn.Module],
    calls: dict[str, Call],
    parts: Parts,
    name: str,
    dropouts: list[str],
) -> bool:
    """Whether a module is the layer and nothing else, dropouts after it aside."""
    block, first, last = calls.get(name), calls[parts.up], calls[parts.down]
    if block is None or not (_same(block.input, first.input) and _same(block.output, last.output)):
        return False
    own = {id(each) for path in parts.maps for each in modules[path].parameters()}
    if any(id(each) not in own for each in modules[name].parameters()):
        return False  # a scale of its own, say, which may just be 1
    known = {modules[each] for each in dropouts if calls[each].count == block.count}
    return all(
        each in known for each in modules[name].modules() if isinstance(each, _DropoutNd) and each.p
    )


def _obstacle(
    modules: dict[str, nn.Module],
    calls: dict[str, Call],
    parts: Parts,
    name: str,
    between: tuple[str, ...],
    activations: list[str],
    *,
    whole: bool,
) -> str | None:
    """Say why a mixture cannot take the layer's place, if it cannot."""
    if whole and not name:
        return "it is the whole model; put it in a module, such as torch.nn.Sequential"
    needed = parts.maps
    if not whole:
        if parts.gate is not None:
            return "it is gated, and no module computes it and nothing else"
        if not activations:
            return (
                "its activation is no module of its own, and no module computes it and nothing else"
            )
        needed += between
    if len({calls[each].count for each in needed}) > 1:
        return "one of its modules is called elsewhere too"
    proven = (
        _computes(modules[name], modules, parts, calls[parts.up].input)
        if whole
        else all(_activates(modules[each], parts, calls[parts.up].output) for each in activations)
    )
    return (
        None if proven else "it is no exact feed-forward layer on other inputs: see its activation"
    )


@torch.no_grad()
def _computes(block: nn.Module, modules: dict[str, nn.Module], parts: Parts, x_TD: Tensor) -> bool:
    """Whether a module is the layer on larger inputs too, and in float32."""
    x_TD = torch.cat([scale * x_TD.float() for scale in SCALES])
    up, gate, down = linear_maps(modules, parts)
    activate = ACTIVATIONS[parts.activation].function
    hidden = _apply(up, x_TD)
    hidden = activate(hidden) if gate is None else activate(_apply(gate, x_TD)) * hidden
    again = copy.deepcopy(block).float().eval()(x_TD.clone())
    return relative_error(again, _apply(down, hidden)) <= SAME


def linear_maps(
    modules: Mapping[str, nn.Module], layer: Parts | FeedForward
) -> tuple[Linear, Linear | None, Linear]:
    """Return the parameters of a layer's maps: up, gate and down."""
    up, gate, down = (
        None if path is None else as_linear(modules[path], transposed=layer.transposed)
        for path in (layer.up, layer.gate, layer.down)
    )
    assert up is not None
    assert down is not None
    return up, gate, down


def _apply(linear: Linear, x: Tensor) -> Tensor:
    bias = None if linear.bias is None else linear.bias.float()
    return F.linear(x, linear.weight.float(), bias)


@torch.no_grad()
def _activates(module: nn.Module, parts: Parts, hidden: Tensor) -> bool:
    """Whether a module is the activation on larger inputs too, and in float32."""
    hidden = torch.cat([scale * hidden.float() for scale in SCALES])
    again = copy.deepcopy(module).float().eval()(hidden.clone())
    return relative_error(again, ACTIVATIONS[parts.activation].function(hidden)) <= SAME


def _is_simple(modules: dict[str, nn.Module], name: str, *, inside: str) -> bool:
    """Whether a module within another has neither parameters nor modules of its own."""
    parts = [*modules[name].children(), *modules[name].parameters()]
    return not parts and name.startswith(f"{inside}." if inside else "")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _probability(modules: dict[str, nn.Module], dropouts: list[str]) -> float:
    """Return with which probability one of these dropouts, or another, zeroes a feature."""
    dropped = 0.0
    for name in dropouts:
        dropout = modules[name]
        assert isinstance(dropout, nn.Dropout)
        dropped += dropout.p - dropped * dropout.p
    return dropped


def _common(names: list[str]) -> str:
    """Return the name of the smallest module that holds all of these."""
    paths = [name.split(".")[:-1] for name in names]
    shared = []
    for steps in zip(*paths, strict=False):
        if len(set(steps)) > 1:
            break
        shared.append(steps[0])
    return ".".join(shared)
