"""The same mixture of experts in other libraries: top-k, softmax over the k, no row dropped.

Every builder takes one set of weights, and none has a bias. Where a library's layout is that of
the weights, it shares their memory.

Axes: T rows, D features, H hidden units (2H for gated experts: gate, then up), E experts.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from _harness import Model
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_runtime import Experts, MixtureOfExperts, TopKRouter

# Hugging Face's batched product copies an expert's weights for each pair.
MOST_COPIED_BYTES = 2**30


class Weights(NamedTuple):
    """One mixture of experts, and how many rows its busiest expert gets."""

    router_ED: Tensor
    first_EHD: Tensor  # (E, 2H, D) for gated experts
    second_EDH: Tensor
    gated: bool
    k: int
    max_load: int
    rows: int

    @property
    def hidden(self) -> int:
        """Hidden units of an expert."""
        return self.second_EDH.shape[2]

    @property
    def num_experts(self) -> int:
        """Number of experts."""
        return self.router_ED.shape[0]

    @property
    def dim(self) -> int:
        """Features of a row."""
        return self.router_ED.shape[1]


class LeftOutError(Exception):
    """A peer cannot do this work; the message says why."""


def ours(weights: Weights, *, kernel: str = "auto") -> Model:
    """Build the layer of this package."""
    router = TopKRouter(weights.dim, weights.num_experts, k=weights.k)
    widths = (weights.dim, weights.hidden, weights.dim)
    activation = "swiglu" if weights.gated else "relu"
    experts = Experts(weights.num_experts, widths, activation=activation, bias=False)
    router.score.weight = _parameter(weights.router_ED)
    nn.init.zeros_(router.score.bias)
    for layer, weight in zip(experts.layers, (weights.first_EHD, weights.second_EDH), strict=True):
        layer.weight = _parameter(weight)
    mixture = MixtureOfExperts(router, experts, kernel=kernel)
    return Model(lambda x_TD: mixture(x_TD).output, mixture)


def hugging_face(weights: Weights, *, implementation: str) -> Model:
    """Build Mixtral's block, or one with plain experts of the same interface."""
    from transformers import MixtralConfig  # noqa: PLC0415 - may not be installed
    from transformers.models.mixtral.modeling_mixtral import (  # noqa: PLC0415
        MixtralSparseMoeBlock,
    )

    per_expert = weights.first_EHD[0].numel() + weights.second_EDH[0].numel()
    copied = 4 * weights.rows * weights.k * per_expert
    if implementation == "batched_mm" and copied > MOST_COPIED_BYTES:
        msg = f"would copy {copied / 2**30:.1f} GiB of weights, one expert's for each pair"
        raise LeftOutError(msg)
    config = MixtralConfig(
        hidden_size=weights.dim,
        intermediate_size=weights.hidden,
        num_local_experts=weights.num_experts,
        num_experts_per_tok=weights.k,
        hidden_act="silu" if weights.gated else "relu",
        experts_implementation=implementation,
    )
    with torch.device("meta"):
        block = MixtralSparseMoeBlock(config)
    block.gate.weight = _parameter(weights.router_ED)
    if weights.gated:
        block.experts.gate_up_proj = _parameter(weights.first_EHD)
    else:
        if implementation == "eager":
            msg = "the eager form is a model's own; Mixtral's experts are gated"
            raise LeftOutError(msg)
        block.experts = _plain_hugging_face_experts()(config)
        block.experts.up_proj = _parameter(weights.first_EHD)
    block.experts.down_proj = _parameter(weights.second_EDH)
    return Model(lambda x_TD: block(x_TD[None])[0], block)


def _plain_hugging_face_experts() -> type[nn.Module]:
    from transformers.activations import ACT2FN  # noqa: PLC0415
    from transformers.integrations import use_experts_implementation  # noqa: PLC0415

    class PlainExperts(nn.Module):
        """What `transformers` needs to run its implementations, as in its NemotronHExperts."""

        def __init__(self, config: object) -> None:
            super().__init__()
            self.num_experts = config.num_local_experts
            self.act_fn = ACT2FN[config.hidden_act]

        def forward(self) -> None:
            """Stay unused: an implementation takes its place."""

    return use_experts_implementation(PlainExperts, has_gate=False)


