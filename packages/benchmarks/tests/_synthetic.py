"""Data sets small enough for tests, with something to learn in them."""

from dataclasses import replace

import torch

from moe_benchmarks._data._dataset import (
    ITEM,
    PICTURE_ID,
    PIXELS,
    USER,
    Dataset,
    Split,
    Task,
)
from moe_benchmarks._experiments._catalog import EXPERIMENTS
from moe_benchmarks._experiments._settings import TrialSettings

# For `ratings`. Without dropout, which each process and each device draws for itself.
STEADY_RATINGS = replace(
    EXPERIMENTS["movielens-1m"],
    embedding_width=8,
    expert_widths=(8,),
    head_widths=(8,),
    dropout=0.0,
)


def ratings(num_rows: int = 600, *, num_users: int = 20, num_items: int = 30) -> Dataset:
    """Users and items of hidden kinds: whether it was watched, and how it was rated."""
    generator = torch.Generator().manual_seed(0)
    user_kind = torch.randint(3, (num_users,), generator=generator)
    item_kind = torch.randint(3, (num_items,), generator=generator)

    def split(count: int) -> Split:
        users = torch.randint(num_users, (count,), generator=generator)
        items = torch.randint(num_items, (count,), generator=generator)
        same = user_kind[users] == item_kind[items]
        return Split({USER: users, ITEM: items}, (same.float(), 1 + 4 * same.float()), (None, same))

    return Dataset(
        "ratings",
        (Task("watched", "binary"), Task("rating", "regression")),
        train=split(num_rows),
        validation=split(num_rows // 2),
        test=split(num_rows // 2),
        num_ids={USER: num_users, ITEM: num_items},
        hash_input=ITEM,
    )


def pictures(num_rows: int = 120, size: int = 12) -> Dataset:
    """Two bright corners, whose places are two tasks of 3 classes."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        labels = torch.randint(3, (2, count), generator=generator)
        pixels = 0.1 * torch.rand(count, size, size, generator=generator)
        rows = torch.arange(count)
        pixels[rows, 4 * labels[0], 0] = 1.0
        pixels[rows, 4 * labels[1], size - 1] = 1.0
        ids = 3 * labels[0] + labels[1]
        return Split({PIXELS: pixels, PICTURE_ID: ids}, (labels[0], labels[1]), (None, None))

    return Dataset(
        "pictures",
        (Task("left", "classes", 3), Task("right", "classes", 3)),
        train=split(num_rows),
        validation=split(num_rows // 2),
        test=split(num_rows // 2),
        num_ids={PICTURE_ID: 9},
        hash_input=PICTURE_ID,
    )


def tiny(gate: str = "comet", search: str = "identity", **changes: object) -> TrialSettings:
    """Settings of a trial of seconds."""
    values: dict[str, object] = {
        "learning_rate": 3e-3,
        "epochs": 4,
        "patience": 4,
        "batch_size": 64,
        "num_experts": 5,
        "k": 2,
        "task_weights": (0.5, 0.5),
        "search_epochs": 2,
        "search_rows": 200,
        **changes,
    }
    return TrialSettings(gate=gate, search=search, **values)  # type: ignore[arg-type]
