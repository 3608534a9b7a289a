"""Peak memory of a layer against its (row, expert) pairs; writes JSON.

Bytes are those that PyTorch's profiler saw allocated and not yet freed. The gradients of the
parameters, which no plan can avoid, are counted apart.

Axes: T rows, D features, H hidden units, E experts, P (row, expert) pairs.
"""

import json
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _harness import Model, infer, parse_options, train, write
from torch.profiler import ProfilerActivity, profile

from moe_runtime import Experts, MixtureOfExperts, TopKRouter

DIM, HIDDEN = 256, 512
# Rows, experts, experts a row: many pairs of few experts, and few pairs of many.
SIZES = (*((1024, 64, k) for k in (1, 2, 4, 8, 16, 32)), (1024, 16, 2), (1024, 256, 2))
DENSE_SIZES = ((1024, 16, 2), (1024, 64, 2))
QUICK_SIZES, QUICK_DENSE_SIZES = ((256, 16, 1), (256, 16, 2), (256, 16, 4)), ((256, 16, 2),)


def peak_bytes(run: partial[object]) -> int:
    """Run once; return the most bytes that were allocated at one time, above those before."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    ]
    peak = allocated = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        allocated += change
        peak = max(peak, allocated)
    return peak


def measure(rows: int, num_experts: int, k: int, kernel: str) -> dict[str, Any]:
    """Return the peaks of inference and of a training step."""
    torch.manual_seed(0)
    router, experts = TopKRouter(DIM, num_experts, k=k), Experts(num_experts, (DIM, HIDDEN, DIM))
    mixture = MixtureOfExperts(router, experts, kernel=kernel)
    model = Model(lambda x_TD: mixture(x_TD).output, mixture)
    x_TD = torch.randn(rows, DIM, requires_grad=True)
    gradients = 4 * sum(parameter.numel() for parameter in mixture.parameters())
    return {
        "rows": rows,
        "num_experts": num_experts,
        "k": k,
        "dim": DIM,
        "hidden": HIDDEN,
        "pairs": rows * k,
        "kernel": kernel,
        "inference_bytes": peak_bytes(partial(infer, model, x_TD)),
        "training_bytes": peak_bytes(partial(train, model, x_TD, torch.randn(rows, DIM))),
        "parameter_gradient_bytes": gradients,
        "all_pairs_hidden_bytes": 4 * rows * num_experts * HIDDEN,
    }


def main() -> None:
    """Measure all sizes, print bytes a pair and write the results."""
    options = parse_options(__doc__)
    # Otherwise the profiler reports each of its starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")
    sizes = QUICK_SIZES if options.quick else SIZES
    dense_sizes = QUICK_DENSE_SIZES if options.quick else DENSE_SIZES
    rows = [measure(*size, "auto") for size in sizes]
    rows += [measure(*size, "dense") for size in dense_sizes]
    for row in rows:
        training = row["training_bytes"] - row["parameter_gradient_bytes"]
        print(
            f"{row['kernel']} T={row['rows']} E={row['num_experts']} k={row['k']}: "
            f"inference {row['inference_bytes'] / 2**20:.1f} MiB, training {training / 2**20:.1f} "
            f"MiB above the parameters' gradients, a (T, E, H) tensor "
            f"{row['all_pairs_hidden_bytes'] / 2**20:.1f} MiB"
        )
    same = [row for row in rows if row["kernel"] == "auto" and row["num_experts"] == sizes[0][1]]
    pairs = [row["pairs"] for row in same]
    for part in ("inference", "training"):
        peaks = [row[f"{part}_bytes"] for row in same]
        slope, _ = statistics.linear_regression(pairs, peaks)
        r_squared = statistics.correlation(pairs, peaks) ** 2
        print(f"{part}: {slope / 4:.0f} numbers a pair (D={DIM}, H={HIDDEN}), R^2 {r_squared:.5f}")
    write("memory", options, rows)


if __name__ == "__main__":
    main()
