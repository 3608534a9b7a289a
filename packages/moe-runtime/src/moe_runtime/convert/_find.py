"""Feed-forward layers of any model, found by what they compute.

Axes: T rows, D input features, H hidden units.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import permutations

import torch
from torch import Tensor, nn

from moe_runtime._activations import ACTIVATIONS, GATED
from moe_runtime._checks import check_type
from moe_runtime._modes import evaluating
from moe_runtime.convert._calls import Batch, Call, record_calls, record_training
from moe_runtime.convert._describe import FeedForward, Parts, describe
from moe_runtime.convert._linear import linear_layout, relative_error
from moe_runtime.convert._pytorch import running_modules

# Maps to the hidden units that are tried, the last ones before the map back.
NUM_TRIED = 4


def find_feed_forwards(model: nn.Module, batch: Batch, *, names: str = "*") -> list[FeedForward]:
    """List the dense feed-forward layers of a model: those whose output is as wide as their input.

    The model is run once as it evaluates, and once as it trains. What counts is what its modules
    compute, not what they are called: two linear maps, of any class, with one of the experts'
    activations between them, gated or not.

    Parameters
    ----------
    model
        The model; it is left as it was.
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
    check_type("names", names, str, "a pattern of names, such as '*.layer.[0-5]'")
    check_type("batch", batch, (Tensor, tuple, Mapping), "a dict of arguments, a tuple or a tensor")
    with running_modules(model):
        return [each for each in _find(model, batch) if fnmatchcase(each.name, names)]


def _find(model: nn.Module, batch: Batch) -> list[FeedForward]:
    with evaluating(model):
        calls = record_calls(model, batch)
    modules = dict(model.named_modules())
    layouts = {name: linear_layout(modules[name], call) for name, call in calls.items()}
    maps = [name for name, transposed in layouts.items() if transposed is not None]
    found = []
    for down in maps:
        before = [each for each in maps if calls[each].order < calls[down].order]
        parts = _lead_to(calls, calls[down], before)
        if parts is not None:
            found.append(describe(modules, calls, Parts(*parts, down, bool(layouts[down]))))
    in_training = record_training(model, batch) if found else {}
    return [_checked_in_training(each, in_training) for each in _named_apart(found)]


def _lead_to(
    calls: dict[str, Call], down: Call, before: list[str]
) -> tuple[str, str, str | None] | None:
    """Activation, map up and gate that give what the map down was given; None if none do."""
    if not down.input.any() or not down.input.isfinite().all():
        return None  # which would prove nothing
    fits = [
        name
        for name in reversed(before)  # the nearest first: it is taken where several give the same
        if calls[name].output.shape == down.input.shape
        and calls[name].input.shape == down.output.shape
    ][:NUM_TRIED]
    errors: dict[tuple[str, str, str | None], float] = {}
    for activation in ACTIVATIONS:
        if activation == "identity":
            continue  # which the values of attention are, for one token
        if activation not in GATED:
            pairs: list[tuple[str, str | None]] = [(up, None) for up in fits]
        else:
            pairs = [
                (up, gate)
                for gate, up in permutations(fits, 2)
                if torch.equal(calls[gate].input, calls[up].input)
            ]
        for up, gate in pairs:
            hidden = _hidden(calls, activation, up, gate, down.input.dtype)
            errors[activation, up, gate] = relative_error(hidden, down.input)
    # In its own precision a function gives its own values to the bit; the bound is on rounding.
    best = min(errors, key=lambda parts: errors[parts], default=None)
    return best if best is not None and _is_rounding(calls, best, down) else None


def _hidden(
    calls: dict[str, Call], activation: str, up: str, gate: str | None, dtype: torch.dtype
) -> Tensor:
    """Compute hidden units from what the maps gave."""
    function = ACTIVATIONS[activation].function
    given = calls[up].output.to(dtype)
    return function(given) if gate is None else function(calls[gate].output.to(dtype)) * given


def _is_rounding(calls: dict[str, Call], parts: tuple[str, str, str | None], down: Call) -> bool:
    """Whether hidden units differ by rounding: of the result in half precision, else of all."""
    eps = torch.finfo(down.input.dtype).eps
    allowed = eps if down.input.element_size() == 2 else 16 * eps
    return relative_error(_hidden(calls, *parts, torch.float64), down.input) <= allowed


def _named_apart(found: list[FeedForward]) -> list[FeedForward]:
    """Name layers that one module holds, all the same, by their first map."""
    count = Counter(each.name for each in found)
    return [replace(each, name=each.up) if count[each.name] > 1 else each for each in found]


def _checked_in_training(found: FeedForward, calls: dict[str, Call]) -> FeedForward:
    """Refuse a layer in which training does what no module shows, as `dropout` of BART."""
    up, down = calls.get(found.up), calls.get(found.down)
    if found.obstacle is not None or up is None or down is None:
        return found
    same = _is_rounding(calls, (found.activation, found.up, found.gate), down)
    if found.whole:
        block = calls[found.name]
        same &= torch.equal(block.input, up.input) and torch.equal(block.output, down.output)
    if same:
        return found
    return replace(found, obstacle="training changes its states, and by no torch.nn.Dropout")
