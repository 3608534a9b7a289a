"""The last steps of an export, whether a PyTorch model or an earlier export is behind it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir

from moe_runtime.onnx._difference import BATCH_SIZES
from moe_runtime.onnx._errors import ExportError
from moe_runtime.onnx._files import save_examples, save_info, save_model
from moe_runtime.onnx._folder import EXAMPLES_FILE, MODEL_FILE
from moe_runtime.onnx._graph import mixture_nodes, read_mixture
from moe_runtime.onnx._lower import TARGETS, lower_mixtures, mixture_model
from moe_runtime.onnx._trace import store_bfloat16
from moe_runtime.onnx._verification import Change, Verification
from moe_runtime.onnx._verify import Case, reference_of, verify_mixture, verify_model

logger = logging.getLogger("moe_runtime.onnx")
# Largest error that is accepted: float32, a model with float16 in it, and 8-bit weights.
TOLERANCE, FLOAT16_TOLERANCE, INT8_TOLERANCE = 1e-4, 1e-2, 0.05

SCATTERS = {"ScatterElements", "ScatterND"}


class Work(NamedTuple):
    """What is known before mixtures are lowered."""

    target: str
    tolerance: float | None
    info: Mapping[str, Any]
    mixture_errors: Sequence[float]
    num_undecided: int
    hardening: dict[str, Change]
    cases: Sequence[Case]
    examples: Case


def finish(stage: Path, model: ir.Model, work: Work) -> Verification:
    """Lower, write, verify the written file, and say what it is."""
    target = TARGETS[work.target]
    lower_mixtures(model, work.target)
    _check_no_race(model)
    if work.info["stored_as_bfloat16"]:
        store_bfloat16(model)
    is_large = save_model(model, stage / MODEL_FILE)
    rows = {len(next(iter(case.inputs.values()))) for case in work.cases}
    # The examples as a whole, if nothing else can be compared.
    sizes = tuple(sorted(rows.intersection(BATCH_SIZES) or rows))
    logger.info("verifying the model on batches of %s rows", sizes)
    verification = Verification(
        batch_sizes=sizes,
        output_errors=verify_model(
            stage / MODEL_FILE, work.cases, is_exact=target.is_exact, pack=not is_large
        ),
        mixture_errors=tuple(work.mixture_errors),
        num_undecided=work.num_undecided,
        hardening=work.hardening,
    )
    tolerance = work.tolerance or _default_tolerance(model, work.target)
    if not verification.largest_error <= tolerance:
        msg = (
            f"the exported model differs from PyTorch by {verification.largest_error:.3g}, "
            f"above `tolerance`={tolerance:g}; nothing was written to {stage.parent}. "
            f"Per output: {verification.output_errors}, "
            f"per mixture: {verification.mixture_errors}."
        )
        raise ExportError(msg)
    save_examples(stage / EXAMPLES_FILE, *work.examples)
    result = {
        "target": work.target,
        "tolerance": tolerance,
        "verification": asdict(verification) | {"largest_error": verification.largest_error},
    }
    save_info(stage, {**work.info, **result})
    return verification


def _check_no_race(model: ir.Model) -> None:
    """Refuse additions by scattering, in whatever part of the model.

    ONNX Runtime (1.32) loses some of them on the CPU with several threads: in a few runs of a
    thousand, so that no verification would see it.
    """
    racing = sorted(
        {
            node.op_type
            for node in ir.traversal.RecursiveGraphIterator(model.graph)
            if node.op_type in SCATTERS
            and node.attributes.get_string("reduction", "none") != "none"
        }
    )
    if racing:
        msg = (
            f"the exported model would add with {', '.join(racing)}, of which ONNX Runtime loses "
            "some on several threads: write what `index_add` or `scatter_add` does in your model "
            "without it, as a product with a one-hot matrix or by gathering."
        )
        raise ExportError(msg)


def verify_mixtures(model: ir.Model, target: str) -> list[float]:
    """Verify each mixture alone, as it will be lowered, and return the errors."""
    errors = []
    nodes = mixture_nodes(model)
    for index, node in enumerate(nodes):
        contents = read_mixture(node)
        name = contents.name or "the model itself"
        logger.info("verifying mixture %d of %d, %s", index + 1, len(nodes), name)
        alone = mixture_model(contents, target, opset=model.opset_imports[""])
        bounds = None if TARGETS[target].any_gates else contents.max_active
        is_exact = TARGETS[target].is_exact
        error = verify_mixture(alone, reference_of(contents), is_exact=is_exact, bounds=bounds)
        errors.append(error)
    return errors


def _default_tolerance(model: ir.Model, target: str) -> float:
    if not TARGETS[target].is_exact:
        return INT8_TOLERANCE
    values = model.graph.initializers.values()
    if any(value.dtype == ir.DataType.FLOAT16 for value in values):
        return FLOAT16_TOLERANCE
    return TOLERANCE
