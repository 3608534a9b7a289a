"""Figures of the report, each an SVG element of its own."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from moe_benchmarks._latency import ALL_EXPERTS, SERVED, SPARSE
from moe_benchmarks._report._style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    figure_named,
    to_svg,
)
from moe_benchmarks._results import Result
from moe_benchmarks._two_digits import NUM_CLASSES, TASKS

COLORS = {
    "Hash": GREY,
    "Top-k": BLUE,
    "DSelect-k": ORANGE,
    "COMET": GREEN,
    "COMET+": RED,
    ALL_EXPERTS: GREY,
    SPARSE: BLUE,
    SERVED: RED,
}
TASK_MARKERS = ("o", "s")


def loss_curves(reported: dict[str, list[Result]]) -> str:
    """Draw the validation loss (hard) and training loss over the epochs, mean over seeds."""
    with figure_named("loss") as figure:
        axes = figure.subplots()
        for gate, results in reported.items():
            for key, style in (("validation_loss_hard", "-"), ("train_loss", ":")):
                curve = _history(results, key)
                label = gate if style == "-" else None
                _line(axes, curve.mean(0), label=label, linestyle=style, color=COLORS[gate])
        axes.set(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
        axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(mpl.ticker.NullLocator())
        figure.legend(loc="outside lower center", ncols=3)
    return to_svg(figure, "loss")


def experts_per_row(reported: dict[str, list[Result]]) -> str:
    """Draw the experts used a row as trained, over the epochs, mean and range of the seeds."""
    with figure_named("experts") as figure:
        axes = figure.subplots()
        for gate, results in reported.items():
            curve = _history(results, "experts_per_row")
            _line(axes, curve.mean(0), label=gate, color=COLORS[gate])
            epochs = np.arange(1, curve.shape[1] + 1)
            axes.fill_between(epochs, curve.min(0), curve.max(0), color=COLORS[gate], alpha=0.15)
        axes.set(xlabel="epoch", ylabel="experts used a row", yscale="log")
        axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)))
        axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(mpl.ticker.NullLocator())
        figure.legend(loc="outside lower center", ncols=3)
    return to_svg(figure, "experts")


def accuracy(reported: dict[str, list[Result]]) -> str:
    """Draw the test accuracy of each gate and task with hard routing, a mark for each seed."""
    with figure_named("accuracy") as figure:
        axes = figure.subplots()
        for row, (gate, results) in enumerate(reported.items()):
            for task, name in enumerate(TASKS):
                values = [100 * r["metrics"]["test_hard"]["accuracy"][task] for r in results]
                height = row + 0.15 * (2 * task - 1)
                style: dict[str, Any] = {"marker": TASK_MARKERS[task], "color": COLORS[gate]}
                style["linestyle"] = ""
                axes.plot(values, [height] * len(values), alpha=0.35, markersize=5, **style)
                mean = sum(values) / len(values)
                label = f"{name} digit" if row == 0 else None
                axes.plot(mean, height, markersize=8, label=label, **style)
        axes.set_yticks(range(len(reported)), list(reported))
        axes.invert_yaxis()
        axes.set(xlabel="test accuracy (%), hard routing")
        figure.legend(loc="outside lower center", ncols=2)
    return to_svg(figure, "accuracy")


def load_by_class(result: Result, task: int) -> str:
    """Draw the share of each digit's rows that uses each expert."""
    load = np.asarray(result["load_by_class"][task])
    with figure_named(f"load{task}") as figure:
        axes = figure.subplots()
        mesh = axes.pcolormesh(load, cmap="Blues", vmin=0, vmax=1, edgecolors="white")
        axes.set_xticks(
            np.arange(load.shape[1]) + 0.5, [str(expert) for expert in range(load.shape[1])]
        )
        axes.set_yticks(np.arange(NUM_CLASSES) + 0.5, [str(digit) for digit in range(NUM_CLASSES)])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.invert_yaxis()
        axes.set(xlabel="expert", ylabel=f"{TASKS[task]} digit")
        figure.colorbar(mesh, label="share of rows", format="{x:.0%}")
    return to_svg(figure, f"load{task}")


def latency(measured: dict[str, Any]) -> str:
    """Draw milliseconds a call by batch size."""
    with figure_named("latency") as figure:
        axes = figure.subplots()
        for name, values in measured["milliseconds"].items():
            axes.plot(measured["batch_sizes"], values, marker="o", label=name, color=COLORS[name])
        axes.set(xlabel="rows a call", ylabel="milliseconds a call", xscale="log", yscale="log")
        axes.set_xticks(measured["batch_sizes"], measured["batch_sizes"])
        axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.legend()
    return to_svg(figure, "latency")


def _history(results: Sequence[Result], key: str) -> np.ndarray[Any, Any]:
    return np.asarray([[epoch[key] for epoch in result["history"]] for result in results])


def _line(axes: Axes, values: np.ndarray[Any, Any], **style: Any) -> None:  # noqa: ANN401
    axes.plot(np.arange(1, len(values) + 1), values, **style)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
