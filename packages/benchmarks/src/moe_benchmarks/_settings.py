"""Settings of the quickstart: frozen, checked, and kept with its results."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from moe_benchmarks._checks import LARGEST_SEED, check_integer, check_range, refuse


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
        if isinstance(self.learning_rate, bool) or not isinstance(self.learning_rate, int | float):
            refuse("learning_rate", "a number", self.learning_rate)
        for field in fields(self):
            if field.name != "learning_rate":
                check_integer(field.name, getattr(self, field.name))
        for name in ("num_seeds", "epochs", "batch_size", "hidden", "features"):
            check_range(name, getattr(self, name), 1)
        for name in ("num_train", "num_validation", "num_test"):
            check_range(name, getattr(self, name), 100)  # every digit class appears in every split
        check_range("seed", self.seed, 0, LARGEST_SEED)
        check_range("num_experts", self.num_experts, 2)
        check_range("k", self.k, 1, self.num_experts, "num_experts")
        check_range("search_epoch", self.search_epoch, 0, self.epochs - 1, "epochs - 1")
        check_range("search_rows", self.search_rows, 4, self.num_train, "num_train")
        if not 0 < self.learning_rate < math.inf:
            refuse("learning_rate", "finite and > 0", self.learning_rate)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return asdict(self)
