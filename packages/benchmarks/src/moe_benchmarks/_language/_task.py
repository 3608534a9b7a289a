"""What a task of language is to a study.

Axes: T rows.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol, Self

from torch import Tensor

from moe_benchmarks._language._batches import Batch, EncodedRows


class Examples(Protocol):
    """What a file has, as text."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def take(self, rows: list[int]) -> Self:
        """Return some of them."""
        ...


class Task(ABC):
    """Files, a head for a pretrained model, and official scores."""

    max_length: int  # tokens of a row, as it is usually set
    output_names: tuple[str, ...]  # of the logits, as transformers calls them

    @property
    @abstractmethod
    def name(self) -> str:
        """The name, as its publishers write it."""

    @property
    @abstractmethod
    def score_names(self) -> tuple[str, ...]:
        """Official scores, at most 1 each, larger is better; differences are of the first."""

    @abstractmethod
    def read(self, data_dir: Path) -> tuple[Examples, Examples]:
        """Read the training and the development rows; those of the test have no labels."""

    @abstractmethod
    def encode(self, tokenizer: Any, examples: Any, max_length: int) -> EncodedRows:  # noqa: ANN401 - of transformers, and of `read`
        """Make tokens of examples."""

    @abstractmethod
    def load(self, model: str | Path) -> Any:  # noqa: ANN401 - of transformers
        """Load a model with the task's head, a new one where it has none."""

    @abstractmethod
    def distance(self, output: Any, teacher: Any, batch: Batch) -> Tensor:  # noqa: ANN401 - of transformers
        """Return how far a model's answers are from those of another, a scalar."""
