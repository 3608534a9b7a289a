"""A training step as published: every expert runs on every row, and metrics are in the step.

The gate of COMET is a recursion over the nodes of its trees, each a module with a linear map of
its own; experts run one by one, and their outputs are stacked and weighted. Written for speed to
be compared with, not for speed.

Axes: T rows, D features, O features of an expert's output, E experts, K slots (trees).

Sources: Ibrahim et al., KDD 2023, arXiv:2306.02824, supplement.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from moe_benchmarks._data._dataset import Split, Task
from moe_benchmarks._experiments._losses import row_losses
from moe_benchmarks._experiments._model import MixtureModel, Prediction
from moe_runtime import CometRouter, Experts, ModuleExperts, Router

# The authors' offsets inside the logarithms of the gate and of its entropy.
LOG_OFFSET, ENTROPY_OFFSET = 1e-8, 1e-6
# Of the area under the ROC curve: as many as Keras takes.
NUM_THRESHOLDS = 200


class PublishedModel(nn.Module):
    """The same model with the same weights, formulated as published."""

    def __init__(self, model: MixtureModel) -> None:
        super().__init__()
        self.bottom, self.heads = deepcopy(model.bottom), deepcopy(model.heads)
        self.dropout = nn.Dropout(model.dropout.p)
        self.gates = nn.ModuleList(_published_gate(router) for router in model.mixture.routers)
        self.experts = _published_experts(model.mixture.experts)
        self.hash_input = model.hash_input

    def forward(self, inputs: dict[str, Tensor]) -> Prediction:
        """Predict every task for a batch."""
        x_TD = self.bottom(inputs)
        routed = x_TD if self.hash_input is None else inputs[self.hash_input]
        outputs_TEO = torch.stack([expert(x_TD) for expert in self.experts], 1)
        outputs, penalties, weights = [], [], []
        for gate, head in zip(self.gates, self.heads, strict=True):
            weights_TE, penalty = gate(routed)[:2]
            mixed_TO = (weights_TE[:, :, None] * outputs_TEO).sum(1)
            outputs.append(head(self.dropout(mixed_TO)))
            penalties.append(penalty)
            weights.append(weights_TE)
        return Prediction(tuple(outputs), torch.stack(penalties).sum(), torch.stack(weights))


class PublishedComet(nn.Module):
    """COMET's gate, node by node."""

    def __init__(self, router: CometRouter) -> None:
        super().__init__()
        self.root = _Node(router, 0)
        self.entropy_weight = router.entropy_weight

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights (T, E) and the penalty."""
        scores, reached = self.root(x_TD, x_TD.new_ones(len(x_TD), 1))
        reached_TKE = torch.stack(reached, -1)
        logits_TKE = torch.stack(scores, -1) + torch.log(reached_TKE + LOG_OFFSET)
        weights_TE = torch.softmax(logits_TKE.flatten(1), -1).view_as(logits_TKE).sum(1)
        entropy = -(reached_TKE * torch.log(reached_TKE + ENTROPY_OFFSET)).sum((1, 2)).mean()
        return weights_TE, self.entropy_weight * entropy


class _Node(nn.Module):
    """A node of all trees, and everything below it; places are those of a heap."""

    def __init__(self, router: CometRouter, place: int) -> None:
        super().__init__()
        num_splits = router.num_experts - 1
        self.gamma = router.gamma
        self.below = nn.ModuleList()
        if place < num_splits:
            self.score = _column(router.split, router.k, place)
            self.below.extend(_Node(router, 2 * place + side) for side in (1, 2))
        else:
            # Leaves of the lowest level come first from left to right.
            lowest = 2 ** num_splits.bit_length() - 1
            leaf = (place - lowest) % router.num_experts
            self.score = _column(router.leaf, router.k, leaf)

    def forward(self, x_TD: Tensor, reached_TK: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the scores and the probabilities of the leaves below, from left to right."""
        scores_TK = self.score(x_TD)
        if not len(self.below):
            return [scores_TK], [reached_TK]
        left_TK = _smooth_step(scores_TK, self.gamma)
        left, right = self.below
        left_scores, left_reached = left(x_TD, reached_TK * left_TK)
        right_scores, right_reached = right(x_TD, reached_TK * (1 - left_TK))
        return left_scores + right_scores, left_reached + right_reached


