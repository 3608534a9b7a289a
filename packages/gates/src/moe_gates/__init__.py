"""Differentiable sparse gates for mixtures of experts, on any array library.

Scores in, weights out: pure functions without parameters, randomness or state.
"""

from importlib.metadata import version

from moe_gates._balance import (
    load_balance_penalty,
    update_bias_by_quantile,
    update_bias_by_sign,
)
from moe_gates._balanced_hash import balanced_hash_table
from moe_gates._checks import check_gamma, check_k
from moe_gates._comet import comet_gate
from moe_gates._comet_route import comet_route
from moe_gates._cosine import cosine_scores
from moe_gates._diagnostics import (
    count_nonzero,
    dead_experts,
    expert_load,
    unsaturated_fraction,
)
from moe_gates._distances import SimplexError, simplex_error, total_variation
from moe_gates._dselect_k import dselect_k_gate
from moe_gates._exact_k import exact_k_gate, subset_marginals
from moe_gates._hash import hash_gate, hash_table
from moe_gates._penalties import (
    entropy_penalty,
    mutual_information_penalty,
    unreachable_penalty,
)
from moe_gates._relabel import mix, normalize, permute
from moe_gates._relu import relu_gate
from moe_gates._row_penalties import trimmed_lasso_penalty, z_penalty
from moe_gates._scale import score_scale
from moe_gates._schedules import cosine_schedule, exponential_schedule, linear_schedule
from moe_gates._slot_diagnostics import count_duplicates, count_union
from moe_gates._slots import SlotGate
from moe_gates._smooth_step import smooth_step
from moe_gates._softmax import softmax_gate
from moe_gates._sparse_weights import SparseWeights, to_dense
from moe_gates._sparsemax import top_k_sparsemax_gate
from moe_gates._to_sparse import BoundedSparse, to_sparse
from moe_gates._top_k import top_k_gate
from moe_gates._tree import leaf_order
from moe_gates._tree_top_k import tree_top_k_gate

__version__ = version("moe-gates")

__all__ = [
    "BoundedSparse",
    "SimplexError",
    "SlotGate",
    "SparseWeights",
    "__version__",
    "balanced_hash_table",
    "check_gamma",
    "check_k",
    "comet_gate",
    "comet_route",
    "cosine_schedule",
    "cosine_scores",
    "count_duplicates",
    "count_nonzero",
    "count_union",
    "dead_experts",
    "dselect_k_gate",
    "entropy_penalty",
    "exact_k_gate",
    "expert_load",
    "exponential_schedule",
    "hash_gate",
    "hash_table",
    "leaf_order",
    "linear_schedule",
    "load_balance_penalty",
    "mix",
    "mutual_information_penalty",
    "normalize",
    "permute",
    "relu_gate",
    "score_scale",
    "simplex_error",
    "smooth_step",
    "softmax_gate",
    "subset_marginals",
    "to_dense",
    "to_sparse",
    "top_k_gate",
    "top_k_sparsemax_gate",
    "total_variation",
    "tree_top_k_gate",
    "trimmed_lasso_penalty",
    "unreachable_penalty",
    "unsaturated_fraction",
    "update_bias_by_quantile",
    "update_bias_by_sign",
    "z_penalty",
]
