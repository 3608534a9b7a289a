"""Trace a model and prepare its verification: what `export` does once its arguments are right."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_runtime._expert_set import ExpertSet
from moe_runtime._mixture import MultiGateMixtureOfExperts
from moe_runtime._modes import evaluating
from moe_runtime._router import hard_routing
from moe_runtime.onnx._bfloat16 import widened, without_bfloat16
from moe_runtime.onnx._decided import decided_rows
from moe_runtime.onnx._difference import BATCH_SIZES, SMALLEST_BATCH
from moe_runtime.onnx._errors import ExportError
from moe_runtime.onnx._files import EXTERNAL_BYTES, save_model, staged
from moe_runtime.onnx._finish import Work, finish, verify_mixtures
from moe_runtime.onnx._folder import CANONICAL_FILE
from moe_runtime.onnx._info import batch_dependent, describe
from moe_runtime.onnx._lower import MODULES, check_target
from moe_runtime.onnx._modules import inline, module_mixture, module_nodes
from moe_runtime.onnx._trace import BATCH, trace
from moe_runtime.onnx._verification import Change, Verification
from moe_runtime.onnx._verify import Case, mix, verify_mixture

logger = logging.getLogger("moe_runtime.onnx")
# Batches that are verified once more, at half the size of every other dynamic axis.
HALVED_BATCHES = (1, 7)
# Rows that are kept beside the model, to verify it by elsewhere.
MAX_EXAMPLES = 512


class Request(NamedTuple):
    """What is asked for."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    target: str
    tolerance: float | None
    dynamic_axes: Mapping[str, Mapping[int, str]]
    hard: bool
    canonical: bool


class _Reference(NamedTuple):
    """The PyTorch model, called as the exported one will be."""

    model: nn.Module
    request: Request

    def __call__(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Answers by the names of the outputs."""
        outputs = _listed(self.model(*inputs))
        names = self.request.output_names
        if len(outputs) != len(names):
            msg = f"`output_names` must name each of the {len(outputs)} outputs, got {list(names)}."
            raise ValueError(msg)
        for name, output in zip(names, outputs, strict=True):
            if output.dtype is torch.bfloat16:
                msg = (
                    f"`model` must not give out bfloat16, which NumPy has not, got {name!r}: "
                    "convert it to float32, and leave autocast out of what is exported."
                )
                raise ValueError(msg)
        return dict(zip(names, outputs, strict=True))

    def case(self, inputs: Sequence[Tensor]) -> Case:
        """Return inputs and answers as arrays."""
        names = self.request.input_names
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return Case(given, {name: value.numpy() for name, value in self(inputs).items()})


def _listed(outputs: object) -> Sequence[Tensor]:
    """Return what a model has answered as a sequence of tensors, or refuse it."""
    if isinstance(outputs, Tensor):
        return (outputs,)
    found = type(outputs).__name__
    if isinstance(outputs, Sequence):
        if all(isinstance(output, Tensor) for output in outputs):
            return outputs
        found = f"a {found} of {', '.join(type(output).__name__ for output in outputs)}"
    msg = f"`model` must return a tensor or a sequence of tensors, got {found}."
    raise TypeError(msg)


def write_export(
    given: nn.Module, example_inputs: Sequence[Tensor], folder: Path, request: Request
) -> Verification:
    """Write an export, or nothing."""
    model = without_bfloat16(given)
    reference = _Reference(model, request)
    inputs = [widened(example) for example in example_inputs]
    with staged(folder) as stage, evaluating(model), torch.no_grad():
        soft = reference(inputs)
        _check_numbers(soft, folder)
        with hard_routing(model) if request.hard else nullcontext():
            decided = _decided_inputs(model, inputs, folder)
            logger.info("tracing the model")
            shapes = _dynamic_shapes(request)
            traced = trace(model, inputs, request.input_names, request.output_names, shapes)
            info = describe(model, given, traced)
            info["stored_as_bfloat16"] = model is not given
            errors = _expand_modules(model, traced)
            check_target(traced, request.target)
            cases = _cases(reference, decided)
            info["batch_dependent"] = batch_dependent(cases, info["outputs"])
            info[SMALLEST_BATCH] = min(len(next(iter(case.inputs.values()))) for case in cases)
            if request.canonical:
                save_model(traced, stage / CANONICAL_FILE)
            work = Work(
                target=request.target,
                tolerance=request.tolerance,
                info=info,
                mixture_errors=errors + verify_mixtures(traced, request.target),
                num_undecided=inputs[0].shape[0] - decided[0].shape[0],
                hardening=_changes(soft, reference(inputs)) if request.hard else {},
                cases=cases,
                examples=reference.case([each[:MAX_EXAMPLES] for each in decided]),
            )
            return finish(stage, traced, work)


def _check_numbers(answers: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse a model whose own answers verify nothing; infinities are answers."""
    wrong = {
        name: int(answer.isnan().sum())
        for name, answer in answers.items()
        if answer.is_floating_point() and answer.isnan().any()
    }
    if wrong:
        msg = (
            "`model` must answer `example_inputs` with numbers, PyTorch gives NaN, by output: "
            f"{wrong}; nothing was written to {folder}."
        )
        raise ExportError(msg)


def _decided_inputs(model: nn.Module, inputs: Sequence[Tensor], folder: Path) -> list[Tensor]:
    decided = decided_rows(model, inputs)
    if not decided.any():
        msg = (
            f"none of the {len(decided)} rows of `example_inputs` can verify the model: rounding "
            f"alone changes which experts each of them uses. Nothing was written to {folder}."
        )
        raise ExportError(msg)
    return [example[decided] for example in inputs]


def _dynamic_shapes(request: Request) -> list[dict[int, torch.export.Dim]]:
    labels = {label for axes in request.dynamic_axes.values() for label in axes.values()}
    named = {label: torch.export.Dim(label) for label in (BATCH, *sorted(labels))}
    return [
        {0: named[BATCH]}
        | {axis: named[label] for axis, label in request.dynamic_axes.get(name, {}).items()}
        for name in request.input_names
    ]


def _expand_modules(model: nn.Module, traced: ir.Model) -> list[float]:
    """Put the user's modules into the place of their opaque nodes; return each one's error."""
    errors, names = [], []
    nodes = module_nodes(traced)
    for index, node in enumerate(nodes):
        name = node.attributes["name"].as_string()
        mixture = model.get_submodule(name)
        if not isinstance(mixture, MultiGateMixtureOfExperts):
            msg = (
                "`model` must call a mixture whose experts are modules as `mixture(x)`, not as "
                f"`mixture.forward(x)`, to be exported: {name or 'the model itself'} does."
            )
            raise ValueError(msg)  # noqa: TRY004 - the call is wrong, not a type
        experts = mixture.experts
        logger.info("exporting the modules of mixture %d of %d, %s", index + 1, len(nodes), name)
        alone = module_mixture(experts, node)
        errors.append(verify_mixture(alone, _reference_of(experts)))
        inline(traced.graph, node, alone, f"module_mixture_{index}")
        names.append(name)
    if names:
        traced.metadata_props[MODULES] = json.dumps(names)
    return errors


def _reference_of(experts: ExpertSet) -> Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]:
    """Return a mixture of the user's modules, run as they are."""

    def run_expert(expert: int, x_RD: NDArray[Any]) -> NDArray[Any]:
        y_RO: NDArray[Any] = experts.one(expert, torch.from_numpy(x_RD)).numpy()
        return y_RO

    return lambda x, gates: mix(x, gates, run_expert, experts.out_features)


