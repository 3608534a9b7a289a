"""The routers that sparse models are made with.

Axes: D features of a token.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from moe_benchmarks._language._settings import LanguageSettings
from moe_runtime import (
    CometRouter,
    DSelectKRouter,
    HashRouter,
    LoadBalancePenalty,
    Router,
    TopKRouter,
)


class Vocabulary(NamedTuple):
    """Ids of tokens: how many there are, and how often each occurs in the training rows."""

    size: int
    counts: Mapping[int, int]


class Student(NamedTuple):
    """A way to route tokens."""

    name: str
    build: Callable[[int, Vocabulary, LanguageSettings, int], Router]  # dim, ..., seed
    is_searched: bool = False


def _hash(_dim: int, ids: Vocabulary, settings: LanguageSettings, seed: int) -> Router:
    return HashRouter(ids.size, settings.num_experts, seed=seed)


def _balanced_hash(_dim: int, ids: Vocabulary, settings: LanguageSettings, _seed: int) -> Router:
    counts = torch.zeros(ids.size)
    counts[list(ids.counts)] = torch.tensor(list(map(float, ids.counts.values())))
    return HashRouter.from_counts(counts, settings.num_experts)


def _top_k(dim: int, _ids: Vocabulary, settings: LanguageSettings, _seed: int) -> Router:
    # Unless the weight is that of the softmax, as in Switch, it is 1 and nothing is learned.
    balance = LoadBalancePenalty(settings.balance_weight)
    return TopKRouter(dim, settings.num_experts, k=1, renormalize=False, penalties=[balance])


def _smooth(kind: type[CometRouter | DSelectKRouter]) -> Callable[..., Router]:
    def build(dim: int, _ids: Vocabulary, settings: LanguageSettings, _seed: int) -> Router:
        return kind(
            dim,
            settings.num_experts,
            k=1,
            gamma=settings.gamma,
            entropy_weight=settings.entropy_weight,
            scale_free=True,
        )

    return build


# Models that are not sparse: the one that all others are made from, and one to compare it with.
DENSE, TRAINER = "dense", "dense-trainer"
DENSE_NAMES = {DENSE: "dense", TRAINER: "dense, by Trainer"}
STUDENTS: Mapping[str, Student] = {
    "hash": Student("Hash", _hash),
    "hash-balanced": Student("Hash, balanced", _balanced_hash),
    "top-k": Student("Top-k", _top_k),
    "dselect-k": Student("DSelect-k", _smooth(DSelectKRouter)),
    "comet": Student("COMET", _smooth(CometRouter)),
    "comet+": Student("COMET+", _smooth(CometRouter), is_searched=True),
}
VARIANTS = (*DENSE_NAMES, *STUDENTS)
