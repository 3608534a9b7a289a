"""The models of the experiments: a bottom, a mixture with a gate a task, and heads.

Axes: T rows, D features, O features of an expert's output, G gates (one a task), E experts.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moe_benchmarks._data._dataset import PIXELS, Dataset
from moe_benchmarks._experiments._catalog import Experiment
from moe_benchmarks._experiments._dropout import Dropout
from moe_benchmarks._experiments._gates import GATES, GateSize
from moe_benchmarks._experiments._mixing import MixedRouter, SoftPermutation
from moe_benchmarks._experiments._settings import TrialSettings
from moe_runtime import Experts, ModuleExperts, MultiGateMixtureOfExperts, Router

EMBEDDING_BOUND = 0.05  # initial values are uniform within it, as in Keras
CHANNELS = (10, 20)
KERNEL_SIZE, POOL_SIZE = 5, 2


class Prediction(NamedTuple):
    """What a model says of a batch."""

    outputs: tuple[Tensor, ...]  # one (T, outputs) a task: logits, or the value itself
    penalty: Tensor  # scalar
    weights_GTE: Tensor


class EmbeddingBottom(nn.Module):
    """Embeddings of the ids, one after the other."""

    def __init__(self, num_ids: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {name: nn.Embedding(count, width) for name, count in num_ids.items()}
        )
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -EMBEDDING_BOUND, EMBEDDING_BOUND)
        self.num_features = width * len(num_ids)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return features (T, D)."""
        return torch.cat([table(inputs[name]) for name, table in self.embeddings.items()], -1)


class PictureBottom(nn.Module):
    """Pixels row by row, less the mean of the training pictures.

    Without that, a split of a tree sees much the same score for every picture, and gates
    collapse to the same few experts.
    """

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.num_features = mean.numel()

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return features (T, D)."""
        features: Tensor = (inputs[PIXELS] - self.mean).flatten(1)
        return features


class MixtureModel(nn.Module):
    """A bottom, one set of experts with a gate for each task, and a head for each task."""

    def __init__(
        self,
        bottom: EmbeddingBottom | PictureBottom,
        mixture: MultiGateMixtureOfExperts,
        heads: Sequence[nn.Module],
        *,
        hash_input: str | None,
        dropout: float,
        soft: SoftPermutation | None,
    ) -> None:
        super().__init__()
        self.bottom = bottom
        self.mixture = mixture
        self.heads = nn.ModuleList(heads)
        self.dropout = Dropout(dropout)
        self.soft = soft
        self.hash_input = hash_input

    def router_input(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Return the ids that the gates read; None where they read the features."""
        return None if self.hash_input is None else inputs[self.hash_input]

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        dropout_GTO: Tensor | None = None,
        matrix_EE: Tensor | None = None,
    ) -> Prediction:
        """Predict every task for a batch.

        In training, dropout's factors and the soft permutation may be given: inside vmap nothing
        is drawn, nor does a model know how cold its permutation is.
        """
        soft_penalty = self._mix(matrix_EE) if self.soft is not None else 0.0
        output_GTO, penalty, weights_GTE = self.mixture(
            self.bottom(inputs), self.router_input(inputs)
        )
        mixed_GTO = self.dropout(output_GTO, dropout_GTO)
        outputs = tuple(head(y) for head, y in zip(self.heads, mixed_GTO, strict=True))
        return Prediction(outputs, penalty + soft_penalty, weights_GTE)

    def _mix(self, matrix_EE: Tensor | None) -> Tensor | float:
        """Give all routers the soft permutation of this step, and return its penalty."""
        assert self.soft is not None
        if self.soft.frozen or not self.training:
            return 0.0
        matrix_EE = self.soft.matrix() if matrix_EE is None else matrix_EE
        for router in self.mixture.routers:
            assert isinstance(router, MixedRouter)
            router.matrix_EE = matrix_EE
        return self.soft.penalty(matrix_EE)


def build_model(
    experiment: Experiment, settings: TrialSettings, dataset: Dataset, *, steps_per_epoch: int
) -> MixtureModel:
    """Build a trial's model; its seed determines the initial values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        bottom: EmbeddingBottom | PictureBottom
        if experiment.bottom == "embeddings":
            bottom = EmbeddingBottom(dataset.num_ids, experiment.embedding_width)
        else:
            bottom = PictureBottom(dataset.train.inputs[PIXELS].mean(0))
        routers = _routers(settings, dataset, bottom.num_features)
        soft = None
        if settings.search in ("relaxed", "soft-mix"):
            soft = SoftPermutation(
                settings.num_experts,
                num_steps=settings.search_epochs * steps_per_epoch,
                seed=settings.seed,
            )
            normalized = GATES[settings.gate].normalized_when_mixed
            routers = [MixedRouter(router, soft, normalized=normalized) for router in routers]
        experts = _experts(experiment, settings.num_experts, bottom)
        heads = [
            _dense((experts.out_features, *experiment.head_widths, task.num_outputs))
            for task in dataset.tasks
        ]
        return MixtureModel(
            bottom,
            MultiGateMixtureOfExperts(routers, experts),
            heads,
            hash_input=dataset.hash_input if GATES[settings.gate].reads_ids else None,
            dropout=experiment.dropout,
            soft=soft,
        )


def _routers(settings: TrialSettings, dataset: Dataset, dim: int) -> list[Router]:
    size = GateSize(
        dim=dim,
        num_ids=dataset.num_ids[dataset.hash_input],
        num_experts=settings.num_experts,
        k=settings.k,
        gamma=settings.gamma,
        entropy_weight=settings.entropy_weight,
        seed=settings.seed,
    )
    routers = [GATES[settings.gate].build(size) for _ in dataset.tasks]
    if settings.search == "random":
        # Its own generator: the rest is initialised as without the permutations.
        generator = torch.Generator().manual_seed(settings.seed)
        for router in routers:
            rows = [
                torch.randperm(settings.num_experts, generator=generator)
                for _ in range(router.num_slots)
            ]
            router.set_permutation(torch.stack(rows))
    return routers


def _experts(
    experiment: Experiment, num_experts: int, bottom: EmbeddingBottom | PictureBottom
) -> Experts | ModuleExperts:
    if isinstance(bottom, EmbeddingBottom):
        widths = (bottom.num_features, *experiment.expert_widths)
        return Experts(num_experts, widths, activation="relu", output_activation="relu")
    height, width = bottom.mean.shape
    modules = [_convolutions(height, width, experiment.expert_widths) for _ in range(num_experts)]
    return ModuleExperts(
        modules, in_features=bottom.num_features, out_features=experiment.expert_widths[-1]
    )


def _convolutions(height: int, width: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Two convolutions, as far as the picture is large enough, then dense layers."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, height, width))]
    channels = 1
    for more in CHANNELS:
        if min(height, width) < KERNEL_SIZE + 1:
            break
        layers += [nn.Conv2d(channels, more, KERNEL_SIZE), nn.ReLU(), nn.MaxPool2d(POOL_SIZE)]
        height, width = ((size - KERNEL_SIZE + 1) // POOL_SIZE for size in (height, width))
        channels = more
    return nn.Sequential(
        *layers, nn.Flatten(), _dense((channels * math.prod((height, width)), *widths)), nn.ReLU()
    )


def _dense(widths: Sequence[int]) -> nn.Sequential:
    """Dense layers with ReLU between them."""
    layers: list[nn.Module] = []
    for first, second in pairwise(widths):
        layers += [nn.Linear(first, second), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
