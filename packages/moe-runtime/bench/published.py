"""A whole COMET layer against the published formulation; writes JSON.

As published, every expert runs on every row, and the gate is a recursion over the nodes of its
trees, each node a module with a linear map of its own. Both variants have the same weights, and
their answers are compared before they are timed. "Hard" is what training arrives at: splits so
steep that no row is inside the band. Training has the entropy penalty in both variants.

Axes: T rows, D features, O output features, E experts, K trees.
"""

from functools import partial
from typing import Any

import torch
from _harness import Model, Options, parse_options, time_models, write
from torch import Tensor, nn

from moe_runtime import CometRouter, Experts, MixtureOfExperts, hard_routing

EXPERTS, ROWS, DIM, K = (16, 64), 512, 256, 2
QUICK_EXPERTS, QUICK_ROWS = (16,), 64
# One dense layer, as in the recommender experiments, and one hidden layer.
WIDTHS = ((DIM, DIM), (DIM, DIM, DIM))
GAMMA = 1.0
# The authors' offsets inside the logarithms of the gate and of its entropy.
LOG_OFFSET, ENTROPY_OFFSET = 1e-8, 1e-6
# Split scores of a trained gate in units of gamma: all but a few in a million are outside the band.
HARD_SCALE = 1e6
# Sums of 256 products in float32, and offsets that only the published form has.
TOLERANCE = 1e-4