def _cases(reference: _Reference, examples: Sequence[Tensor]) -> list[Case]:
    """Make batches of all sizes of the example rows, in turn.

    What many rows of a large model need comes on top of the model itself, and takes long: there
    each mixture alone has them, and the whole model fewer.
    """
    weights = (*reference.model.parameters(), *reference.model.buffers())
    is_large = sum(each.numel() * each.element_size() for each in weights) >= EXTERNAL_BYTES
    cases = []
    for size in BATCH_SIZES[:-1] if is_large else BATCH_SIZES:
        rows = torch.arange(size) % examples[0].shape[0]
        try:
            cases.append(reference.case([example[rows] for example in examples]))
        except RuntimeError:
            if size:
                raise
            # As models of transformers do, which reshape to "what is left".
            logger.info("the model itself refuses a batch of no rows: its export is not shown one")
    if reference.request.dynamic_axes:
        halved = _halved(examples, reference.request)
        # What other rows are beside it may decide otherwise in a shorter input.
        decided = decided_rows(reference.model, halved)
        halved = [example[decided] for example in halved]
        cases += [reference.case([each[:size] for each in halved]) for size in HALVED_BATCHES]
    return cases


def _halved(examples: Sequence[Tensor], request: Request) -> list[Tensor]:
    halved = []
    for name, example in zip(request.input_names, examples, strict=True):
        axes = request.dynamic_axes.get(name, {})
        index = [
            slice(max(1, size // 2)) if axis in axes else slice(None)
            for axis, size in enumerate(example.shape)
        ]
        halved.append(example[tuple(index)])
    return halved


def _changes(soft: Mapping[str, Tensor], hard: Mapping[str, Tensor]) -> dict[str, Change]:
    """Measure what hard routing changed in each floating output."""
    changes = {}
    for name, before in soft.items():
        if before.is_floating_point():
            apart = hard[name].double() - before.double()
            whole = float(before.double().square().mean().sqrt())
            moved = float(apart.square().mean().sqrt())
            largest = float(apart.abs().max()) if apart.numel() else 0.0
            changes[name] = Change(moved / whole if whole else moved, largest)
    return changes
