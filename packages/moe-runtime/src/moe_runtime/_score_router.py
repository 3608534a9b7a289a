"""Routers whose gates have one score an expert, and nothing but it: one class a gate."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn

import moe_gates
from moe_runtime._checks import check_positive, check_type
from moe_runtime._penalties import Penalty
from moe_runtime._router import GateOutput, Router, warn_if_constant
from moe_runtime._scores import score_float32


class ScoreRouter(Router):
    """Base of the routers with one score an expert.

    Parameters
    ----------
    dim
        Input features of the router, D.
    num_experts
        Number of experts, E.
    k
        Experts a row.
    score
        Module from rows (..., D) to scores (..., E), computed in float32 at least: a linear
        map by default. See `CosineScores`.
    penalties
        Added to the loss.
    """

    # Whether the weight of a row is 1, whatever its scores are, with k = 1.
    constant_with_one: ClassVar[bool] = False

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        k: int,
        score: nn.Module | None = None,
        penalties: Sequence[Penalty] = (),
    ) -> None:
        super().__init__(num_experts, k=k, num_slots=1, dim=dim, penalties=penalties)
        if score is not None:
            check_type("score", score, nn.Module, "a torch.nn.Module")
        self.score = nn.Linear(dim, num_experts) if score is None else score
        if self.constant_with_one:
            warn_if_constant(k, num_experts, "use `k` >= 2")

    @abstractmethod
    def weigh(self, scores: Tensor, x: Tensor) -> Tensor:
        """Return the weights (..., E) by position, for scores (..., E) of rows (..., D)."""

    def scores(self, x: Tensor) -> Tensor:
        """Score rows, without noise: (..., D) to (..., E)."""
        scores = score_float32(self.score, x)
        if scores.shape != (*x.shape[:-1], self.num_experts):
            msg = (
                f"`score` must give scores of shape {(*x.shape[:-1], self.num_experts)} for rows "
                f"of shape {tuple(x.shape)}, got {tuple(scores.shape)}."
            )
            raise ValueError(msg)
        return scores

    def gate(self, x: Tensor) -> GateOutput:
        """Score and weigh."""
        scores = self.scores(x)
        return GateOutput(self.weigh(scores, x)[..., None, :], scores=scores)


class SoftmaxRouter(ScoreRouter):
    """Linear scores, then a softmax: every expert, the dense reference.

    Rows sum to 1. When hard, the `k` largest weights of a row are kept and divided by
    their sum.

    Parameters
    ----------
    dim
        Input features of the router, D.
    num_experts
        Number of experts, E.
    k
        Experts a row when hard: all by default, so that hard routing changes nothing.
    score
        Module from rows (..., D) to scores (..., E); a linear map by default.
    penalties
        Added to the loss.

    References
    ----------
    Jacobs et al., Neural Computation 3(1), 1991.
    """

    always_at_most_k: ClassVar[bool] = False

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        k: int | None = None,
        score: nn.Module | None = None,
        penalties: Sequence[Penalty] = (),
    ) -> None:
        # Before it stands for `k`, which another message would be about.
        check_positive("num_experts", num_experts)
        k = num_experts if k is None else k
        super().__init__(dim, num_experts, k=k, score=score, penalties=penalties)

    def weigh(self, scores: Tensor, x: Tensor) -> Tensor:  # noqa: ARG002 - scores say all
        """Return a softmax of all scores, or of the `k` largest."""
        if self.hard:
            return moe_gates.top_k_gate(scores, k=self.k, xp=xp)
        return moe_gates.softmax_gate(scores, xp=xp)


class TopKSparsemaxRouter(ScoreRouter):
    """Linear scores, then the nearest point of the simplex with at most `k` non-zeros.

    Rows sum to 1 with at most `k` experts, fewer where scores are far apart; hard routing
    changes nothing. A row with one expert passes no gradient to the router, with
    k = 1 every row, which is warned of.

    Parameters
    ----------
    dim
        Input features of the router, D.
    num_experts
        Number of experts, E.
    k
        Most experts a row.
    score
        Module from rows (..., D) to scores (..., E); a linear map by default.
    penalties
        Added to the loss.

    References
    ----------
    Kyrillidis et al., ICML 2013, arXiv:1206.1529; Martins and Astudillo, ICML 2016,
    arXiv:1602.02068.
    """

    constant_with_one: ClassVar[bool] = True

    def weigh(self, scores: Tensor, x: Tensor) -> Tensor:  # noqa: ARG002 - scores say all
        """Project the scores."""
        return moe_gates.top_k_sparsemax_gate(scores, k=self.k, xp=xp)


class ReLURouter(ScoreRouter):
    """Linear scores that are the weights where they are positive and among the `k` largest.

    Rows have any sum and at most `k` experts, some none; hard routing changes nothing.
    Continuous where no more than `k` scores are positive. How many are is the business of a
    penalty on the weights, such as ``lambda decision: 0.01 * decision.weights.sum(-1).mean()``.

    Parameters
    ----------
    dim
        Input features of the router, D.
    num_experts
        Number of experts, E.
    k
        Most experts a row; ``num_experts`` for no cap, as published.
    score
        Module from rows (..., D) to scores (..., E); a linear map by default.
    penalties
        Added to the loss.

    References
    ----------
    Wang et al., "ReMoE", ICLR 2025, arXiv:2412.14711.
    """

    def weigh(self, scores: Tensor, x: Tensor) -> Tensor:  # noqa: ARG002 - scores say all
        """Cut the scores off at 0."""
        return moe_gates.relu_gate(scores, k=self.k, xp=xp)


class ExactKRouter(ScoreRouter):
    """Linear scores, then `k` experts of weight 1 / k: drawn in training, else the largest.

    Experts are drawn with the probability that the scores give to each set of `k`. Gradients
    go through the exact marginal of each expert that was drawn, straight through: they reach
    all scores, also with k = 1. A mixture computes only the experts drawn, so that what the
    others would have answered plays no part, unless ``kernel="dense"`` is asked for. In
    evaluation mode, and when hard, the `k` largest scores are taken.

    Parameters
    ----------
    dim
        Input features of the router, D.
    num_experts
        Number of experts, E.
    k
        Experts a row.
    score
        Module from rows (..., D) to scores (..., E); a linear map by default.
    penalties
        Added to the loss.

    References
    ----------
    Ahmed, Zeng, Niepert and Van den Broeck, "SIMPLE", ICLR 2023, arXiv:2210.01941.
    """

    def weigh(self, scores: Tensor, x: Tensor) -> Tensor:  # noqa: ARG002 - scores say all
        """Draw, or take the largest."""
        uniforms = None
        if self.is_random:
            uniforms = torch.rand_like(scores[..., 1:])
        return moe_gates.exact_k_gate(scores, k=self.k, uniforms=uniforms, xp=xp)
