"""COMET and DSelect-k: gates that are the same for every row, and gamma in deviations."""

import pytest
import torch
from _reference import DIM, awake

import moe_gates
from moe_runtime import CometRouter, DSelectKRouter, Router
from moe_runtime._smooth_step_router import SmoothStepRouter


def routers(**options: bool) -> list[SmoothStepRouter]:
    return [CometRouter(DIM, 5, k=2, **options), DSelectKRouter(DIM, 5, k=2, **options)]  # type: ignore[arg-type]


def test_a_static_gate_is_the_same_for_every_row_and_its_penalty_for_every_batch() -> None:
    router = awake(DSelectKRouter(DIM, 8, k=2, static=True))
    weights, penalty, slot_weights = router(torch.randn(3, 4, DIM))
    assert weights.shape == (3, 4, 8)
    assert slot_weights.shape == (3, 4, 2, 8)
    assert bool((weights == weights[0, 0]).all())
    assert torch.equal(penalty, router(torch.randn(7, DIM)).penalty)
    weights.square().sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in router.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("which", [0, 1])
def test_multiplying_the_scores_changes_nothing_once_the_scale_follows(which: int) -> None:
    router = routers(scale_free=True)[which]
    awake(router)
    x = torch.randn(64, DIM)
    router.update_scale(x)
    before = router(x).weights
    name = "split" if isinstance(router, CometRouter) else "bit"
    with torch.no_grad():
        for parameter in router.get_submodule(name).parameters():
            parameter.mul_(1000)
    assert router.scale is not None
    router.scale *= 1000
    torch.testing.assert_close(router(x).weights, before)
    router.num_scale_updates.zero_()  # type: ignore[union-attr]
    router.update_scale(x)
    torch.testing.assert_close(router(x).weights, before)


def test_the_scale_is_that_of_the_first_batch_and_then_a_moving_mean() -> None:
    router = awake(CometRouter(DIM, 5, k=2, scale_free=True))
    assert isinstance(router, CometRouter)
    assert router.scale is not None
    wanted = router.scale.clone()
    for step in range(1, 151):
        x = step * torch.randn(50, DIM)
        router.update_scale(x)
        batch = moe_gates.score_scale(router.split_scores(x).detach())
        wanted += max(1 / step, 0.01) * (batch - wanted)
        if step == 1:
            torch.testing.assert_close(router.scale, batch)
    torch.testing.assert_close(router.scale, wanted)


@pytest.mark.parametrize("which", [0, 1])
def test_a_scale_is_state_and_forward_leaves_it_alone(which: int) -> None:
    router = routers(scale_free=True)[which]
    router.update_scale(torch.randn(20, DIM))
    before = {name: value.clone() for name, value in router.state_dict().items()}
    router(torch.randn(20, DIM))
    assert all(torch.equal(value, before[name]) for name, value in router.state_dict().items())
    other = routers(scale_free=True)[which]
    other.load_state_dict(before)
    x = torch.randn(9, DIM)
    assert torch.equal(other(x).weights, router(x).weights)


def test_hard_routes_do_not_depend_on_gamma_or_the_scale() -> None:
    x = torch.randn(50, DIM)
    for router in routers(scale_free=True):
        awake(router).hard = True
        before = router(x).weights
        router.update_scale(x)
        router.gamma = 7.0
        assert torch.equal(router(x).weights, before)


def test_a_scale_that_is_not_there_is_not_updated() -> None:
    for router in routers():
        with pytest.raises(ValueError, match="`scale_free` must be True"):
            router.update_scale(torch.randn(9, DIM))


def test_no_rows_leave_a_scale_of_1() -> None:
    for router in routers(scale_free=True):
        router.update_scale(torch.randn(0, DIM))
        assert router.scale is not None
        assert bool((router.scale == 1).all())


def test_the_initial_scores_lie_in_the_middle_of_the_step_whatever_gamma() -> None:
    x = torch.rand(50, DIM)
    for gamma in (0.01, 10.0):
        made: list[Router] = [
            CometRouter(DIM, 8, k=2, gamma=gamma),
            DSelectKRouter(DIM, 8, k=2, gamma=gamma),
            DSelectKRouter(DIM, 8, k=2, gamma=gamma, static=True),
        ]
        for router in made:
            weights = router(x).weights.detach()
            torch.testing.assert_close(weights, torch.full((50, 8), 1 / 8), rtol=0.4, atol=0)
