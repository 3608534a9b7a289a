"""The gates that experiments compare, and how each is built from a trial's settings."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from moe_runtime import (
    CometRouter,
    DSelectKRouter,
    ExactKRouter,
    HashRouter,
    ReLURouter,
    Router,
    SoftmaxRouter,
    TopKRouter,
    TopKSparsemaxRouter,
    TreeTopKRouter,
)


class GateSize(NamedTuple):
    """What a router is built from."""

    dim: int  # features that it reads
    num_ids: int  # ids that hash routing reads
    num_experts: int
    k: int
    gamma: float
    entropy_weight: float
    seed: int  # of a hash table


class Gate(NamedTuple):
    """One way to route."""

    name: str  # as people know it
    build: Callable[[GateSize], Router]
    reads_ids: bool = False
    has_smooth_step: bool = False  # gamma and the entropy weight are its settings
    normalized_when_mixed: bool = True  # after a soft permutation
    draws: bool = False  # in training, with torch's generator, which runs of a stack would share


def _hash(size: GateSize) -> Router:
    return HashRouter(size.num_ids, size.num_experts, seed=size.seed)


def _top_k(size: GateSize) -> Router:
    return TopKRouter(size.dim, size.num_experts, k=size.k)


def _dselect_k(size: GateSize) -> Router:
    return DSelectKRouter(
        size.dim,
        size.num_experts,
        k=size.k,
        gamma=size.gamma,
        entropy_weight=size.entropy_weight,
    )


def _comet(size: GateSize) -> Router:
    return CometRouter(
        size.dim,
        size.num_experts,
        k=size.k,
        gamma=size.gamma,
        entropy_weight=size.entropy_weight,
    )


def _softmax(size: GateSize) -> Router:
    return SoftmaxRouter(size.dim, size.num_experts, k=size.k)


def _relu(size: GateSize) -> Router:
    return ReLURouter(size.dim, size.num_experts, k=size.k)


def _exact_k(size: GateSize) -> Router:
    return ExactKRouter(size.dim, size.num_experts, k=size.k)


def _tree_top_k(size: GateSize) -> Router:
    return TreeTopKRouter(size.dim, size.num_experts, k=size.k)


def _top_k_sparsemax(size: GateSize) -> Router:
    return TopKSparsemaxRouter(size.dim, size.num_experts, k=size.k)


GATES: Mapping[str, Gate] = {
    "hash": Gate("Hash", _hash, reads_ids=True),
    "top-k": Gate("Top-k", _top_k),
    "dselect-k": Gate("DSelect-k", _dselect_k, has_smooth_step=True, normalized_when_mixed=False),
    "comet": Gate("COMET", _comet, has_smooth_step=True),
    "softmax": Gate("Softmax", _softmax),
    # Its weights never sum to 1, and to 0 in a row without experts.
    "relu": Gate("ReLU", _relu, normalized_when_mixed=False),
    "exact-k": Gate("Exact-k", _exact_k, draws=True),
    "tree-top-k": Gate("Tree top-k", _tree_top_k),
    "top-k-sparsemax": Gate("Top-k sparsemax", _top_k_sparsemax),
}
# Those of the paper.
PAPER_GATES = ("hash", "top-k", "dselect-k", "comet")
