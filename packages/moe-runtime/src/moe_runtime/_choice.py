"""Choose the kernel that should take least time, and say why.

Axes: T rows, E experts, P (row, expert) pairs.
"""

from dataclasses import dataclass

import torch

from moe_runtime._costs import HERE
from moe_runtime._expert_set import ExpertSet
from moe_runtime._experts import Experts
from moe_runtime._numba_kernel import suits_numba
from moe_runtime._plan import Plan
from moe_runtime._products import ONEDNN_MULTIPLICATIONS

# Above this share of active pairs the dense form is faster on devices that were not measured.
DENSE_SHARE = 0.7
# Beyond so many pairs going from pair to pair is never ahead, and falls behind where experts do
# not fit the cache: one that several rows share is read again for each (2x at 128 pairs of 64
# experts of 3.5 MB, Zen 5).
GATHERED_PAIRS = 16
# What numba's loops take to begin and end the sum of an output, in products.
NUMBA_FEATURES = 64


@dataclass(frozen=True)
class Explanation:
    """Which kernel runs, and why.

    Attributes
    ----------
    kernel
        Its name.
    reason
        One sentence.
    num_rows, num_experts, num_pairs
        T, E, and the (row, expert) pairs with a weight.
    microseconds
        What the cost model expects of each kernel; empty on devices that it does not know.
    """

    kernel: str
    reason: str
    num_rows: int
    num_experts: int
    num_pairs: int
    microseconds: dict[str, float]

    def __str__(self) -> str:
        """Give the choice, the work and the expectations, a line each."""
        share = self.num_pairs / max(1, self.num_rows * self.num_experts)
        lines = [
            f"{self.kernel}: {self.reason}",
            f"{self.num_pairs} of {self.num_rows} x {self.num_experts} pairs ({share:.1%})",
        ]
        ordered = sorted(self.microseconds.items(), key=lambda item: item[1])
        lines += [f"{name}: about {time:,.0f} us" for name, time in ordered]
        return "\n".join(lines)


def explain(
    experts: ExpertSet,
    plan: Plan,
    device: torch.device,
    kernel: str = "auto",
    *,
    training: bool,
) -> Explanation:
    """Explain what `choose` takes, or that a kernel is asked for."""
    times = expected_microseconds(experts, plan, training=training) if device.type == "cpu" else {}
    if kernel != "auto":
        reason = "asked for"
    elif _is_single(plan, device, training=training):
        reason = "a single row, for which nothing is compared"
    elif times:
        reason = f"should be fastest on the CPU for {'training' if training else 'inference'}"
    else:
        share = plan.num_pairs / max(1, plan.num_rows * plan.num_experts)
        reason = f"{share:.0%} of the pairs are active; no times are known on {device.type}"
    if kernel == "auto":
        kernel = choose(experts, plan, device, training=training)
    return Explanation(kernel, reason, plan.num_rows, plan.num_experts, plan.num_pairs, times)


def choose(experts: ExpertSet, plan: Plan, device: torch.device, *, training: bool) -> str:
    """Name the kernel that should take least time."""
    if _is_single(plan, device, training=training):
        # What it takes to compare would be a tenth of it.
        return "numba" if suits_numba(experts) else "gathered"
    if device.type == "cpu":
        times = expected_microseconds(experts, plan, training=training)
        return min(times, key=times.__getitem__)
    is_dense = plan.num_pairs > DENSE_SHARE * plan.num_rows * plan.num_experts
    return "dense" if is_dense and isinstance(experts, Experts) else "sorted"


def _is_single(plan: Plan, device: torch.device, *, training: bool) -> bool:
    return device.type == "cpu" and plan.num_rows == 1 and not training


def expected_microseconds(experts: ExpertSet, plan: Plan, *, training: bool) -> dict[str, float]:
    """Microseconds that each kernel should take on the CPU."""
    costs = HERE.training if training else HERE.inference
    threads = torch.get_num_threads()
    layers = len(experts.layer_sizes)
    largest = max(inputs * outputs for inputs, outputs in experts.layer_sizes)
    total = sum(inputs * outputs for inputs, outputs in experts.layer_sizes)
    size = (layers, total / 1000 / threads)
    num_cells = plan.num_rows * plan.num_experts
    moved = (experts.in_features + experts.out_features) / 1000 / threads
    rows_of_expert = plan.num_pairs / max(1, plan.num_used)
    products = costs.large if rows_of_expert * largest >= ONEDNN_MULTIPLICATIONS else costs.small
    times = {
        "sorted": costs.sorted_base
        + costs.sorted_weight * num_cells / 1000
        + costs.sorted_moved * moved * plan.num_pairs
        + products.time(plan.num_pairs, plan.num_used, *size),
    }
    # Other experts run every row one by one then, and have no large product to win by.
    if isinstance(experts, Experts):
        times["dense"] = (
            costs.dense_base
            + costs.dense_moved * moved * num_cells
            + costs.dense.time(num_cells, plan.num_experts, *size)
        )
    if not training and plan.num_pairs <= GATHERED_PAIRS:
        times["gathered"] = (
            HERE.gathered_base
            + HERE.gathered_row * plan.num_rows
            + HERE.gathered.time(plan.num_pairs, plan.num_pairs, *size)
        )
    if suits_numba(experts):
        # Its loops have one thread.
        total = sum((inputs + NUMBA_FEATURES) * outputs for inputs, outputs in experts.layer_sizes)
        times["numba"] = (
            costs.numba_base
            + costs.numba_weight * num_cells / 1000
            + costs.numba_moved * moved * plan.num_pairs
            + costs.numba.time(plan.num_pairs, plan.num_used, layers, total / 1000)
        )
    return times
