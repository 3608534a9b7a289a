"""The picture of a tree: the share of rows that takes each branch, and the expert at its end."""

from typing import Any

from matplotlib.axes import Axes

from moe_benchmarks._report._style import figure_named, to_svg

WIDTH_PER_LEAF, LEVEL_HEIGHT = 0.62, 0.75  # inches
THICKEST = 14  # points, the line that all rows take
BRANCH, UNUSED, LEAF = "#009E73", "#a8a8a8", "#D55E00"


def tree(tree: dict[str, Any], name: str) -> str:
    """Draw one tree of COMET with hard routing, root at the top."""
    shares, experts = tree["node_shares"], tree["expert_of_leaf"]
    num_leaves = len(experts)
    depth = (num_leaves - 1).bit_length()
    positions = _positions(num_leaves)
    size = (max(3.5, WIDTH_PER_LEAF * num_leaves), LEVEL_HEIGHT * (depth + 1))
    with figure_named(name, size) as figure:
        axes = figure.subplots()
        axes.set_axis_off()
        for node in range(1, len(shares)):
            _branch(axes, positions[(node - 1) // 2], positions[node], shares[node])
        for leaf, expert in enumerate(experts):
            node = leaf + num_leaves - 1
            _leaf(axes, positions[node], f"expert {expert}", shares[node])
        axes.set(xlim=(-0.6, num_leaves - 0.4), ylim=(-depth - 0.75, 0.2))
    return to_svg(figure, name)


def _branch(axes: Axes, start: tuple[float, float], end: tuple[float, float], share: float) -> None:
    used = share > 0
    axes.plot(
        [start[0], end[0]],
        [start[1], end[1]],
        color=BRANCH if used else UNUSED,
        linewidth=max(THICKEST * share, 0.8),
        linestyle="-" if used else ":",
        solid_capstyle="round",
        alpha=0.75,
    )
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    if used:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
        axes.text(*middle, _percent(share), ha="center", va="center", fontsize=8, bbox=box)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "<1%"


def _leaf(axes: Axes, position: tuple[float, float], label: str, share: float) -> None:
    color = LEAF if share > 0 else UNUSED
    axes.plot(*position, marker="o", markersize=7, color=color)
    text_color = "black" if share > 0 else "#888888"
    axes.text(
        position[0],
        position[1] - 0.22,
        label.replace(" ", "\n"),
        ha="center",
        va="top",
        fontsize=8,
        color=text_color,
    )


def _positions(num_leaves: int) -> list[tuple[float, float]]:
    """Place the nodes in heap order: leaves side by side, splits over the middle of theirs."""
    num_nodes = 2 * num_leaves - 1
    across = [0.0] * num_nodes
    placed = 0

    def place(node: int) -> None:
        nonlocal placed
        if node >= num_leaves - 1:
            across[node] = float(placed)
            placed += 1
            return
        place(2 * node + 1)
        place(2 * node + 2)
        across[node] = (across[2 * node + 1] + across[2 * node + 2]) / 2

    place(0)
    return [(across[node], float(1 - (node + 1).bit_length())) for node in range(num_nodes)]
