"""Exported mixtures by target against the dense graph, PyTorch's sparse loop and the floor.

The gates are an input here, so that it is the experts that are timed, and every variant does the
same work. The floor is the selected products alone, at the best rate that a product reached in
ONNX Runtime in the same run. Writes JSON.

Axes: T rows, D features, H hidden units, E experts.
"""

import statistics
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from operator import truediv
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from _harness import Options, parse_options, take_turns, write
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_runtime.onnx._graph import Builder, Contents, Layer, Stack
from moe_runtime.onnx._lower import mixture_model

TARGETS = ("unrolled", "scan", "onnxruntime", "int8", "qmoe")
# E, D, H, T, k.
SIZES = (
    *((16, 256, 256, rows, 2) for rows in (1, 64, 1024)),
    *((64, 256, 256, rows, 2) for rows in (1, 64, 1024)),
    *((16, 768, 3072, rows, 2) for rows in (1, 64, 1024)),
    *((64, 768, 3072, rows, 2) for rows in (1, 64, 1024)),
    (64, 768, 3072, 1024, 1),
)
QUICK_SIZES = ((4, 32, 64, 1, 2), (4, 32, 64, 64, 2))
OPSET = 20
FLOAT = ir.DataType.FLOAT
Feeds = dict[str, NDArray[Any]]


def draw_contents(num_experts: int, dim: int, hidden: int, k: int) -> Contents:
    """Draw experts of two layers around a ReLU."""
    generator = np.random.default_rng(0)

    def stack(name: str, *shape: int) -> Stack:
        array = generator.standard_normal((num_experts, *shape), dtype=np.float32)
        return Stack(name, array / np.float32(shape[-1] ** 0.5))

    layers = [
        Layer(stack("w1", hidden, dim), stack("b1", hidden), "relu"),
        Layer(stack("w2", dim, hidden), stack("b2", dim), "identity"),
    ]
    return Contents("mixture", layers, dim, [k], FLOAT)


def draw_feeds(num_experts: int, dim: int, rows: int, k: int) -> Feeds:
    """Draw rows, and k experts for each."""
    generator = np.random.default_rng(1)
    rank = generator.random((1, rows, num_experts)).argsort(-1).argsort(-1)
    weights = np.where(rank < k, generator.random(rank.shape) + 0.1, 0).astype(np.float32)
    x = generator.standard_normal((rows, dim), dtype=np.float32)
    return {"x": x, "gates": weights / weights.sum(-1, keepdims=True)}


def dense_model(contents: Contents) -> ir.Model:
    """Every expert for every row, as exporters of a dense mixture give it."""
    build = Builder("dense")
    x = ir.val("x", dtype=FLOAT, shape=("batch", contents.in_features))
    gates = ir.val("gates", dtype=FLOAT, shape=(1, "batch", contents.num_experts))
    value = x
    for layer in contents.layers:
        assert layer.bias is not None
        weight = np.ascontiguousarray(layer.weight.array.swapaxes(1, 2))
        value = build.op("MatMul", value, build.initializer(layer.weight.name, weight))
        bias = build.initializer(layer.bias.name, layer.bias.array[:, None])
        value = build.op("Add", value, bias)
        value = build.op("Relu", value) if layer.activation == "relu" else value
    # (1, T, E) to (E, T, 1).
    weights = build.op("Transpose", gates, perm=[2, 1, 0])
    total = build.op("ReduceSum", build.op("Mul", value, weights), build.constant([0]), keepdims=1)
    total.dtype, total.shape = FLOAT, ir.Shape((1, "batch", contents.out_features))
    graph = ir.Graph(
        [x, gates],
        [total],
        nodes=build.tape.nodes,
        initializers=build.tape.initializers,
        opset_imports={"": OPSET},
        name="dense",
    )
    return ir.Model(graph, ir_version=10)


def open_model(model: ir.Model, threads: int) -> ort.InferenceSession:
    """Open a model with as many threads as PyTorch has."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    text = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(text, options, providers=["CPUExecutionProvider"])


def torch_loop(contents: Contents, feeds: Feeds) -> Callable[[], Tensor]:
    """Expert by expert over the rows that use it, as PyTorch's users write it."""
    x, gates = torch.from_numpy(feeds["x"]), torch.from_numpy(feeds["gates"][0])
    stacks = [
        [torch.from_numpy(stack.array) for stack in (layer.weight, layer.bias) if stack]
        for layer in contents.layers
    ]

    def run() -> Tensor:
        with torch.inference_mode():
            y = torch.zeros(x.shape[0], contents.out_features)
            for expert in range(contents.num_experts):
                rows = gates[:, expert].nonzero()[:, 0]
                if rows.numel():
                    hidden = F.linear(x[rows], stacks[0][0][expert], stacks[0][1][expert]).relu_()
                    out = F.linear(hidden, stacks[1][0][expert], stacks[1][1][expert])
                    y.index_add_(0, rows, out * gates[rows, expert, None])
            return y

    return run


