"""Every gate exports to ONNX with a free batch size, and the operators are standard."""

from importlib.metadata import version
from typing import Any

import numpy as np
import pytest

import moe_gates as gates

torch = pytest.importorskip("torch", reason="needs torch: install the dependency group `interop`")
pytest.importorskip("onnx", reason="needs onnx to export")
pytest.importorskip("onnxscript", reason="needs onnxscript to export")

pytestmark = [
    # torch 2.13 and onnxscript warn about their own internals while they export.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Gate(torch.nn.Module):  # type: ignore[name-defined,misc]
    """Soft and hard gates side by side: one export is slow enough."""

    def __init__(self, xp: Any) -> None:
        super().__init__()
        self.xp = xp

    def forward(self, splits: Any, leaves: Any, bits: Any, ids: Any, rows: Any) -> tuple[Any, ...]:
        xp = self.xp
        selectors, order = leaves[..., 0], torch.tensor([3, 0, 4, 1, 2])
        comet = [comet_gate(splits, leaves, hard=hard, xp=xp) for hard in (False, True)]
        dselect_k = [dselect_k_gate(bits, selectors, hard=hard, xp=xp) for hard in (False, True)]
        slot_weights = comet[0].slot_weights
        mixed = gates.mix(slot_weights, torch.full((2, 5, 5), 0.2), xp=xp)
        return (
            *(gate.weights for gate in comet + dselect_k),
            gates.top_k_gate(leaves[:, 0, :], k=2, xp=xp),
            *one_slot_gates(leaves[:, 0, :], xp),
            *gates.tree_top_k_gate(splits, leaves, k=2, xp=xp),
            gates.hash_gate(ids, torch.arange(9) % 5, num_experts=5, dtype=leaves.dtype, xp=xp),
            gates.normalize(gates.permute(slot_weights, order, xp=xp), xp=xp),
            mixed,
            *sparse(comet[0].weights, rows, xp),
            *penalties(comet[0], leaves, xp),
        )


def one_slot_gates(scores: Any, xp: Any) -> tuple[Any, ...]:
    bias = torch.tensor([0.2, 0.0, -0.1, 0.0, 0.1])
    uniforms = torch.full_like(scores[:, :4], 0.4)
    return (
        gates.softmax_gate(scores, xp=xp),
        gates.top_k_gate(scores, k=2, affinity="sigmoid", renormalize=False, noise=-scores, xp=xp),
        gates.top_k_gate(
            scores, k=2, affinity="sigmoid", bias=bias, num_groups=5, num_groups_kept=3, xp=xp
        ),
        gates.top_k_sparsemax_gate(scores, k=3, xp=xp),
        gates.relu_gate(scores, k=2, xp=xp),
        gates.subset_marginals(scores, k=2, xp=xp),
        gates.exact_k_gate(scores, k=2, xp=xp),
        gates.exact_k_gate(scores, k=2, uniforms=uniforms, xp=xp),
        gates.cosine_scores(scores, torch.eye(5)[:3], temperature=0.5, xp=xp),
    )


def comet_gate(splits: Any, leaves: Any, *, hard: bool, xp: Any) -> Any:
    return gates.comet_gate(splits, leaves, gamma=3.0, hard=hard, xp=xp)


def dselect_k_gate(bits: Any, selectors: Any, *, hard: bool, xp: Any) -> Any:
    return gates.dselect_k_gate(bits, selectors, num_experts=5, gamma=3.0, hard=hard, xp=xp)


def sparse(weights: Any, rows: Any, xp: Any) -> list[Any]:
    """Make pairs of weights, and of rows; the experts in floating point, to compare."""
    nodes = torch.linspace(-1, 1, 54).reshape(2, 9, 3).sin()
    splits, leaves = nodes[:, :4], nodes[:, 4:]
    route = gates.comet_route(rows, splits, leaves, split_bias=splits[..., 0], xp=xp)
    bounded = gates.to_sparse(weights, max_nonzero=2, xp=xp)
    pairs = [*route, *bounded.sparse, bounded.dropped]
    return [*pairs, gates.to_dense(route, num_experts=5, xp=xp)]


def penalties(gate: Any, leaves: Any, xp: Any) -> list[Any]:
    """Compute everything that has a mean over rows, which may be none."""
    probabilities = gate.slot_probabilities
    return [
        gates.entropy_penalty(probabilities, xp=xp),
        gates.mutual_information_penalty(probabilities, xp=xp),
        gates.unreachable_penalty(probabilities, xp=xp),
        gates.load_balance_penalty(gate.weights, gate.weights, xp=xp),
        gates.trimmed_lasso_penalty(gate.weights, k=2, xp=xp),
        gates.z_penalty(leaves, xp=xp),
        *gates.simplex_error(gate.weights, xp=xp),
        gates.total_variation(gate.weights, gate.slot_weights[:, 0], xp=xp),
        gates.count_union(gate.slot_weights, xp=xp),
        gates.count_duplicates(gate.slot_weights, xp=xp),
        gates.score_scale(leaves, xp=xp),
    ]


def draw(rows: int) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(rows)
    sizes = [(rows, 2, 4), (rows, 2, 5), (rows, 2, 3)]
    splits, leaves, bits = (torch.randn(size, generator=generator) for size in sizes)
    return splits, leaves, bits, torch.arange(rows) % 9, torch.randn(rows, 3, generator=generator)


def export(model: Any) -> Any:
    free = {0: torch.export.Dim.DYNAMIC}
    return torch.onnx.export(
        model, draw(7), dynamo=True, verbose=False, dynamic_shapes=(free,) * 5
    ).model_proto


def test_gates_export_with_a_free_batch_size(torch_lib: Any) -> None:
    model = Gate(torch_lib.xp).eval()
    proto = export(model)
    assert {node.domain for node in proto.graph.node} == {""}
    onnx_reference = pytest.importorskip("onnx.reference")
    evaluator = onnx_reference.ReferenceEvaluator(proto)
    names = [value.name for value in proto.graph.input]
    # The reference evaluator of onnx 1.19 gives arrays without rows a wrong shape.
    no_rows = [0] if version("onnx") >= "1.23" else []
    for rows in (7, 3, 1, *no_rows):
        arrays = draw(rows)
        answers = evaluator.run(
            None, {name: array.numpy() for name, array in zip(names, arrays, strict=True)}
        )
        for ours, theirs in zip(answers, model(*arrays), strict=True):
            # float32: a dozen roundings on each side.
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)
