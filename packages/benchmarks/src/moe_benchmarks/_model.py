"""The quickstart's model: one set of experts, and a gate and a head for each task.

Axes: T rows, G gates (one a task), E experts, O features of an expert's output.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from moe_benchmarks._two_digits import NUM_CLASSES, NUM_PIXELS
from moe_runtime import Experts, MultiGateMixtureOfExperts, Router


class Prediction(NamedTuple):
    """What the model says of a batch."""

    logits: tuple[Tensor, ...]  # one (T, classes) a task
    penalty: Tensor  # scalar
    weights_GTE: Tensor


class TwoTaskModel(nn.Module):
    """Multi-gate mixture of two-layer experts, then a linear head a task.

    The mean of the training pictures is subtracted first. Without that, a split of a tree sees
    much the same score for every picture, and the gates of COMET and DSelect-k end up sending
    all rows to one and the same pair of experts.
    """

    mean: Tensor

    def __init__(
        self,
        routers: Sequence[Router],
        mean: Tensor,
        *,
        num_experts: int,
        hidden: int,
        features: int,
    ) -> None:
        super().__init__()
        experts = Experts(
            num_experts,
            (NUM_PIXELS, hidden, features),
            activation="relu",
            output_activation="relu",
        )
        self.register_buffer("mean", mean.clone())
        self.mixture = MultiGateMixtureOfExperts(routers, experts)
        self.heads = nn.ModuleList(nn.Linear(features, NUM_CLASSES) for _ in routers)

    def center(self, pixels: Tensor) -> Tensor:
        """Return what experts and gates see of a picture, (T, 100)."""
        return pixels - self.mean

    def forward(self, pixels: Tensor, ids: Tensor | None = None) -> Prediction:
        """Read both digits of each picture; `ids` is for gates that route by them."""
        output_GTO, penalty, weights_GTE = self.mixture(self.center(pixels), ids)
        logits = tuple(head(y) for head, y in zip(self.heads, output_GTO, strict=True))
        return Prediction(logits, penalty, weights_GTE)


class Reader(nn.Module):
    """The model as it is served: pixels, and ids if it routes by them, in; logits out."""

    def __init__(self, model: TwoTaskModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, ids: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the logits of each task."""
        logits: tuple[Tensor, ...] = self.model(pixels, ids).logits
        return logits
