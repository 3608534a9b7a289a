"""Feed-forward layers of any model, found by what they compute.

Axes: T rows, D input features, H hidden units.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import permutations

import torch
from torch import Tensor, nn

from moe_runtime._activations import ACTIVATIONS, GATED
from moe_runtime._checks import check_type
from moe_runtime.convert._calls import Batch, Call, record_calls
from moe_runtime.convert._linear import linear_layout, relative_error

# Maps to the hidden units that are tried, the last ones before the map back.
NUM_TRIED = 4


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


def find_feed_forwards(model: nn.Module, batch: Batch, *, names: str = "*") -> list[FeedForward]:
    """List the dense feed-forward layers of a model: those whose output is as wide as their input.

    The model is run once. What counts is what its modules compute, not what they are called: two
    linear maps, of any class, with one of the experts' activations between them, gated or not.

    Parameters
    ----------
    model
        The model; it is run in evaluation mode and left as it was.
    batch
        Inputs: a dict of keyword arguments, as tokenizers give, a tuple, or one tensor.
    names
        Pattern of the names that count, as a shell has them: ``"*.layer.[0-5]"``.

    Examples
    --------
    >>> import torch
    >>> from moe_runtime.convert import find_feed_forwards
    >>> block = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 4))
    >>> model = torch.nn.Sequential(torch.nn.LayerNorm(4), block)
    >>> [(layer.name, layer.activation) for layer in find_feed_forwards(model, torch.randn(9, 4))]
    [('1', 'gelu')]
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    calls = record_calls(model, batch)
    modules = dict(model.named_modules())
    layouts = {name: linear_layout(modules[name], call) for name, call in calls.items()}
    maps = [name for name, transposed in layouts.items() if transposed is not None]
    found = []
    for down in maps:
        before = [each for each in maps if calls[each].order < calls[down].order]
        parts = _lead_to(calls, calls[down], before)
        if parts is not None:
            transposed = layouts[down]
            assert transposed is not None
            found.append(_described(modules, calls, (*parts, down), transposed=transposed))
    return [each for each in found if fnmatchcase(each.name, names)]


def _lead_to(
    calls: dict[str, Call], down: Call, before: list[str]
) -> tuple[str, str, str | None] | None:
    """Activation, map up and gate that give what the map down was given; None if none do."""
    fits = [
        name
        for name in before
        if calls[name].output.shape == down.input.shape
        and calls[name].input.shape == down.output.shape
    ][-NUM_TRIED:]
    errors: dict[tuple[str, str, str | None], float] = {}
    for activation in ACTIVATIONS:
        if activation == "identity":
            continue  # which the values of attention are, for one token
        if activation not in GATED:
            for up in fits:
                hidden = activated(calls[up].output, activation)
                errors[activation, up, None] = relative_error(hidden, down.input)
            continue
        for gate, up in permutations(fits, 2):
            if torch.equal(calls[gate].input, calls[up].input):
                hidden = activated(calls[gate].output, activation) * calls[up].output
                errors[activation, up, gate] = relative_error(hidden, down.input)
    best = min(errors, key=lambda parts: errors[parts], default=None)
    allowed = 16 * torch.finfo(down.input.dtype).eps
    return best if best is not None and errors[best] <= allowed else None


def activated(hidden: Tensor, activation: str) -> Tensor:
    """Apply an activation, or what the gate of a gated one goes through."""
    return ACTIVATIONS[activation].function(hidden)


def _described(
    modules: dict[str, nn.Module],
    calls: dict[str, Call],
    parts: tuple[str, str, str | None, str],
    *,
    transposed: bool,
) -> FeedForward:
    activation, up, gate, down = parts
    name = _common([each for each in (up, gate, down) if each is not None])
    block, first, last = calls.get(name), calls[up], calls[down]
    whole = (
        block is not None and _same(block.input, first.input) and _same(block.output, last.output)
    )
    simple = [each for each in calls if _is_simple(modules, each, inside=name)]
    dropouts = [each for each in simple if isinstance(modules[each], nn.Dropout)]
    inner = [each for each in dropouts if _same(calls[each].input, last.input)]
    outer = [each for each in dropouts if _same(calls[each].input, last.output)]
    activations = [
        each for each in simple if each not in dropouts and _same(calls[each].output, last.input)
    ]
    obstacle = None
    if whole and not name:
        obstacle = "it is the whole model; put it in a module, such as torch.nn.Sequential"
    elif not whole and gate is not None:
        obstacle = "it is gated, and no module computes it and nothing else"
    elif not whole and not activations:
        obstacle = "its activation is no module, and no module computes it and nothing else"
    return FeedForward(
        name,
        up,
        down,
        gate,
        activation,
        transposed=transposed,
        whole=whole,
        between=(*activations, *inner),
        dropout=_probability(modules, inner),
        output_dropout=_probability(modules, outer) if whole else 0.0,
        obstacle=obstacle,
    )


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
