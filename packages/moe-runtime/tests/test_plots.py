"""Pictures show the numbers that they are given, and every word of them can be read."""

import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from _readable import check_readable, words_of
from _reference import DIM, ROUTERS, awake, make_mixture

import moe_gates
from moe_runtime import CometRouter, TopKRouter, hard_routing, plot_load, plot_tree
from moe_runtime._tree_plot import tree_nodes

if TYPE_CHECKING:
    from collections.abc import Callable


def soft_comet(num_experts: int) -> CometRouter:
    router = awake(ROUTERS["comet"](num_experts, 2))
    assert isinstance(router, CometRouter)
    return router


@pytest.mark.parametrize("num_experts", [2, 5, 8, 16, 64])
def test_a_tree_names_every_expert_once_and_can_be_read(num_experts: int) -> None:
    pytest.importorskip("matplotlib")
    router = soft_comet(num_experts)
    figure = plot_tree(router, torch.randn(100, DIM), slot=1)
    check_readable(figure)
    words = words_of(figure)
    experts = [(box.y1, word) for word, box in words if word.startswith("expert ")]
    from_the_top = [int(word.split()[1]) for _, word in sorted(experts, reverse=True)]
    assert from_the_top == router.permutation[1].tolist()


def test_a_leaf_says_the_load_of_its_expert() -> None:
    pytest.importorskip("matplotlib")
    router, x = soft_comet(5), torch.randn(100, DIM)
    load = moe_gates.expert_load(router(x).slot_weights[:, 0].detach())
    words = words_of(plot_tree(router, x))
    for position, expert in enumerate(router.permutation[0].tolist()):
        (row,) = [box for word, box in words if word == f"expert {expert}"]
        middle = (row.y0 + row.y1) / 2
        beside = [word for word, box in words if box.x0 > row.x1 and box.y0 < middle < box.y1]
        assert beside == [f"{100 * float(load[position]):.0f} %"]


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("num_experts", [2, 3, 5, 8, 17])
def test_nodes_say_where_the_smooth_step_sends_rows(num_experts: int, *, hard: bool) -> None:
    router, x = soft_comet(num_experts), torch.randn(60, DIM)
    scores_TN = router.split_scores(x)[:, 0].detach()
    left_TN = moe_gates.smooth_step(scores_TN, gamma=router.gamma)
    if hard:
        left_TN = (scores_TN >= 0).float()
        with hard_routing(router):
            nodes = tree_nodes(router(x).slot_weights[:, 0])
    else:
        nodes = tree_nodes(router(x).slot_weights[:, 0])
    there = {0: torch.ones(len(x), dtype=torch.bool)}
    for node in range(num_experts - 1):
        up, down = left_TN[:, node] > 0, left_TN[:, node] < 1
        there[2 * node + 1], there[2 * node + 2] = there[node] & up, there[node] & down
        here = left_TN[there[node], node]
        if len(here):
            expected = [(here == 1), (here > 0) & (here < 1), (here == 0)]
            shares = [float(each.double().mean()) for each in expected]
            assert [nodes[node].left, nodes[node].both, nodes[node].right] == pytest.approx(shares)
        assert nodes[node].children == (2 * node + 1, 2 * node + 2)
    for node, rows in there.items():
        assert nodes[node].share == pytest.approx(float(rows.double().mean()))
    firsts = sorted(node.first for node in nodes if not node.children)
    assert firsts == list(range(num_experts))


@pytest.mark.parametrize("num_columns", [1, 2, 40, 1000])
@pytest.mark.parametrize("num_experts", [1, 8, 64])
def test_a_heat_map_shows_the_loads_and_can_be_read(num_columns: int, num_experts: int) -> None:
    pytest.importorskip("matplotlib")
    load_CE = torch.rand(num_columns, num_experts)
    load_CE[0, 0] = 0
    steps = [100 * column for column in range(num_columns)]
    figure = plot_load(load_CE, steps)
    check_readable(figure)
    mesh: Any = figure.axes[0].collections[0]
    drawn = torch.from_numpy(mesh.get_array().filled(0.0)).float()  # blank where it was 0
    assert torch.equal(drawn, load_CE.T)
    assert mesh.get_array().mask[0, 0]
    words = [word for word, _ in words_of(figure)]
    assert {"training step", "expert", "share of rows (blank: none)"} <= set(words)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels[0] == "0"
    assert set(labels) <= {str(step) for step in steps}


def test_columns_can_have_names() -> None:
    pytest.importorskip("matplotlib")
    figure = plot_load(torch.rand(2, 5), ["watched", "rating"], label="task")
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["watched", "rating"]


@pytest.mark.parametrize(
    ("load", "columns", "message"),
    [
        (torch.rand(3), [1, 2, 3], "`load_CE` must have shape (C, E) with the C=3 of `columns`"),
        (torch.rand(3, 2), [1, 2], "`load_CE` must have shape (C, E) with the C=2 of `columns`"),
        (torch.rand(0, 2), [], "and not be empty, got (0, 2)."),
        (torch.full((1, 2), 1.5), [1], "`load_CE` must be in [0, 1], got 1.5 to 1.5."),
        (torch.full((1, 2), torch.nan), [1], "`load_CE` must be in [0, 1], got nan to nan."),
    ],
    ids=["axes", "columns", "empty", "range", "nan"],
)
def test_loads_that_cannot_be_drawn_are_refused(load: Any, columns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        plot_load(load, columns)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"slot": 2}, ValueError, "`slot` must be in [0, 1], got 2."),
        ({"x": torch.zeros(0, DIM)}, ValueError, "`x` must have shape (T, R) with T >= 1"),
        ({"x": torch.zeros(DIM)}, ValueError, "`x` must have shape (T, R) with T >= 1"),
        ({"router": make_mixture("comet")}, TypeError, "`router` must be a CometRouter, got M"),
        ({"router": TopKRouter(DIM, 5, k=2)}, TypeError, "`router` must be a CometRouter, got T"),
    ],
    ids=["slot", "empty", "axes", "type", "no_tree"],
)
def test_a_tree_that_cannot_be_drawn_is_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"router": soft_comet(5), "x": torch.zeros(3, DIM), **change}
    with pytest.raises(error, match=re.escape(message)):
        plot_tree(given.pop("router"), given.pop("x"), **given)


def test_without_matplotlib_both_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "matplotlib":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    draws: list[tuple[str, Callable[[], object]]] = [
        ("plot_load", lambda: plot_load(torch.rand(2, 5), [1, 2])),
        ("plot_tree", lambda: plot_tree(soft_comet(5), torch.zeros(3, DIM))),
    ]
    for name, draw in draws:
        message = (
            f"{name} needs the package 'matplotlib', which is not installed: "
            'pip install "moe-runtime[plots]"'
        )
        with pytest.raises(ModuleNotFoundError, match=re.escape(message)):
            draw()
