"""The same mixture of experts here and in other libraries: inference and training; writes JSON.

Weights are copied over, and outputs and gradients compared, before anything is timed. All times
of a row are of one process, variants in turns. A library that is not installed, or cannot do the
same work, is left out, and the JSON file says why.

Axes: T rows, D features, H hidden units, E experts.
"""

import math
import os
from itertools import product
from typing import Any

import torch
from _harness import Model, Options, parse_options, time_models, write
from _peers import PEERS, LeftOutError, Weights, ours
from torch import Tensor

from moe_runtime import pack_experts

# DeepSpeed looks for an accelerator when it is imported.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
EXPERTS, SIZES, ROWS = (8, 64), ((768, 384), (768, 3072), (768, 48)), (1, 64, 1024)  # D, H
QUICK_EXPERTS, QUICK_SIZES, QUICK_ROWS = (8,), ((768, 384), (768, 48)), (1, 64)
K = 2
# Experts above this are measured with `--large` only: every library takes seconds a step.
LARGE_BYTES = 2**30
PACKED = "moe-runtime, packed"
# Sums of up to 3072 products in float32, in another order.
TOLERANCE = 1e-4


def draw(
    num_experts: int, dim: int, hidden: int, rows: int, *, gated: bool
) -> tuple[Weights, Tensor]:
    """Draw a mixture and rows for it."""
    torch.manual_seed(0)
    first = (1 + gated) * hidden
    router_ED = torch.randn(num_experts, dim) / math.sqrt(dim)
    x_TD = torch.randn(rows, dim)
    load_E = (x_TD @ router_ED.T).topk(K).indices.flatten().bincount(minlength=num_experts)
    weights = Weights(
        router_ED,
        torch.randn(num_experts, first, dim) / math.sqrt(dim),
        torch.randn(num_experts, dim, hidden) / math.sqrt(hidden),
        gated=gated,
        k=K,
        max_load=int(load_E.max()),
        rows=rows,
    )
    return weights, x_TD


def build(weights: Weights) -> tuple[dict[str, Model], dict[str, str]]:
    """Build every variant; also return why some are left out."""
    models, left_out = {"moe-runtime": ours(weights)}, {}
    for name, builder in PEERS.items():
        try:
            models[name] = builder(weights)
        except ImportError as error:
            left_out[name] = f"not installed: {error}"
        except LeftOutError as error:
            left_out[name] = str(error)
    return models, left_out


def pack(weights: Weights) -> Model:
    """Build the layer of this package with its experts packed, for inference."""
    model = ours(weights)
    pack_experts(model.module)
    return model


def largest_difference(model: Model, reference: Model, x_TD: Tensor) -> float:
    """Compare outputs and input gradients, relative to the largest value of each."""
    answers = []
    for each in (model, reference):
        x = x_TD.clone().requires_grad_()
        output_TD = each.call(x)
        (grad_TD,) = torch.autograd.grad(output_TD, x, torch.ones_like(output_TD))
        answers.append((output_TD.detach(), grad_TD))
    pairs = zip(*answers, strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


def measure(weights: Weights, x_TD: Tensor, options: Options) -> dict[str, Any]:
    """Time all variants of one size, after comparing their answers."""
    models, left_out = build(weights)
    differences = {
        name: largest_difference(model, models["moe-runtime"], x_TD)
        for name, model in models.items()
    }
    for name, difference in differences.items():
        assert difference < TOLERANCE, f"{name} differs by {difference}"
    row: dict[str, Any] = {
        "gated": weights.gated,
        "num_experts": weights.num_experts,
        "dim": weights.dim,
        "hidden": weights.hidden,
        "rows": weights.rows,
        "k": weights.k,
        "largest_load": weights.max_load,
        "largest_relative_difference": differences,
        "left_out": left_out,
    }
    per_pair = weights.first_EHD[0].numel() + weights.second_EDH[0].numel()
    packed = {PACKED: pack(weights)}
    with torch.no_grad():
        reference_TD, packed_TD = (
            model.call(x_TD) for model in (models["moe-runtime"], packed[PACKED])
        )
    torch.testing.assert_close(packed_TD, reference_TD, rtol=0, atol=TOLERANCE)
    for name, passes in (("inference", 1), ("training", 3)):
        row[name] = time_models(
            models | packed if name == "inference" else models,
            x_TD,
            training=passes == 3,
            options=options,
            operations=2 * passes * weights.rows * weights.k * per_pair,
        )
    return row


def main() -> None:
    """Measure all sizes, print ratios to this package and write the results."""
    options = parse_options(__doc__)
    given = (QUICK_EXPERTS, QUICK_SIZES, QUICK_ROWS) if options.quick else (EXPERTS, SIZES, ROWS)
    rows = []
    for gated, num_experts, (dim, hidden), num_rows in product((False, True), *given):
        is_large = 4 * num_experts * (2 + gated) * dim * hidden > LARGE_BYTES
        if is_large and not options.large:
            continue
        weights, x_TD = draw(num_experts, dim, hidden, num_rows, gated=gated)
        row = measure(weights, x_TD, options)
        rows.append(row)
        kind = "gated" if gated else "plain"
        print(f"{kind} E={num_experts} {dim}/{hidden} T={num_rows}")
        for part in ("inference", "training"):
            mine = row[part]["milliseconds"]["moe-runtime"]
            ratios = ", ".join(f"{name} {each:.2f}" for name, each in row[part]["ratios"].items())
            share = row[part]["floor_milliseconds"] / mine
            print(f"  {part} {mine:.2f} ms, {share:.0%} of the floor; {ratios}", flush=True)
    write("peers", options, rows)


if __name__ == "__main__":
    main()
