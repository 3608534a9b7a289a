"""Which hidden units of a dense layer each expert gets.

Axes: E experts, H hidden units of the dense layer, U those of an expert, D features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from moe_localsearch import assign_with_capacity
from moe_runtime._checks import check_finite, check_positive, check_tensor, check_type
from moe_runtime.convert._linear import Linear


class DenseLayer(NamedTuple):
    """A dense feed-forward layer: what a split may look at."""

    name: str
    up: Linear  # weight (H, D)
    down: Linear  # weight (O, H)
    gate: Linear | None  # weight (H, D)

    @property
    def num_hidden(self) -> int:
        """Hidden units, H."""
        return self.up.weight.shape[0]


class Split(Protocol):
    """What deals the hidden units of a layer to experts."""

    def hidden_units(self, layer: DenseLayer, num_experts: int, /) -> Tensor:
        """Return which hidden units each expert has, integers of shape (E, U)."""


@dataclass(frozen=True)
class CopySplit:
    """Every expert is a copy of the whole layer: upcycling.

    References
    ----------
    Komatsuzaki et al., ICLR 2023, arXiv:2212.05055.
    """

    def hidden_units(self, layer: DenseLayer, num_experts: int, /) -> Tensor:
        """Return all hidden units for each expert, (E, H)."""
        return torch.arange(layer.num_hidden).repeat(num_experts, 1)


@dataclass(frozen=True)
class RandomSplit:
    """Hidden units are dealt at random, each to one expert.

    Parameters
    ----------
    seed
        Of the order in which they are dealt; each layer has another.
    """

    seed: int = 0

    def hidden_units(self, layer: DenseLayer, num_experts: int, /) -> Tensor:
        """Return a random part of the hidden units for each expert, (E, H / E)."""
        width = _equal_width(layer, num_experts)
        order = _generator(self.seed, layer).permutation(layer.num_hidden)
        return torch.from_numpy(np.sort(order.reshape(num_experts, width), axis=1))


@dataclass(frozen=True)
class KMeansSplit:
    """Hidden units that read alike are one expert: balanced k-means of the rows of `up`.

    Parameters
    ----------
    seed
        Of the hidden units that the clusters begin at.
    num_rounds
        Most times that units are dealt to the clusters' means, each time at the lowest sum of
        squared distances for clusters of equal size; it ends before where nothing moves.

    References
    ----------
    Zhang et al., Findings of ACL 2022, arXiv:2110.01786.
    """

    seed: int = 0
    num_rounds: int = 20

    def hidden_units(self, layer: DenseLayer, num_experts: int, /) -> Tensor:
        """Return a cluster of the hidden units for each expert, (E, H / E)."""
        width = _equal_width(layer, num_experts)
        check_positive("num_rounds", self.num_rounds)
        rows_HD = layer.up.weight.float().cpu().numpy()
        rows_HD = rows_HD / np.maximum(np.linalg.norm(rows_HD, axis=1, keepdims=True), 1e-12)
        first = _generator(self.seed, layer).choice(len(rows_HD), num_experts, replace=False)
        means_ED, cluster_H = rows_HD[first], np.full(len(rows_HD), -1)
        for _ in range(self.num_rounds):
            squares_HE = ((means_ED**2).sum(1) - 2 * rows_HD @ means_ED.T).astype(np.float64)
            dealt_H = assign_with_capacity(squares_HE, capacity=width).columns
            if np.array_equal(dealt_H, cluster_H):
                break
            cluster_H = dealt_H
            means_ED = np.stack([rows_HD[cluster_H == each].mean(0) for each in range(num_experts)])
        units = np.argsort(cluster_H, kind="stable").reshape(num_experts, width)
        return torch.from_numpy(units)


@dataclass(frozen=True)
class ImportanceSplit:
    """Experts share the most important hidden units, and are dealt the next ones in turn.

    Units that are left over are in no expert.

    Parameters
    ----------
    importance
        Of each hidden unit (H,), by the layer's name: see `hidden_unit_importance`.
    width
        Hidden units of an expert, U.
    num_shared
        How many of them all experts have.

    References
    ----------
    Zuo et al., NAACL 2022, arXiv:2204.07675.
    """

    importance: Mapping[str, Tensor]
    width: int
    num_shared: int

    def hidden_units(self, layer: DenseLayer, num_experts: int, /) -> Tensor:
        """Return the shared hidden units and those that were dealt, (E, U)."""
        check_positive("width", self.width)
        check_positive("num_shared", self.num_shared, minimum=0)
        needed = self.num_shared + num_experts * (self.width - self.num_shared)
        if self.num_shared > self.width or needed > layer.num_hidden:
            msg = (
                f"`width` and `num_shared` must be such that {num_experts} experts find "
                f"num_shared + {num_experts} (width - num_shared) <= {layer.num_hidden} hidden "
                f"units in {layer.name!r}, got width {self.width} and {self.num_shared} shared."
            )
            raise ValueError(msg)
        check_type("importance", self.importance, Mapping, "a dict by layer")
        if layer.name not in self.importance:
            msg = f"`importance` must have {layer.name!r}, got {sorted(self.importance)}."
            raise ValueError(msg)
        importance_H = self.importance[layer.name]
        check_tensor(f"importance[{layer.name!r}]", importance_H)
        if importance_H.shape != (layer.num_hidden,):
            msg = (
                f"`importance` of {layer.name!r} must have shape ({layer.num_hidden},), got "
                f"{tuple(importance_H.shape)}."
            )
            raise ValueError(msg)
        check_finite(f"importance[{layer.name!r}]", importance_H.cpu())
        order = importance_H.cpu().argsort(descending=True, stable=True)
        shared = order[: self.num_shared].expand(num_experts, -1)
        dealt = order[self.num_shared : needed].reshape(-1, num_experts).T
        return torch.cat([shared, dealt], 1)


def _equal_width(layer: DenseLayer, num_experts: int) -> int:
    width, left = divmod(layer.num_hidden, num_experts)
    if left or not width:
        msg = (
            f"`num_experts` must divide the {layer.num_hidden} hidden units of {layer.name!r} "
            f"into equal parts, got {num_experts}."
        )
        raise ValueError(msg)
    return width


def _generator(seed: int, layer: DenseLayer) -> np.random.Generator:
    """Return random numbers that differ from layer to layer, and are the same in every run."""
    check_positive("seed", seed, minimum=0)
    return np.random.default_rng([seed, *layer.name.encode()])