class StepMetrics:
    """Metrics of every step and task, added up: losses, accuracy or ROC counts, sparsity."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.totals: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, prediction: Prediction, batch: Split) -> None:
        """Add a batch."""
        columns = zip(self.tasks, prediction.outputs, batch.targets, batch.present, strict=True)
        for task, output_TC, target_T, present_T in columns:
            self._add(f"{task.name} loss", row_losses(task, output_TC, target_T, present_T).sum())
            if task.kind == "binary":
                thresholds = torch.linspace(0, 1, NUM_THRESHOLDS, device=output_TC.device)
                above = output_TC[:, 0].sigmoid()[:, None] > thresholds
                positive = target_T[:, None] > 0
                self._add(f"{task.name} true positives", (above & positive).sum(0))
                self._add(f"{task.name} false positives", (above & ~positive).sum(0))
            elif task.kind == "classes":
                self._add(f"{task.name} accuracy", (output_TC.argmax(-1) == target_T).sum())
        used_GTE = prediction.weights_GTE != 0
        self._add("experts", used_GTE.sum((1, 2)))
        self._add("load", used_GTE.sum(1))
        self._add("simplex error", (prediction.weights_GTE.sum(-1) - 1).abs().sum())

    def _add(self, name: str, value: Tensor) -> None:
        self.totals[name] = self.totals[name] + value if name in self.totals else value


def _published_gate(router: nn.Module) -> nn.Module:
    """Return COMET's gate node by node, and any other as it is."""
    if isinstance(router, CometRouter):
        return PublishedComet(router)
    assert isinstance(router, Router)
    return deepcopy(router)


def _published_experts(experts: nn.Module) -> nn.ModuleList:
    """Return the experts as modules, each with its own part of the stacked weights."""
    if isinstance(experts, ModuleExperts):
        return deepcopy(experts.experts)
    assert isinstance(experts, Experts)
    modules = nn.ModuleList()
    for expert in range(experts.num_experts):
        layers: list[nn.Module] = []
        for weight_EOD, bias_EO in _stacks(experts):
            layers += [_linear(weight_EOD[expert], bias_EO[expert]), nn.ReLU()]
        modules.append(nn.Sequential(*layers))
    return modules


def _stacks(experts: Experts) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of each layer."""
    stacks = []
    for layer in experts.layers:
        weight_EOD, bias_EO = layer.weight, layer.bias
        assert isinstance(weight_EOD, Tensor)
        assert isinstance(bias_EO, Tensor)
        stacks.append((weight_EOD, bias_EO))
    return stacks


def _column(stacked: nn.Linear, num_slots: int, column: int) -> nn.Linear:
    """Pick one node's scores of all trees from those of all nodes."""
    width = stacked.out_features // num_slots
    return _linear(stacked.weight[column::width], stacked.bias[column::width])


def _linear(weight_OD: Tensor, bias_O: Tensor) -> nn.Linear:
    made = nn.Linear(weight_OD.shape[1], weight_OD.shape[0])
    made.weight = nn.Parameter(weight_OD.detach().clone())
    made.bias = nn.Parameter(bias_O.detach().clone())
    return made


def _smooth_step(score: Tensor, gamma: float) -> Tensor:
    """Choose between 0, 1 and the cubic between them."""
    cubic = -2 / gamma**3 * score**3 + 3 / (2 * gamma) * score + 0.5
    below_1 = torch.where(score >= gamma / 2, torch.ones_like(score), cubic)
    return torch.where(score <= -gamma / 2, torch.zeros_like(score), below_1)
