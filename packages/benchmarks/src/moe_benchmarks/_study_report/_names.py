"""Names of gates, searches and metrics as a reader sees them."""

from typing import NamedTuple

from moe_benchmarks._experiments._gates import GATES

NO_SEARCH = "identity"
SEARCHES = {
    NO_SEARCH: "no search",
    "random": "random fixed permutation",
    "soft-mix": "soft mixing only",
    "relaxed": "the paper's search",
    "exact-shared": "exact search (shared by the tasks)",
    "exact": "exact search (a task)",
    "ids": "ids re-assigned",
}


class Metric(NamedTuple):
    """A metric of a task: its key in a row, its name, and how it is shown."""

    key: str
    name: str
    scale: float
    decimals: int | None  # None: as the loss
    arrow: str


AUC = Metric("auc", "AUC", 1.0, 4, "↑")
ACCURACY = Metric("accuracy", "accuracy (%)", 100.0, 2, "↑")
SQUARED_ERROR = Metric("loss", "mean squared error", 1.0, None, "↓")


def gate_name(gate: str) -> str:
    """Return the name of a gate."""
    return GATES[gate].name if gate in GATES else gate


def variant_name(gate: str, search: str) -> str:
    """Return the name of a gate with its search."""
    if search == NO_SEARCH:
        return gate_name(gate)
    return f"{gate_name(gate)} + {SEARCHES.get(search, search)}"


def order(gate: str, search: str) -> tuple[int, str, int, str]:
    """Return the place of a variant in tables: gates as the paper lists them, no search first."""
    gates, searches = list(GATES), list(SEARCHES)
    return (
        gates.index(gate) if gate in gates else len(gates),
        gate,
        searches.index(search) if search in searches else len(searches),
        search,
    )
