"""A training run continues to the bit from its tensors, or they are refused by name."""

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from _reference import DIM, make_mixture, router_of
from torch import Tensor, nn
from torch.optim import lr_scheduler

from moe_runtime import (
    CheckpointError,
    Experts,
    MixtureOfExperts,
    RandomState,
    TopKRouter,
    load_checkpoint,
    load_training_tensors,
    save_checkpoint,
    training_tensors,
)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(32, DIM, generator=generator)
        output, penalty, _ = model(x)
        optimizer.zero_grad()
        (output.square().mean() + penalty).backward()
        optimizer.step()


OPTIMIZERS: dict[str, Any] = {
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    "sgd_momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
    "adamw_amsgrad": lambda model: torch.optim.AdamW(model.parameters(), amsgrad=True),
    "adafactor": lambda model: torch.optim.Adafactor(model.parameters()),
}


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_drawn_continues_with_the_random_state(*, kept: bool) -> None:
    model = MixtureOfExperts(
        TopKRouter(DIM, 5, k=2, noise="normal"), Experts(5, (DIM, 7, 4), dropout=0.5)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    others = {"random": RandomState()} if kept else {}
    train(model, optimizer, range(2))
    tensors = copy.deepcopy(training_tensors(model, optimizer, others))
    train(model, optimizer, range(2, 5))
    whole = copy.deepcopy(model.state_dict())
    torch.rand(1)
    load_training_tensors(model, optimizer, tensors, others)
    train(model, optimizer, range(2, 5))
    same = all(torch.equal(whole[name], tensor) for name, tensor in model.state_dict().items())
    assert same == kept


def test_a_random_state_of_other_devices_is_refused() -> None:
    state = {**RandomState().state_dict(), "other": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"`state` must be of \['cpu'.*\], got .*'other'"):
        RandomState().load_state_dict(state)


def test_what_is_loaded_stays_as_it_is_and_can_be_loaded_again() -> None:
    model = make_mixture("comet")
    optimizer = OPTIMIZERS["adam"](model)
    train(model, optimizer, range(2))
    tensors = copy.deepcopy(training_tensors(model, optimizer))
    before = copy.deepcopy(tensors)
    for _ in range(2):
        load_training_tensors(model, optimizer, tensors)
        train(model, optimizer, range(2, 4))
        assert all(torch.equal(tensors[name], before[name]) for name in before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_continues_to_the_bit(tmp_path: Path, name: str) -> None:
    model = make_mixture("comet")
    optimizer = OPTIMIZERS[name](model)
    train(model, optimizer, range(1))
    save_checkpoint(tmp_path / "a", training_tensors(model, optimizer))
    train(model, optimizer, range(1, 3))

    resumed = make_mixture("comet")
    router_of(resumed).set_permutation(router_of(resumed).permutation.flip(-1))
    resumed_optimizer = OPTIMIZERS[name](resumed)
    load_training_tensors(resumed, resumed_optimizer, load_checkpoint(tmp_path / "a").tensors)
    train(resumed, resumed_optimizer, range(1, 3))
    ours, theirs = (
        training_tensors(*each) for each in ((resumed, resumed_optimizer), (model, optimizer))
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[each], theirs[each]) for each in ours)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("optimizer.2.exp_avg", "optimizer.2.exp_avg belongs to none of its 2 parameters"),
        ("optimizer.x.step", "optimizer.x.step belongs to none of its 2 parameters"),
        ("scheduler.step", "scheduler.step belongs to none of ['model', 'optimizer']"),
        ("optimizer", "optimizer belongs to none of ['model', 'optimizer']"),
    ],
    ids=["index", "letter", "owner", "bare"],
)
def test_training_tensors_of_another_optimizer_are_refused_and_change_nothing(
    name: str, message: str
) -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters())
    tensors = training_tensors(nn.Linear(4, 2), optimizer) | {name: torch.ones(1)}
    before = model.weight.detach().clone()
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_training_tensors(model, optimizer, tensors)
    assert torch.equal(model.weight, before)


