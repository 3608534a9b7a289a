"""Figures of a study, each an SVG element of its own."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from moe_benchmarks._bootstrap import Interval
from moe_benchmarks._differences import Difference
from moe_benchmarks._report._style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SIZE,
    SKY,
    figure_named,
    to_svg,
)
from moe_benchmarks._statistics import best_of
from moe_benchmarks._study_report._compare import Ablation
from moe_benchmarks._study_report._names import SEARCHES, gate_name
from moe_benchmarks._study_report._study import Study, Variant

COLORS = dict(zip(SEARCHES, (GREY, SKY, PINK, ORANGE, BLUE, GREEN, RED), strict=True))
# A second sign beside the colour, for print.
LINES = dict(zip(SEARCHES, ("-", ":", (0, (1, 1)), "--", "-.", "-", "-"), strict=True))
PANEL, PANEL_HEIGHT = 2.6, 2.6  # inches, of one gate's panel
MOST_COLUMNS = 4  # panels side by side
LINE_HEIGHT = 0.42  # inches, of an interval
RATIO_LIMITS = (1e-2, 1e2)  # at least; the paper's claim is at the right end


def best_of_curves(study: Study) -> str:
    """Draw the test loss of the best of N trials, a panel for each gate, on shared axes."""
    drawn = {variant.slug: best_of(variant.rows) for variant in study.variants if variant.complete}
    finite = [v for c in drawn.values() for v in (*c.low, *c.median) if math.isfinite(v)]
    low, high = min(finite), max(finite)
    margin = 0.05 * (high - low) or 0.01

    def panel(axes: Axes, variant: Variant) -> None:
        curve, style = drawn[variant.slug], _style(variant)
        # A single trial is a mark; a line of one point is nothing.
        marker = "o" if len(curve.median) == 1 else ""
        median = np.where(np.isfinite(curve.median), curve.median, np.nan)
        axes.plot(curve.num_trials, median, marker=marker, **style)
        top = np.minimum(curve.high, high + margin)  # failed trials have no upper end
        bottom = np.minimum(curve.low, top)
        axes.fill_between(curve.num_trials, bottom, top, color=style["color"], alpha=0.12, lw=0)
        axes.set(xlabel="trials", xscale="log", ylim=(low - margin, high + margin))
        axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())

    return _panels(study, f"{study.slug}-curves", "test loss", panel)


def experts_over_epochs(study: Study) -> str:
    """Draw the experts a row over the epochs of each variant's best trial, a panel a gate."""

    def panel(axes: Axes, variant: Variant) -> None:
        assert variant.best is not None
        values = [epoch["experts_per_row"] for epoch in variant.best["history"]]
        marker = "o" if len(values) == 1 else ""
        axes.plot(np.arange(1, len(values) + 1), values, marker=marker, **_style(variant))
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(nbins=5, integer=True))
        axes.set(xlabel="epoch")
        axes.set_ylim(bottom=0)

    return _panels(study, f"{study.slug}-experts", "experts a row", panel)


def ablation_intervals(study: Study, compared: Sequence[Ablation]) -> str:
    """Draw each search's difference to no search."""
    intervals = [(each.variant, each.share) for each in compared]
    with figure_named(name := f"{study.slug}-ablation", _height(len(intervals))) as figure:
        axes = figure.subplots()
        ends = [v for _, gap in intervals for v in gap[:3] if math.isfinite(v)]
        span = max((abs(v) for v in ends), default=1.0) or 1e-3
        _intervals(axes, intervals, limits=(-1.1 * span, 1.1 * span))
        axes.axvline(0, color=BLACK, linewidth=0.8)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(nbins=5))
        axes.set(xlabel="better with search ← difference in test loss → worse")
    return to_svg(figure, name)


def speedup_intervals(study: Study, compared: Sequence[Ablation]) -> str:
    """Draw how many times fewer trials each search needs."""
    intervals = [(each.variant, each.speedup.ratio) for each in compared]
    with figure_named(name := f"{study.slug}-trials", _height(len(intervals))) as figure:
        axes = figure.subplots()
        high = max(RATIO_LIMITS[1], *(2 * ratio.high for _, ratio in intervals))
        axes.set(xscale="log", xlabel="trials without search over trials with it")
        _intervals(axes, intervals, limits=(RATIO_LIMITS[0], high))
        axes.axvline(1, color=BLACK, linewidth=0.8)
        axes.axvline(100, color=RED, linewidth=0.8, linestyle=":")
        axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    return to_svg(figure, name)


