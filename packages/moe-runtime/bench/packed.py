"""Packed experts against plain ones, and against the arithmetic of the selected pairs; writes JSON.

Axes: T rows, D input features, H hidden units, E experts.
"""

import copy
from typing import Any

import torch
from _harness import Model, Options, parse_options, time_models, write

from moe_runtime import Experts, MixtureOfExperts, TopKRouter, pack_experts

SIZES = ((8, 768, 384), (64, 768, 384), (8, 768, 3072), (64, 256, 256))  # E, D, H
ROWS = (1, 64, 1024)
QUICK_SIZES, QUICK_ROWS = ((8, 256, 256),), (1, 64)
K = 2
WEIGHTS = ("float32", "bfloat16", "int8")


def build(num_experts: int, dim: int, hidden: int) -> tuple[dict[str, Model], dict[str, Any]]:
    """Build a layer and its packed copies, with what packing says of each."""
    torch.manual_seed(0)
    experts = Experts(num_experts, (dim, hidden, dim), activation="gelu")
    plain = MixtureOfExperts(TopKRouter(dim, num_experts, k=K), experts).eval()
    layers, reports = {"plain": plain}, {}
    for weights in WEIGHTS:
        layers[weights] = copy.deepcopy(plain)
        examples = (torch.randn(256, dim),)
        report = pack_experts(layers[weights], weights=weights, example_inputs=examples)
        reports[weights] = report._asdict()
    models = {
        name: Model(lambda x, layer=layer: layer(x).output, layer) for name, layer in layers.items()
    }
    return models, reports


def measure(size: tuple[int, int, int], row_counts: tuple[int, ...], options: Options) -> list[Any]:
    """Time all variants of one size, for each number of rows."""
    models, reports = build(*size)
    num_experts, dim, hidden = size
    return [
        {
            "num_experts": num_experts,
            "dim": dim,
            "hidden": hidden,
            "rows": num_rows,
            "k": K,
            "packing": reports,
            "inference": time_models(
                models,
                torch.randn(num_rows, dim),
                training=False,
                options=options,
                operations=4 * num_rows * K * dim * hidden,
            ),
        }
        for num_rows in row_counts
    ]


def main() -> None:
    """Measure all sizes, print times and shares of the floor, and write the results."""
    options = parse_options(__doc__)
    sizes, row_counts = (QUICK_SIZES, QUICK_ROWS) if options.quick else (SIZES, ROWS)
    rows: list[Any] = []
    for size in sizes:
        for row in measure(size, row_counts, options):
            rows.append(row)
            floor = row["inference"]["floor_milliseconds"]
            shares = ", ".join(
                f"{name} {time:.2f} ms ({floor / time:.0%})"
                for name, time in row["inference"]["milliseconds"].items()
            )
            print("E={} D={} H={}".format(*size), f"T={row['rows']}: {shares}", flush=True)
    write("packed", options, rows)


if __name__ == "__main__":
    main()