class Node(nn.Module):
    """A node of all trees, and everything below it."""

    def __init__(self, router: CometRouter, place: int) -> None:
        super().__init__()
        num_splits = router.num_experts - 1
        self.leaf = _leaf_order(router.num_experts).get(place)
        linear, width, column = (
            (router.split, num_splits, place)
            if self.leaf is None
            else (router.leaf, router.num_experts, self.leaf)
        )
        self.score = nn.Linear(DIM, K)
        self.score.weight.data = linear.weight.detach().unflatten(0, (K, width))[:, column].clone()
        self.score.bias.data = linear.bias.detach().unflatten(0, (K, width))[:, column].clone()
        self.below = nn.ModuleList()
        if self.leaf is None:
            self.below.extend(Node(router, 2 * place + side) for side in (1, 2))

    def forward(self, x_TD: Tensor, reached_TK: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the scores and the probabilities of the leaves below, from left to right."""
        scores_TK = self.score(x_TD)
        if self.leaf is not None:
            return [scores_TK], [reached_TK]
        left_TK = smooth_step(scores_TK)
        left, right = self.below
        left_scores, left_reached = left(x_TD, reached_TK * left_TK)
        right_scores, right_reached = right(x_TD, reached_TK * (1 - left_TK))
        return left_scores + right_scores, left_reached + right_reached


def _leaf_order(num_experts: int) -> dict[int, int]:
    """Return the place of each leaf in the heap, as a key to its number from left to right."""

    def leaves(place: int) -> list[int]:
        if place >= num_experts - 1:
            return [place]
        return leaves(2 * place + 1) + leaves(2 * place + 2)

    return {place: leaf for leaf, place in enumerate(leaves(0))}


def smooth_step(t: Tensor) -> Tensor:
    """Choose between 0, 1 and the cubic between them."""
    cubic = -2 / GAMMA**3 * t**3 + 3 / (2 * GAMMA) * t + 0.5
    below_1 = torch.where(t >= GAMMA / 2, torch.ones_like(t), cubic)
    return torch.where(t <= -GAMMA / 2, torch.zeros_like(t), below_1)


class Published(nn.Module):
    """The layer as published."""

    def __init__(self, mixture: MixtureOfExperts) -> None:
        super().__init__()
        router, experts = mixture.routers[0], mixture.experts
        self.entropy_weight = router.entropy_weight
        self.root = Node(router, 0)
        self.experts = nn.ModuleList()
        for expert in range(router.num_experts):
            modules: list[nn.Module] = []
            for stack in experts.layers:
                linear = nn.Linear(stack.weight.shape[2], stack.weight.shape[1])
                linear.weight.data = stack.weight.detach()[expert].clone()
                linear.bias.data = stack.bias.detach()[expert].clone()
                modules += [linear, nn.ReLU()]
            self.experts.append(nn.Sequential(*modules))

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixed outputs and the penalty."""
        scores, reached = self.root(x_TD, x_TD.new_ones(len(x_TD), 1))
        reached_TKE = torch.stack(reached, -1)
        logits_TKE = torch.stack(scores, -1) + torch.log(reached_TKE + LOG_OFFSET)
        weights_TE = torch.softmax(logits_TKE.flatten(1), -1).view_as(logits_TKE).sum(1)
        entropy = -(reached_TKE * torch.log(reached_TKE + ENTROPY_OFFSET)).sum((1, 2)).mean()
        outputs_TEO = torch.stack([expert(x_TD) for expert in self.experts], 1)
        return (weights_TE[:, :, None] * outputs_TEO).sum(1), self.entropy_weight * entropy


def build(num_experts: int, widths: tuple[int, ...], *, hard: bool) -> dict[str, nn.Module]:
    """Build both layers with the same weights."""
    torch.manual_seed(0)
    router = CometRouter(DIM, num_experts, k=K, gamma=GAMMA)
    with torch.no_grad():
        router.split.weight.mul_(HARD_SCALE if hard else 1)
    experts = Experts(num_experts, widths, activation="relu", output_activation="relu")
    mixture = MixtureOfExperts(router, experts)
    return {"moe-runtime": mixture, "published": Published(mixture)}


def with_penalty(module: nn.Module, x_TD: Tensor) -> Tensor:
    """Return the output, plus the penalty so that a backward pass goes through it."""
    output_TO, penalty = module(x_TD)[:2]
    return output_TO + penalty


def without_penalty(module: nn.Module, x_TD: Tensor) -> Tensor:
    """Return the output alone."""
    return module(x_TD)[0]


def measure(
    num_experts: int, widths: tuple[int, ...], rows: int, *, hard: bool, options: Options
) -> dict[str, Any]:
    """Time both layers on the same rows, after comparing their answers."""
    layers = build(num_experts, widths, hard=hard)
    x_TD = torch.randn(rows, DIM)
    with torch.no_grad():
        mine, theirs = (with_penalty(layer, x_TD) for layer in layers.values())
        weights_TE = layers["moe-runtime"](x_TD).weights
    difference = float((mine - theirs).abs().max() / theirs.abs().max())
    assert difference < TOLERANCE, difference
    result: dict[str, Any] = {
        "num_experts": num_experts,
        "widths": widths,
        "rows": rows,
        "k": K,
        "hard": hard,
        "mean_nonzeros": float((weights_TE != 0).sum(1).float().mean()),
        "largest_relative_difference": difference,
    }
    for part, call in (("inference", without_penalty), ("training", with_penalty)):
        models = {name: Model(partial(call, layer), layer) for name, layer in layers.items()}
        training = part == "training"
        with hard_routing(layers["moe-runtime"] if hard and not training else nn.Identity()):
            result[part] = time_models(models, x_TD, training=training, options=options)
    return result


def main() -> None:
    """Measure soft and hard layers, print how many times faster, and write the results."""
    options = parse_options(__doc__)
    rows = []
    for num_experts in QUICK_EXPERTS if options.quick else EXPERTS:
        for widths in WIDTHS:
            for hard in (True, False):
                num_rows = QUICK_ROWS if options.quick else ROWS
                row = measure(num_experts, widths, num_rows, hard=hard, options=options)
                rows.append(row)
                for part in ("inference", "training"):
                    times = row[part]["milliseconds"]
                    print(
                        f"E={num_experts} {widths} {'hard' if hard else 'soft'} {part}: "
                        f"{times['moe-runtime']:.2f} ms, published {times['published']:.2f} ms, "
                        f"{row[part]['ratios']['published']:.1f}x",
                        flush=True,
                    )
    write("published", options, rows)


if __name__ == "__main__":
    main()