def load(variant: Variant, tasks: Sequence[str]) -> str:
    """Draw the share of the test rows that uses each expert, hard, in the best trial."""
    assert variant.best is not None
    shares = np.asarray(variant.best["load"], dtype=np.float64)
    num_tasks, num_experts = shares.shape
    size = (SIZE[0], 0.9 + 0.34 * num_tasks)
    with figure_named(name := f"{variant.slug}-load", size) as figure:
        axes = figure.subplots()
        mesh = axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white")
        step = 1 + num_experts // 17
        ticks = np.arange(0, num_experts, step)
        axes.set_xticks(ticks + 0.5, [str(expert) for expert in ticks])
        axes.set_yticks(np.arange(num_tasks) + 0.5, list(tasks))
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.invert_yaxis()
        axes.set(xlabel="expert")
        figure.colorbar(mesh, format=mpl.ticker.PercentFormatter(1.0, 0), ticks=[0, 0.5, 1])
    return to_svg(figure, name)


def _panels(study: Study, name: str, label: str, draw: Any) -> str:  # noqa: ANN401 - a function
    gates = {
        gate: [each for each in variants if each.complete]
        for gate, variants in study.by_gate().items()
    }
    gates = {gate: variants for gate, variants in gates.items() if variants}
    columns = min(len(gates), MOST_COLUMNS)
    num_lines = math.ceil(len(gates) / columns)
    size = (max(SIZE[0], 0.8 + PANEL * columns), 0.7 + PANEL_HEIGHT * num_lines)
    with figure_named(name, size) as figure:
        every = figure.subplots(num_lines, columns, squeeze=False, sharex=True, sharey=True)
        for axes in every.flat[len(gates) :]:
            axes.set_axis_off()
        for axes, (gate, variants) in zip(every.flat, gates.items(), strict=False):
            axes.set_title(gate_name(gate), fontsize=10)
            for variant in variants:
                draw(axes, variant)
        for axes in every[:, 0]:
            axes.set(ylabel=label)
        for axes in every.flat[max(0, len(gates) - columns) : len(gates)]:
            axes.tick_params(labelbottom=True)  # nothing stands below it
        used = dict.fromkeys(each.search for variants in gates.values() for each in variants)
        handles = [
            mpl.lines.Line2D([], [], label=SEARCHES.get(search, search), **_line(search))
            for search in used
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(gates) + 1))
    return to_svg(figure, name)


def _style(variant: Variant) -> dict[str, Any]:
    return _line(variant.search)


def _line(search: str) -> dict[str, Any]:
    return {"color": COLORS.get(search, BLACK), "linestyle": LINES.get(search, "-")}


def _height(num_intervals: int) -> tuple[float, float]:
    return SIZE[0] + 1, 1.0 + LINE_HEIGHT * num_intervals


def _intervals(
    axes: Axes,
    intervals: Sequence[tuple[Variant, Interval | Difference]],
    *,
    limits: tuple[float, float],
) -> None:
    """Draw intervals one below the other; an end beyond the limits is an arrow."""
    for place, (variant, interval) in enumerate(intervals):
        style: dict[str, Any] = {"color": COLORS.get(variant.search, BLACK), "linestyle": ""}
        low, value, high = (
            float(np.clip(end, *limits)) for end in (interval.low, interval.value, interval.high)
        )
        axes.plot([low, high], [place, place], color=style["color"], linewidth=2)
        if interval.low < limits[0]:
            axes.plot(limits[0], place, marker="<", clip_on=False, **style)
        if interval.high > limits[1]:
            axes.plot(limits[1], place, marker=">", clip_on=False, **style)
        if limits[0] <= interval.value <= limits[1]:
            axes.plot(value, place, marker="o", clip_on=False, **style)
    names = [variant.name for variant, _ in intervals]
    axes.set_yticks(range(len(names)), [name.replace(" + ", " +\n", 1) for name in names])
    axes.tick_params(axis="y", labelsize=8)
    axes.set(xlim=limits, ylim=(len(names) - 0.5, -0.5))
