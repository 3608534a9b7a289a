"""Settings of one trial: frozen, checked, and kept with its result."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

from moe_benchmarks._checks import LARGEST_SEED, check_integer, check_range, refuse
from moe_benchmarks._experiments._catalog import Experiment
from moe_benchmarks._experiments._gates import GATES
from moe_benchmarks._experiments._search_names import SEARCHES

INTEGERS = (
    "epochs", "patience", "batch_size", "search_epochs", "seed", "search_rows", "num_experts", "k",
)  # fmt: skip


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
                refuse(name, f"one of {list(known)}", getattr(self, name))
        if self.search == "ids" and self.gate != "hash":
            msg = f"`search` 'ids' is for the gate 'hash' only, got `gate` {self.gate!r}."
            raise ValueError(msg)
        for name in INTEGERS:
            check_integer(name, getattr(self, name))
        for name in ("epochs", "patience", "batch_size", "search_epochs"):
            check_range(name, getattr(self, name), 1)
        check_range("seed", self.seed, 0, LARGEST_SEED)
        check_range("search_rows", self.search_rows, 4)
        check_range("num_experts", self.num_experts, 2)
        check_range("k", self.k, 1, self.num_experts, "num_experts")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in ("learning_rate", "gamma", "entropy_weight"):
            if not _is_real(getattr(self, name)):
                refuse(name, "a finite number", getattr(self, name))
        for name in ("learning_rate", "gamma"):
            if getattr(self, name) <= 0:
                refuse(name, "> 0", getattr(self, name))
        if self.entropy_weight < 0:
            refuse("entropy_weight", ">= 0", self.entropy_weight)
        weights = self.task_weights
        if not weights or not all(_is_real(each) and each >= 0 for each in weights):
            refuse("task_weights", "one number >= 0 a task", weights)
        if sum(weights) == 0:
            refuse("task_weights", "> 0 for some task", weights)

    @classmethod
    def for_experiment(
        cls,
        experiment: Experiment,
        *,
        gate: str,
        search: str,
        seed: int,
        learning_rate: float,
        gamma: float,
        entropy_weight: float,
        search_epochs: int,
        epochs: int | None = None,
        patience: int | None = None,
    ) -> Self:
        """Take the sizes of an experiment, and its epochs and patience where they are None."""
        return cls(
            gate=gate,
            search=search,
            seed=seed,
            learning_rate=learning_rate,
            gamma=gamma,
            entropy_weight=entropy_weight,
            search_epochs=search_epochs,
            epochs=experiment.epochs if epochs is None else epochs,
            patience=experiment.patience if patience is None else patience,
            batch_size=experiment.batch_size,
            num_experts=experiment.num_experts,
            k=experiment.k,
            task_weights=experiment.task_weights,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return {**asdict(self), "task_weights": list(self.task_weights)}


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
