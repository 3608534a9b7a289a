"""Rows that a mask takes out are as good as absent."""

import pytest
import torch
from _reference import DIM, ROUTERS, TRAINED, draw_inputs, experts_of, make_mixture, router_of

from moe_runtime import CometRouter, Experts, MixtureOfExperts, MultiGateMixtureOfExperts

NAME = pytest.mark.parametrize("name", sorted(ROUTERS))


@NAME
def test_what_remains_is_as_if_the_rest_had_never_been_there(name: str) -> None:
    mixture = make_mixture(name)
    inputs = draw_inputs(name, 3, 4)
    mask = torch.rand(3, 4) < 0.6
    output, penalty, weights = mixture(*inputs, mask=mask)
    kept = mixture(*(each[mask] for each in inputs))
    assert torch.equal(output[mask], kept.output)
    assert torch.equal(weights[mask], kept.weights)
    assert torch.equal(penalty, kept.penalty)
    assert not output[~mask].any()
    assert not weights[~mask].any()


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_are_those_of_the_rows_that_remain(name: str) -> None:
    mixture = make_mixture(name).double()
    x = torch.randn(9, DIM, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(9) % 3 > 0
    grad = torch.randn(9, 4, dtype=torch.float64)
    found: list[list[torch.Tensor | None]] = []
    for run_mask, rows in ((mask, torch.arange(9)), (None, mask.nonzero()[:, 0])):
        mixture.zero_grad()
        x.grad = None
        output, penalty, _ = mixture(x[rows], mask=run_mask)
        ((output * grad[rows]).sum() + penalty).backward()
        assert x.grad is not None
        found.append([x.grad, *(parameter.grad for parameter in mixture.parameters())])
    for masked, absent in zip(*found, strict=True):
        torch.testing.assert_close(masked, absent, rtol=0, atol=1e-12)


def test_padding_may_hold_anything() -> None:
    mixture = make_mixture("comet")
    x = torch.randn(5, DIM)
    mask = torch.tensor([True, False, True, True, False])
    wanted = mixture(x, mask=mask)
    x[~mask] = torch.nan
    answer = mixture(x, mask=mask)
    for ours, theirs in zip(answer, wanted, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("leading", [(), (0,), (4,), (2, 0)], ids=str)
@pytest.mark.parametrize("keep", [True, False])
def test_all_or_none_of_any_shape_may_be_kept(leading: tuple[int, ...], *, keep: bool) -> None:
    mixture = make_mixture("comet")
    x = torch.randn(*leading, DIM)
    output, penalty, weights = mixture(x, mask=torch.full(leading, keep))
    assert (output.shape, weights.shape) == ((*leading, 4), (*leading, 5))
    assert torch.isfinite(penalty)
    wanted = mixture(x).output if keep else torch.zeros(*leading, 4)
    torch.testing.assert_close(output, wanted, rtol=0, atol=1e-6)


def test_holds_for_every_gate_of_several() -> None:
    experts = Experts(5, (DIM, 4))
    mixture = MultiGateMixtureOfExperts([CometRouter(DIM, 5, k=2) for _ in range(2)], experts)
    x, mask = torch.randn(2, 3, DIM), torch.rand(2, 3) < 0.5
    output, _, weights = mixture(x, mask=mask)
    assert torch.equal(output[:, mask], mixture(x[mask]).output)
    assert not output[:, ~mask].any()
    assert not weights[:, ~mask].any()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(3), r"`mask` must be bool with the leading shape of `x`, \(3,\), got torch.f"),
        (torch.ones(3, 1) > 0, r"`mask` must be bool with the leading shape of `x`, \(3,\), got"),
    ],
    ids=["dtype", "shape"],
)
def test_a_mask_that_does_not_fit_is_refused(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_mixture("comet")(torch.randn(3, DIM), mask=mask)


def test_a_router_input_of_other_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="`router_input` must have the leading shape of `x`"):
        make_mixture("hash")(torch.randn(3, DIM), torch.zeros(4).long(), torch.ones(3) > 0)


@pytest.mark.parametrize("kernel", ["sorted", "dense", "loop"])
def test_weights_up_to_the_threshold_are_dropped_and_reported_as_zero(kernel: str) -> None:
    whole = make_mixture("comet", num_experts=8, kernel=kernel)
    mixture = MixtureOfExperts(router_of(whole), whole.experts, kernel=kernel, threshold=0.2)
    x = torch.randn(50, DIM)
    weights = whole(x).weights
    dropped = (weights > 0) & (weights <= 0.2)
    assert dropped.any()
    output, _, kept = mixture(x)
    assert torch.equal(kept, weights.masked_fill(dropped, 0))
    outputs_ETO = experts_of(mixture).every(x)
    wanted = torch.einsum("te,eto->to", kept, outputs_ETO)
    torch.testing.assert_close(output, wanted, rtol=0, atol=1e-6)
    assert mixture.explain(x).num_pairs == int((kept != 0).sum())
