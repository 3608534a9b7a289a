"""Schedules set what they say at each step, and continue exactly where they stopped."""

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _reference import DIM, awake, make_mixture
from torch import nn

import moe_gates
from moe_runtime import (
    CometRouter,
    DSelectKRouter,
    RouterSchedule,
    TopKRouter,
    load_checkpoint,
    load_training_tensors,
    save_checkpoint,
    training_tensors,
)

HALVE = partial(moe_gates.exponential_schedule, start=16.0, end=1.0, num_steps=4)


def test_every_router_that_has_it_follows() -> None:
    noisy = TopKRouter(DIM, 4, k=2, noise="normal")
    comet, dselect = CometRouter(DIM, 4, k=2), DSelectKRouter(DIM, 4, k=2)
    model = nn.ModuleList([comet, dselect, noisy])
    schedule = RouterSchedule(
        model,
        gamma=HALVE,
        entropy_weight=lambda step: 0.5 * step,
        noise_scale=lambda step: 3 - step,
    )
    found = []
    for _ in range(3):
        found.append((comet.gamma, dselect.gamma, dselect.entropy_weight, noisy.noise_scale))
        schedule.step()
    assert found == [(16.0, 16.0, 0.0, 3), (8.0, 8.0, 0.5, 2), (4.0, 4.0, 1.0, 1)]
    assert not hasattr(noisy, "gamma")


def test_a_number_of_numpy_is_saved_with_the_router(tmp_path: Path) -> None:
    router = CometRouter(DIM, 4, k=2)
    RouterSchedule(router, entropy_weight=lambda _step: np.float64(0.7))
    router.save_pretrained(tmp_path)
    assert CometRouter.from_pretrained(tmp_path).entropy_weight == 0.7


def test_what_is_not_scheduled_stays() -> None:
    router = CometRouter(DIM, 4, k=2, gamma=0.25, entropy_weight=0.75)
    schedule = RouterSchedule(router, gamma=HALVE)
    schedule.step()
    assert (router.gamma, router.entropy_weight) == (8.0, 0.75)


def test_a_resumed_schedule_continues_with_the_model_to_the_bit(tmp_path: Any) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, RouterSchedule]:
        torch.manual_seed(1)
        model = make_mixture("comet").train()
        schedule = RouterSchedule(model, gamma=HALVE, entropy_weight=lambda step: 0.1 / (1 + step))
        return model, torch.optim.Adam(model.parameters(), lr=0.01), schedule

    def train(
        model: nn.Module, optimizer: torch.optim.Optimizer, schedule: RouterSchedule, steps: range
    ) -> None:
        for step in steps:
            x = torch.randn(20, DIM, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            output, penalty, _ = model(x)
            (output.square().mean() + penalty).backward()
            optimizer.step()
            schedule.step()

    whole = start()
    train(*whole, range(6))
    first = start()
    train(*first, range(2))
    tensors = training_tensors(*first[:2])
    save_checkpoint(tmp_path / "run.ckpt", tensors | first[2].state_dict(), settings={})
    second = start()
    read = dict(load_checkpoint(tmp_path / "run.ckpt").tensors)
    second[2].load_state_dict({"num_steps": read.pop("num_steps")})
    load_training_tensors(*second[:2], read)
    train(*second, range(2, 6))
    for ours, theirs in zip(second[0].parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_model_alone_keeps_the_gamma_that_it_was_trained_to() -> None:
    router = awake(CometRouter(DIM, 8, k=2))
    RouterSchedule(router, gamma=lambda _: 0.3)
    state = copy.deepcopy(router.state_dict())
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    other = CometRouter(DIM, 8, k=2)
    other.load_state_dict(state)
    x = torch.randn(30, DIM)
    assert other.gamma == 0.3
    assert torch.equal(other(x).weights, router(x).weights)


def test_a_changing_gamma_compiles_twice_and_not_at_every_step() -> None:
    torch.compiler.reset()
    router = awake(CometRouter(DIM, 5, k=2))
    schedule = RouterSchedule(router, gamma=partial(HALVE, num_steps=10))
    graphs = []

    def count(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(router, backend=count, fullgraph=True)
    x = torch.randn(9, DIM)
    for _ in range(6):
        torch.testing.assert_close(compiled(x).weights, router(x).weights)
        schedule.step()
    assert len(graphs) <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`RouterSchedule` must be given one of ['gamma', 'entropy_weight', 'noise_scale']"),
        (
            {"noise_scale": lambda _: 1.0},
            "`module` must hold a router with `noise_scale`, got none",
        ),
        ({"gamma": lambda _: 0.0}, "`gamma` must be in [1e-30, 1e+30], got 0.0."),
        ({"entropy_weight": lambda _: -1.0}, "`entropy_weight` must be finite and >= 0, got -1.0."),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RouterSchedule(CometRouter(DIM, 4, k=2), **options)


def test_noise_that_is_not_there_is_not_scheduled() -> None:
    with pytest.raises(ValueError, match="must hold a router with `noise_scale`, got none of 1"):
        RouterSchedule(TopKRouter(DIM, 4, k=2), noise_scale=lambda _: 1.0)


def test_a_schedule_of_another_type_is_refused() -> None:
    number: Any = 0.1
    with pytest.raises(TypeError, match="`gamma` must be a function of the step, got float"):
        RouterSchedule(CometRouter(DIM, 4, k=2), gamma=number)
    with pytest.raises(TypeError, match=r"`module` must be a torch.nn.Module, got float"):
        RouterSchedule(number, gamma=HALVE)


def test_a_state_of_something_else_is_refused() -> None:
    schedule = RouterSchedule(CometRouter(DIM, 4, k=2), gamma=HALVE)
    with pytest.raises(ValueError, match=r"must hold num_steps and nothing else, got \['step'\]"):
        schedule.load_state_dict({"step": torch.tensor(1)})
