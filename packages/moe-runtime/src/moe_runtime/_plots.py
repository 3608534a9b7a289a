"""The picture of the load of experts: over time, tasks, classes or layers.

Axes: E experts, C columns of the picture.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moe_runtime._checks import check_tensor
from moe_runtime._requirements import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALL = 8.0  # points
# Inches: a line of text for each expert, and around the heat map.
EXPERT_HEIGHT, MIN_EXPERTS = 0.17, 12
COLUMN_WIDTH, MAX_WIDTH, MARGIN = 0.45, 9.0, 2.6
MOST_TICKS = 12


def plot_load(
    load_CE: Tensor, columns: Sequence[float] | Sequence[str], *, label: str = "training step"
) -> "Figure":
    """Draw the share of rows that uses each expert: over time, tasks, classes, or layers.

    Parameters
    ----------
    load_CE
        Load of each expert in each column, shape (C, E), in [0, 1]. Experts that no row used are
        left blank.
    columns
        C numbers or names, such as the steps at which ``Watcher.loads`` was read.
    label
        What the columns are, and their unit.

    Returns
    -------
    matplotlib.figure.Figure
        For its ``savefig``; needs the ``plots`` extra.

    Raises
    ------
    ValueError
        If shapes disagree, or a load is outside [0, 1].
    ModuleNotFoundError
        If matplotlib is not installed; the message has the command.
    """
    check_tensor("load_CE", load_CE)
    if load_CE.ndim != 2 or 0 in load_CE.shape or len(columns) != len(load_CE):
        msg = (
            f"`load_CE` must have shape (C, E) with the C={len(columns)} of `columns`, "
            f"and not be empty, got {tuple(load_CE.shape)}."
        )
        raise ValueError(msg)
    if not ((load_CE >= 0) & (load_CE <= 1)).all():
        msg = f"`load_CE` must be in [0, 1], got {load_CE.min():g} to {load_CE.max():g}."
        raise ValueError(msg)
    num_columns, num_experts = load_CE.shape
    width = min(MAX_WIDTH, MARGIN + COLUMN_WIDTH * max(num_columns, 4))
    axes = new_axes("plot_load", width, 0.9 + EXPERT_HEIGHT * max(num_experts, MIN_EXPERTS))
    load_EC = load_CE.detach().cpu().double().T
    # Blank, as the colour of none: the lightest colour is that of few rows.
    drawn: Any = load_EC.masked_fill(load_EC == 0, torch.nan).numpy()
    # Zero is the light end, so that pictures of several gates can be compared.
    largest = max(float(load_EC.max()), torch.finfo(torch.float64).tiny)
    mesh = axes.pcolormesh(drawn, cmap="viridis_r", vmin=0, vmax=largest)
    experts = range(num_experts)
    axes.set_yticks([expert + 0.5 for expert in experts], [str(expert) for expert in experts])
    every = -(-num_columns // MOST_TICKS)
    axes.set_xticks(
        [column + 0.5 for column in range(0, num_columns, every)],
        [str(each) for each in columns[::every]],
    )
    axes.tick_params(length=0, labelsize=SMALL)
    axes.invert_yaxis()
    axes.set_xlabel(label, fontsize=SMALL + 1)
    axes.set_ylabel("expert", fontsize=SMALL + 1)
    bar = axes.figure.colorbar(mesh, format="{x:.0%}", aspect=30, pad=0.03)
    bar.set_label("share of rows (blank: none)", fontsize=SMALL + 1)
    bar.ax.tick_params(labelsize=SMALL)
    return figure_of(axes)


def new_axes(purpose: str, width: float, height: float) -> "Axes":
    """Return the axes of a new figure, in inches, that belongs to no window."""
    require("matplotlib", extra="plots", purpose=purpose)
    figure = importlib.import_module("matplotlib.figure")
    axes: Axes = figure.Figure(figsize=(width, height), layout="constrained").subplots()
    return axes


def figure_of(axes: "Axes") -> "Figure":
    """Return the figure that axes are on."""
    figure: Any = axes.figure
    whole: Figure = figure
    return whole
