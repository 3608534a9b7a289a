"""Put the results into the page."""

from typing import Any

from moe_benchmarks._report import _figures
from moe_benchmarks._report._findings import gate_finding, gate_row, search_finding, speed_finding
from moe_benchmarks._report._template import environment
from moe_benchmarks._report._tree import tree
from moe_benchmarks._results import (
    Mean,
    Result,
    best_to_serve,
    comet_to_draw,
    reported_results,
    title,
)
from moe_benchmarks._settings import QuickstartSettings
from moe_benchmarks._train import CONFIRMED_FROM
from moe_benchmarks._two_digits import TASKS


def render_report(
    settings: QuickstartSettings,
    results: list[Result],
    export: dict[str, Any],
    latency: dict[str, Any],
) -> str:
    """Render the report from the results alone, as one HTML page without outside parts."""
    reported = reported_results(results)
    served = best_to_serve(reported)
    drawn = comet_to_draw(reported, served)
    pages = environment("moe_benchmarks._report")
    pages.filters |= {"percent": _percent, "nats": _nats}
    return pages.get_template("report.html.j2").render(
        settings=settings.to_dict(),
        tasks=TASKS,
        rows=[gate_row(name, gate_results) for name, gate_results in reported.items()],
        served=served,
        served_title=title(served),
        drawn_title=title(drawn),
        confirmed_from=CONFIRMED_FROM,
        export=export,
        latency=latency,
        results=results,
        gate_finding=gate_finding(reported),
        search_finding=search_finding(results),
        speed_finding=speed_finding(latency),
        figures={
            "loss": _figures.loss_curves(reported),
            "accuracy": _figures.accuracy(reported),
            "experts": _figures.experts_per_row(reported),
            "latency": _figures.latency(latency),
        },
        loads=[_figures.load_by_class(served, task) for task in range(len(TASKS))],
        trees=[tree(each, f"tree{index}") for index, each in enumerate(drawn["trees"])],
    )


def _percent(mean: Mean) -> str:
    return f"{100 * mean.value:.1f} ± {100 * mean.standard_error:.1f}"


def _nats(mean: Mean) -> str:
    return f"{mean.value:.3f} ± {mean.standard_error:.3f}"
