"""Ways to run the experts of a plan, with one contract: output (G, T, O), every gradient.

Axes: T rows, D input features, O output features, E experts, G gates, P (row, expert) pairs,
R rows of one expert.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moe_runtime import _triton
from moe_runtime._expert_set import ExpertSet
from moe_runtime._experts import Experts
from moe_runtime._numba_kernel import run_numba
from moe_runtime._plan import Plan, gate_weights
from moe_runtime._rows import combine, gather_rows

Kernel = Callable[[ExpertSet, Tensor, Tensor, Plan], Tensor]
# Where no gradient is wanted, the dense form takes so many rows at a time that what all experts
# make of them stays within this number of elements: 16 MB in float32.
DENSE_ELEMENTS = 4_000_000


def run_loop(experts: ExpertSet, x_TD: Tensor, weights_GTE: Tensor, plan: Plan) -> Tensor:
    """Follow the definition, expert by expert, with autograd's own gradients: to compare with."""
    num_gates, num_rows, num_experts = weights_GTE.shape
    total_GTO, dtype = None, x_TD.dtype
    for expert in range(num_experts):
        row_R = plan.mask_TE[:, expert].nonzero()[:, 0]
        y_RO = experts.one(expert, x_TD[row_R])
        weights_GR, wide_RO, dtype = _wide(weights_GTE[:, row_R, expert], y_RO)
        if total_GTO is None:
            total_GTO = wide_RO.new_zeros(num_gates, num_rows, experts.out_features)
        total_GTO = total_GTO.index_add(1, row_R, weights_GR[..., None] * wide_RO)
    assert total_GTO is not None
    return total_GTO.to(dtype)


def run_sorted(experts: ExpertSet, x_TD: Tensor, weights_GTE: Tensor, plan: Plan) -> Tensor:
    """Copy the rows sorted by expert, give each expert its block, and add up by row."""
    y_PO = experts(gather_rows(x_TD, plan), plan.counts_E)
    weights_GP, wide_PO, dtype = _wide(gate_weights(weights_GTE, plan), y_PO)
    return combine(wide_PO, weights_GP, plan).to(dtype)


def run_gathered(experts: ExpertSet, x_TD: Tensor, weights_GTE: Tensor, plan: Plan) -> Tensor:
    """Go from pair to pair, row by row: for a few pairs, the least to prepare."""
    pair_P = plan.mask_TE.flatten().nonzero()[:, 0]
    pairs = [divmod(pair, experts.num_experts) for pair in pair_P.tolist()]
    blocks = experts.several((expert, x_TD[row : row + 1]) for row, expert in pairs)
    y_PO = torch.cat(blocks) if blocks else experts.one(0, x_TD[:0])
    weights_GP, wide_PO, dtype = _wide(weights_GTE.flatten(1).index_select(1, pair_P), y_PO)
    if plan.num_rows == 1 and not torch.is_grad_enabled():
        return torch.mm(weights_GP, wide_PO)[:, None].to(dtype)
    weighted_GPO = weights_GP[..., None] * wide_PO
    counts = [0] * plan.num_rows
    for row, _ in pairs:
        counts[row] += 1
    outputs = [block.sum(1) for block in torch.split(weighted_GPO, counts, 1)]
    output_GTO = torch.stack(outputs, 1) if outputs else weighted_GPO
    if torch.is_grad_enabled():
        # All experts take part in training, on no rows, so that every parameter gets a gradient.
        idle = [experts.one(expert, x_TD[:0]).sum() for expert in range(experts.num_experts)]
        output_GTO = output_GTO + torch.stack(idle).sum()
    return output_GTO.to(dtype)


def run_dense(
    experts: ExpertSet, x_TD: Tensor, weights_GTE: Tensor, _plan: Plan | None = None
) -> Tensor:
    """Run every expert on every row, as a few large products."""
    if torch.is_grad_enabled():
        return _dense(experts, x_TD, weights_GTE)
    largest = experts.num_experts * max(max(sizes) for sizes in experts.layer_sizes)
    num_rows = max(1, DENSE_ELEMENTS // largest)
    chunks = zip(torch.split(x_TD, num_rows), torch.split(weights_GTE, num_rows, 1), strict=True)
    return torch.cat([_dense(experts, x_RD, weights_GRE) for x_RD, weights_GRE in chunks], 1)


def _dense(experts: ExpertSet, x_TD: Tensor, weights_GTE: Tensor) -> Tensor:
    weights_GTE, y_ETO, dtype = _wide(weights_GTE, experts.every(x_TD))
    with torch.autocast(x_TD.device.type, enabled=False):
        return torch.einsum("gte,eto->gto", weights_GTE, y_ETO).to(dtype)


def run_triton(experts: ExpertSet, x_TD: Tensor, weights_GTE: Tensor, plan: Plan) -> Tensor:
    """Run Triton's kernels on a GPU; waits for the device only where no bound is known."""
    if not isinstance(experts, Experts) or any(step.dropout for step in experts.steps()):
        msg = "`kernel`='triton' runs `Experts` only, and in training only those without dropout."
        raise ValueError(msg)
    return _triton.run_experts(
        x_TD.to(experts.computed_in(x_TD)),
        weights_GTE,
        [each for stack in experts.stacks(x_TD) for each in stack],
        experts.activations,
        max_active=plan.max_active,
    )


def _wide(weights: Tensor, y: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
    """Bring weights and outputs to a common dtype, and say which one the outputs had."""
    dtype = torch.promote_types(weights.dtype, y.dtype)
    return weights.to(dtype), y.to(dtype), y.dtype


KERNELS: dict[str, Kernel] = {
    "dense": run_dense,
    "gathered": run_gathered,
    "loop": run_loop,
    "numba": run_numba,
    "sorted": run_sorted,
    "triton": run_triton,
}