def gemm_models(threads: int) -> dict[tuple[str, int], tuple[ort.InferenceSession, Feeds]]:
    """Products of a size that shows what ONNX Runtime can do, whose weights it has packed."""
    found = {}
    for rows in (256, 1024):
        for inputs, outputs in ((768, 3072), (3072, 768), (1024, 1024)):
            build = Builder("gemm")
            x = ir.val("x", dtype=FLOAT, shape=("batch", inputs))
            weight = build.initializer("w", np.ones((outputs, inputs), np.float32))
            y = build.op("Gemm", x, weight, transB=1)
            y.dtype, y.shape = FLOAT, ir.Shape(("batch", outputs))
            graph = ir.Graph(
                [x],
                [y],
                nodes=build.tape.nodes,
                initializers=build.tape.initializers,
                opset_imports={"": OPSET},
                name="gemm",
            )
            session = open_model(ir.Model(graph, ir_version=10), threads)
            operations = 2 * rows * inputs * outputs
            found[f"{rows} x {inputs} x {outputs}", operations] = (
                session,
                {"x": np.ones((rows, inputs), np.float32)},
            )
    return found


def measure(size: tuple[int, int, int, int, int], options: Options) -> dict[str, Any]:
    """Time all variants of one size in turns, and compare their answers."""
    num_experts, dim, hidden, rows, k = size
    threads = torch.get_num_threads()
    contents, feeds = (
        draw_contents(num_experts, dim, hidden, k),
        draw_feeds(num_experts, dim, rows, k),
    )
    calls: dict[Hashable, Callable[[], object]] = {}
    answers = {}
    for name in (*TARGETS, "dense"):
        model = (
            dense_model(contents) if name == "dense" else mixture_model(contents, name, opset=OPSET)
        )
        session = open_model(model, threads)
        calls[name] = partial(session.run, None, feeds)
        answers[name] = session.run(None, feeds)[0][0]
    loop = torch_loop(contents, feeds)
    calls["torch loop"], answers["torch loop"] = loop, loop().numpy()
    for gemm, (session, gemm_feeds) in gemm_models(threads).items():
        calls[gemm] = partial(session.run, None, gemm_feeds)
    times = take_turns(calls, seconds=options.seconds)
    return summarise(size, times, answers)


def summarise(
    size: tuple[int, int, int, int, int],
    times: Mapping[Hashable, list[float]],
    answers: Mapping[str, NDArray[Any]],
) -> dict[str, Any]:
    """Reduce rounds to medians, and to ratios within a round."""
    num_experts, dim, hidden, rows, k = size
    gemms = [name for name in times if isinstance(name, tuple)]
    rate = max(name[1] / statistics.median(times[name]) for name in gemms)
    floor = 4 * rows * k * dim * hidden / rate
    reference = answers["dense"]
    whole = float(np.linalg.norm(reference))
    return {
        "num_experts": num_experts,
        "dim": dim,
        "hidden": hidden,
        "rows": rows,
        "k": k,
        "milliseconds": {name: statistics.median(times[name]) for name in answers},
        # How many times as long as the default target.
        "over_unrolled": {
            name: statistics.median(map(truediv, times[name], times["unrolled"]))
            for name in answers
        },
        "gemm_gflops": 1e-6 * rate,
        "floor_milliseconds": floor,
        "over_floor": statistics.median(times["unrolled"]) / floor,
        "relative_error": {
            name: float(np.linalg.norm(answer - reference)) / whole
            for name, answer in answers.items()
        },
    }


def main() -> None:
    """Measure all sizes, print a line each and write the results."""
    options = parse_options(__doc__)
    rows = []
    for size in QUICK_SIZES if options.quick else SIZES:
        row = measure(size, options)
        rows.append(row)
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["over_unrolled"].items())
        time, floor = row["milliseconds"]["unrolled"], row["over_floor"]
        print(
            f"E, D, H, T, k = {size}: {time:.3f} ms, {floor:.2f}x the floor; {ratios}", flush=True
        )
        # All sizes take ten minutes: what is known stays if the rest is interrupted.
        write("onnx_speed", options, rows)


if __name__ == "__main__":
    main()
