"""Differentiable sparse gates for mixtures of experts, on any array library.

Scores in, weights out: pure functions without parameters, randomness or state.
"""

from importlib.metadata import version

from moe_gates._balanced_hash import balanced_hash_table
from moe_gates._checks import check_gamma, check_k
from moe_gates._comet import comet_gate
from moe_gates._cosine import cosine_scores
from moe_gates._diagnostics import (
    count_nonzero,
    dead_experts,
    expert_load,
    unsaturated_fraction,
)
from moe_gates._dselect_k import dselect_k_gate
from moe_gates._exact_k import exact_k_gate, subset_marginals
from moe_gates._hash import hash_gate, hash_table
from moe_gates._penalties import entropy_penalty, unreachable_penalty
from moe_gates._relabel import mix, normalize, permute
from moe_gates._relu import relu_gate
from moe_gates._slots import SlotGate
from moe_gates._smooth_step import smooth_step
from moe_gates._softmax import softmax_gate
from moe_gates._sparsemax import top_k_sparsemax_gate
from moe_gates._top_k import top_k_gate
from moe_gates._tree import leaf_order
from moe_gates._tree_top_k import tree_top_k_gate

__version__ = version("moe-gates")

__all__ = [
    "SlotGate",
    "__version__",
    "balanced_hash_table",
    "check_gamma",
    "check_k",
    "comet_gate",
    "cosine_scores",
    "count_nonzero",
    "dead_experts",
    "dselect_k_gate",
    "entropy_penalty",
    "exact_k_gate",
    "expert_load",
    "hash_gate",
    "hash_table",
    "leaf_order",
    "mix",
    "normalize",
    "permute",
    "relu_gate",
    "smooth_step",
    "softmax_gate",
    "subset_marginals",
    "top_k_gate",
    "top_k_sparsemax_gate",
    "tree_top_k_gate",
    "unreachable_penalty",
    "unsaturated_fraction",
]
