"""Sentences as tokens, in batches of about the same length."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from moe_benchmarks._language._glue import Sentences
from moe_benchmarks._resumable import row_order

# Batches whose rows are sorted by length together: less padding, and still another order each time.
BATCHES_SORTED = 16

Batch = dict[str, Tensor]


class EncodedRows:
    """Rows of a task as token ids, of any length each."""

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401 - of transformers
        sentences: Sentences,
        *,
        max_length: int,
        is_number: bool,
    ) -> None:
        encoded = tokenizer(
            sentences.first, sentences.second, truncation=True, max_length=max_length
        )
        names = ("input_ids", "token_type_ids")
        self._columns = {name: encoded[name] for name in names if name in encoded}
        self._padding = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": 0}
        self.labels = torch.tensor(sentences.labels)
        if not is_number:
            self.labels = self.labels.long()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels)

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
        batch["labels"] = self.labels[rows]
        return batch

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield all rows as they come."""
        for rows in torch.split(torch.arange(len(self)), batch_size):
            yield self.batch(rows.tolist())

    def shuffled(self, batch_size: int, *, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield an epoch's batches; a function of the seed and the epoch."""
        lengths = self.lengths
        order = row_order(seed, epoch, len(self))
        batches: list[Tensor] = []
        for some in torch.split(order, batch_size * BATCHES_SORTED):
            batches += torch.split(some[lengths[some].argsort(stable=True)], batch_size)
        generator = torch.Generator().manual_seed(seed + epoch)
        for place in torch.randperm(len(batches), generator=generator).tolist():
            yield self.batch(batches[place].tolist())
