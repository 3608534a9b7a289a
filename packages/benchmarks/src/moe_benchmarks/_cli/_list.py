"""`moe-bench list`."""

from rich.console import Console
from rich.table import Table

from moe_benchmarks._experiments._catalog import EXPERIMENTS
from moe_benchmarks._experiments._gates import GATES
from moe_benchmarks._experiments._search_names import SEARCHES


def list_experiments() -> None:
    """List experiments, gates and searches."""
    console = Console(highlight=False)
    experiments = Table("experiment", "what", "experts", "k", "batch", title="Experiments")
    for each in EXPERIMENTS.values():
        sizes = (each.num_experts, each.k, each.batch_size)
        experiments.add_row(each.name, each.about, *map(str, sizes))
    gates = Table("gate", "name", title="Gates")
    for name, gate in GATES.items():
        gates.add_row(name, gate.name)
    searches = Table("search", "what", title="Searches")
    for name, about in SEARCHES.items():
        searches.add_row(name, about)
    for table in (experiments, gates, searches):
        console.print(table)
