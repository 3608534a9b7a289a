"""Settings of a study of language."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from moe_benchmarks._checks import check_integer, check_range, refuse
from moe_benchmarks._language._tasks import TASKS

Rows = Literal["dev", "held-out"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class LanguageSettings:
    """What is trained, into what it is converted, and how that learns.

    Attributes
    ----------
    task : str
        A task of GLUE, or SQuAD2.0.
    evaluate_on : {"dev", "held-out"}
        The development rows; or a tenth of the training rows, 1000 at most, which are then not
        trained on: what settings are chosen on.
    train_rows : int or None
        Use so many training rows, drawn with `seed` 0 in every run; None takes all.
    max_length : int
        Tokens of a row at most.
    epochs, learning_rate : int, float
        Of the dense model's fine-tuning.
    distil_epochs, distil_learning_rate : int, float
        Of each sparse model.
    batch_size : int
        Rows of a training step.
    precision : {"float32", "bfloat16"}
        Of products in training, by autocast; weights, routing, searches and scores are float32.
    distil_weight : float
        Of the distance from the dense model, beside the task's own loss.
    num_experts, width, num_shared : int
        Experts of each layer, hidden units of each, and how many of them all have. The share of
        the dense layer's width is taken where `width` is 0: a quarter, two thirds of it shared.
    gamma, last_gamma : float
        Width of the smooth step of COMET and DSelect-k at the first and at the last step, in
        standard deviations of the scores; it falls exponentially.
    entropy_weight, balance_weight : float
        Of the entropy penalty of COMET and DSelect-k, and of Top-k's load balance.
    search_tokens : int
        Training tokens of each search of COMET+, at the start of the epochs 0 to
        ``distil_epochs // 2``; half of them confirm.
    """

    task: str
    evaluate_on: Rows = "dev"
    train_rows: int | None = None
    max_length: int = 128
    epochs: int = 3
    learning_rate: float = 1e-4
    distil_epochs: int = 5
    distil_learning_rate: float = 2e-4
    batch_size: int = 32
    precision: Precision = "float32"
    distil_weight: float = 1.0
    num_experts: int = 4
    width: int = 0
    num_shared: int = 0
    gamma: float = 2.0
    last_gamma: float = 0.05
    entropy_weight: float = 0.01
    balance_weight: float = 0.01
    search_tokens: int = 4096

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.task not in TASKS:
            refuse("task", f"one of {list(TASKS)}", self.task)
        if self.evaluate_on not in ("dev", "held-out"):
            refuse("evaluate_on", "'dev' or 'held-out'", self.evaluate_on)
        if self.precision not in ("float32", "bfloat16"):
            refuse("precision", "'float32' or 'bfloat16'", self.precision)
        lowest = {"max_length": 8, "epochs": 1, "distil_epochs": 1, "batch_size": 1}
        lowest |= {"num_experts": 2, "width": 0, "num_shared": 0, "search_tokens": 2}
        for name, low in lowest.items():
            check_integer(name, getattr(self, name))
            check_range(name, getattr(self, name), low)
        if self.train_rows is not None:
            check_integer("train_rows", self.train_rows)
            check_range("train_rows", self.train_rows, 20)
        positive = ("learning_rate", "distil_learning_rate", "gamma", "last_gamma")
        for name in positive:
            if not 0 < getattr(self, name) < float("inf"):
                refuse(name, "a finite number > 0", getattr(self, name))
        for name in ("distil_weight", "entropy_weight", "balance_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                refuse(name, "a finite number >= 0", getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON has them."""
        return asdict(self)
