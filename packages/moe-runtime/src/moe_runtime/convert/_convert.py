"""A dense model's feed-forward layers become mixtures.

Axes: D input features, O output features, E experts, H hidden units, U those of an expert.
"""

from collections.abc import Callable
from contextlib import ExitStack
from inspect import signature

import torch
from torch import Tensor, nn

from moe_runtime._activations import ACTIVATIONS
from moe_runtime._checks import check_type
from moe_runtime._experts import Experts, StackedLinear
from moe_runtime._hash_router import HashRouter
from moe_runtime._mixture import MixtureOfExperts, check_kernel
from moe_runtime._modes import evaluating
from moe_runtime._router import Router
from moe_runtime.convert._calls import Batch, run_model, told_apart
from moe_runtime.convert._describe import FeedForward, linear_maps
from moe_runtime.convert._find import find_feed_forwards
from moe_runtime.convert._layer import converted_layers, replace
from moe_runtime.convert._linear import Linear, relative_error
from moe_runtime.convert._pytorch import run_modules
from moe_runtime.convert._report import (
    ConversionReport,
    compare_layer,
    first_output,
    mean_weight_sum,
    run_dense_model,
)
from moe_runtime.convert._settings import note_settings
from moe_runtime.convert._split import DenseLayer, Split
from moe_runtime.convert._tokens import Tokens

# Sums of weights that differ from 1 by less are 1, in half precision.
ROUNDING = 0.01


def convert(
    model: nn.Module,
    batch: Batch,
    *,
    router: Callable[[int], Router],
    split: Split,
    names: str = "*",
    kernel: str = "auto",
    mask_argument: str | None = "attention_mask",
    ids_argument: str | None = "input_ids",
) -> ConversionReport:
    """Replace a model's dense feed-forward layers by mixtures of parts of them, in place.

    The model keeps its class, its methods and what surrounds the layers, dropout included. In
    training mode, a loss that it gives (``output.loss``, as models of transformers do) has the
    routers' penalty in it; elsewhere, add `penalty`. Padding is left out of routing. Where a
    token's weights do not sum to 1, as those of Switch, experts' outputs are scaled to begin with.

    Parameters
    ----------
    model
        The dense model, of any class: layers are found as `find_feed_forwards` does.
    batch
        A few rows of real inputs, which the report compares both models on.
    router
        Called for each layer with its number of input features D: a new router for it. A
        `HashRouter` reads the tokens' ids.
    split
        Which hidden units each expert gets: `ImportanceSplit`, `KMeansSplit`, `RandomSplit`,
        `CopySplit`, or one's own.
    names
        Pattern of the layers' names, as a shell has them: ``"*.layer.[0-5]"``.
    kernel
        As in `moe_runtime.MixtureOfExperts`.
    mask_argument, ids_argument
        Arguments of the model's ``forward`` that hold the padding mask (1 where a token counts)
        and the tokens' ids, both (B, S); None where there are none. A model that is converted
        in several calls keeps those of the first.

    Returns
    -------
    ConversionReport
        Layer by layer, how far the mixture is from what it replaced; as text, a table.

    Raises
    ------
    ValueError
        If no layer is found, one cannot be replaced, or a split does not fit. The
        model is then as it was.

    Examples
    --------
    >>> import torch, moe_runtime
    >>> from moe_runtime.convert import RandomSplit, convert
    >>> block = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 4))
    >>> model = torch.nn.Sequential(torch.nn.LayerNorm(4), block)
    >>> router = lambda dim: moe_runtime.CometRouter(dim, 4, k=1)
    >>> report = convert(model, torch.randn(9, 4), router=router, split=RandomSplit())
    >>> report.layers[0].name, report.layers[0].hidden_units, report.layers[0].expert_units
    ('1', 8, 2)
    """
    _check_arguments(router, split)
    _check_names(model, mask_argument=mask_argument, ids_argument=ids_argument)
    check_kernel(kernel)
    found = _convertible(model, batch, names)
    batch = told_apart(model, batch)
    before = converted_layers(model)
    tokens = before[0].tokens if before else Tokens(mask_argument, ids_argument)
    num_parameters = _count_parameters(model)
    with ExitStack() as undo:
        undo.callback(run_modules(model))
        undo.callback(tokens.watch(model))
        modules = dict(model.named_modules())
        dense_layers = []
        for each in found:
            up, gate, down = linear_maps(modules, each)
            dense_layers.append(DenseLayer(each.name, up, down, gate))
        routers = [router(dense.up.weight.shape[1]) for dense in dense_layers]
        _check_routers(routers)
        dense_output, mask, rows = run_dense_model(
            model,
            batch,
            found,
            tokens,
            need_ids=any(isinstance(each, HashRouter) for each in routers),
        )
        layers = []
        for each, dense, made in zip(found, dense_layers, routers, strict=True):
            mixture, units_EU = _mixture(dense, each, made, split, kernel)
            given = rows[each.name]
            scale = _scale_outputs(mixture, mean_weight_sum(mixture, given))
            layers.append(compare_layer(mixture, dense, units_EU, scale, given))
            undo.callback(replace(model, each, mixture, tokens))
        with torch.no_grad(), evaluating(model):
            sparse_output = first_output(run_model(model, batch))
        tokens.penalties = []
        note_settings(model)
        undo.pop_all()
    return ConversionReport(
        layers=tuple(layers),
        output_error=relative_error(
            *(_counted(output, mask) for output in (sparse_output, dense_output))
        ),
        num_tokens=len(rows[found[0].name].x_TD),
        num_parameters=_count_parameters(model),
        num_parameters_before=num_parameters,
    )


