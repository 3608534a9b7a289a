"""What `model_info.json` says of a model before it is lowered."""

import platform
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

import moe_runtime
from moe_runtime._experts import Experts
from moe_runtime._mixture import MultiGateMixtureOfExperts
from moe_runtime._router import Router
from moe_runtime.onnx._arguments import PACKAGES
from moe_runtime.onnx._difference import Difference
from moe_runtime.onnx._requirements import require
from moe_runtime.onnx._trace import BATCH
from moe_runtime.onnx._verify import Arrays, Case

# A batch whose first row is compared with the same row alone, and by how much rounding, of
# float16 at most, may move it.
MANY_ROWS, BATCH_TOLERANCE = 33, 1e-2


def describe(model: nn.Module, given: nn.Module, traced: ir.Model) -> dict[str, Any]:
    """Describe a model as its routers are now, hard or not; `given` has the dtypes that it had."""
    routers = [module for module in model.modules() if isinstance(module, Router)]
    return {
        "hard": bool(routers) and all(router.hard for router in routers),
        "inputs": _values(traced.graph.inputs),
        "outputs": _values(traced.graph.outputs),
        "opset": traced.opset_imports[""],
        "mixtures": [
            _mixture(name, module, given.get_submodule(name))
            for name, module in model.named_modules()
            if isinstance(module, MultiGateMixtureOfExperts)
        ],
        "versions": versions(),
    }


def batch_dependent(cases: Sequence[Case], outputs: Sequence[dict[str, Any]]) -> list[str]:
    """Name the outputs whose answer for a row depends on the others, which no server may batch.

    Among them are those that have no rows, as a penalty.
    """
    by_size: dict[int, Arrays] = {}
    for case in cases:
        # The first of each size: those at half the size of other axes come last.
        by_size.setdefault(len(next(iter(case.inputs.values()))), case.answers)
    alone, beside = by_size[1], by_size[MANY_ROWS]
    dependent = []
    for output in outputs:
        name, shape = output["name"], output["shape"]
        apart = Difference()
        if BATCH in shape:
            apart.add(beside[name].take([0], shape.index(BATCH)), alone[name])
        if BATCH not in shape or not apart.largest <= BATCH_TOLERANCE:
            dependent.append(name)
    return dependent


def versions() -> dict[str, str]:
    """Return the version of everything that has a part in an export."""
    found = {name: require(name).__version__ for name in PACKAGES}
    found |= {"moe_runtime": moe_runtime.__version__, "torch": torch.__version__}
    return found | {"python": platform.python_version()}


def _mixture(name: str, mixture: MultiGateMixtureOfExperts, given: nn.Module) -> dict[str, Any]:
    assert isinstance(given, MultiGateMixtureOfExperts)
    routers = [router for router in mixture.routers if isinstance(router, Router)]
    experts = mixture.experts
    return {
        "name": name,
        "gates": [type(router).__name__ for router in routers],
        "num_experts": experts.num_experts,
        "k": [router.k for router in routers],
        "max_active": [router.max_active for router in routers],
        "in_features": experts.in_features,
        "out_features": experts.out_features,
        "layer_sizes": [list(sizes) for sizes in experts.layer_sizes],
        "activations": list(experts.activations) if isinstance(experts, Experts) else None,
        "dtype": str(given.experts.dtype).removeprefix("torch."),
    }


def _values(values: Sequence[ir.Value]) -> list[dict[str, Any]]:
    return [
        {"name": value.name, "dtype": str(value.dtype), "shape": _shape(value)} for value in values
    ]


def _shape(value: ir.Value) -> list[int | str]:
    assert value.shape is not None
    return [size if isinstance(size, int) else str(size) for size in value.shape]
