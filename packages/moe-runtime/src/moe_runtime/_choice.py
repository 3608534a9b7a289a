"""Choose the kernel that should take least time, and say why.

Axes: T rows, E experts, P (row, expert) pairs.
"""

from dataclasses import dataclass

import torch

from moe_runtime._expert_set import ExpertSet
from moe_runtime._plan import Plan

# All times are microseconds of one thread of an x86 core with float32 (bench/kernels.py); only
# their ratios decide. First, a matrix product: its call, a thousand multiplications in a large
# product, and how many rows reading the weights costs as much as: few rows are slow.
CALL = 4.0
THOUSAND_MULTIPLICATIONS = 0.022
ROWS_FOR_WEIGHTS = 14
# A batched product: what each expert adds to it.
BATCHED_EXPERT = 0.5
# Moving a thousand numbers of rows to their experts' blocks, or back.
THOUSAND_MOVED = 0.2
# What a kernel does whatever the sizes, and for each row that it gathers.
DENSE_BASE, GATHERED_BASE, GATHERED_ROW, SORTED_BASE = 15.0, 10.0, 15.0, 70.0
# A training step against a forward pass: three products instead of one.
TRAINING = 3
# Above this share of active pairs the dense form is faster on devices that were not measured.
DENSE_SHARE = 0.7


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
    times = _times(experts, plan, training=training) if device.type == "cpu" else {}
    if kernel != "auto":
        reason = "asked for"
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
    if device.type == "cpu":
        times = _times(experts, plan, training=training)
        return min(times, key=times.__getitem__)
    return "dense" if plan.num_pairs > DENSE_SHARE * plan.num_rows * plan.num_experts else "sorted"


def _times(experts: ExpertSet, plan: Plan, *, training: bool) -> dict[str, float]:
    """Microseconds that each kernel should take on the CPU."""
    threads = torch.get_num_threads()
    sizes = experts.layer_sizes
    thousands = sum(inputs * outputs for inputs, outputs in sizes) / 1000 / threads
    layers = len(sizes) * CALL
    moved = (experts.in_features + experts.out_features) / 1000 / threads * THOUSAND_MOVED

    def products(num_rows: int, num_weights: int) -> float:
        rows = num_rows + ROWS_FOR_WEIGHTS * num_weights
        return rows * thousands * THOUSAND_MULTIPLICATIONS

    every = plan.num_rows * plan.num_experts
    times = {
        "dense": DENSE_BASE
        + len(sizes) * (CALL + plan.num_experts * BATCHED_EXPERT)
        + products(every, plan.num_experts)
        + every * moved / 2,
        "sorted": SORTED_BASE
        + plan.num_used * layers
        + products(plan.num_pairs, plan.num_used)
        + plan.num_pairs * moved,
    }
    if training:
        return {name: TRAINING * time for name, time in times.items()}
    gathered = GATHERED_BASE + plan.num_rows * GATHERED_ROW + plan.num_pairs * layers
    return times | {"gathered": gathered + products(plan.num_pairs, plan.num_pairs)}
