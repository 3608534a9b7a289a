"""Sparse mixture-of-experts layers that only compute what the gate selects."""

from importlib.metadata import version

from moe_runtime._checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
)
from moe_runtime._experts import Experts
from moe_runtime._mixture import MixtureOfExperts, MixtureOutput, MultiGateMixtureOfExperts
from moe_runtime._permutation_search import PermutationSearch, SearchRecord
from moe_runtime._plots import plot_load
from moe_runtime._pretrained import PretrainedModule
from moe_runtime._router import Router, Routing, hard_routing
from moe_runtime._routers import CometRouter, DSelectKRouter, HashRouter, TopKRouter
from moe_runtime._search import SearchRows, search_permutations
from moe_runtime._training_state import Stateful, load_training_tensors, training_tensors
from moe_runtime._tree_plot import plot_tree
from moe_runtime._watch import Watcher
from moe_runtime._writers import CsvWriter, TensorBoardWriter

__version__ = version("moe-runtime")

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CometRouter",
    "CsvWriter",
    "DSelectKRouter",
    "Experts",
    "HashRouter",
    "MixtureOfExperts",
    "MixtureOutput",
    "MultiGateMixtureOfExperts",
    "PermutationSearch",
    "PretrainedModule",
    "Router",
    "Routing",
    "SearchRecord",
    "SearchRows",
    "Stateful",
    "TensorBoardWriter",
    "TopKRouter",
    "Watcher",
    "__version__",
    "hard_routing",
    "load_checkpoint",
    "load_tensors",
    "load_training_tensors",
    "plot_load",
    "plot_tree",
    "save_checkpoint",
    "search_permutations",
    "training_tensors",
]
