"""The forms of a COMET gate against each other and against the published one; writes JSON.

All times are of one process, variants in turns; linear maps are part of every variant.
Axes: T rows, D input features, E experts, K trees.
"""

import argparse
import json
import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn

import moe_gates
from moe_benchmarks.timing import interleaved_medians
from moe_runtime import CometRouter
from moe_runtime._comet_gate import fused_comet_gate
from moe_runtime._comet_walk import Nodes, walk_by_gather, walk_by_numba

RESULTS = Path(__file__).parent / "results"
K = 2
GAMMA = 1.0
ROWS = (1, 64, 512, 1024)
HARD_EXPERTS, HARD_DIMS = (16, 64, 256, 1024, 4096), (256, 768)
SOFT_EXPERTS, SOFT_DIM = (16, 64, 256), 256
# The authors' offset inside the logarithm.
LOG_OFFSET = 1e-8


class Node(nn.Module):
    """A node and all below it, as published: its own linear map, and a call a child."""

    def __init__(self, place: int, num_experts: int, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, K)
        below = (2 * place + 1, 2 * place + 2) if place < num_experts - 1 else ()
        self.below = nn.ModuleList(Node(child, num_experts, dim) for child in below)

    def forward(self, x_TD: Tensor, reached_TK: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the scores and the probabilities of the leaves below."""
        scores_TK = self.score(x_TD)
        if not self.below:
            return [scores_TK], [reached_TK]
        cubic = -2 / GAMMA**3 * scores_TK**3 + 3 / (2 * GAMMA) * scores_TK + 0.5
        below_1 = torch.where(scores_TK >= GAMMA / 2, torch.ones_like(cubic), cubic)
        left_TK = torch.where(scores_TK <= -GAMMA / 2, torch.zeros_like(cubic), below_1)
        left_scores, left_reached = self.below[0](x_TD, reached_TK * left_TK)
        right_scores, right_reached = self.below[1](x_TD, reached_TK * (1 - left_TK))
        return left_scores + right_scores, left_reached + right_reached


class Recursion(nn.Module):
    """COMET node by node."""

    def __init__(self, num_experts: int, dim: int) -> None:
        super().__init__()
        self.root = Node(0, num_experts, dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return the weights of the experts."""
        scores, reached = self.root(x_TD, x_TD.new_ones(len(x_TD), 1))
        logits_TKE = torch.stack(scores, -1) + torch.log(torch.stack(reached, -1) + LOG_OFFSET)
        return torch.softmax(logits_TKE.flatten(1), -1).view_as(logits_TKE).sum(1)


class Gate(nn.Module):
    """All scores by two linear maps, then the gate level by level or fused."""

    def __init__(self, router: CometRouter, *, hard: bool, fused: bool) -> None:
        super().__init__()
        self.router, self.hard, self.fused = router, hard, fused

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return the weights of the experts."""
        num_experts = self.router.num_experts
        splits = torch.unflatten(self.router.split(x_TD), -1, (K, num_experts - 1))
        leaves = torch.unflatten(self.router.leaf(x_TD), -1, (K, num_experts))
        if self.fused:
            return fused_comet_gate(splits, leaves, gamma=GAMMA, hard=self.hard)[0].sum(1)
        return moe_gates.comet_gate(splits, leaves, gamma=GAMMA, hard=self.hard, xp=xp).weights


def infer(model: Callable[[Tensor], object], x_TD: Tensor) -> None:
    """Run without gradients."""
    with torch.no_grad():
        model(x_TD)


def train(model: Callable[[Tensor], Tensor], x_TD: Tensor) -> None:
    """Run a training step without the optimiser."""
    model(x_TD).square().sum().backward()


def make_router(num_experts: int, dim: int, kernel: str = "auto", *, hard: bool) -> CometRouter:
    """Make a router with trained-size scores: about a third of the splits are saturated."""
    router = CometRouter(dim, num_experts, k=K, gamma=GAMMA, kernel=kernel)
    for layer in (router.split, router.leaf):
        nn.init.normal_(layer.weight, std=0.5 * dim**-0.5)
    router.hard = hard
    return router


def measure_hard(num_experts: int, dim: int, num_rows: int) -> dict[str, Any]:
    """Time hard gates at inference: the gate alone, and the whole router."""
    torch.manual_seed(0)
    router = make_router(num_experts, dim, hard=True)
    nodes = Nodes(router.split.weight, router.split.bias, router.leaf.weight, router.leaf.bias)
    x_TD = torch.randn(num_rows, dim)
    gates: dict[str, Callable[[Tensor], object]] = {
        "level by level": Gate(router, hard=True, fused=False),
        "torch walk": lambda x: walk_by_gather(x, nodes, K),
        "numba walk": lambda x: walk_by_numba(x, nodes, K),
    }
    routers: dict[str, Callable[[Tensor], object]] = {
        f"router, {kernel}": make_router(num_experts, dim, kernel, hard=True)
        for kernel in ("dense", "torch", "numba")
    }
    times = interleaved_medians(
        {name: partial(infer, model, x_TD) for name, model in (gates | routers).items()}
    )
    return {
        "num_experts": num_experts,
        "dim": dim,
        "rows": num_rows,
        "milliseconds": times,
        "numba_walk_over_level_by_level": times["level by level"] / times["numba walk"],
        "router_numba_over_dense": times["router, dense"] / times["router, numba"],
    }


def measure_soft(num_experts: int, num_rows: int) -> dict[str, Any]:
    """Time soft gates, forward and forward with backward."""
    torch.manual_seed(0)
    router = make_router(num_experts, SOFT_DIM, hard=False)
    models: dict[str, Callable[[Tensor], Tensor]] = {
        "node by node": Recursion(num_experts, SOFT_DIM),
        "level by level": Gate(router, hard=False, fused=False),
        "numba": Gate(router, hard=False, fused=True),
    }
    linear = nn.Linear(SOFT_DIM, K * (2 * num_experts - 1))
    models["linear maps alone"] = linear
    x_TD = torch.randn(num_rows, SOFT_DIM, requires_grad=True)
    row: dict[str, Any] = {"num_experts": num_experts, "dim": SOFT_DIM, "rows": num_rows}
    for name, run in (("inference", infer), ("training", train)):
        times = interleaved_medians({each: partial(run, models[each], x_TD) for each in models})
        row[f"{name}_milliseconds"] = times
        row[f"{name}_numba_over_node_by_node"] = times["node by node"] / times["numba"]
    return row


def main() -> None:
    """Measure all sizes, print them and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    torch.set_num_threads(parser.parse_known_args()[0].threads)
    soft, hard = [], []
    for num_experts in SOFT_EXPERTS:
        for num_rows in ROWS:
            row = measure_soft(num_experts, num_rows)
            soft.append(row)
            ratios = [row[f"{run}_numba_over_node_by_node"] for run in ("inference", "training")]
            print(
                f"soft E={num_experts} T={num_rows}: {ratios[0]:.1f}x node by node, "
                f"{ratios[1]:.1f}x in training",
                flush=True,
            )
    for dim in HARD_DIMS:
        for num_experts in HARD_EXPERTS:
            for num_rows in ROWS:
                row = measure_hard(num_experts, dim, num_rows)
                hard.append(row)
                print(
                    f"hard D={dim} E={num_experts} T={num_rows}: walk "
                    f"{row['numba_walk_over_level_by_level']:.1f}x dense, router "
                    f"{row['router_numba_over_dense']:.1f}x",
                    flush=True,
                )
    results = {
        "device": f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("moe-runtime", "torch", "numba", "numpy")}
        | {"python": platform.python_version()},
        "trees": K,
        "soft": soft,
        "hard": hard,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "comet_gate_cpu.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
