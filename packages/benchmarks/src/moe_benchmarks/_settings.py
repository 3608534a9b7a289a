"""Settings of the quickstart: frozen, checked, and kept with its results."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn


@dataclass(frozen=True, kw_only=True)
class QuickstartSettings:
    """What determines the quickstart's numbers.

    The gates share all of it. The learning rate, and gamma and the entropy weight of the tree
    gates (`_gates.py`), were chosen on the validation split.
    """

    seed: int = 0
    num_seeds: int = 3  # models a gate, which differ in initial weights and order of rows
    epochs: int = 12
    batch_size: int = 256
    learning_rate: float = 3e-3
    num_experts: int = 16
    k: int = 2  # experts a row
    hidden: int = 64  # hidden units of an expert
    features: int = 32  # outputs of an expert
    num_train: int = 20_000
    num_validation: int = 3_000
    num_test: int = 3_000
    search_epoch: int = 1  # epochs before the permutation search of COMET+
    search_rows: int = 4_096  # training rows for the search; half of them confirm it

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name))
        for name in ("num_seeds", "epochs", "batch_size", "hidden", "features"):
            _check_range(self, name, 1)
        for name in ("num_train", "num_validation", "num_test"):
            _check_range(self, name, 100)  # every digit class appears in every split
        _check_range(self, "seed", 0, 2**31 - 1)
        _check_range(self, "num_experts", 2)
        _check_range(self, "k", 1, self.num_experts, "num_experts")
        _check_range(self, "search_epoch", 0, self.epochs - 1, "epochs - 1")
        _check_range(self, "search_rows", 4, self.num_train, "num_train")
        if not 0 < self.learning_rate < math.inf:
            _refuse("learning_rate", "finite and > 0", self.learning_rate)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return asdict(self)


def _check_type(name: str, value: object) -> None:
    is_real = name == "learning_rate"
    if isinstance(value, bool) or not isinstance(value, (int, float) if is_real else int):
        _refuse(name, "a number" if is_real else "an integer", value)


def _check_range(
    settings: QuickstartSettings, name: str, low: int, high: int | None = None, bound: str = ""
) -> None:
    value = getattr(settings, name)
    if high is None:
        if value < low:
            _refuse(name, f">= {low}", value)
    elif not low <= value <= high:
        _refuse(name, f"in [{low}, {bound}{'=' if bound else ''}{high}]", value)


def _refuse(name: str, allowed: str, value: object) -> NoReturn:
    msg = f"`{name}` must be {allowed}, got {value!r}."
    raise ValueError(msg)
