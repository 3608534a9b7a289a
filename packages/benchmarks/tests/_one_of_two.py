"""One of two processes that train: `python _one_of_two.py RANK FOLDER`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _synthetic import STEADY_RATINGS, ratings, tiny
from torch import distributed

from moe_benchmarks._experiments._loop import fit

# The last batch of 601 rows has 25: parts of 13 and 12.
NUM_ROWS = 601
# A power of two: DSelect-k's penalty on unreachable codes is a sum over rows, as published, and
# each process has the sum of its own.
NUM_EXPERTS = 4
VARIANTS = [("comet", "exact"), ("top-k", "relaxed"), ("hash", "ids"), ("dselect-k", "identity")]


def trained(gate: str, search: str, checkpoint: Path | None = None) -> dict[str, Any]:
    """Numbers of a run that do not depend on how long it took."""
    torch.set_num_threads(1)
    settings = tiny(gate, search, epochs=3, num_experts=NUM_EXPERTS)
    found = fit(STEADY_RATINGS, settings, ratings(NUM_ROWS), checkpoint=checkpoint)
    history = [
        {name: value for name, value in asdict(epoch).items() if name != "seconds"}
        for epoch in found.history
    ]
    weights = {name: value.tolist() for name, value in found.model.state_dict().items()}
    searches = [asdict(step) for step in found.searches]
    return {"history": history, "weights": weights, "searches": searches}


def train_as(rank: int, folder: Path) -> None:
    """Be one of two processes, and write what each variant came to."""
    address = f"file://{folder / 'rendezvous'}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for gate, search in VARIANTS:
        path = folder / f"{gate}-{rank}.json"
        path.write_text(json.dumps(trained(gate, search, folder / f"{gate}.checkpoint")))
    distributed.destroy_process_group()


if __name__ == "__main__":
    train_as(int(sys.argv[1]), Path(sys.argv[2]))
