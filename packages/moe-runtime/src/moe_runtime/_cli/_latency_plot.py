"""The picture of latency by batch size."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moe_runtime._plots import SMALL, figure_of, new_axes
from moe_runtime._requirements import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches.
WIDTH, HEIGHT = 6.4, 4.2
# Okabe and Ito's colours, which the colour-blind can tell apart, and a marker for each.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def plot_latency(summaries: Sequence[dict[str, Any]], settings: dict[str, Any]) -> "Figure":
    """Draw median latency by batch size, with bars from quartile to quartile."""
    axes = new_axes("--plot", WIDTH, HEIGHT)
    names = list(dict.fromkeys(each["model"] for each in summaries))
    for index, name in enumerate(names):
        of_model = [each for each in summaries if each["model"] == name]
        _draw(axes, name, of_model, index)
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = sorted({each["batch_size"] for each in summaries})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    ticker = require("matplotlib.ticker", extra="plots", purpose="--plot")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _position: f"{value:g}")
    axes.minorticks_off()
    axes.tick_params(labelsize=SMALL)
    axes.set_axisbelow(True)
    axes.grid(visible=True, color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("rows in the batch", fontsize=SMALL + 1)
    axes.set_ylabel("median latency (ms), bars: quartiles", fontsize=SMALL + 1)
    threads = settings["threads"]
    count = "ONNX Runtime's choice of threads" if threads is None else f"threads: {threads}"
    axes.set_title(f"{settings['provider'].upper()}, {count}", fontsize=SMALL + 1, loc="left")
    axes.legend(fontsize=SMALL, frameon=False)
    return figure_of(axes)


def _draw(axes: "Axes", name: str, summaries: Sequence[dict[str, Any]], index: int) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    sizes = [each["batch_size"] for each in summaries]
    medians = [each["median_ms"] for each in summaries]
    low, high = zip(*(each["quartiles_ms"] for each in summaries), strict=True)
    lengths = [
        [median - least for median, least in zip(medians, low, strict=True)],
        [most - median for median, most in zip(medians, high, strict=True)],
    ]
    axes.errorbar(
        sizes,
        medians,
        lengths,
        color=colour,
        marker=marker,
        markersize=4.5,
        elinewidth=1,
        capsize=2.5,
        label=name,
    )
