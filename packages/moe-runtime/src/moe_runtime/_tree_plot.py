"""The picture of a tree: where rows go at each split, and the expert and load of each leaf.

Axes: T rows, E experts, K slots, L leaves under a split.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from moe_runtime._checks import check_tensor, check_type
from moe_runtime._comet_router import CometRouter
from moe_runtime._plots import SMALL, figure_of, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision tell apart; grey for both ways.
UP, DOWN, BOTH, UNUSED = "#0072B2", "#D55E00", "#8c8c8c", "#bbbbbb"
BRANCH, FAINT = "#56B4E9", "#767676"
# Inches.
LEVEL_WIDTH, LEAF_HEIGHT, MOST_LEAF_HEIGHT, USUAL_HEIGHT = 1.15, 0.19, 0.42, 4.0
BAR_WIDTH, BAR_HEIGHT, NAME_WIDTH, LABEL_WIDTH = 0.42, 0.13, 0.78, 1.22
MIN_WIDTH = 4.8  # of the legend
# Fewest inches between two branches at which the share on them can be read.
ROOM_FOR_SHARE = 0.34
THICKEST, THINNEST = 9.0, 0.7  # points; what all rows take, and what hardly one does


def plot_tree(router: CometRouter, x: Tensor, *, slot: int = 0) -> "Figure":
    """Draw one tree of a router, root at the left: where rows go, and the expert at each leaf.

    The bar at a split says which share of the rows that reach it goes up (its left child), goes
    down, or both ways, as it is still soft for them. The thickness of a branch, and the number on
    it, is the share of all rows that take it; a leaf says its expert and that expert's load.

    Parameters
    ----------
    router
        Its positions are the leaves of its trees from left to right; its permutation says which
        experts they are.
    x
        What the router reads, shape (T, R), T >= 1.
    slot
        Which of its trees.

    Returns
    -------
    matplotlib.figure.Figure
        For its ``savefig``; needs the ``plots`` extra.

    Raises
    ------
    ValueError
        If `slot` is out of range, or there are no rows.
    ModuleNotFoundError
        If matplotlib is not installed; the message has the command.
    """
    check_type("router", router, CometRouter, "a CometRouter")
    check_tensor("x", x)
    check_type("slot", slot, int, "an integer")
    if not 0 <= slot < router.num_slots:
        msg = f"`slot` must be in [0, {router.num_slots - 1}], got {slot}."
        raise ValueError(msg)
    if x.ndim != 2 or len(x) == 0:
        msg = f"`x` must have shape (T, R) with T >= 1, got {tuple(x.shape)}."
        raise ValueError(msg)
    with torch.no_grad():
        nodes = tree_nodes(router(x).slot_weights[:, slot])
    experts = router.permutation[slot].tolist()
    num_leaves = len(experts)
    spacing = max(LEAF_HEIGHT, min(MOST_LEAF_HEIGHT, USUAL_HEIGHT / num_leaves))
    depth = (num_leaves - 1).bit_length()
    width = max(MIN_WIDTH, LEVEL_WIDTH * (depth + 0.4) + LABEL_WIDTH)
    axes = new_axes("plot_tree", width, 0.75 + spacing * num_leaves)
    axes.set_axis_off()
    for node in nodes:
        for child in node.children:
            _draw_branch(axes, node, nodes[child], spacing)
    for node in nodes:
        if node.children:
            _draw_bar(axes, node, spacing)
        else:
            _draw_leaf(axes, node, experts[node.first])
    axes.set_xlim(-0.3, depth + 0.1 + LABEL_WIDTH / LEVEL_WIDTH)
    axes.set_ylim(num_leaves - 0.4, -0.6)
    _draw_legend(axes, f"tree {slot}, {len(x)} rows (numbers: share of all); of those at a split:")
    return figure_of(axes)


class TreeNode(NamedTuple):
    """A node of a tree, and where it is drawn."""

    level: int
    height: float  # in leaves, from the top
    first: int  # position of its first leaf
    share: float  # of all rows that reach it
    # Of the rows that reach a split: only its left, both, only its right child.
    left: float
    both: float
    right: float
    children: tuple[int, ...]  # heap numbers, none for a leaf


def tree_nodes(weights_TE: Tensor) -> list[TreeNode]:
    """Say of each node, in heap order, which rows come by, from their weights at the leaves.

    A row is at a node if it has a weight at a leaf below it.
    """
    num_rows, num_leaves = weights_TE.shape
    reached_TE = (weights_TE != 0).cpu()
    nodes: dict[int, TreeNode] = {}

    def add(node: int, level: int, first: int) -> tuple[int, Tensor]:
        """Add a node and all below it; return the position after them, and their rows."""
        if node >= num_leaves - 1:
            rows_T = reached_TE[:, first]
            share = float(rows_T.double().mean())
            nodes[node] = TreeNode(level, float(first), first, share, 0.0, 0.0, 0.0, ())
            return first + 1, rows_T
        children = (2 * node + 1, 2 * node + 2)
        middle, left_T = add(children[0], level + 1, first)
        end, right_T = add(children[1], level + 1, middle)
        rows_T = left_T | right_T
        num_here = max(1, int(rows_T.sum()))
        nodes[node] = TreeNode(
            level=level,
            height=(nodes[children[0]].height + nodes[children[1]].height) / 2,
            first=first,
            share=int(rows_T.sum()) / num_rows,
            left=int((left_T & ~right_T).sum()) / num_here,
            both=int((left_T & right_T).sum()) / num_here,
            right=int((right_T & ~left_T).sum()) / num_here,
            children=children,
        )
        return end, rows_T

    add(0, 0, 0)
    return [nodes[node] for node in range(2 * num_leaves - 1)]


def _draw_branch(axes: "Axes", parent: TreeNode, child: TreeNode, spacing: float) -> None:
    axes.plot(
        [parent.level, child.level],
        [parent.height, child.height],
        color=BRANCH if child.share else UNUSED,
        linewidth=max(THICKEST * child.share, THINNEST),
        linestyle="-" if child.share else ":",
        solid_capstyle="round",
        zorder=1,
    )
    # The branches of a split are as far apart where they are read as half the children are.
    room = spacing * abs(parent.height - child.height)
    if child.share and room >= ROOM_FOR_SHARE:
        axes.text(
            (parent.level + child.level) / 2,
            (parent.height + child.height) / 2,
            _percent(child.share),
            ha="center",
            va="center",
            fontsize=SMALL,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8},
            zorder=3,
        )


def _draw_bar(axes: "Axes", node: TreeNode, spacing: float) -> None:
    """Draw which way the rows of a split go, as parts of a bar."""
    width, height = BAR_WIDTH / LEVEL_WIDTH, BAR_HEIGHT / spacing
    begin = node.level - width / 2
    for share, color in ((node.left, UP), (node.both, BOTH), (node.right, DOWN)):
        axes.barh(node.height, share * width, height, left=begin, color=color, zorder=4)
        begin += share * width


def _draw_leaf(axes: "Axes", node: TreeNode, expert: int) -> None:
    axes.plot(
        node.level, node.height, marker="o", markersize=4, color="black" if node.share else UNUSED
    )
    for right, text in ((NAME_WIDTH, f"expert {expert}"), (LABEL_WIDTH, _percent(node.share))):
        axes.text(
            node.level + right / LEVEL_WIDTH,
            node.height,
            text,
            ha="right",
            va="center",
            fontsize=SMALL,
            color="black" if node.share else FAINT,
        )


def _draw_legend(axes: "Axes", title: str) -> None:
    figure = figure_of(axes)
    # Bars of no size, which only the legend shows.
    bars = [axes.barh(0, 0, color=color).patches[0] for color in (UP, BOTH, DOWN)]
    figure.legend(
        bars,
        ["go up", "go both ways (soft)", "go down"],
        loc="outside upper left",
        ncols=3,
        frameon=False,
        fontsize=SMALL,
        title=title,
        title_fontsize=SMALL + 1,
        alignment="left",
        columnspacing=1.2,
        handlelength=1.2,
    )


def _percent(share: float) -> str:
    if 0 < share < 0.005:
        return "<1 %"
    return f"{100 * share:.0f} %"
