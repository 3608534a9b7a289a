"""COMET's gate against a recursion over nodes, and its sparse route against it; writes JSON.

All times are of one process, variants in turns; linear maps are part of every variant.
Axes: T rows, D input features, E experts, K trees.
"""

import argparse
import json
import platform
import tracemalloc
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from torch import Tensor, nn

from moe_benchmarks.timing import interleaved_medians
from moe_gates import SparseWeights, comet_gate, comet_route

RESULTS = Path(__file__).parent / "results"
K = 2
GAMMA = 1.0
# The authors' offset inside the logarithm.
LOG_OFFSET = 1e-8
DENSE_EXPERTS, DENSE_ROWS, DENSE_DIM = (16, 64, 256, 1024), (1, 64, 512), 256
ROUTE_EXPERTS, ROUTE_ROWS, ROUTE_DIMS = (
    (16, 64, 256, 1024, 4096),
    (1, 4, 16, 64, 256, 1024),
    (256, 768),
)
MEMORY_EXPERTS, MEMORY_ROWS = (16, 64, 256, 1024), 512


class Node(nn.Module):
    """A node and all below it, as published: its own linear map, and a call a child."""

    def __init__(self, place: int, num_experts: int, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, K)
        self.children_below = nn.ModuleList()
        if place < num_experts - 1:
            below = (2 * place + 1, 2 * place + 2)
            self.children_below.extend(Node(child, num_experts, dim) for child in below)

    def forward(self, x_TD: Tensor, reached_TK: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the scores and the probabilities of the leaves below."""
        scores_TK = self.score(x_TD)
        if not self.children_below:
            return [scores_TK], [reached_TK]
        left_TK = smooth_step_as_published(scores_TK)
        left, right = self.children_below
        left_scores, left_reached = left(x_TD, reached_TK * left_TK)
        right_scores, right_reached = right(x_TD, reached_TK * (1 - left_TK))
        return left_scores + right_scores, left_reached + right_reached


def smooth_step_as_published(t: Tensor) -> Tensor:
    """Choose between 0, 1 and the expanded cubic."""
    cubic = -2 / GAMMA**3 * t**3 + 3 / (2 * GAMMA) * t + 0.5
    below_1 = torch.where(t >= GAMMA / 2, torch.ones_like(t), cubic)
    return torch.where(t <= -GAMMA / 2, torch.zeros_like(t), below_1)


class Recursion(nn.Module):
    """COMET node by node."""

    def __init__(self, num_experts: int, dim: int) -> None:
        super().__init__()
        self.root = Node(0, num_experts, dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return the weights of the experts."""
        scores, reached = self.root(x_TD, x_TD.new_ones(len(x_TD), 1))
        logits_TKE = torch.stack(scores, -1) + torch.log(torch.stack(reached, -1) + LOG_OFFSET)
        weights_TKE = torch.softmax(logits_TKE.flatten(1), -1).view_as(logits_TKE)
        return weights_TKE.sum(1)


class Dense(nn.Module):
    """The gate of this package after one linear map for all splits and leaves."""

    def __init__(self, num_experts: int, dim: int, *, hard: bool) -> None:
        super().__init__()
        self.num_experts, self.hard = num_experts, hard
        self.score = nn.Linear(dim, K * (2 * num_experts - 1))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return the weights of the experts."""
        num_splits = self.num_experts - 1
        splits, leaves = self.score(x_TD).split([K * num_splits, K * self.num_experts], -1)
        return comet_gate(
            splits.unflatten(-1, (K, num_splits)),
            leaves.unflatten(-1, (K, self.num_experts)),
            gamma=GAMMA,
            hard=self.hard,
            xp=xp,
        ).weights

    def nodes(self) -> dict[str, Tensor]:
        """Return the same linear map, as `comet_route` takes it."""
        num_splits = self.num_experts - 1
        sizes = [K * num_splits, K * self.num_experts]
        shapes = [(K, num_splits), (K, self.num_experts)]
        weights, biases = self.score.weight.split(sizes), self.score.bias.split(sizes)
        parts = [
            part.detach().unflatten(0, shape) for part, shape in zip(weights, shapes, strict=True)
        ]
        bias = [
            part.detach().unflatten(0, shape) for part, shape in zip(biases, shapes, strict=True)
        ]
        names = ("split_weights", "leaf_weights", "split_bias", "leaf_bias")
        return dict(zip(names, [*parts, *bias], strict=True))


def route(nodes: dict[str, Tensor], x_TD: Tensor) -> SparseWeights[Tensor]:
    """Route the rows through the trees, without the dense scores."""
    biases = {name: nodes[name] for name in ("split_bias", "leaf_bias")}
    return comet_route(x_TD, nodes["split_weights"], nodes["leaf_weights"], **biases, xp=xp)


def forward(model: Callable[[Tensor], object], x_TD: Tensor) -> None:
    """Run inference."""
    with torch.inference_mode():
        model(x_TD)


def forward_and_backward(model: Callable[[Tensor], Tensor], x_TD: Tensor) -> None:
    """Run a training step without the optimiser."""
    model(x_TD).square().sum().backward()


def measure_dense(num_experts: int, num_rows: int) -> dict[str, object]:
    """Time the soft gate and the recursion."""
    torch.manual_seed(0)
    models = {
        "level by level": Dense(num_experts, DENSE_DIM, hard=False),
        "node by node": Recursion(num_experts, DENSE_DIM),
    }
    x_TD = torch.randn(num_rows, DENSE_DIM)
    row: dict[str, object] = {"num_experts": num_experts, "rows": num_rows, "dim": DENSE_DIM}
    for name, run in (("forward", forward), ("forward and backward", forward_and_backward)):
        times = interleaved_medians(
            {each: partial(run, model, x_TD) for each, model in models.items()}
        )
        row[f"{name}_milliseconds"] = times
        row[f"{name}_ratio"] = times["node by node"] / times["level by level"]
    return row


def measure_route(num_experts: int, num_rows: int, dim: int) -> dict[str, object]:
    """Time the hard gate, dense and sparse."""
    torch.manual_seed(0)
    dense = Dense(num_experts, dim, hard=True)
    x_TD = torch.randn(num_rows, dim)
    times = interleaved_medians(
        {
            "dense": partial(forward, dense, x_TD),
            "sparse": partial(forward, partial(route, dense.nodes()), x_TD),
        }
    )
    return {
        "num_experts": num_experts,
        "rows": num_rows,
        "dim": dim,
        "milliseconds": times,
        "ratio": times["dense"] / times["sparse"],
    }


def crossovers(rows: list[dict[str, Any]]) -> list[dict[str, object]]:
    """Say from how many experts on the sparse route is ahead, for each batch and width."""
    found: list[dict[str, object]] = []
    for dim in ROUTE_DIMS:
        for num_rows in ROUTE_ROWS:
            ahead = {
                row["num_experts"]: row["ratio"] > 1
                for row in rows
                if (row["dim"], row["rows"]) == (dim, num_rows)
            }
            from_here_on = [
                size for size in ahead if all(ahead[other] for other in ahead if other >= size)
            ]
            found.append(
                {"dim": dim, "rows": num_rows, "ahead_from": min(from_here_on, default=None)}
            )
    return found


def measure_memory(num_experts: int) -> dict[str, object]:
    """Count the bytes that the soft gate has allocated at most, in float32 (NumPy counts)."""
    rng = np.random.default_rng(0)
    splits, leaves = (
        rng.normal(size=(MEMORY_ROWS, K, size)).astype(np.float32)
        for size in (num_experts - 1, num_experts)
    )
    comet_gate(splits, leaves, gamma=GAMMA)
    tracemalloc.start()
    gate = comet_gate(splits, leaves, gamma=GAMMA)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "num_experts": num_experts,
        "rows": MEMORY_ROWS,
        "peak_bytes": peak,
        "peak_in_units_of_TKE_numbers": peak / gate.slot_weights.nbytes,
    }


def main() -> None:
    """Measure all sizes, print tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    torch.set_num_threads(parser.parse_known_args()[0].threads)
    dense_rows, route_rows = [], []
    for num_experts in DENSE_EXPERTS:
        for num_rows in DENSE_ROWS:
            row: dict[str, Any] = measure_dense(num_experts, num_rows)
            dense_rows.append(row)
            ratios = f"{row['forward_ratio']:.1f}x, {row['forward and backward_ratio']:.1f}x"
            print(
                f"E={num_experts} T={num_rows}: {ratios} with backward, than node by node",
                flush=True,
            )
    for dim in ROUTE_DIMS:
        for num_experts in ROUTE_EXPERTS:
            for num_rows in ROUTE_ROWS:
                row = measure_route(num_experts, num_rows, dim)
                route_rows.append(row)
                print(
                    f"D={dim} E={num_experts} T={num_rows}: sparse {row['ratio']:.2f}x dense",
                    flush=True,
                )
    memory_rows = [measure_memory(num_experts) for num_experts in MEMORY_EXPERTS]
    for row in memory_rows:
        print(f"E={row['num_experts']}: peak of {row['peak_in_units_of_TKE_numbers']:.1f} T K E")
    results = {
        "device": f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("moe-gates", "torch", "numpy")}
        | {"python": platform.python_version()},
        "trees": K,
        "dense_gate": dense_rows,
        "sparse_route": route_rows,
        "sparse_route_ahead_from_experts": crossovers(route_rows),
        "memory": memory_rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "gates_cpu.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
