"""What each kernel takes, and how much slower than the best the chosen one is; writes JSON.

The constants of the cost model (`moe_runtime._costs`) come from here.

Axes: T rows, D input features, H hidden units, E experts.
"""

import statistics
from functools import partial
from itertools import product
from operator import truediv
from typing import Any

import torch
from _harness import Options, parse_options, take_turns, write
from torch import Tensor

from moe_runtime import Experts
from moe_runtime._choice import choose, expected_microseconds
from moe_runtime._kernels import KERNELS
from moe_runtime._mixture import run_experts
from moe_runtime._numba_kernel import suits_numba
from moe_runtime._plan import make_plan

SIZES = (
    (4, 16, 16),
    (16, 32, 64),
    (256, 128, 128),
    (4, 256, 256),
    (16, 256, 256),
    (64, 256, 256),
    (64, 768, 48),
    (8, 768, 384),
    (64, 768, 384),
    (8, 768, 3072),
)  # E, D, H
ROWS = (1, 2, 4, 8, 16, 64, 256, 1024)
QUICK_SIZES, QUICK_ROWS = ((16, 32, 64),), (1, 64)
# Beyond these the best kernel is clear, and measuring it takes long.
MOST_MULTIPLICATIONS = 3e8
# Going from pair to pair is not tried for more pairs than these.
MOST_GATHERED = 64
# Nor computing all pairs where that is so much more arithmetic.
MOST_DENSE = 40


def draw_weights(num_rows: int, num_experts: int, k: int) -> Tensor:
    """Draw gate weights (1, T, E), `k` of each row not 0."""
    scores_TE = torch.rand(num_rows, num_experts)
    chosen_TK = scores_TE.topk(k).indices
    return torch.zeros_like(scores_TE).scatter_(1, chosen_TK, 1.0)[None] * scores_TE


def step(experts: Experts, x_TD: Tensor, weights_GTE: Tensor, kernel: str) -> None:
    """Run forward and backward."""
    output = run_experts(experts, x_TD, weights_GTE, kernel)
    torch.autograd.backward(output.sum())
    experts.zero_grad(set_to_none=True)
    x_TD.grad = weights_GTE.grad = None


def infer(experts: Experts, x_TD: Tensor, weights_GTE: Tensor, kernel: str) -> None:
    """Run forward alone."""
    with torch.inference_mode():
        run_experts(experts, x_TD, weights_GTE, kernel)


def measure(size: tuple[int, int, int], num_rows: int, k: int, options: Options) -> list[Any]:
    """Time the kernels that make sense for one work, in inference and in training."""
    num_experts, dim, hidden = size
    torch.manual_seed(0)
    experts = Experts(num_experts, (dim, hidden, dim))
    x_TD, weights_GTE = torch.randn(num_rows, dim), draw_weights(num_rows, num_experts, k)
    plan = make_plan(weights_GTE)
    rows = []
    for training in (False, True):
        names = ["sorted"]
        if num_experts <= MOST_DENSE * k:
            names.append("dense")
        if num_rows * k <= MOST_GATHERED and not training:
            names.append("gathered")
        if suits_numba(experts):
            names.append("numba")
        kernel = choose(experts, plan, x_TD.device, training=training)
        names += [kernel] if kernel not in names else []
        run = step if training else infer
        inputs = [each.detach().requires_grad_(training) for each in (x_TD, weights_GTE)]
        calls = {name: partial(run, experts, *inputs, name) for name in names}
        times = take_turns(calls, seconds=options.seconds / 16)
        medians = {name: 1e3 * statistics.median(times[name]) for name in names}
        best = min(medians, key=medians.__getitem__)
        regret = statistics.median(map(truediv, times[kernel], times[best]))
        row = {"num_experts": num_experts, "dim": dim, "hidden": hidden, "rows": num_rows, "k": k}
        row |= {"training": training, "microseconds": medians, "chosen": kernel, "regret": regret}
        expected = expected_microseconds(experts, plan, training=training)
        row["expected_microseconds"] = {name: expected[name] for name in names}
        rows.append(row)
    return rows


def main() -> None:
    """Measure all works, print those where the choice costs most, and write the results."""
    options = parse_options(__doc__)
    sizes, row_counts = (QUICK_SIZES, QUICK_ROWS) if options.quick else (SIZES, ROWS)
    rows: list[Any] = []
    for size, num_rows in product(sizes, row_counts):
        for k in sorted({1, 2, size[0] // 2, size[0]}):
            if num_rows * k * size[1] * size[2] < MOST_MULTIPLICATIONS:
                rows += measure(size, num_rows, k, options)
        print("E={} D={} H={}".format(*size), f"T={num_rows} done", flush=True)
    assert set(rows[0]["microseconds"]) <= set(KERNELS)
    regrets = sorted(row["regret"] for row in rows)
    print(f"{len(rows)} works; the choice takes {statistics.mean(regrets):.3f} times the best")
    print(f"on average, {regrets[int(0.95 * len(regrets))]:.2f} in one of twenty. Worst:")
    for row in sorted(rows, key=lambda row: -row["regret"])[:12]:
        print(f"  {row}")
    write("kernels", options, rows)


if __name__ == "__main__":
    main()
