"""Time the exported model's work: selected experts against all of them."""

from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch

from moe_benchmarks._gates import Gate, inputs
from moe_benchmarks._model import TwoTaskModel
from moe_benchmarks._two_digits import Split
from moe_benchmarks.timing import interleaved_medians
from moe_runtime import hard_routing

BATCH_SIZES = (1, 8, 64, 512, 4096)
ALL_EXPERTS, SPARSE, SERVED = "PyTorch, all experts", "PyTorch, selected", "ONNX Runtime, selected"


def measure_latency(
    model: TwoTaskModel, gate: Gate, split: Split, model_path: Path
) -> dict[str, Any]:
    """Median milliseconds a call by batch size; the variants take turns in every round."""
    num_threads = torch.get_num_threads()
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = ort.InferenceSession(model_path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    milliseconds: dict[str, list[float]] = {ALL_EXPERTS: [], SPARSE: [], SERVED: []}
    kernel = model.mixture.kernel
    for size in BATCH_SIZES:
        rows = torch.arange(size) % len(split)
        taken = inputs(gate, split, rows)
        feeds = {name: value.numpy() for name, value in zip(names, taken, strict=True)}
        medians = interleaved_medians(
            {
                ALL_EXPERTS: partial(_call, model, taken, "dense"),
                SPARSE: partial(_call, model, taken, kernel),
                SERVED: partial(session.run, None, feeds),
            }
        )
        for name, median in medians.items():
            milliseconds[name].append(median)
    model.mixture.kernel = kernel
    return {
        "batch_sizes": list(BATCH_SIZES),
        "milliseconds": milliseconds,
        "num_threads": num_threads,
    }


@torch.inference_mode()
def _call(model: TwoTaskModel, taken: tuple[torch.Tensor, ...], kernel: str) -> None:
    model.mixture.kernel = kernel
    with hard_routing(model):
        model(*taken)
