"""What training a COMET layer costs against the non-zero weights it has; writes JSON.

The same layer is measured from dense, where every row uses every expert, to hard, where it uses
at most k, by narrowing the band of its smooth step. If only selected pairs are computed, time is
a straight line in the mean number of non-zeros a row.

Axes: T rows, D features, E experts.
"""

import statistics
from typing import Any

import torch
from _harness import Model, Options, parse_options, time_models, write
from torch import nn

from moe_runtime import CometRouter, Experts, MixtureOfExperts

SIZES = ((16, 256, 256, 2048), (64, 256, 256, 512), (8, 768, 384, 1024))  # E, D, H, T
QUICK_SIZES = ((8, 64, 64, 256),)
K = 2
# Split scores have a standard deviation of 1: at the widest band no row reaches its edges, at the
# narrowest few rows are inside.
GAMMAS = (20.0, 3.0, 2.4, 2.0, 1.6, 1.3, 1.0, 0.7, 0.4, 0.1, 1e-3)
KERNELS = ("auto", "sorted")


def build(num_experts: int, dim: int, hidden: int, gamma: float, kernel: str) -> MixtureOfExperts:
    """Build the layer with scores of unit variance."""
    torch.manual_seed(0)
    router = CometRouter(dim, num_experts, k=K, gamma=gamma)
    nn.init.normal_(router.split.weight, std=dim**-0.5)
    experts = Experts(num_experts, (dim, hidden, dim))
    return MixtureOfExperts(router, experts, kernel=kernel)


def measure(
    num_experts: int, dim: int, hidden: int, rows: int, kernel: str, options: Options
) -> dict[str, Any]:
    """Time a training step for each width of the band, and fit a line through them."""
    layers = {str(gamma): build(num_experts, dim, hidden, gamma, kernel) for gamma in GAMMAS}
    x_TD = torch.randn(rows, dim)
    with torch.no_grad():
        nonzeros = [
            float((layer(x_TD).weights != 0).sum(1).float().mean()) for layer in layers.values()
        ]
    models = {
        name: Model(lambda x, layer=layer: layer(x).output, layer) for name, layer in layers.items()
    }
    timing = time_models(models, x_TD, training=True, options=options)
    milliseconds = list(timing["milliseconds"].values())
    slope, intercept = statistics.linear_regression(nonzeros, milliseconds)
    return {
        "num_experts": num_experts,
        "dim": dim,
        "hidden": hidden,
        "rows": rows,
        "k": K,
        "kernel": kernel,
        "gammas": GAMMAS,
        "mean_nonzeros": nonzeros,
        "training_milliseconds": milliseconds,
        "r_squared": statistics.correlation(nonzeros, milliseconds) ** 2,
        "milliseconds_per_nonzero": slope,
        "milliseconds_without_nonzeros": intercept,
        # 1 where leaving a pair out saves what the dense step spends on one.
        "slope_over_dense_per_expert": slope * num_experts / milliseconds[0],
    }


def main() -> None:
    """Measure all sizes, print the fits and write the results."""
    options = parse_options(__doc__)
    rows = []
    for size in QUICK_SIZES if options.quick else SIZES:
        for kernel in KERNELS:
            row = measure(*size, kernel, options)
            rows.append(row)
            points = zip(row["mean_nonzeros"], row["training_milliseconds"], strict=True)
            print("E={} D={} H={} T={}".format(*size), f"{kernel}: R^2 {row['r_squared']:.4f},")
            print(f"  {row['milliseconds_per_nonzero']:.2f} ms a non-zero, of the dense step's")
            print(f"  share of an expert {row['slope_over_dense_per_expert']:.2f};")
            print(" ", ", ".join(f"{each:.1f}: {time:.1f} ms" for each, time in points), flush=True)
    write("nonzeros", options, rows)


if __name__ == "__main__":
    main()
