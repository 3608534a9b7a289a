"""Penalties that a router adds to the loss: each a weight times one of `moe_gates`.

Axes: E experts, K slots.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import array_api_compat.torch as xp
from torch import Tensor

import moe_gates
from moe_runtime._checks import check_non_negative, check_positive


class Decision(NamedTuple):
    """What a router decided for a batch, by expert: what penalties act on."""

    weights: Tensor  # (..., E), exact zeros where an expert is not used
    probabilities: Tensor  # (..., K, E); (K, E) of a static gate; softmax of scores without slots
    scores: Tensor | None  # (..., E) in nats; None where the gate has not one score an expert


# Any function of a decision with a scalar answer; those below, or the caller's own.
Penalty: TypeAlias = Callable[[Decision], Tensor]


@dataclass(frozen=True)
class WeightedPenalty(ABC):
    """A factor, and what it multiplies."""

    weight: float

    def __post_init__(self) -> None:
        """Refuse a negative weight."""
        check_non_negative("weight", self.weight)

    @abstractmethod
    def value(self, decision: Decision) -> Tensor:
        """Return the penalty before it is weighted, a scalar."""

    def __call__(self, decision: Decision) -> Tensor:
        """Return the weighted penalty, a scalar."""
        return self.weight * self.value(decision)


@dataclass(frozen=True)
class EntropyPenalty(WeightedPenalty):
    """Entropy of each slot, mean over rows: drives every row to one expert a slot.

    `CometRouter` and `DSelectKRouter` have it built in, as `entropy_weight`.

    Parameters
    ----------
    weight
        Factor, >= 0, per nat.
    """

    def value(self, decision: Decision) -> Tensor:
        """Return the penalty, a scalar."""
        return moe_gates.entropy_penalty(decision.probabilities, xp=xp)


@dataclass(frozen=True)
class MutualInformationPenalty(WeightedPenalty):
    """Minus the mutual information of rows and experts: one expert a row, but all in use.

    Keeps tree gates from collapsing to the same few experts for every row. Of a batch: it
    says nothing with one row.

    Parameters
    ----------
    weight
        Factor, >= 0, per nat.

    References
    ----------
    Bridle, Heading and MacKay, NeurIPS 1991.
    """

    def value(self, decision: Decision) -> Tensor:
        """Return the penalty, a scalar: at most 0, in nats."""
        return moe_gates.mutual_information_penalty(decision.probabilities, xp=xp)


@dataclass(frozen=True)
class LoadBalancePenalty(WeightedPenalty):
    """Share of the pairs times mean probability, over experts: lowest at even load.

    Parameters
    ----------
    weight
        Factor, >= 0: the penalty at even load. The authors' by default.

    References
    ----------
    Fedus, Zoph and Shazeer, "Switch Transformers", arXiv:2101.03961, eqs. (4) to (6).
    """

    weight: float = 1e-2

    def value(self, decision: Decision) -> Tensor:
        """Return the penalty, a scalar."""
        probabilities = decision.probabilities.mean(-2).expand_as(decision.weights)
        return moe_gates.load_balance_penalty(probabilities, decision.weights, xp=xp)


@dataclass(frozen=True)
class ZPenalty(WeightedPenalty):
    """Router z-loss: keeps the scores of a gate with one score an expert small.

    Parameters
    ----------
    weight
        Factor, >= 0, per nat squared. The authors' by default.

    References
    ----------
    Zoph et al., "ST-MoE", arXiv:2202.08906, eq. (5).
    """

    weight: float = 1e-3

    def value(self, decision: Decision) -> Tensor:
        """Return the penalty, a scalar.

        Raises
        ------
        ValueError
            If the gate has not one score an expert: COMET, DSelect-k, tree top-k.
        """
        if decision.scores is None:
            msg = "`ZPenalty` must be given to a router with one score an expert, got one of slots."
            raise ValueError(msg)
        return moe_gates.z_penalty(decision.scores, xp=xp)


@dataclass(frozen=True)
class TrimmedLassoPenalty(WeightedPenalty):
    """Weight outside the `k` largest of each row: 0 just where no row uses more than `k`.

    Parameters
    ----------
    weight
        Factor, >= 0.
    k
        Experts of a row that are free.

    References
    ----------
    Bertsimas, Copenhaver and Mazumder, arXiv:1708.04527, eq. (3).
    """

    k: int

    def __post_init__(self) -> None:
        """Refuse a negative weight, or no free expert."""
        super().__post_init__()
        check_positive("k", self.k)

    def value(self, decision: Decision) -> Tensor:
        """Return the penalty, a scalar."""
        return moe_gates.trimmed_lasso_penalty(decision.weights, k=self.k, xp=xp)