def _check_arguments(router: object, split: object) -> None:
    """Refuse what no mixture can be made with."""
    is_function = callable(router) and not isinstance(router, nn.Module)
    if not is_function:
        msg = (
            "`router` must be a function of the number of features that makes a router, got "
            f"{type(router).__name__}."
        )
        raise TypeError(msg)
    if isinstance(split, type) or not callable(getattr(split, "hidden_units", None)):
        msg = f"`split` must be a split, such as RandomSplit(), got {split!r}."
        raise TypeError(msg)


def _check_names(model: nn.Module, **arguments: str | None) -> None:
    """Refuse names that no module of the model knows; those that are usual may be missing."""
    known = {
        parameter for each in model.modules() for parameter in signature(each.forward).parameters
    }
    for name, argument in arguments.items():
        usual = signature(convert).parameters[name].default
        if argument not in (None, usual) and argument not in known:
            msg = f"`{name}` must name an argument of the model's `forward`, got {argument!r}."
            raise ValueError(msg)


def _check_routers(routers: list[Router]) -> None:
    """Refuse what are no routers, and one for several layers."""
    for each in routers:
        check_type("router(dim)", each, Router, "a Router")
    if len(set(routers)) < len(routers):
        msg = "`router` must make a new router for each layer, got one for several."
        raise ValueError(msg)


def _convertible(model: nn.Module, batch: Batch, names: str) -> list[FeedForward]:
    """Find the layers, and refuse if there are none or some cannot be replaced."""
    found = find_feed_forwards(model, batch, names=names)
    if not found:
        every = [each.name for each in find_feed_forwards(model, batch)]
        if every:
            msg = f"`names` must name feed-forward layers of the model, {every}, got {names!r}."
            raise ValueError(msg)
        already = " It has been converted already." if converted_layers(model) else ""
        known = sorted(set(ACTIVATIONS) - {"identity"})
        msg = (
            "`model` must have dense feed-forward layers, none was found in `batch`'s run, which "
            "needs a row at least and finite states: two "
            "linear maps, or three with a gate, without adapters or parametrizations, with one of "
            f"{known} between them, as wide at the end as at the start.{already}"
        )
        raise ValueError(msg)
    for each in found:
        if each.obstacle is not None:
            msg = f"`model` has a feed-forward layer that cannot be replaced, {each.name!r}: "
            raise ValueError(msg + each.obstacle + ".")
    return found


