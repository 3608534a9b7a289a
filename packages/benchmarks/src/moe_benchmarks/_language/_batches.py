"""Rows as tokens, in batches, and in parts of batches that have about the same length.

Axes: T rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moe_benchmarks._device import CPU
from moe_benchmarks._resumable import row_order

# Of a part of a batch, padding included: with fewer, products are too small to be fast.
PART_TOKENS = 512
COLUMNS = ("input_ids", "token_type_ids")

Batch = dict[str, Tensor]


class EncodedRows(ABC):
    """Rows as token ids, of any length each, and what is to be learned of each.

    Parameters
    ----------
    tokenizer
        Of transformers: what rows are padded with.
    encoded
        What it has made of them.
    targets
        Tensors of shape (T,), by the names that models have for them.
    """

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401 - of transformers
        encoded: Mapping[str, list[list[int]]],
        targets: Mapping[str, Tensor],
    ) -> None:
        self._columns = {name: encoded[name] for name in COLUMNS if name in encoded}
        self._padding = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": 0}
        self.targets = dict(targets)
        self.device = CPU  # where batches are made

    @abstractmethod
    def score(self, outputs: Sequence[Any]) -> dict[str, float]:
        """Return the official scores of a model's outputs for the batches of `in_order`."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._columns["input_ids"])

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, shape (T,)."""
        return torch.tensor([len(ids) for ids in self._columns["input_ids"]])

    @property
    def token_counts(self) -> dict[int, int]:
        """How often each id occurs."""
        counts = torch.bincount(
            torch.tensor([each for ids in self._columns["input_ids"] for each in ids])
        )
        return {token: int(count) for token, count in enumerate(counts) if count}

    def batch(self, rows: list[int]) -> Batch:
        """Return some rows, padded to the longest of them."""
        longest = max(len(self._columns["input_ids"][row]) for row in rows)
        batch = {}
        for name, column in self._columns.items():
            padded = [
                column[row] + [self._padding[name]] * (longest - len(column[row])) for row in rows
            ]
            batch[name] = torch.tensor(padded)
        lengths = torch.tensor([len(self._columns["input_ids"][row]) for row in rows])
        batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        batch |= {name: target[rows] for name, target in self.targets.items()}
        return {name: each.to(self.device) for name, each in batch.items()}

    def inputs(self, batch: Batch) -> Batch:
        """Return a batch without what is to be learned."""
        return {name: value for name, value in batch.items() if name not in self.targets}

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield all rows as they come."""
        for rows in torch.split(torch.arange(len(self)), batch_size):
            yield self.batch(rows.tolist())

    def shuffled(self, batch_size: int, *, seed: int, epoch: int) -> Iterator[list[Batch]]:
        """Yield an epoch's batches in parts; a function of the seed and the epoch."""
        for rows in torch.split(row_order(seed, epoch, len(self)), batch_size):
            yield self.parts(rows)

    def parts(self, rows: Tensor) -> list[Batch]:
        """Split a batch by length: the sum of its parts' losses is its own, with less padding."""
        ids = self._columns["input_ids"]
        left = sorted(rows.tolist(), key=lambda row: len(ids[row]), reverse=True)
        parts = []
        while left:
            count = max(1, PART_TOKENS // len(ids[left[0]]))
            parts.append(self.batch(left[:count]))
            left = left[count:]
        return parts
