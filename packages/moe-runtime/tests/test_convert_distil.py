"""Losses by which a converted model learns from the dense one."""

import math

import pytest
import torch

from moe_runtime.convert import hidden_state_loss, symmetric_divergence


def test_divergence_is_the_mean_of_both_directions() -> None:
    logits, teacher = torch.randn(2, 7, 3, dtype=torch.float64).unbind()
    total = 0.0
    for row, other in zip(logits.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(each) / sum(map(math.exp, row)) for each in row]
        q = [math.exp(each) / sum(map(math.exp, other)) for each in other]
        total += sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert symmetric_divergence(logits, teacher).item() == pytest.approx(total / 2 / 7, rel=1e-5)
    assert symmetric_divergence(logits, logits).item() == 0.0
    extreme = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    symmetric_divergence(extreme, -extreme.detach()).backward()  # type: ignore[no-untyped-call]
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()


def test_padding_is_left_out_of_hidden_states() -> None:
    states, teacher = torch.randn(2, 3, 4, 5, 6).unbind()
    mask = torch.ones(4, 5, dtype=torch.int64)
    mask[1::2, 3:] = 0
    found = hidden_state_loss(list(states), list(teacher), mask)
    kept = mask.bool()
    expected = sum(
        (a[kept] - b[kept]).square().mean() for a, b in zip(states, teacher, strict=True)
    )
    torch.testing.assert_close(found, expected)
    states[:, ~kept] = 100.0
    torch.testing.assert_close(hidden_state_loss(list(states), list(teacher), mask), found)
    every = hidden_state_loss(list(teacher), list(teacher))
    assert every.item() == 0.0


def test_what_does_not_fit_is_named() -> None:
    one, other = torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)
    with pytest.raises(ValueError, match="`teacher_states` must be 1 layers"):
        hidden_state_loss([one], [])
    with pytest.raises(ValueError, match="`hidden_states` must hold the states of at least one"):
        hidden_state_loss([], [])
    for mask in (torch.ones(2), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match=r"`mask` must be 1 for some tokens and have shape"):
            hidden_state_loss([one], [one], mask)
    with pytest.raises(ValueError, match=r"`teacher_states\[0\]` must have the student's shape"):
        hidden_state_loss([one], [other])
    with pytest.raises(ValueError, match="`teacher_logits` must have the student's shape"):
        symmetric_divergence(one, other)
