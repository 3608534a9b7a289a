"""Export small models and write them as MLServer and Triton want them, for the checks here.

    python export_examples.py FOLDER

writes FOLDER/exported/NAME (what `export` writes), FOLDER/mlserver/NAME, FOLDER/triton,
and example rows in FOLDER/NAME.npz. The checks run in environments without PyTorch.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from moe_runtime import (
    CometRouter,
    DSelectKRouter,
    ExactKRouter,
    Experts,
    HashRouter,
    MixtureOfExperts,
    MultiGateMixtureOfExperts,
    ReLURouter,
    Router,
    SoftmaxRouter,
    TopKRouter,
    TopKSparsemaxRouter,
    TreeTopKRouter,
    hard_routing,
)
from moe_runtime.onnx import export, write_mlserver_folder, write_triton_repository
from moe_runtime.onnx._decided import decided_rows

DIM, HIDDEN, OUT, NUM_EXPERTS, K, NUM_IDS = 16, 64, 8, 8, 2, 50
NUM_ROWS = 1000

ROUTERS: dict[str, Callable[[], Router]] = {
    "comet": lambda: CometRouter(DIM, NUM_EXPERTS, k=K),
    "dselect_k": lambda: DSelectKRouter(DIM, NUM_EXPERTS, k=K),
    "exact_k": lambda: ExactKRouter(DIM, NUM_EXPERTS, k=K),
    "hash": lambda: HashRouter(NUM_IDS, NUM_EXPERTS),
    "relu": lambda: ReLURouter(DIM, NUM_EXPERTS, k=K),
    "softmax": lambda: SoftmaxRouter(DIM, NUM_EXPERTS, k=K),
    "sparsemax": lambda: TopKSparsemaxRouter(DIM, NUM_EXPERTS, k=K),
    "static": lambda: DSelectKRouter(DIM, NUM_EXPERTS, k=K, static=True),
    "top_k": lambda: TopKRouter(DIM, NUM_EXPERTS, k=K),
    "tree_top_k": lambda: TreeTopKRouter(DIM, NUM_EXPERTS, k=K),
}
ACTIVATIONS = ("relu", "gelu", "silu", "swiglu", "geglu", "identity")


class Gates(nn.Module):
    """Every router beside the others, with every activation among them."""

    output_names: Sequence[str] = (*ROUTERS, "tasks")

    def __init__(self) -> None:
        super().__init__()
        self.mixtures = nn.ModuleDict()
        for index, (name, router) in enumerate(ROUTERS.items()):
            experts = _experts(ACTIVATIONS[index % len(ACTIVATIONS)])
            self.mixtures[name] = MixtureOfExperts(router(), experts)
        routers = [CometRouter(DIM, NUM_EXPERTS, k=K), TopKRouter(DIM, NUM_EXPERTS, k=K)]
        self.tasks = MultiGateMixtureOfExperts(routers, _experts("gelu"))

    def forward(self, x: Tensor, ids: Tensor) -> list[Tensor]:
        """Return the output of each mixture, (T, OUT), and of two tasks, (T, 2, OUT)."""
        outputs = [
            mixture(x, ids if name == "hash" else None).output
            for name, mixture in self.mixtures.items()
        ]
        return [*outputs, self.tasks(x).output.movedim(0, 1)]


class Served(nn.Module):
    """Two layers of experts whose outputs have all the types that mixtures give."""

    output_names: Sequence[str] = ("y", "used", "count", "largest", "penalty")

    def __init__(self) -> None:
        super().__init__()
        self.first = MixtureOfExperts(CometRouter(DIM, NUM_EXPERTS, k=K), _experts("gelu", DIM))
        self.second = MixtureOfExperts(HashRouter(NUM_IDS, NUM_EXPERTS), _experts("swiglu"))

    def forward(self, x: Tensor, ids: Tensor) -> list[Tensor]:
        """Return numbers, booleans and integers of each row, one number a row, and a scalar."""
        hidden, penalty, weights = self.first(x)
        used = weights > 0
        output = self.second(x + hidden, ids).output
        return [output, used, used.sum(-1), weights.amax(-1), penalty]


class Batched(Served):
    """The same without what has no rows."""

    output_names: Sequence[str] = ("y", "used", "count", "largest")

    def forward(self, x: Tensor, ids: Tensor) -> list[Tensor]:
        """Return all but the penalty."""
        return super().forward(x, ids)[:-1]


def _experts(activation: str, out_features: int = OUT) -> Experts:
    return Experts(NUM_EXPERTS, (DIM, HIDDEN, out_features), activation=activation)


def export_model(
    model: nn.Module, root: Path, name: str, *, hard: bool = True, target: str = "unrolled"
) -> Path:
    """Export a model; rows whose route rounding changes are no examples."""
    x, ids = torch.randn(2 * NUM_ROWS, DIM), torch.randint(NUM_IDS, (2 * NUM_ROWS,))
    model.eval()
    with hard_routing(model) if hard else nullcontext(), torch.no_grad():
        decided = decided_rows(model, (x, ids))
    x, ids = x[decided][:NUM_ROWS], ids[decided][:NUM_ROWS]
    assert len(x) == NUM_ROWS
    folder = root / "exported" / name
    names = {"input_names": ["x", "ids"], "output_names": list(model.output_names)}
    print(name, export(model, (x, ids), folder, hard=hard, target=target, **names))
    np.savez(root / f"{name}.npz", x=x.numpy(), ids=ids.numpy())
    return folder


def write_types(root: Path, name: str) -> Path:
    """Write a model of the types that no exported one has, as `export` would."""
    types = {"half": TensorProto.FLOAT16, "small": TensorProto.INT32, "flag": TensorProto.BOOL}
    nodes = [
        helper.make_node("Add", ["half", "half"], ["half_out"]),
        helper.make_node("Add", ["small", "small"], ["small_out"]),
        helper.make_node("Not", ["flag"], ["flag_out"]),
    ]
    shape = ["batch", 3]
    values = {
        end: [
            helper.make_tensor_value_info(name + end, kind, shape) for name, kind in types.items()
        ]
        for end in ("", "_out")
    }
    graph = helper.make_graph(nodes, name, values[""], values["_out"])
    opsets = [helper.make_opsetid("", 20)]
    content = helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString()
    folder = root / "exported" / name
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    info = {
        field: [
            {"name": each + end, "dtype": TensorProto.DataType.Name(kind), "shape": shape}
            for each, kind in types.items()
        ]
        for field, end in (("inputs", ""), ("outputs", "_out"))
    }
    info["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "model_info.json").write_text(json.dumps(info))
    rng = np.random.default_rng(0)
    half = rng.standard_normal((NUM_ROWS, 3)).astype(np.float16)
    small = rng.integers(-1000, 1000, (NUM_ROWS, 3), dtype=np.int32)
    np.savez(root / f"{name}.npz", half=half, small=small, flag=half > 0)
    return folder


def main() -> None:
    """Write everything below the folder that is named."""
    root = Path(sys.argv[1])
    torch.manual_seed(0)
    export_model(Gates(), root, "gates")
    export_model(Gates(), root, "soft_gates", hard=False)
    export_model(Gates(), root, "scanned_gates", target="scan")
    folders = {
        "served": export_model(Served(), root, "served"),
        "batched": export_model(Batched(), root, "batched"),
        "types": write_types(root, "types"),
    }
    for name, folder in folders.items():
        onnx.checker.check_model(folder / "model.onnx", full_check=True)
        write_mlserver_folder(folder, root / "mlserver" / name, name=name)
        size = 0 if name == "served" else 512
        write_triton_repository(folder, root / "triton", name=name, max_batch_size=size)


if __name__ == "__main__":
    main()
