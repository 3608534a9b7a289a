"""Export a stack of transformer blocks: seconds, peak memory, errors, and a thousand repeats.

Each stack is exported by a process of its own, whose largest resident set is read before and
after. Writes JSON.

Axes: T rows, D features, H hidden units, E experts.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import parse_options, write
from torch import Tensor, nn

from moe_runtime import Experts, MixtureOfExperts, TopKRouter, hard_routing
from moe_runtime.onnx import export

SEQUENCE = 8
# Layers, experts, D, H: as in the requirement with 3.6 GB of weights, and smaller.
SIZES = ((12, 16, 768, 3072), (12, 16, 256, 1024), (2, 64, 768, 384))
QUICK_SIZES = ((2, 4, 32, 64),)
# Of one mixture: what is repeated, by how many threads, and what no answer may differ by.
REPEATS, QUICK_REPEATS, THREADS, ROWS, TOLERANCE = 1000, 20, 2, 1024, 2e-6


class Block(nn.Module):
    """Attention and a mixture, each after a norm and beside a residual."""

    def __init__(self, num_experts: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, 4, batch_first=True)
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        experts = Experts(num_experts, (dim, hidden, dim), activation="gelu")
        self.mixture = MixtureOfExperts(TopKRouter(dim, num_experts, k=2), experts)

    def forward(self, x_TSD: Tensor) -> Tensor:
        """Transform sequences (T, S, D)."""
        attended = self.norms[0](x_TSD)
        x_TSD = x_TSD + self.attention(attended, attended, attended, need_weights=False)[0]
        mixed: Tensor = self.mixture(self.norms[1](x_TSD)).output
        return x_TSD + mixed


def peak_bytes() -> int:
    """Return the largest resident set that this process ever had, from Linux' own count."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(
        next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]
    )


def export_one(size: tuple[int, int, int, int], target: str) -> dict[str, Any]:
    """Build and export one stack, in this process."""
    layers, num_experts, dim, hidden = size
    torch.manual_seed(0)
    x_TSD = torch.randn(64, SEQUENCE, dim)
    baseline = peak_bytes()
    model = nn.Sequential(*(Block(num_experts, dim, hidden) for _ in range(layers))).eval()
    weights = sum(each.numel() * each.element_size() for each in model.state_dict().values())
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
        verification = export(model, (x_TSD,), folder, hard=True, target=target, **names)
        seconds = time.perf_counter() - begin
        written = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {
        "layers": layers,
        "num_experts": num_experts,
        "dim": dim,
        "hidden": hidden,
        "target": target,
        "weight_bytes": weights,
        "written_bytes": written,
        "seconds": seconds,
        # Libraries and the interpreter, before there was a model, are not the export's.
        "peak_over_weights": (peak_bytes() - baseline) / weights,
        "output_error": verification.output_errors["y"],
        "mixture_error": max(verification.mixture_errors),
        "num_undecided": verification.num_undecided,
    }


def repeat(count: int) -> dict[str, Any]:
    """Run one mixture many times with several threads, and count the answers that are wrong."""
    import onnxruntime as ort  # noqa: PLC0415 - the extra

    torch.manual_seed(0)
    mixture = MixtureOfExperts(TopKRouter(64, 16, k=2), Experts(16, (64, 64, 64))).eval()
    x_TD = torch.randn(ROWS, 64)
    with torch.no_grad(), hard_routing(mixture):
        wanted = mixture(x_TD).output.numpy()
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y", "penalty", "weights"]}
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    largest, wrong = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        export(mixture, (x_TD,), folder, hard=True, **names)
        session = ort.InferenceSession(
            Path(folder) / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        for _ in range(count):
            answer = session.run(["y"], {"x": x_TD.numpy()})[0]
            error = float(np.abs(answer - wanted).max())
            largest, wrong = max(largest, error), wrong + (error > TOLERANCE)
    return {
        "repeats": count,
        "threads": THREADS,
        "rows": ROWS,
        "wrong": wrong,
        "largest_error": largest,
    }


def main() -> None:
    """Export all stacks, repeat one mixture, and write the results."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--one", nargs=5)
    one = parser.parse_known_args()[0].one
    if one is not None:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        print(json.dumps(export_one(tuple(map(int, one[:4])), one[4])))  # type: ignore[arg-type]
        return
    options = parse_options(__doc__)
    rows = []
    for size in QUICK_SIZES if options.quick else SIZES:
        for target in ("unrolled", "scan"):
            command = [sys.executable, __file__, "--one", *map(str, size), target]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - this file
            rows.append(json.loads(done.stdout))
            row = rows[-1]
            print(
                f"{size} {target}: {row['weight_bytes'] / 1e9:.2f} GB in {row['seconds']:.1f} s, "
                f"peak {row['peak_over_weights']:.2f}x, error {row['output_error']:.1e}, "
                f"mixtures {row['mixture_error']:.1e}"
            )
    repeats = repeat(QUICK_REPEATS if options.quick else REPEATS)
    print(f"{repeats['repeats']} runs with {THREADS} threads: {repeats['wrong']} wrong")
    write("onnx_export", options, [*rows, repeats])


if __name__ == "__main__":
    main()