def tutel(weights: Weights) -> Model:
    """Build Tutel's layer; capacity factor 0 follows the busiest expert and drops no row."""
    from tutel import moe  # noqa: PLC0415

    experts = {"num_experts_per_device": weights.num_experts}
    experts |= {"hidden_size_per_expert": weights.hidden}
    if weights.gated:
        experts |= {"type": "llama_ffn"}
    else:
        experts |= {"type": "ffn", "activation_fn": torch.relu}
        experts |= {"has_fc1_bias": False, "has_fc2_bias": False}
    gate = {"type": "top", "k": weights.k, "capacity_factor": 0.0}
    layer = moe.moe_layer(gate_type=gate, model_dim=weights.dim, experts=experts)
    layer.gates[0].wg.weight = _parameter(weights.router_ED)
    if weights.gated:
        gate_EHD, up_EHD = weights.first_EHD.chunk(2, 1)
        layer.experts.W_fc1 = _parameter(gate_EHD.mT.flatten())
        layer.experts.W_fc2 = _parameter(up_EHD.mT.flatten())
        layer.experts.W_fc3 = _parameter(weights.second_EDH.mT.flatten())
    else:
        layer.experts.batched_fc1_w = _parameter(weights.first_EHD)
        layer.experts.batched_fc2_w = _parameter(weights.second_EDH.mT)
    return Model(layer, layer)


def deepspeed(weights: Weights) -> Model:
    """Build DeepSpeed's layer, told to drop no token and to draw no second expert at random."""
    from deepspeed.moe.layer import MoE  # noqa: PLC0415

    with torch.device("meta"):
        expert = _Expert(weights.gated)
    layer = MoE(
        weights.dim,
        expert,
        num_experts=weights.num_experts,
        k=weights.k,
        drop_tokens=False,
        use_rts=False,
        top2_2nd_expert_sampling=False,
    )
    layer.deepspeed_moe.gate.wg.weight = _parameter(weights.router_ED)
    for index, each in enumerate(layer.deepspeed_moe.experts.deepspeed_experts):
        each.load(weights, index)
    return Model(lambda x_TD: layer(x_TD)[0], layer)


def mixture_of_experts(weights: Weights) -> Model:
    """Build lucidrains' first layer: plain experts, both of its two always used."""
    from mixture_of_experts import MoE  # noqa: PLC0415

    if weights.gated:
        msg = "its experts have no gated form"
        raise LeftOutError(msg)
    _need_two(weights)
    factor = _capacity_factor(weights)
    layer = MoE(
        weights.dim,
        num_experts=weights.num_experts,
        hidden_dim=weights.hidden,
        second_policy_train="all",
        second_policy_eval="all",
        capacity_factor_train=factor,
        capacity_factor_eval=factor,
    )
    layer.gate.w_gating = _parameter(weights.router_ED.T)
    layer.experts.w1 = _parameter(weights.first_EHD.mT)
    layer.experts.w2 = _parameter(weights.second_EDH.mT)
    return Model(lambda x_TD: layer(x_TD[None])[0][0], layer)


def st_moe(weights: Weights) -> Model:
    """Build lucidrains' second layer: any experts, both of its two always used."""
    from st_moe_pytorch import MoE  # noqa: PLC0415

    _need_two(weights)
    factor = _capacity_factor(weights)
    experts = [_Expert(weights.gated) for _ in range(weights.num_experts)]
    layer = MoE(
        weights.dim,
        num_experts=weights.num_experts,
        gating_top_n=2,
        threshold_train=0.0,
        threshold_eval=0.0,
        capacity_factor_train=factor,
        capacity_factor_eval=factor,
        # It would add a gradient that the function does not have.
        straight_through_dispatch_tensor=False,
        experts=nn.ModuleList(experts),
    )
    layer.gate.to_gates.weight = _parameter(weights.router_ED)
    for index, each in enumerate(experts):
        each.load(weights, index)
    return Model(lambda x_TD: layer(x_TD[None]).outputs[0], layer)


PEERS: dict[str, Callable[[Weights], Model]] = {
    "transformers eager": partial(hugging_face, implementation="eager"),
    "transformers batched_mm": partial(hugging_face, implementation="batched_mm"),
    "transformers grouped_mm": partial(hugging_face, implementation="grouped_mm"),
    "tutel": tutel,
    "deepspeed": deepspeed,
    "mixture-of-experts": mixture_of_experts,
    "st-moe-pytorch": st_moe,
}


class _Expert(nn.Module):
    """An expert for libraries that take any module."""

    def __init__(self, gated: bool) -> None:  # noqa: FBT001 - a private class
        super().__init__()
        self.gated = gated
        self.first = self.second = nn.Parameter(torch.empty(0))

    def load(self, weights: Weights, expert: int) -> None:
        self.first = _parameter(weights.first_EHD[expert])
        self.second = _parameter(weights.second_EDH[expert])

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, self.first)
        if self.gated:
            gate, up = hidden.chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.second)
        return F.linear(torch.relu(hidden), self.second)


def _need_two(weights: Weights) -> None:
    if weights.k != 2:
        msg = f"it is measured with 2 experts a row, not {weights.k}"
        raise LeftOutError(msg)


def _capacity_factor(weights: Weights) -> float:
    """Return the smallest that drops no row: capacity is int(rows * factor / experts)."""
    return (weights.max_load + 0.5) * weights.num_experts / weights.rows


def _parameter(tensor: Tensor) -> nn.Parameter:
    """Share a tensor's memory where it is contiguous."""
    return nn.Parameter(tensor.detach().contiguous())