def stepped(make: Callable[..., torch.optim.Optimizer], model: nn.Module) -> dict[str, Tensor]:
    """Return a model's training tensors after one step."""
    optimizer = make(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return training_tensors(model, optimizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"optimizer.0.exp_avg": torch.ones(2)},
            "optimizer.0.exp_avg has shape (2,), Adam keeps (2, 4)",
        ),
        ({"optimizer.1.step": torch.ones(2)}, "optimizer.1.step has shape (2,), Adam keeps ()"),
        (
            {"optimizer.1.exp_avg": None},
            "optimizer.1 holds ['exp_avg_sq', 'step'], Adam keeps ['exp_avg', 'exp_",
        ),
        (
            {"optimizer.1.more": torch.ones(2)},
            "optimizer.1 holds ['exp_avg', 'exp_avg_sq', 'more', 'step'], Adam keeps",
        ),
    ],
    ids=["shape", "scalar", "missing", "extra"],
)
def test_optimizer_state_that_does_not_fit_is_named_and_changes_nothing(
    change: dict[str, Tensor | None], message: str
) -> None:
    offered = {**stepped(torch.optim.Adam, nn.Linear(4, 2)), **change}
    tensors = {name: tensor for name, tensor in offered.items() if tensor is not None}
    model = nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters())
    before = model.weight.detach().clone()
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_training_tensors(model, optimizer, tensors)
    assert torch.equal(model.weight, before)
    assert not optimizer.state


MOMENTUM = partial(torch.optim.SGD, momentum=0.9)


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"),
    [
        (torch.optim.Adam, MOMENTUM),
        (MOMENTUM, torch.optim.Adam),
        (MOMENTUM, torch.optim.SGD),
        (torch.optim.Adam, partial(torch.optim.Adam, amsgrad=True)),
    ],
    ids=["adam_to_momentum", "momentum_to_adam", "momentum_to_sgd", "adam_to_amsgrad"],
)
def test_state_of_another_optimizer_is_refused_and_changes_nothing(
    saved_by: Callable[..., torch.optim.Optimizer], loaded_by: Callable[..., torch.optim.Optimizer]
) -> None:
    tensors = stepped(saved_by, nn.Linear(4, 2))
    model = nn.Linear(4, 2)
    optimizer = loaded_by(model.parameters())
    before = model.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"optimizer\.0 holds .* keeps .*; optimizer\.1 "):
        load_training_tensors(model, optimizer, tensors)
    assert torch.equal(model.weight, before)
    assert not optimizer.state


def test_loading_steps_neither_the_optimizer_nor_its_scheduler() -> None:
    tensors = stepped(torch.optim.Adam, nn.Linear(4, 2))
    model = nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters())
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    steps: list[object] = []
    optimizer.register_step_post_hook(lambda *_: steps.append(None))
    groups = optimizer.state_dict()["param_groups"]
    load_training_tensors(model, optimizer, tensors)
    assert not steps
    assert optimizer.state_dict()["param_groups"] == groups
    loaded = training_tensors(model, optimizer)
    assert loaded.keys() - tensors.keys() == {"optimizer.group.0.initial_lr"}
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_a_checkpoint_from_before_the_first_step_fits() -> None:
    other = nn.Linear(4, 2)
    tensors = training_tensors(other, torch.optim.Adam(other.parameters()))
    model = nn.Linear(4, 2)
    load_training_tensors(model, torch.optim.Adam(model.parameters()), tensors)
    assert torch.equal(model.weight, other.weight)


def test_optimizer_state_that_is_no_tensor_is_refused() -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.LBFGS(model.parameters())

    def loss() -> float:
        optimizer.zero_grad()
        total = model(torch.ones(1, 4)).square().sum()
        total.backward()
        return float(total.detach())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with pytest.raises(TypeError, match=r"`optimizer` must keep its state in tensors.*LBFGS"):
        training_tensors(model, optimizer)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 2),
    "multi_step": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [1, 3]),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 5),
    "restarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2),
    "one_cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, 9),
    "cyclic": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=2),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "sequence": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.ConstantLR(optimizer), lr_scheduler.StepLR(optimizer, 1)],
        [2],
    ),
}


