"""The oracle: a loop over rows and experts in float64; and models to compare with it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from moe_runtime import (
    CometRouter,
    CosineScores,
    DSelectKRouter,
    ExactKRouter,
    Experts,
    HashRouter,
    MixtureOfExperts,
    MultiGateMixtureOfExperts,
    ReLURouter,
    Router,
    SoftmaxRouter,
    TopKRouter,
    TopKSparsemaxRouter,
    TreeTopKRouter,
)
from moe_runtime._kernels import KERNELS
from moe_runtime._numba_use import has_numba

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
    "identity": lambda x: x,
    "relu": lambda x: torch.where(x > 0, x, 0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}
GATED = {"geglu": "gelu", "geglu_tanh": "gelu_tanh", "reglu": "relu", "swiglu": "silu"}
DIM, NUM_IDS = 6, 40
# Those for any experts, dtype and device, and those that run on this CPU.
PLAIN_KERNELS = sorted(set(KERNELS) - {"numba", "triton"})
CPU_KERNELS = [*PLAIN_KERNELS, "numba"] if has_numba() else PLAIN_KERNELS


def biased_top_k(num_experts: int, k: int) -> TopKRouter:
    """Top-k with all that evaluation mode knows, and a bias that has been updated."""
    score = CosineScores(DIM, num_experts, num_features=4, temperature=0.5)
    router = TopKRouter(
        DIM,
        num_experts,
        k=k,
        score=score,
        affinity="sigmoid",
        renormalize=False,
        noise="normal",
        balancing_bias=True,
    )
    assert router.balancing_bias is not None
    router.balancing_bias += torch.linspace(-0.2, 0.2, num_experts)
    return router


# Gates whose weights are constant with one expert get two.
ROUTERS: dict[str, Callable[[int, int], Router]] = {
    "biased_top_k": biased_top_k,
    "comet": lambda num_experts, k: CometRouter(DIM, num_experts, k=k),
    "dselect_k": lambda num_experts, k: DSelectKRouter(DIM, num_experts, k=k),
    "exact_k": lambda num_experts, k: ExactKRouter(DIM, num_experts, k=k),
    "hash": lambda num_experts, _k: HashRouter(NUM_IDS, num_experts),
    "relu": lambda num_experts, k: ReLURouter(DIM, num_experts, k=k),
    "softmax": lambda num_experts, k: SoftmaxRouter(DIM, num_experts, k=k),
    "sparsemax": lambda num_experts, k: TopKSparsemaxRouter(DIM, num_experts, k=max(k, 2)),
    "static": lambda num_experts, k: DSelectKRouter(DIM, num_experts, k=k, static=True),
    "top_k": lambda num_experts, k: TopKRouter(DIM, num_experts, k=k, renormalize=k > 1),
    "tree_top_k": lambda num_experts, k: TreeTopKRouter(DIM, num_experts, k=max(k, 2)),
}
# Those with parameters, which get the same gradient whether experts of weight 0 are computed
# or not: not exact-k's, whose gradient goes straight through its weights. Softmax has no 0.
TRAINED = sorted(set(ROUTERS) - {"hash", "exact_k", "softmax", "static"})


def awake(router: Router) -> Router:
    """Give a router the scores of a trained one, some rows saturated, and permuted slots.

    It is in evaluation mode, so that routers that draw answer alike twice.
    """
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_(std=0.5)
    # A rotation by another step in each slot: never the identity, which would hide a
    # permutation that is not applied, unless every step is a full turn.
    identity = torch.arange(router.num_experts)
    orders = [identity.roll(slot + 1) for slot in range(router.num_slots)]
    router.set_permutation(torch.stack(orders))
    return router.eval()


def make_mixture(
    name: str,
    num_experts: int = 5,
    *,
    k: int = 2,
    out_features: int = 4,
    activation: str = "gelu",
    kernel: str = "auto",
) -> MixtureOfExperts:
    """Make a mixture with a router of that name that uses every expert."""
    experts = Experts(num_experts, (DIM, 7, out_features), activation=activation)
    return MixtureOfExperts(awake(ROUTERS[name](num_experts, k)), experts, kernel=kernel)


def draw_inputs(name: str, *leading: int) -> tuple[Tensor, ...]:
    """Draw a mixture's input, and ids where its router takes them."""
    x = torch.randn(*leading, DIM)
    return (x, torch.randint(NUM_IDS, leading)) if name == "hash" else (x,)


def draw_gates(num_gates: int, num_rows: int, num_experts: int) -> Tensor:
    """Draw signed sparse weights in float64: of several rows the first has no expert.

    Of several experts the last has no row.
    """
    weights_GTE = torch.randn(num_gates, num_rows, num_experts, dtype=torch.float64)
    weights_GTE *= torch.rand(num_gates, num_rows, num_experts) < 0.5
    weights_GTE[:, : min(1, num_rows - 1)] = 0
    weights_GTE[:, :, max(1, num_experts - 1) :] = 0
    return weights_GTE


def activate(name: str, value: Tensor) -> Tensor:
    """Follow the definition of an activation, for the features of one row."""
    if name not in GATED:
        return ACTIVATIONS[name](value)
    half = len(value) // 2
    return ACTIVATIONS[GATED[name]](value[:half]) * value[half:]


def reference_mixture(
    x_TD: Tensor,
    weights_GTE: Tensor,
    stacks: Sequence[Tensor],
    activations: Sequence[str],
    *,
    bias: bool = True,
) -> Tensor:
    """Output (G, T, O), one (row, expert) pair after the other; float64 in, float64 out."""
    num_gates, num_rows, num_experts = weights_GTE.shape
    if not bias:
        zeros = [torch.zeros(stack.shape[:2], dtype=stack.dtype) for stack in stacks]
        stacks = [each for pair in zip(stacks, zeros, strict=True) for each in pair]
    out_features = stacks[-1].shape[-1] // (2 if activations[-1] in GATED else 1)
    rows = []
    for row in range(num_rows):
        total_GO = x_TD.new_zeros(num_gates, out_features)
        for expert in range(num_experts):
            weights_G = weights_GTE[:, row, expert]
            if not weights_G.any():
                continue
            value = x_TD[row]
            for layer, activation in enumerate(activations):
                weight, offset = stacks[2 * layer][expert], stacks[2 * layer + 1][expert]
                value = activate(activation, weight @ value + offset)
            total_GO = total_GO + weights_G[:, None] * value
        rows.append(total_GO)
    # Every argument takes part, so that each has a gradient however few pairs there are.
    nothing = sum((each * 0).sum() for each in (x_TD, weights_GTE, *stacks))
    empty = x_TD.new_zeros(num_gates, 0, out_features)
    return (torch.stack(rows, 1) if rows else empty) + nothing


def router_of(mixture: MultiGateMixtureOfExperts, gate: int = 0) -> Router:
    """Router of one gate."""
    router = mixture.routers[gate]
    assert isinstance(router, Router)
    return router


def experts_of(mixture: MultiGateMixtureOfExperts) -> Experts:
    """Stacked experts of a mixture."""
    assert isinstance(mixture.experts, Experts)
    return mixture.experts


def stacks_of(experts: Experts) -> list[nn.Parameter]:
    """Weight and bias, where there is one, of each layer in turn."""
    return [stack for layer in experts.layers for stack in layer.parameters()]