def _mixture(
    dense: DenseLayer, found: FeedForward, router: Router, split: Split, kernel: str
) -> tuple[MixtureOfExperts, Tensor]:
    """Make a mixture of parts of a dense layer; also returns the hidden units of each (E, U)."""
    units_EU = split.hidden_units(dense, router.num_experts)
    _check_units(units_EU, dense, router.num_experts)
    weight = dense.up.weight
    widths = (weight.shape[1], units_EU.shape[1], dense.down.weight.shape[0])
    parts = [dense.up, dense.down, *([] if dense.gate is None else [dense.gate])]
    # Without the time for initial values, which are overwritten.
    with torch.device("meta"):
        experts = Experts(
            router.num_experts,
            widths,
            activation=found.activation,
            bias=any(part.bias is not None for part in parts),
            dropout=found.dropout,
        )
    experts = experts.to(weight.dtype).to_empty(device=weight.device)
    into, out = experts.layers
    assert isinstance(into, StackedLinear)
    assert isinstance(out, StackedLinear)
    with torch.no_grad():
        # Of a gated layer, the first rows are the gate's.
        maps = [dense.up] if dense.gate is None else [dense.gate, dense.up]
        into.weight.copy_(torch.cat([part.weight[units_EU] for part in maps], 1))
        out.weight.copy_(dense.down.weight[:, units_EU].transpose(0, 1))
        if into.bias is not None and out.bias is not None:
            into.bias.copy_(torch.cat([_bias(part)[units_EU] for part in maps], 1))
            out.bias.copy_(_bias(dense.down).expand_as(out.bias))
    experts.requires_grad_(dense.up.is_trained)
    router = router.to(weight.device, weight.dtype)
    return MixtureOfExperts(router, experts, kernel=kernel), units_EU


@torch.no_grad()
def _scale_outputs(mixture: MixtureOfExperts, weight_sum: float) -> float:
    """Scale the experts' outputs so that the mixture starts as large as the layer; returns how.

    Weights of a softmax over all experts, of which the largest are kept, sum to far less than 1.
    Source: He et al., "Upcycling Large Language Models into Mixture of Experts",
    arXiv:2410.07524, weight scaling; here by the measured sum.
    """
    if abs(weight_sum - 1) <= ROUNDING or not weight_sum > ROUNDING:
        return 1.0
    assert isinstance(mixture.experts, Experts)
    for parameter in mixture.experts.layers[-1].parameters():
        parameter.div_(weight_sum)
    return 1 / weight_sum


def _bias(part: Linear) -> Tensor:
    return part.weight.new_zeros(part.weight.shape[0]) if part.bias is None else part.bias


def _check_units(units_EU: Tensor, dense: DenseLayer, num_experts: int) -> None:
    """Refuse what is no choice of hidden units for each expert."""
    check_type("split.hidden_units(...)", units_EU, Tensor, "a torch.Tensor")
    fits = units_EU.ndim == 2 and units_EU.shape[0] == num_experts and units_EU.shape[1] > 0
    if not fits or units_EU.dtype not in (torch.int32, torch.int64):
        msg = (
            f"`split.hidden_units(...)` must be integers of shape (num_experts={num_experts}, U), "
            f"got {units_EU.dtype} of shape {tuple(units_EU.shape)}."
        )
        raise ValueError(msg)
    low, high = map(int, units_EU.aminmax())
    if low < 0 or high >= dense.num_hidden:
        msg = (
            f"`split.hidden_units(...)` must be in [0, {dense.num_hidden}) for {dense.name!r}, got "
            f"{low}..{high}."
        )
        raise ValueError(msg)


def _counted(output: Tensor, mask: Tensor | None) -> Tensor:
    """Leave padding out of a model's output, where that is for each token."""
    each_token = mask is not None and output.shape[: mask.ndim] == mask.shape
    return output[mask] if each_token else output


def _count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
