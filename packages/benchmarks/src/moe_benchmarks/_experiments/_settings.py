"""Settings of one trial: frozen, checked, and kept with its result."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn, Self

from moe_benchmarks._experiments._gates import GATES
from moe_benchmarks._experiments._search_names import SEARCHES


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """What determines the numbers of one training run, beside its data and its experiment."""

    gate: str
    search: str = "identity"
    seed: int = 0  # of initial weights, order of rows, hash tables and permutations
    learning_rate: float
    gamma: float = 1.0  # COMET and DSelect-k
    entropy_weight: float = 0.1  # COMET and DSelect-k
    search_epochs: int = 1  # first epochs, in which permutations are learned or searched
    search_rows: int = 4096  # training rows of an exact search; half of them confirm it
    epochs: int  # at most
    patience: int  # epochs without a lower validation loss, after which training stops
    batch_size: int
    num_experts: int
    k: int  # experts a row
    task_weights: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        for name, known in (("gate", GATES), ("search", SEARCHES)):
            if getattr(self, name) not in known:
                _refuse(name, f"one of {list(known)}", getattr(self, name))
        if self.search == "ids" and self.gate != "hash":
            msg = f"`search` 'ids' is for the gate 'hash' only, got `gate` {self.gate!r}."
            raise ValueError(msg)
        for name in ("epochs", "patience", "batch_size", "search_epochs"):
            self._check_integer(name, 1)
        self._check_integer("seed", 0, 2**31 - 1)
        self._check_integer("search_rows", 4)
        self._check_integer("num_experts", 2)
        self._check_integer("k", 1, self.num_experts, "num_experts")
        for name in ("learning_rate", "gamma"):
            self._check_number(name, self._number(name) > 0, "> 0")
        self._check_number("entropy_weight", self._number("entropy_weight") >= 0, ">= 0")
        weights = self.task_weights
        if not weights or not all(_is_real(each) and each >= 0 for each in weights):
            _refuse("task_weights", "one number >= 0 a task", weights)
        if sum(weights) == 0:
            _refuse("task_weights", "> 0 for some task", weights)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return {**asdict(self), "task_weights": list(self.task_weights)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read settings back; a key that is none of them is an error."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            msg = f"`settings` must not hold {unknown}, which are no settings of a trial."
            raise ValueError(msg)
        return cls(**{**values, "task_weights": tuple(values["task_weights"])})

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if not _is_real(value):
            _refuse(name, "a finite number", value)
        return float(value)

    def _check_number(self, name: str, fine: bool, allowed: str) -> None:  # noqa: FBT001 - a verdict
        if not fine:
            _refuse(name, allowed, getattr(self, name))

    def _check_integer(self, name: str, low: int, high: int | None = None, bound: str = "") -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int):
            _refuse(name, "an integer", value)
        if high is None:
            if value < low:
                _refuse(name, f">= {low}", value)
        elif not low <= value <= high:
            _refuse(name, f"in [{low}, {bound}{'=' if bound else ''}{high}]", value)


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refuse(name: str, allowed: str, value: object) -> NoReturn:
    msg = f"`{name}` must be {allowed}, got {value!r}."
    raise ValueError(msg)
