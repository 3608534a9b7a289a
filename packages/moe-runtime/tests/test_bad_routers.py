"""A router that cannot be is refused when it is made, by argument, range and value."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _reference import DIM
from torch import nn

from moe_runtime import (
    CometRouter,
    CosineScores,
    DSelectKRouter,
    ExactKRouter,
    HashRouter,
    LoadBalancePenalty,
    ReLURouter,
    SoftmaxRouter,
    TopKRouter,
    TopKSparsemaxRouter,
    TreeTopKRouter,
    TrimmedLassoPenalty,
    ZPenalty,
)

Anything: Any = None
AnyFunction: Any = torch.relu

BAD: list[tuple[str, Callable[[], object], str]] = [
    ("k", lambda: TopKRouter(DIM, 4, k=5), "`k` must be in [1, num_experts=4], got 5."),
    ("k_0", lambda: CometRouter(DIM, 4, k=0), "`k` must be in [1, num_experts=4], got 0."),
    ("experts", lambda: TopKRouter(DIM, 0, k=1), "`num_experts` must be an integer >= 1, got 0."),
    ("leaf", lambda: CometRouter(DIM, 1, k=1), "`num_experts` must be an integer >= 2, got 1."),
    ("bit", lambda: DSelectKRouter(DIM, 1, k=1), "`num_experts` must be an integer >= 2, got 1."),
    ("dim", lambda: CometRouter(0, 4, k=1), "`dim` must be an integer >= 1, got 0."),
    ("bool", lambda: CometRouter(True, 4, k=1), "`dim` must be an integer >= 1, got True."),  # noqa: FBT003
    ("gamma", lambda: CometRouter(DIM, 4, k=1, gamma=0.0), "`gamma` must be in"),
    (
        "entropy",
        lambda: CometRouter(DIM, 4, k=1, entropy_weight=-0.1),
        "`entropy_weight` must be finite and >= 0, got -0.1.",
    ),
    (
        "unreachable",
        lambda: DSelectKRouter(DIM, 4, k=1, unreachable_weight=float("nan")),
        "`unreachable_weight` must be finite and >= 0, got nan.",
    ),
    ("ids", lambda: HashRouter(0, 4), "`num_ids` must be an integer >= 1, got 0."),
    ("trees", lambda: TreeTopKRouter(DIM, 4, k=2, num_trees=0), "`num_trees` must be an integer"),
    ("leaves", lambda: TreeTopKRouter(DIM, 1, k=1), "`num_experts` must be an integer >= 2, got 1"),
    ("soft", lambda: SoftmaxRouter(DIM, 4, k=5), "`k` must be in [1, num_experts=4], got 5."),
    ("exact", lambda: ExactKRouter(DIM, 4, k=0), "`k` must be in [1, num_experts=4], got 0."),
    ("relu", lambda: ReLURouter(-1, 4, k=1), "`dim` must be an integer >= 1, got -1."),
    (
        "affinity",
        lambda: TopKRouter(DIM, 4, k=2, affinity=Anything),
        '`affinity` must be "softmax" or "sigmoid", got None.',
    ),
    (
        "groups",
        lambda: TopKRouter(DIM, 4, k=2, num_groups=3),
        "`num_groups` must divide num_experts=4, got 3.",
    ),
    (
        "groups_kept",
        lambda: TopKRouter(DIM, 4, k=3, num_groups=2),
        "`k` must be in [1, 2], the experts of the groups kept, got 3.",
    ),
    (
        "noise",
        lambda: TopKRouter(DIM, 4, k=2, noise=Anything),
        "`noise` must be one of ['none', 'normal', 'learned'], got None.",
    ),
    (
        "noise_scale",
        lambda: TopKRouter(DIM, 4, k=2, noise="normal", noise_scale=-1.0),
        "`noise_scale` must be finite and >= 0, got -1.0.",
    ),
    (
        "temperature",
        lambda: CosineScores(DIM, 4, temperature=0.0),
        "`temperature` must be finite and > 0, got 0.0.",
    ),
    (
        "static",
        lambda: DSelectKRouter(DIM, 4, k=2, static=True, scale_free=True),
        "`scale_free` must be False for a static gate",
    ),
    ("penalty", lambda: ZPenalty(-1.0), "`weight` must be finite and >= 0, got -1.0."),
    ("lasso", lambda: TrimmedLassoPenalty(1.0, k=0), "`k` must be an integer >= 1, got 0."),
]


@pytest.mark.parametrize(
    ("build", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_a_router_that_cannot_be_is_refused_by_name_range_and_value(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=r"must (be|divide)") as caught:
        build()
    assert message in str(caught.value)


MISTYPED: list[tuple[Callable[[], object], str]] = [
    (
        lambda: TopKRouter(DIM, 4, k=2, penalties=Anything),
        "`penalties` must be a sequence of functions, got NoneType.",
    ),
    (
        lambda: CometRouter(DIM, 4, k=2, penalties=[LoadBalancePenalty(), Anything]),
        "`penalties[1]` must be a function of a Decision, got NoneType.",
    ),
    (
        lambda: ReLURouter(DIM, 4, k=2, score=AnyFunction),
        "`score` must be a torch.nn.Module, got builtin_function_or_method.",
    ),
    (
        lambda: TopKRouter(DIM, 4, k=2, balancing_bias=Anything),
        "`balancing_bias` must be a bool, got NoneType.",
    ),
    (
        lambda: TopKRouter(DIM, 4, k=2, renormalize=Anything),
        "`renormalize` must be a bool, got None.",
    ),
    (
        lambda: CometRouter(DIM, 4, k=2, scale_free=Anything),
        "`scale_free` must be a bool, got NoneType.",
    ),
    (
        lambda: DSelectKRouter(DIM, 4, k=2, static=Anything),
        "`static` must be a bool, got NoneType.",
    ),
]


@pytest.mark.parametrize(("build", "message"), MISTYPED, ids=[case[1] for case in MISTYPED])
def test_an_argument_of_another_type_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        build()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: TopKRouter(DIM, 4, k=1),
        lambda: TopKSparsemaxRouter(DIM, 4, k=1),
        lambda: TreeTopKRouter(DIM, 4, k=1),
    ],
    ids=["top_k", "sparsemax", "tree_top_k"],
)
def test_a_gate_that_no_gradient_reaches_is_warned_of_where_it_is_made(
    build: Callable[[], object],
) -> None:
    with pytest.warns(UserWarning, match="with `k`=1 the weight of each row is 1") as caught:
        build()
    assert caught[0].filename == __file__


def test_a_score_of_another_shape_is_refused() -> None:
    router = TopKRouter(DIM, 4, k=2, score=nn.Linear(DIM, 5))
    message = r"`score` must give scores of shape \(3, 4\) for rows of shape \(3, 6\), got \(3, 5\)"
    with pytest.raises(ValueError, match=message):
        router(torch.zeros(3, DIM))


def test_rows_of_another_width_update_nothing() -> None:
    comet = CometRouter(DIM, 4, k=2, scale_free=True)
    top_k = TopKRouter(DIM, 4, k=2, balancing_bias=True)
    for update in (comet.update_scale, top_k.update_bias_by_quantile):
        with pytest.raises(ValueError, match=r"must have shape \(\.\.\., 6\), got \(3, 7\)"):
            update(torch.zeros(3, DIM + 1))
        with pytest.raises(TypeError, match=r"`x` must be a torch.Tensor, got NoneType"):
            update(Anything)


def test_a_z_penalty_on_a_gate_of_slots_is_refused() -> None:
    router = CometRouter(DIM, 4, k=2, penalties=[ZPenalty()])
    with pytest.raises(ValueError, match="`ZPenalty` must be given to a router with one score"):
        router(torch.zeros(3, DIM))
