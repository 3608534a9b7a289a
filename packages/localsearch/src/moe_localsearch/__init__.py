"""Local search over permutations: exact where that is possible, on any objective."""

from importlib.metadata import version

from moe_localsearch._anneal import anneal
from moe_localsearch._assign import assign
from moe_localsearch._capacity import CapacityAssignment, assign_with_capacity
from moe_localsearch._changes import Changes
from moe_localsearch._exhaustive import exhaustive
from moe_localsearch._frank_wolfe import frank_wolfe
from moe_localsearch._ids import IdAssignment, assign_ids
from moe_localsearch._objective import (
    Objective,
    RelaxedCost,
    SupportsChanges,
    SupportsRelaxation,
    SupportsReplacementCosts,
    SupportsRowCosts,
    SupportsSeparable,
    SupportsSwapCosts,
)
from moe_localsearch._penalty import permutation_penalty
from moe_localsearch._progress import ProgressCallback, SearchProgress
from moe_localsearch._relabeling import RelabelingObjective
from moe_localsearch._relax import relax
from moe_localsearch._relaxation import Relaxation, RelaxationState
from moe_localsearch._replacement import replace_and_assign
from moe_localsearch._result import Confirmation, SearchResult, StopReason
from moe_localsearch._rounding import permutation_matrix, round_to_permutation
from moe_localsearch._rows import RowGradient, RowLoss
from moe_localsearch._schedule import (
    RelaxationSettings,
    Schedule,
    convergent_schedule,
    paper_schedule,
)
from moe_localsearch._search import Method, search
from moe_localsearch._shared import SharedObjective
from moe_localsearch._sinkhorn import SinkhornResult, sinkhorn
from moe_localsearch._slots import relabel_slots
from moe_localsearch._swaps import descend_by_swaps

__version__ = version("moe-localsearch")

__all__ = [
    "CapacityAssignment",
    "Changes",
    "Confirmation",
    "IdAssignment",
    "Method",
    "Objective",
    "ProgressCallback",
    "RelabelingObjective",
    "Relaxation",
    "RelaxationSettings",
    "RelaxationState",
    "RelaxedCost",
    "RowGradient",
    "RowLoss",
    "Schedule",
    "SearchProgress",
    "SearchResult",
    "SharedObjective",
    "SinkhornResult",
    "StopReason",
    "SupportsChanges",
    "SupportsRelaxation",
    "SupportsReplacementCosts",
    "SupportsRowCosts",
    "SupportsSeparable",
    "SupportsSwapCosts",
    "__version__",
    "anneal",
    "assign",
    "assign_ids",
    "assign_with_capacity",
    "convergent_schedule",
    "descend_by_swaps",
    "exhaustive",
    "frank_wolfe",
    "paper_schedule",
    "permutation_matrix",
    "permutation_penalty",
    "relabel_slots",
    "relax",
    "replace_and_assign",
    "round_to_permutation",
    "search",
    "sinkhorn",
]
