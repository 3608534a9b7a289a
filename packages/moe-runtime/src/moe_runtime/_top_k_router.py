"""Top-k: the experts with the largest scores, and what makes published routers of it.

Axes: D features, E experts.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

import moe_gates
from moe_runtime._checks import check_non_negative, check_tensor, check_type
from moe_runtime._penalties import Penalty
from moe_runtime._router import warn_if_constant
from moe_runtime._score_router import ScoreRouter
from moe_runtime._scores import score_float32

NOISES = ("none", "normal", "learned")


class TopKRouter(ScoreRouter):
    """Linear scores, then the `k` largest, weighted by their affinities.

    At most `k` experts a row, always; hard routing only takes the noise away.

    ====================  ==============================================================
    router                settings
    ====================  ==============================================================
    Switch                ``k=1, renormalize=False, penalties=[LoadBalancePenalty()]``
    GShard, Mixtral       ``k=2, penalties=[LoadBalancePenalty()]``
    Noisy top-k           ``noise="learned"``
    V-MoE                 ``renormalize=False, noise="normal", noise_scale=1 / num_experts``
    X-MoE                 ``k=1, renormalize=False, score=CosineScores(dim, num_experts)``
    ST-MoE                ``k=2, penalties=[LoadBalancePenalty(), ZPenalty()]``
    Loss-free balancing   ``affinity="sigmoid", balancing_bias=True``
    DeepSeek-V3           ``k=8, affinity="sigmoid", balancing_bias=True, num_groups=8,
                          num_groups_kept=4``
    ====================  ==============================================================

    Up to capacities, dropped rows and factors after the gate.

    Parameters
    ----------
    dim
        Input features of the router, D.
    num_experts
        Number of experts, E.
    k
        Experts a row.
    score
        Module from rows (..., D) to scores (..., E); a linear map by default. See
        `CosineScores`.
    affinity
        What turns a score into an affinity: ``"softmax"`` over all experts, or the
        ``"sigmoid"`` of each.
    renormalize
        Divide the affinities kept by their sum, so that rows sum to 1. With ``k=1`` no
        gradient would reach the router, which is warned of.
    noise
        Added to the scores in training mode: ``"normal"`` numbers, or ``"learned"``, normal
        numbers times the softplus of another linear map of the row.
    noise_scale
        Factor of the noise, in nats for ``"normal"``. See `RouterSchedule`.
    balancing_bias
        Keep a bias that is added to the affinities for the selection only, 0 at first. After
        the optimiser's step, `update_bias_by_sign` or `update_bias_by_quantile` moves it.
    num_groups, num_groups_kept
        Neighbouring experts in groups of equal size, and how many groups of a row are kept.
    penalties
        Added to the loss.

    References
    ----------
    Shazeer et al., ICLR 2017, arXiv:1701.06538 (noisy top-k, eqs. 3 to 5); arXiv:2101.03961
    (Switch); arXiv:2006.16668 (GShard); arXiv:2106.05974 (V-MoE); arXiv:2204.09179 (X-MoE);
    arXiv:2202.08906 (ST-MoE); arXiv:2408.15664 (loss-free balancing); arXiv:2412.19437
    (DeepSeek-V3).

    Examples
    --------
    >>> import torch, moe_gates, moe_runtime
    >>> router = moe_runtime.TopKRouter(6, 8, k=2, affinity="sigmoid", balancing_bias=True)
    >>> weights = router(torch.randn(100, 6)).weights
    >>> router.update_bias_by_sign(moe_gates.expert_load(weights))  # after optimizer.step()
    >>> router.balancing_bias.shape
    torch.Size([8])
    """

    balancing_bias: Tensor | None
    float32_buffers: ClassVar[tuple[str, ...]] = ("balancing_bias",)

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        k: int,
        score: nn.Module | None = None,
        affinity: Literal["softmax", "sigmoid"] = "softmax",
        renormalize: bool = True,
        noise: Literal["none", "normal", "learned"] = "none",
        noise_scale: float = 1.0,
        balancing_bias: bool = False,
        num_groups: int = 1,
        num_groups_kept: int = 1,
        penalties: Sequence[Penalty] = (),
    ) -> None:
        super().__init__(dim, num_experts, k=k, score=score, penalties=penalties)
        if noise not in NOISES:
            msg = f"`noise` must be one of {list(NOISES)}, got {noise!r}."
            raise ValueError(msg)
        check_non_negative("noise_scale", noise_scale)
        check_type("balancing_bias", balancing_bias, bool, "a bool")
        self.affinity: Literal["softmax", "sigmoid"] = affinity
        self.renormalize = renormalize
        self.noise = noise
        if noise != "none":
            # Only there where it does something, so that no schedule of it is without effect.
            self.noise_scale = noise_scale
        self.num_groups = num_groups
        self.num_groups_kept = num_groups_kept
        self.noise_score = nn.Linear(dim, num_experts) if noise == "learned" else None
        self.register_buffer("balancing_bias", torch.zeros(num_experts) if balancing_bias else None)
        # The gate refuses settings that do not fit: here, and not at the first row.
        self._top_k(torch.zeros(num_experts))
        if renormalize:
            warn_if_constant(k, num_experts, "use `renormalize=False`")

    def weigh(self, scores: Tensor, x: Tensor) -> Tensor:
        """Select by score, with noise in training, and weigh."""
        if self.noise == "none" or not self.is_random:
            weights = self._top_k(scores)
            unused = self.noise_score
            return weights if unused is None else self.with_all_parameters(weights, unused)
        noise = torch.randn_like(scores)
        if self.noise_score is not None:
            noise = noise * F.softplus(score_float32(self.noise_score, x))
        return self._top_k(scores, noise=self.noise_scale * noise)

    def _top_k(self, scores: Tensor, noise: Tensor | None = None) -> Tensor:
        return moe_gates.top_k_gate(
            scores,
            k=self.k,
            affinity=self.affinity,
            renormalize=self.renormalize,
            noise=noise,
            bias=self.balancing_bias,
            num_groups=self.num_groups,
            num_groups_kept=self.num_groups_kept,
            xp=xp,
        )

    @torch.no_grad()
    def update_bias_by_sign(self, load: Tensor, *, rate: float = 1e-3) -> None:
        """Raise the bias of experts below the mean load by `rate`, lower that of those above.

        Parameters
        ----------
        load
            Load of each expert, shape (E,), in any unit: ``moe_gates.expert_load(weights)`` of
            what the router or the mixture returned in this step. Where several processes
            train together, the sum of theirs.
        rate
            Step, > 0, in the unit of the affinities. The authors' by default.

        Raises
        ------
        ValueError
            If the router was made without `balancing_bias`, or `load` has another shape.

        References
        ----------
        Wang et al., arXiv:2408.15664, algorithm 1.
        """
        bias = self._bias_to_update()
        check_tensor("load", load)
        # The bias belongs to positions, the load to the experts that they stand for.
        if load.shape == bias.shape:
            load = load[self.permutation[0]]
        bias.copy_(moe_gates.update_bias_by_sign(bias, load, rate=rate, xp=xp))

    @torch.no_grad()
    def update_bias_by_quantile(self, x: Tensor) -> None:
        """Move each bias to where k / E of the rows select its expert.

        No rate to choose; repeat it from batch to batch. Groups and noise are not taken
        into account.

        Parameters
        ----------
        x
            The router's input, shape (..., D): the rows of this step.

        Raises
        ------
        ValueError
            If the router was made without `balancing_bias`, or `x` has another width.

        References
        ----------
        See `moe_gates.update_bias_by_quantile`.
        """
        bias = self._bias_to_update()
        self.check_rows(x)
        with torch.autocast(x.device.type, enabled=False):
            scores = self.scores(x).to(bias.dtype)
        affinities = scores.softmax(-1) if self.affinity == "softmax" else scores.sigmoid()
        bias.copy_(moe_gates.update_bias_by_quantile(bias, affinities, k=self.k, xp=xp))

    def _bias_to_update(self) -> Tensor:
        if self.balancing_bias is None:
            msg = "`balancing_bias` must be True for a bias to be updated, got False."
            raise ValueError(msg)
        return self.balancing_bias
