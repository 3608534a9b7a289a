"""How far a converted model is from the dense one.

Axes: T rows, D input features, O output features, E experts.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from moe_runtime._mixture import MixtureOfExperts, MixtureOutput
from moe_runtime._modes import evaluating
from moe_runtime.convert._calls import Batch, run_model
from moe_runtime.convert._describe import FeedForward
from moe_runtime.convert._layer import reads_ids
from moe_runtime.convert._linear import relative_error
from moe_runtime.convert._split import DenseLayer
from moe_runtime.convert._tokens import Tokens

# Tokens that each layer is compared on, at most.
NUM_TOKENS = 1024


@dataclass(frozen=True)
class LayerDifference:
    """A mixture beside the dense layer whose place it has, on the dense model's hidden states.

    Attributes
    ----------
    name : str
        Of the feed-forward layer.
    hidden_units, expert_units : int
        Of the dense layer, and of each expert.
    kept : float
        Share of the dense layer's hidden units that are in some expert.
    scale : float
        What the experts' outputs were multiplied by: 1 where a token's weights sum to 1, and
        otherwise what brings their sum to 1 on average, as the router is now.
    error : float
        Norm of the difference of the outputs over that of the dense one, as the router is now.
    experts_per_token : float
        Mean number of experts with a weight.
    load : tuple of float
        Share of the tokens that use each expert.
    all_experts_error : float or None
        The same error with all experts on and weights 1, where each hidden unit is in one expert:
        rounding alone.
    """

    name: str
    hidden_units: int
    expert_units: int
    kept: float
    scale: float
    error: float
    experts_per_token: float
    load: tuple[float, ...]
    all_experts_error: float | None


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion changed; ``str`` of it is a table.

    Attributes
    ----------
    layers : tuple of LayerDifference
        The layers that were replaced, in the order in which they run.
    output_error : float
        Norm of the difference of the model's outputs over that of the dense one's.
    num_tokens : int
        Tokens that each layer was compared on, without padding.
    num_parameters, num_parameters_before : int
        Of the model.
    """

    layers: tuple[LayerDifference, ...]
    output_error: float
    num_tokens: int
    num_parameters: int
    num_parameters_before: int

    def __str__(self) -> str:
        """Return a table, a layer a line."""
        head = (
            "layer", "hidden", "an expert", "kept", "scale", "experts a token", "error", "all on",
        )  # fmt: skip
        lines = [head, *(_line(each) for each in self.layers)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        table = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in lines
        ]
        summary = (
            f"errors are relative, on {self.num_tokens} tokens; that of the model's output is "
            f"{self.output_error:.3g}"
        )
        change = f"{self.num_parameters_before:,} parameters became {self.num_parameters:,}"
        return "\n".join([*table, summary, change])


def _line(layer: LayerDifference) -> tuple[str, ...]:
    every = layer.all_experts_error
    return (
        layer.name,
        f"{layer.hidden_units}",
        f"{layer.expert_units}",
        f"{layer.kept:.0%}",
        f"{layer.scale:.3g}",
        f"{layer.experts_per_token:.3g}",
        f"{layer.error:.3g}",
        "-" if every is None else f"{every:.1g}",
    )


@dataclass
class Rows:
    """What a dense layer was given and gave, without padding."""

    x_TD: Tensor
    ids_T: Tensor | None
    output_TO: Tensor


@torch.no_grad()
def run_dense_model(
    model: nn.Module,
    batch: Batch,
    found: Iterable[FeedForward],
    tokens: Tokens,
    *,
    need_ids: bool,
) -> tuple[Tensor, Tensor | None, dict[str, Rows]]:
    """Run the dense model; return its output, the last layer's mask, and rows of each layer."""
    mask: Tensor | None = None
    given: dict[str, tuple[Tensor, Tensor | None]] = {}
    gave: dict[str, Tensor] = {}

    def keep_given(name: str, _module: nn.Module, args: tuple[Tensor], _output: Tensor) -> None:
        nonlocal mask
        (x,) = args
        mask = tokens.mask_for(x)
        ids = tokens.ids_required(x) if need_ids else None
        ids = None if ids is None else _some_rows(ids[..., None], x, tokens)[:, 0]
        given.setdefault(name, (_some_rows(x, x, tokens), ids))

    def keep_gave(name: str, _module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        gave.setdefault(name, _some_rows(output, args[0], tokens))

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for each in found:
            for path, keep in ((each.up, keep_given), (each.down, keep_gave)):
                hook = partial(keep, each.name)
                stack.callback(model.get_submodule(path).register_forward_hook(hook).remove)
        output = first_output(run_model(model, batch))
    return output, mask, {name: Rows(*given[name], gave[name]) for name in given}


def _some_rows(values: Tensor, x: Tensor, tokens: Tokens) -> Tensor:
    """Return the first rows of values (B, S, ...) whose tokens are no padding."""
    mask = tokens.mask_for(x)
    rows = values.reshape(-1, values.shape[-1]) if mask is None else values[mask]
    return rows[:NUM_TOKENS].clone()


def first_output(output: object) -> Tensor:
    """Return the first tensor with features of what a model gave: a loss has none."""
    values = output.values() if isinstance(output, Mapping) else output
    candidates = (
        values if isinstance(values, Iterable) and not isinstance(values, Tensor) else [values]
    )
    for each in candidates:
        if isinstance(each, Tensor) and each.is_floating_point() and each.ndim:
            return each
    msg = f"`model` must give a tensor (B, ...), alone or in a dict or tuple, got {type(output)}."
    raise TypeError(msg)


@torch.no_grad()
def mean_weight_sum(mixture: MixtureOfExperts, rows: Rows) -> float:
    """Return the mean sum of a token's weights, as the router is now."""
    return float(_run(mixture, rows).weights.double().sum(-1).mean())


@torch.no_grad()
def compare_layer(
    mixture: MixtureOfExperts, layer: DenseLayer, units_EU: Tensor, scale: float, rows: Rows
) -> LayerDifference:
    """Run a mixture on what the dense layer was given."""
    mixed = _run(mixture, rows)
    used_TE = mixed.weights != 0
    return LayerDifference(
        name=layer.name,
        hidden_units=layer.num_hidden,
        expert_units=units_EU.shape[1],
        kept=len(set(units_EU.flatten().tolist())) / layer.num_hidden,
        scale=scale,
        error=relative_error(mixed.output, rows.output_TO),
        experts_per_token=float(used_TE.sum(-1).double().mean()),
        load=tuple(used_TE.double().mean(0).tolist()),
        all_experts_error=_all_experts_error(mixture, layer, units_EU, scale, rows),
    )


def _run(mixture: MixtureOfExperts, rows: Rows) -> MixtureOutput:
    with evaluating(mixture):
        mixed: MixtureOutput = mixture(rows.x_TD, rows.ids_T if reads_ids(mixture) else None)
    return mixed


def _all_experts_error(
    mixture: MixtureOfExperts, layer: DenseLayer, units_EU: Tensor, scale: float, rows: Rows
) -> float | None:
    """Return the error of the sum of all experts, where that is the dense layer."""
    if not torch.equal(units_EU.flatten().sort().values, torch.arange(layer.num_hidden)):
        return None
    with evaluating(mixture):
        total_TO = mixture.experts.every(rows.x_TD).sum(0) / scale
    if layer.down.bias is not None:  # which each expert adds
        total_TO -= (mixture.experts.num_experts - 1) * layer.down.bias
    return relative_error(total_TO, rows.output_TO)
