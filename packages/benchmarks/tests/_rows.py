"""Rows of made-up trials, in the format of `rows.jsonl`."""

from typing import Any

import numpy as np

TASKS = {"watched": "auc", "rating": None}
EPOCHS = 4


def trial(
    number: int, validation: float, test: float | None = None, **changes: Any
) -> dict[str, Any]:
    """Return a complete trial with the losses given and the rest plausible."""
    test = validation + 0.01 if test is None else test
    tasks = changes.pop("tasks", TASKS)
    num_experts = 4
    rng = np.random.default_rng(number)

    def metrics(loss: float) -> dict[str, Any]:
        return {
            "loss": loss,
            "tasks": {
                name: {"loss": loss, **({metric: 0.8 - loss / 100} if metric else {})}
                for name, metric in tasks.items()
            },
            "experts_per_row": 2.5,
            "most_experts": 4,
            "union_per_row": 3.0,
            "dead_experts": [0] * len(tasks),
        }

    row = {
        "experiment": "movielens-1m",
        "fraction": 0.1,
        "gate": "comet",
        "search": "identity",
        "trial": number,
        "state": "complete",
        "error": None,
        "settings": {
            "seed": 100 + number,
            "learning_rate": 1e-4 * (1 + number),
            "gamma": 1.0,
            "entropy_weight": 0.1,
            "task_weights": [0.5] * len(tasks),
            "num_experts": num_experts,
            "k": 2,
            "batch_size": 512,
            "epochs": EPOCHS,
            "patience": 5,
            "search_epochs": None,
        },
        "history": [
            {
                "train_loss": validation + 1 / (epoch + 1),
                "validation_loss": validation + 0.5 / (epoch + 1),
                "experts_per_row": num_experts - 0.5 * epoch,
                "seconds": 1.0,
            }
            for epoch in range(EPOCHS)
        ],
        "best_epoch": EPOCHS - 1,
        "metrics": {
            split: {"trained": metrics(loss), "hard": metrics(loss + 0.002)}
            for split, loss in (("validation", validation), ("test", test))
        },
        "load": rng.dirichlet(np.ones(num_experts), size=len(tasks)).tolist(),
        "searches": [],
        "seconds": 31.2,
        "rows_per_second": 51000.0,
        "commit": "2f291fe",
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "device": "cpu (made up, 1 thread)",
    }
    return row | changes


def failed(number: int, error: str = "loss is NaN", **changes: Any) -> dict[str, Any]:
    """Return a failed trial, which has no results."""
    kept = ("experiment", "fraction", "gate", "search", "trial", "settings", "commit", "versions",
            "device")  # fmt: skip
    row = trial(number, 1.0, **changes)
    rest = {key: row[key] for key in kept}
    return rest | {"state": "failed", "error": error}


def study(
    num_trials: int, *, mean: float = 0.6, spread: float = 0.02, seed: int = 0, **changes: Any
) -> list[dict[str, Any]]:
    """Return the trials of one variant: losses are skewed as those of a random search are."""
    rng = np.random.default_rng(seed)
    validation = mean + spread * rng.gamma(2.0, size=num_trials)
    test = validation + rng.normal(0.005, 0.2 * spread, size=num_trials)
    return [
        trial(number, float(validation[number]), float(test[number]), **changes)
        for number in range(num_trials)
    ]
