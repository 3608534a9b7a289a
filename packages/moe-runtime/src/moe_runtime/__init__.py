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
from moe_runtime._packed import PackedExperts, PackingReport, pack_experts
from moe_runtime._router import Router, Routing, hard_routing
from moe_runtime._routers import CometRouter, DSelectKRouter, HashRouter, TopKRouter
from moe_runtime._search import search_permutation
from moe_runtime._training_state import load_training_tensors, training_tensors

__version__ = version("moe-runtime")

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CometRouter",
    "DSelectKRouter",
    "Experts",
    "HashRouter",
    "MixtureOfExperts",
    "MixtureOutput",
    "MultiGateMixtureOfExperts",
    "PackedExperts",
    "PackingReport",
    "Router",
    "Routing",
    "TopKRouter",
    "__version__",
    "hard_routing",
    "load_checkpoint",
    "load_tensors",
    "load_training_tensors",
    "pack_experts",
    "save_checkpoint",
    "search_permutation",
    "training_tensors",
]
