"""The gates that the quickstart compares, and how each is built."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_benchmarks._model import TwoTaskModel
from moe_benchmarks._settings import QuickstartSettings
from moe_benchmarks._two_digits import NUM_IDS, NUM_PIXELS, TASKS, Split
from moe_runtime import CometRouter, DSelectKRouter, HashRouter, Router, TopKRouter

# The lowest validation loss with hard routing among gamma in {0.1, 0.3, 1} and entropy weight in
# {0.1, 0.3, 1, 3}, on one or two seeds a pair. The edge of that grid was best for both: on this
# problem a gate does well to harden early.
COMET_GAMMA, COMET_ENTROPY_WEIGHT = 0.1, 3.0
DSELECT_K_GAMMA, DSELECT_K_ENTROPY_WEIGHT = 0.1, 1.0

ALL_ROWS = slice(None)


@dataclass(frozen=True)
class Gate:
    """One way to route."""

    name: str
    router: Callable[[QuickstartSettings, int], Router]  # settings, seed
    uses_ids: bool = False  # routed by the row's id instead of its pixels
    is_searched: bool = False  # with a permutation search during training


def _hash(settings: QuickstartSettings, seed: int) -> Router:
    return HashRouter(NUM_IDS, settings.num_experts, seed=seed)


def _top_k(settings: QuickstartSettings, _seed: int) -> Router:
    return TopKRouter(NUM_PIXELS, settings.num_experts, k=settings.k)


def _dselect_k(settings: QuickstartSettings, _seed: int) -> Router:
    return DSelectKRouter(
        NUM_PIXELS,
        settings.num_experts,
        k=settings.k,
        gamma=DSELECT_K_GAMMA,
        entropy_weight=DSELECT_K_ENTROPY_WEIGHT,
    )


def _comet(settings: QuickstartSettings, _seed: int) -> Router:
    return CometRouter(
        NUM_PIXELS,
        settings.num_experts,
        k=settings.k,
        gamma=COMET_GAMMA,
        entropy_weight=COMET_ENTROPY_WEIGHT,
    )


COMET = Gate("COMET", _comet)
# COMET that trains on with what a search found. COMET+ is this or COMET, whichever the
# validation split prefers.
COMET_SEARCHED = Gate("COMET with search", _comet, is_searched=True)
TRAINED_GATES = (
    Gate("Hash", _hash, uses_ids=True),
    Gate("Top-k", _top_k),
    Gate("DSelect-k", _dselect_k),
    COMET,
    COMET_SEARCHED,
)
COMET_PLUS = "COMET+"
# The rows of every table and figure.
REPORTED_GATES = ("Hash", "Top-k", "DSelect-k", COMET.name, COMET_PLUS)


def build_model(gate: Gate, settings: QuickstartSettings, seed: int, mean: Tensor) -> TwoTaskModel:
    """Build a gate's model; the seed determines its initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        routers = [gate.router(settings, seed + task) for task in range(len(TASKS))]
        return TwoTaskModel(
            routers,
            mean,
            num_experts=settings.num_experts,
            hidden=settings.hidden,
            features=settings.features,
        )


def inputs(gate: Gate, split: Split, rows: Tensor | slice = ALL_ROWS) -> tuple[Tensor, ...]:
    """Return what the gate's model takes of some rows: pixels, and ids if it routes by them."""
    return (split.pixels[rows], *([split.ids[rows]] if gate.uses_ids else []))
