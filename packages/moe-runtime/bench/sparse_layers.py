"""Sparse execution against computing every expert, with its arithmetic floor; writes JSON.

Axes: T rows, D input features, H hidden units, E experts.
"""

import argparse
import json
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from moe_benchmarks.timing import interleaved_medians
from moe_runtime import Experts, MixtureOfExperts, TopKRouter

RESULTS = Path(__file__).parent / "results"
SIZES = ((16, 256, 256), (64, 256, 256), (8, 768, 384))  # E, D, H
ROWS = (1, 64, 512, 2048)
K = 2


class AllExperts(nn.Module):
    """Every expert for every row, one by one, as in the published code."""

    def __init__(self, layer: MixtureOfExperts) -> None:
        super().__init__()
        self.router = layer.routers[0]
        first, second = (stack.weight.detach() for stack in layer.experts.layers)
        self.experts = nn.ModuleList()
        for weight_HD, weight_DH in zip(first, second, strict=True):
            expert = nn.Sequential(
                nn.Linear(*weight_HD.T.shape), nn.ReLU(), nn.Linear(*weight_DH.T.shape)
            )
            expert[0].weight.data, expert[2].weight.data = weight_HD, weight_DH
            self.experts.append(expert)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Weigh and add the outputs of all experts."""
        weights_TE = self.router(x_TD).weights
        outputs_TED = torch.stack([expert(x_TD) for expert in self.experts], 1)
        return (weights_TE[:, :, None] * outputs_TED).sum(1)


def forward(model: Callable[[Tensor], Tensor], x_TD: Tensor) -> None:
    """Run inference."""
    with torch.inference_mode():
        model(x_TD)


def forward_and_backward(model: Callable[[Tensor], Tensor], x_TD: Tensor) -> None:
    """Run a training step without the optimiser."""
    model(x_TD).sum().backward()


def measure(num_experts: int, dim: int, hidden: int, num_rows: int) -> dict[str, object]:
    """Time all variants of one size."""
    torch.manual_seed(0)
    layers = {}
    router, experts = TopKRouter(dim, num_experts, k=K), Experts(num_experts, (dim, hidden, dim))
    for kernel in ("sorted", "dense", "auto"):
        layers[kernel] = MixtureOfExperts(router, experts, kernel=kernel)
    published = AllExperts(layers["auto"])
    x_TD = torch.randn(num_rows, dim, requires_grad=True)
    # The arithmetic of the selected pairs alone, as two products of the best shape.
    pairs, up, down = (
        torch.randn(K * num_rows, dim),
        torch.randn(dim, hidden),
        torch.randn(hidden, dim),
    )

    models: dict[str, Callable[[Tensor], Tensor]] = {
        f"{kernel} kernel": lambda x, layer=layer: layer(x).output
        for kernel, layer in layers.items()
    }
    models["all experts, one by one"] = published
    floor = {"floor (selected products)": lambda: (pairs @ up) @ down}
    inference = {name: partial(forward, model, x_TD) for name, model in models.items()}
    training = {name: partial(forward_and_backward, model, x_TD) for name, model in models.items()}
    return {
        "num_experts": num_experts,
        "dim": dim,
        "hidden": hidden,
        "rows": num_rows,
        "k": K,
        "inference_milliseconds": interleaved_medians(inference | floor),
        "training_milliseconds": interleaved_medians(training),
    }


def main() -> None:
    """Measure all sizes, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    torch.set_num_threads(parser.parse_known_args()[0].threads)
    rows = []
    for size in SIZES:
        for num_rows in ROWS:
            row = measure(*size, num_rows)
            rows.append(row)
            times = row["inference_milliseconds"]
            assert isinstance(times, dict)
            base = times["all experts, one by one"]
            speeds = ", ".join(f"{name} {base / each:.1f}x" for name, each in times.items())
            print(f"E={size[0]} D={size[1]} H={size[2]} T={num_rows}: {speeds}", flush=True)
    machine = {"device": f"cpu ({platform.machine()})", "threads": torch.get_num_threads()}
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "sparse_layers_cpu.json"
    path.write_text(json.dumps({**machine, "versions": versions, "rows": rows}, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