def scheduled(name: str) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, Any]]:
    """Make a small model, its optimizer and a scheduler."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model, optimizer, {"scheduler": SCHEDULERS[name](optimizer)}


def advance(run: tuple[nn.Module, torch.optim.Optimizer, dict[str, Any]]) -> None:
    model, optimizer, others = run
    optimizer.zero_grad()
    model(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
    others["scheduler"].step()


def as_training_tensors(
    run: tuple[nn.Module, torch.optim.Optimizer, dict[str, Any]],
) -> dict[str, Tensor]:
    return copy.deepcopy(training_tensors(*run))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_resumes_to_the_bit_at_every_step(tmp_path: Path, name: str) -> None:
    run, states = scheduled(name), []
    for _ in range(6):
        states.append(as_training_tensors(run))
        advance(run)
    for stopped in range(1, 6):
        save_checkpoint(tmp_path / "a", states[stopped])
        resumed = scheduled(name)
        model, optimizer, others = resumed
        load_training_tensors(model, optimizer, load_checkpoint(tmp_path / "a").tensors, others)
        for _ in range(stopped, 5):
            advance(resumed)
        ours = as_training_tensors(resumed)
        assert ours.keys() == states[5].keys()
        assert all(torch.equal(ours[each], states[5][each]) for each in ours)


def test_the_scale_of_a_grad_scaler_resumes_exactly() -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1 / 3, growth_interval=7)
    tensors = training_tensors(model, optimizer, {"scaler": scaler})
    resumed = torch.amp.GradScaler("cpu")
    load_training_tensors(model, optimizer, tensors, {"scaler": resumed})
    assert resumed.state_dict() == scaler.state_dict()
    assert type(resumed.state_dict()["growth_interval"]) is int
    with pytest.raises(CheckpointError, match=r"`scaler`: scaler\.\w+ is not part of GradScaler"):
        load_training_tensors(
            model, optimizer, tensors, {"scaler": torch.amp.GradScaler("cpu", enabled=False)}
        )


class Recorder:
    """Has whatever state it is given, and refuses negative numbers."""

    def __init__(self, **state: Any) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["number"] < 0:
            msg = f"`number` must be >= 0, got {state['number']}."
            raise ValueError(msg)
        self.state = state


def test_numbers_come_back_in_their_own_types(tmp_path: Path) -> None:
    state = {"number": 2**53 + 1, "share": 0.1, "on": True, "none": None, "mode": "min"}
    nested: dict[str, Any] = {**state, "deep": {"list": [1, (2.5, False)], 3: torch.ones(2)}}
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    tensors = training_tensors(model, optimizer, {"it": Recorder(**nested)})
    save_checkpoint(tmp_path / "a", tensors)
    empty = {**state, "number": 0, "share": 0.0, "on": False}
    other = Recorder(**empty, deep={"list": [0, (0.0, True)], 3: torch.zeros(2)})
    load_training_tensors(model, optimizer, load_checkpoint(tmp_path / "a").tensors, {"it": other})
    assert torch.equal(other.state["deep"].pop(3), nested["deep"].pop(3))
    assert repr(other.state) == repr(nested)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"it.number": None}, "does not fit `it`: it.number is missing."),
        ({"it.more": torch.ones(1)}, "does not fit `it`: it.more is not part of Recorder."),
        ({"it.number": torch.ones(2)}, "it.number is a number, not a torch.float32 of shape (2,)."),
        ({"it.number": torch.tensor(-1)}, "does not fit `it`: `number` must be >= 0, got -1."),
        ({"model.bias": torch.ones(3)}, "bias has shape (3,), the model needs (1,)"),
    ],
    ids=["missing", "extra", "shape", "refused", "model"],
)
def test_what_another_refuses_is_named_and_changes_nothing(
    change: dict[str, Tensor | None], message: str
) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    offered = training_tensors(
        nn.Linear(2, 1), optimizer, {"first": Recorder(number=5), "it": Recorder(number=5)}
    )
    tensors = {name: each for name, each in {**offered, **change}.items() if each is not None}
    first, second = Recorder(number=1), Recorder(number=2)
    before = copy.deepcopy(training_tensors(model, optimizer, {"first": first, "it": second}))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_training_tensors(model, optimizer, tensors, {"first": first, "it": second})
    after = training_tensors(model, optimizer, {"first": first, "it": second})
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"model": Recorder()}, ValueError, "`others` must have names without a dot"),
        ({"a.b": Recorder()}, ValueError, "`others` must have names without a dot"),
        ({"": Recorder()}, ValueError, "`others` must have names without a dot"),
        ({1: Recorder()}, TypeError, "`others` must be keyed by strings, got int."),
        ({"it": 3}, TypeError, "`others['it']` must have `state_dict` and `load_state_dict`"),
        ([Recorder()], TypeError, "`others` must be a mapping of names to what has a state"),
        ({"it": Recorder(number={1})}, TypeError, "the state of it.number must be a tensor or a"),
    ],
    ids=["owner", "dot", "empty", "key", "value", "list", "state"],
)
def test_others_that_have_no_name_or_no_state_are_refused(
    others: Any, error: type[Exception], message: str
) -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(error, match=re.escape(message)):
        training_tensors(model, torch.optim.SGD(model.parameters()), others)


def test_learning_rates_are_those_of_the_checkpoint() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.25, betas=(0.5, 0.75))
    tensors = training_tensors(model, optimizer)
    resumed = torch.optim.Adam(model.parameters(), lr=1)
    load_training_tensors(model, resumed, tensors)
    assert resumed.param_groups[0]["lr"] == 0.25
    assert resumed.param_groups[0]["betas"] == (0.5, 0.75)
    assert resumed.param_groups[0]["params"][0] is model.weight
