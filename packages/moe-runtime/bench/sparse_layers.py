"""Sparse execution against computing every expert, and against its arithmetic floor; writes JSON.

Axes: T rows, D input features, H hidden units, E experts.
"""

from itertools import product
from typing import Any

import torch
from _harness import Model, Options, parse_options, time_models, write
from torch import Tensor, nn

from moe_runtime import Experts, MixtureOfExperts, TopKRouter

SIZES = ((16, 256, 256), (64, 256, 256), (8, 768, 384))  # E, D, H
ROWS = (1, 64, 512, 2048)
QUICK_SIZES, QUICK_ROWS = ((16, 256, 256),), (1, 64)
KERNELS = ("auto", "sorted", "dense")
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


def measure(
    num_experts: int, dim: int, hidden: int, num_rows: int, options: Options
) -> dict[str, Any]:
    """Time all variants of one size."""
    torch.manual_seed(0)
    router, experts = TopKRouter(dim, num_experts, k=K), Experts(num_experts, (dim, hidden, dim))
    published = AllExperts(MixtureOfExperts(router, experts))
    models = {"all experts, one by one": Model(published, published)}
    for kernel in KERNELS:
        layer = MixtureOfExperts(router, experts, kernel=kernel)
        models[kernel] = Model(lambda x, layer=layer: layer(x).output, layer)
    row: dict[str, Any] = {
        "num_experts": num_experts,
        "dim": dim,
        "hidden": hidden,
        "rows": num_rows,
        "k": K,
    }
    x_TD = torch.randn(num_rows, dim)
    for name, passes in (("inference", 1), ("training", 3)):
        row[name] = time_models(
            models,
            x_TD,
            training=passes == 3,
            options=options,
            operations=4 * passes * num_rows * K * dim * hidden,
        )
    return row


def main() -> None:
    """Measure all sizes, print speeds over the dense form and write the results."""
    options = parse_options(__doc__)
    given = (QUICK_SIZES, QUICK_ROWS) if options.quick else (SIZES, ROWS)
    rows = []
    for size, num_rows in product(*given):
        row = measure(*size, num_rows, options)
        rows.append(row)
        print("E={} D={} H={}".format(*size), f"T={num_rows}, ideal {size[0] / K:.0f}x")
        for part in ("inference", "training"):
            times, ratios = row[part]["milliseconds"], row[part]["ratios"]
            speeds = ", ".join(f"{name} {1 / each:.1f}x" for name, each in ratios.items())
            share = row[part]["floor_milliseconds"] / times["auto"]
            print(f"  {part}: {speeds}; auto at {share:.0%} of the floor", flush=True)
    write("sparse_layers", options, rows)


if __name__ == "__main__":
    main()
