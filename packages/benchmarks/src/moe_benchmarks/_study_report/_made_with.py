"""What rows were made with: versions and devices, which lines of tables refer to."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from moe_benchmarks._statistics import Row
from moe_benchmarks._study_report._document import Cell

Environment: TypeAlias = tuple[Any, ...]


def environments_of(rows: Sequence[Row]) -> list[Environment]:
    """List the environments of rows, each once."""
    return sorted({_environment(row) for row in rows})


def made_with_cell(row: Row, environments: Sequence[Environment]) -> Cell:
    """Refer to what a row was made with."""
    place = environments.index(_environment(row))
    return Cell(_name(place), _anchor(place))


def made_with_items(environments: Sequence[Environment]) -> list[tuple[str, str]]:
    """Return the id and the text of each environment's item."""
    return [
        (_anchor(place), f"{_name(place)}: {_describe(each)}")
        for place, each in enumerate(environments)
    ]


def _environment(row: Row) -> Environment:
    versions = tuple(sorted((row.get("versions") or {}).items()))
    return versions, row.get("device") or ""


def _anchor(place: int) -> str:
    return f"made-with-{place + 1}"


def _name(place: int) -> str:
    return f"set {place + 1}"


def _describe(environment: Environment) -> str:
    versions, device = environment
    parts = [", ".join(f"{name} {version}" for name, version in versions), device]
    return "; ".join(part for part in parts if part) or "unknown"
