"""Sparse mixture-of-experts layers that only compute what the gate selects."""

from importlib.metadata import version

from moe_runtime._checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
)
from moe_runtime._choice import Explanation
from moe_runtime._comet_router import CometRouter
from moe_runtime._dselect_k_router import DSelectKRouter
from moe_runtime._experts import Experts
from moe_runtime._hash_router import HashRouter
from moe_runtime._mixture import MixtureOfExperts, MixtureOutput, MultiGateMixtureOfExperts
from moe_runtime._module_experts import ModuleExperts
from moe_runtime._packed import PackedExperts, PackingReport, pack_experts
from moe_runtime._penalties import (
    Decision,
    EntropyPenalty,
    LoadBalancePenalty,
    MutualInformationPenalty,
    TrimmedLassoPenalty,
    ZPenalty,
)
from moe_runtime._permutation_search import PermutationSearch, SearchRecord
from moe_runtime._plots import plot_load
from moe_runtime._pretrained import PretrainedModule
from moe_runtime._random_state import RandomState
from moe_runtime._router import GateOutput, Router, Routing, hard_routing
from moe_runtime._schedule import RouterSchedule
from moe_runtime._score_router import (
    ExactKRouter,
    ReLURouter,
    SoftmaxRouter,
    TopKSparsemaxRouter,
)
from moe_runtime._scores import CosineScores
from moe_runtime._search import SearchRows, search_permutations
from moe_runtime._top_k_router import TopKRouter
from moe_runtime._training_state import Stateful, load_training_tensors, training_tensors
from moe_runtime._tree_plot import plot_tree
from moe_runtime._tree_top_k_router import TreeTopKRouter
from moe_runtime._watch import Watcher
from moe_runtime._writers import CsvWriter, TensorBoardWriter

__version__ = version("moe-runtime")

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CometRouter",
    "CosineScores",
    "CsvWriter",
    "DSelectKRouter",
    "Decision",
    "EntropyPenalty",
    "ExactKRouter",
    "Experts",
    "Explanation",
    "GateOutput",
    "HashRouter",
    "LoadBalancePenalty",
    "MixtureOfExperts",
    "MixtureOutput",
    "ModuleExperts",
    "MultiGateMixtureOfExperts",
    "MutualInformationPenalty",
    "PackedExperts",
    "PackingReport",
    "PermutationSearch",
    "PretrainedModule",
    "RandomState",
    "ReLURouter",
    "Router",
    "RouterSchedule",
    "Routing",
    "SearchRecord",
    "SearchRows",
    "SoftmaxRouter",
    "Stateful",
    "TensorBoardWriter",
    "TopKRouter",
    "TopKSparsemaxRouter",
    "TreeTopKRouter",
    "TrimmedLassoPenalty",
    "Watcher",
    "ZPenalty",
    "__version__",
    "hard_routing",
    "load_checkpoint",
    "load_tensors",
    "load_training_tensors",
    "pack_experts",
    "plot_load",
    "plot_tree",
    "save_checkpoint",
    "search_permutations",
    "training_tensors",
]
