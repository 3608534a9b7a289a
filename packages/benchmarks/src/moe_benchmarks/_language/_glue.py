"""A task of GLUE: sentences, or pairs of them, with a class or a number each.

Axes: T rows, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_benchmarks._language._batches import Batch, EncodedRows
from moe_benchmarks._language._glue_files import Layout, Sentences, read_glue
from moe_benchmarks._language._glue_scores import Numbers, Score
from moe_benchmarks._language._library import transformers
from moe_benchmarks._language._task import Task
from moe_runtime.convert import symmetric_divergence


@dataclass(frozen=True)
class GlueTask(Task):
    """A task of GLUE.

    Attributes
    ----------
    layout : Layout
        Where its files have what.
    scores : mapping of str to function
        Official scores, dimensionless.
    max_length : int
        Tokens of a row, as it is usually set.
    output_names : tuple of str
        Of the logits, as transformers calls them.
    """

    layout: Layout
    scores: Mapping[str, Score]
    max_length: int = 128
    output_names: tuple[str, ...] = ("logits",)

    @property
    def name(self) -> str:
        """The name, as the GLUE benchmark writes it."""
        return self.layout.name

    @property
    def score_names(self) -> tuple[str, ...]:
        """Official scores, at most 1 each, larger is better; differences are of the first."""
        return tuple(self.scores)

    def read(self, data_dir: Path) -> tuple[Sentences, Sentences]:
        """Read the training and the development rows; those of the test have no labels."""
        return read_glue(self.layout, data_dir)

    def encode(self, tokenizer: Any, examples: Sentences, max_length: int) -> "SentenceRows":  # noqa: ANN401 - of transformers
        """Make tokens of sentences."""
        return SentenceRows(self, tokenizer, examples, max_length)

    def load(self, model: str | Path) -> Any:  # noqa: ANN401 - of transformers
        """Load a model with a head for the classes, or for one number."""
        return transformers().AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=len(self.layout.labels) or 1
        )

    def distance(self, output: Any, teacher: Any, batch: Batch) -> Tensor:  # noqa: ANN401, ARG002 - of transformers; no target is asked
        """Return the symmetric divergence of the classes, or the squared error of the number."""
        if self.layout.labels:
            return symmetric_divergence(output.logits, teacher.logits)
        return F.mse_loss(output.logits, teacher.logits)

    def score(self, logits: Numbers, labels: Sequence[float]) -> dict[str, float]:
        """Return the scores of logits (T, C) of a model."""
        answers = logits.argmax(-1).astype(np.float64) if self.layout.labels else logits[:, 0]
        wanted = np.asarray(labels, dtype=np.float64)
        return {name: score(answers, wanted) for name, score in self.scores.items()}


class SentenceRows(EncodedRows):
    """Sentences, or pairs of them, as tokens."""

    def __init__(
        self,
        task: GlueTask,
        tokenizer: Any,  # noqa: ANN401 - of transformers
        sentences: Sentences,
        max_length: int,
    ) -> None:
        encoded = tokenizer(
            sentences.first, sentences.second, truncation=True, max_length=max_length
        )
        labels = torch.tensor(sentences.labels)
        labels = labels.long() if task.layout.labels else labels
        super().__init__(tokenizer, encoded, {"labels": labels})
        self._task = task

    def score(self, outputs: Sequence[Any]) -> dict[str, float]:
        """Return the official scores of a model's outputs for the batches of `in_order`."""
        logits = torch.cat([output.logits for output in outputs]).double().cpu().numpy()
        return self._task.score(logits, self.targets["labels"].tolist())
