"""What 8-bit experts change of a trained model: its answers, its test accuracy, its size.

A model reads two handwritten digits that overlap, through experts of 768/3072. Nothing is chosen
on the test rows. Writes JSON.

Axes: T rows, D features, H hidden units, E experts.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import Options, parse_options, write
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_benchmarks._two_digits import Split, load_two_digits
from moe_runtime import CometRouter, Experts, MixtureOfExperts, Router, TopKRouter
from moe_runtime.onnx import Session, export

PIXELS, TASKS, CLASSES = 100, 2, 10
BATCH, LEARNING_RATE = 256, 5e-4


class Sizes:
    """How large a run is."""

    def __init__(self, options: Options) -> None:
        self.num_experts, self.dim, self.hidden = (4, 32, 64) if options.quick else (8, 768, 3072)
        self.num_train, self.num_test = (2000, 500) if options.quick else (20_000, 20_000)
        self.epochs = 1 if options.quick else 6


class Reader(nn.Module):
    """A linear map, a mixture beside a residual, and a head for both digits."""

    def __init__(self, router: Router, sizes: Sizes) -> None:
        super().__init__()
        self.bottom = nn.Linear(PIXELS, sizes.dim)
        experts = Experts(
            sizes.num_experts, (sizes.dim, sizes.hidden, sizes.dim), activation="gelu"
        )
        self.mixture = MixtureOfExperts(router, experts)
        self.head = nn.Linear(sizes.dim, TASKS * CLASSES)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Read pixels (T, 100): scores (T, 2, 10) and the router's penalty."""
        x_TD = self.bottom(pixels).relu()
        output, penalty, _ = self.mixture(x_TD)
        return self.head(x_TD + output).unflatten(-1, (TASKS, CLASSES)), penalty


class Scores(nn.Module):
    """The scores alone, as they are served."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, pixels: Tensor) -> Tensor:
        """Read pixels: scores (T, 2, 10)."""
        scores: Tensor = self.reader(pixels)[0]
        return scores


def train(reader: Reader, rows: Split, epochs: int) -> None:
    """Train with Adam."""
    optimizer = torch.optim.Adam(reader.parameters(), lr=LEARNING_RATE)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(rows)).split(BATCH):
            scores, penalty = reader(rows.pixels[batch])
            loss = F.cross_entropy(scores.flatten(0, 1), rows.labels[batch].flatten())
            optimizer.zero_grad()
            torch.autograd.backward(loss + penalty)
            optimizer.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1} of {epochs}: training loss {total / len(rows):.3f}")


def measure(name: str, router: Router, sizes: Sizes) -> dict[str, Any]:
    """Train one model, export it twice, and compare on the test rows."""
    data = load_two_digits(
        num_train=sizes.num_train, num_validation=512, num_test=sizes.num_test, seed=0
    )
    reader = Reader(router, sizes)
    train(reader, data.train, sizes.epochs)
    names: dict[str, Any] = {"input_names": ["pixels"], "output_names": ["scores"]}
    row: dict[str, Any] = {"gate": name, "num_experts": sizes.num_experts}
    row |= {"dim": sizes.dim, "hidden": sizes.hidden, "test_rows": sizes.num_test}
    scores = {}
    labels = data.test.labels.numpy()
    with tempfile.TemporaryDirectory() as folder:
        for target in ("unrolled", "int8"):
            path = Path(folder) / target
            export(
                Scores(reader), (data.validation.pixels,), path, hard=True, target=target, **names
            )
            scores[target] = Session(path).run(pixels=data.test.pixels.numpy())["scores"]
            accuracy = float((scores[target].argmax(-1) == labels).mean())
            size = sum(each.stat().st_size for each in path.glob("model.onnx*"))
            row |= {f"{target}_accuracy": accuracy, f"{target}_bytes": size}
    apart = np.linalg.norm(scores["int8"] - scores["unrolled"])
    row["relative_error"] = float(apart / np.linalg.norm(scores["unrolled"]))
    return row


def main() -> None:
    """Measure two gates, print a line each and write the results."""
    options = parse_options(__doc__)
    sizes = Sizes(options)
    rows = []
    for name in ("top-k", "COMET"):
        torch.manual_seed(0)
        router = {"top-k": TopKRouter, "COMET": CometRouter}[name](
            sizes.dim, sizes.num_experts, k=2
        )
        row = measure(name, router, sizes)
        rows.append(row)
        print(
            f"{name}: test accuracy {row['unrolled_accuracy']:.2%}, in 8 bits "
            f"{row['int8_accuracy']:.2%}; relative error {row['relative_error']:.2%}; "
            f"{row['unrolled_bytes'] / 1e6:.1f} to {row['int8_bytes'] / 1e6:.1f} MB"
        )
    write("onnx_int8", options, rows)


if __name__ == "__main__":
    main()
