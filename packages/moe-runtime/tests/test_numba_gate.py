"""The compiled gate is `moe_gates.comet_gate`, forward and backward."""

import array_api_compat.torch as xp
import pytest
import torch
from _trees import NUM_EXPERTS, reference_gate
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import moe_gates
from moe_runtime._comet_gate import fused_comet_gate

pytest.importorskip("numba", reason='needs the extra: pip install "moe-runtime[numba]"')

from moe_runtime import _numba_rows


def draw(
    num_rows: int, num_slots: int, num_experts: int, *, spread: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Draw scores in float64; with gamma = 1, a spread of 0.5 leaves about a third saturated."""
    splits = torch.randn(num_rows, num_slots, num_experts - 1, dtype=torch.float64) * spread
    return splits, torch.randn(num_rows, num_slots, num_experts, dtype=torch.float64)


def outputs_and_gradients(
    gate: object, splits: Tensor, leaves: Tensor, grads: list[Tensor], **options: object
) -> list[Tensor]:
    splits, leaves = splits.detach().requires_grad_(), leaves.detach().requires_grad_()
    assert callable(gate)
    outputs = gate(splits, leaves, **options)[:2]
    # A hard gate's probabilities are constants, and its splits' gradients count as 0.
    learned = [
        (output, grad.to(output.dtype))
        for output, grad in zip(outputs, grads, strict=True)
        if output.requires_grad
    ]
    found = torch.autograd.grad(
        [each for each, _ in learned],
        (splits, leaves),
        [grad for _, grad in learned],
        allow_unused=True,
        materialize_grads=True,
    )
    return [*outputs, *found]


@pytest.mark.parametrize("num_experts", NUM_EXPERTS)
@pytest.mark.parametrize("num_slots", [1, 2, 3, 4])
@pytest.mark.parametrize("hard", [False, True])
def test_equals_the_recursion_with_every_gradient(
    num_experts: int, num_slots: int, *, hard: bool
) -> None:
    splits, leaves = draw(5, num_slots, num_experts)
    grads = [torch.randn_like(leaves), torch.randn_like(leaves)]
    options = {"gamma": 1.3, "hard": hard}
    wanted = outputs_and_gradients(reference_gate, splits, leaves, grads, **options)
    found = outputs_and_gradients(fused_comet_gate, splits, leaves, grads, **options)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)
    found = outputs_and_gradients(
        fused_comet_gate, splits.float(), leaves.float(), grads, **options
    )
    for ours, theirs in zip(found, wanted, strict=True):
        # float32: 10 levels of products, and a sum of up to 4000 masses.
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-5)


@given(
    num_rows=st.integers(0, 70),
    num_slots=st.integers(1, 4),
    num_experts=st.integers(2, 40),
    gamma=st.sampled_from([1e-30, 1e-2, 0.7, 10.0, 1e30]),
    scale=st.sampled_from([0.0, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_moe_gates_at_any_scale(
    num_rows: int, num_slots: int, num_experts: int, gamma: float, scale: float, dtype: torch.dtype
) -> None:
    splits, leaves = (each.to(dtype) for each in draw(num_rows, num_slots, num_experts))
    leaves = leaves * scale
    gate = moe_gates.comet_gate(splits, leaves, gamma=gamma, xp=xp)
    slot_weights, probabilities = fused_comet_gate(splits, leaves, gamma=gamma, hard=False)
    assert torch.equal(probabilities, gate.slot_probabilities)
    # An exponent of up to 1e4 / 100 rounds to 1e-5 in float32.
    tolerance = 1e-4 if dtype is torch.float32 else 1e-11
    torch.testing.assert_close(slot_weights, gate.slot_weights, rtol=tolerance, atol=1e-30)


@pytest.mark.parametrize("num_experts", [2, 3, 5, 8])
@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_passes_gradcheck(num_experts: int, spread: float) -> None:
    splits, leaves = draw(3, 2, num_experts, spread=spread)

    def run(splits: Tensor, leaves: Tensor) -> tuple[Tensor, Tensor]:
        return fused_comet_gate(splits, leaves, gamma=1.0, hard=False)

    assert torch.autograd.gradcheck(run, (splits.requires_grad_(), leaves.requires_grad_()))


def test_a_leaf_that_is_barely_reached_can_have_the_largest_score() -> None:
    # float32: the left leaf has probability 3e-12 and a score of 1e4, the right one 1 and 0.
    splits, leaves = torch.full((1, 1, 1), -0.499999), torch.tensor([[[1e4, 0.0]]])
    slot_weights, _ = fused_comet_gate(splits, leaves, gamma=1.0, hard=False)
    assert slot_weights.flatten().tolist() == [1.0, 0.0]
    slot_weights, _ = fused_comet_gate(splits, leaves / 1e3, gamma=1.0, hard=False)
    gate = moe_gates.comet_gate(splits, leaves / 1e3, gamma=1.0, xp=xp)
    torch.testing.assert_close(slot_weights, gate.slot_weights, rtol=1e-5, atol=0)


@pytest.mark.parametrize("saturation", [50.0, -50.0])
def test_saturated_trees_are_one_hot_and_pass_no_gradient_to_their_splits(
    saturation: float,
) -> None:
    splits, leaves = torch.full((4, 2, 8), saturation, requires_grad=True), torch.randn(4, 2, 9)
    slot_weights, probabilities = fused_comet_gate(splits, leaves, gamma=1.0, hard=False)
    # Nine leaves: the two of the last level are the leftmost.
    assert torch.equal(probabilities.argmax(-1), torch.full((4, 2), 0 if saturation > 0 else 8))
    assert torch.equal(probabilities.sum(-1), torch.ones(4, 2))
    assert int((slot_weights != 0).sum()) == 8
    (grad,) = torch.autograd.grad(slot_weights.square().sum(), splits)
    assert not grad.any()


@pytest.mark.parametrize("where", ["split", "leaf"])
def test_not_a_number_shows_in_its_row_and_in_no_other(where: str) -> None:
    splits, leaves = draw(3, 2, 5)
    (splits if where == "split" else leaves)[1, 0, 0] = torch.nan
    splits[:, :, 0] = 0.1 if where == "leaf" else splits[:, :, 0]
    splits[:, :, 1] = splits[:, :, 3] = 0.1
    slot_weights, _ = fused_comet_gate(splits, leaves, gamma=1.0, hard=False)
    assert torch.isnan(slot_weights[1]).any()
    assert torch.isfinite(slot_weights[[0, 2]]).all()


@pytest.mark.usefixtures("_threads_restored")
def test_several_threads_give_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    splits, leaves = draw(501, 2, 17)
    grads = [torch.randn_like(leaves), torch.randn_like(leaves)]
    options = {"gamma": 1.0, "hard": False}
    alone = outputs_and_gradients(fused_comet_gate, splits, leaves, grads, **options)
    monkeypatch.setattr(_numba_rows, "NANOSECONDS_A_THREAD", 1)
    for num_threads in (2, 3, 7):
        torch.set_num_threads(num_threads)
        found = outputs_and_gradients(fused_comet_gate, splits, leaves, grads, **options)
        assert all(map(torch.equal, found, alone))


def test_takes_scores_and_gradients_of_any_layout_and_leading_shape() -> None:
    splits, leaves = draw(12, 2, 5)
    plain = fused_comet_gate(splits, leaves, gamma=1.0, hard=False)
    strided = fused_comet_gate(
        torch.unflatten(splits.transpose(0, 2).contiguous().transpose(0, 2), 0, (3, 4)),
        torch.unflatten(leaves, 0, (3, 4)),
        gamma=1.0,
        hard=False,
    )
    for ours, theirs in zip(strided, plain, strict=True):
        assert torch.equal(ours.flatten(0, 1), theirs)
    splits.requires_grad_()
    slot_weights, _ = fused_comet_gate(splits, leaves, gamma=1.0, hard=False)
    grad = torch.randn(12, 1, 1, dtype=torch.float64).expand_as(leaves)
    (expanded,) = torch.autograd.grad(slot_weights, splits, grad, retain_graph=True)
    (dense,) = torch.autograd.grad(slot_weights, splits, grad.contiguous())
    assert torch.equal(expanded, dense)
