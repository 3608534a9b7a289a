"""The relaxation step by step in a training loop, in any library."""

import io
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np
import pytest

from moe_localsearch import (
    Relaxation,
    RelaxationSettings,
    RelaxationState,
    _relax,
    convergent_schedule,
    paper_schedule,
    sinkhorn,
)


def test_init_gives_the_same_numbers_in_every_library(xp: ModuleType) -> None:
    relaxation = Relaxation(size=4, num_steps=3)
    expected = relaxation.init(seed=5, xp=np, dtype=np.float32, batch=(2,))
    state = relaxation.init(seed=5, xp=xp, dtype=xp.float32, batch=(2,))
    assert array_api_compat.array_namespace(state.log_weights) is xp
    assert state.log_weights.dtype == xp.float32
    assert state.step == 0
    np.testing.assert_array_equal(np.asarray(state.log_weights), expected.log_weights)
    matrix, error = relaxation.matrix(state)
    expected_matrix, expected_error = relaxation.matrix(expected)
    np.testing.assert_allclose(np.asarray(matrix), expected_matrix, atol=1e-6)
    np.testing.assert_allclose(np.asarray(error), expected_error, atol=1e-6)
    np.testing.assert_array_equal(relaxation.finish(state), relaxation.finish(expected))


def test_init_is_uniform_within_the_papers_range() -> None:
    state = Relaxation(size=50, num_steps=1).init(seed=0, xp=np, dtype=np.float64, batch=(9,))
    assert np.abs(state.log_weights).max() <= 0.05
    assert state.log_weights.var() == pytest.approx(0.1**2 / 12, rel=0.03)
    other = Relaxation(size=50, num_steps=1).init(seed=1, xp=np, dtype=np.float64, batch=(9,))
    assert not np.array_equal(state.log_weights, other.log_weights)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
def test_a_batch_is_as_many_permutations(batch: tuple[int, ...]) -> None:
    relaxation = Relaxation(size=4, num_steps=3)
    state = relaxation.init(seed=0, xp=np, dtype=np.float64, batch=batch)
    assert state.log_weights.shape == (*batch, 4, 4)
    matrix, error = relaxation.matrix(state)
    assert (matrix.shape, error.shape) == ((*batch, 4, 4), batch)
    found = relaxation.finish(state)
    assert found.shape == (*batch, 4)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(np.sort(found, axis=-1), np.broadcast_to(range(4), (*batch, 4)))
    for index in np.ndindex(batch):
        alone = relaxation.matrix(RelaxationState(state.log_weights[index], 0)).matrix
        np.testing.assert_allclose(alone, matrix[index], rtol=1e-13)


@pytest.mark.parametrize("schedule", [convergent_schedule, paper_schedule])
def test_temperatures_follow_the_schedule_and_then_stay(schedule: Any) -> None:
    relaxation = Relaxation(size=3, num_steps=4, schedule=schedule)
    state = relaxation.init(seed=0, xp=np, dtype=np.float64)
    for step in (0, 1, 2, 3, 4, 4, 4):
        temperature, num_iterations = schedule(step, 4)
        expected = sinkhorn(
            state.log_weights, temperature=temperature, num_iterations=num_iterations
        )
        np.testing.assert_array_equal(relaxation.matrix(state).matrix, expected.matrix)
        state = relaxation.step(state)
    assert state.step == 7


def test_the_default_schedule_is_the_one_that_converges() -> None:
    assert Relaxation(size=2, num_steps=1).schedule is convergent_schedule


def test_a_step_keeps_the_log_weights_or_takes_the_new_ones() -> None:
    relaxation = Relaxation(size=2, num_steps=3)
    state = relaxation.init(seed=0, xp=np, dtype=np.float64)
    kept, replaced = relaxation.step(state), relaxation.step(state, np.eye(2))
    assert kept.log_weights is state.log_weights
    np.testing.assert_array_equal(replaced.log_weights, np.eye(2))
    assert (state.step, kept.step, replaced.step) == (0, 1, 1)


def test_noise_is_added_to_the_log_weights() -> None:
    relaxation = Relaxation(size=3, num_steps=3)
    state = relaxation.init(seed=0, xp=np, dtype=np.float64)
    noise = np.random.default_rng(0).gumbel(size=(3, 3))
    expected = relaxation.matrix(RelaxationState(state.log_weights + noise, 0)).matrix
    found = relaxation.matrix(state, noise=noise).matrix
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - relaxation.matrix(state).matrix).max() > 0.05


def test_a_saved_state_resumes_to_the_same_numbers() -> None:
    relaxation = Relaxation(size=4, num_steps=12)
    slopes = np.random.default_rng(0).normal(size=(12, 4, 4))

    def train(state: RelaxationState, until: int) -> tuple[RelaxationState, list[Any]]:
        matrices = []
        while state.step < until:
            matrices.append(relaxation.matrix(state).matrix)
            moved = state.log_weights - 0.3 * slopes[state.step] * matrices[-1]
            state = relaxation.step(state, moved)
        return state, matrices

    first = relaxation.init(seed=0, xp=np, dtype=np.float64)
    whole, expected = train(first, 12)
    half, before = train(first, 5)
    file = io.BytesIO()
    np.savez(file, **half._asdict())
    file.seek(0)
    saved = np.load(file)
    resumed = RelaxationState(saved["log_weights"], int(saved["step"]))
    resumed, after = train(resumed, 12)
    np.testing.assert_array_equal([*before, *after], expected)
    np.testing.assert_array_equal(relaxation.finish(resumed), relaxation.finish(whole))


def test_finish_is_the_nearest_permutation_at_any_step() -> None:
    relaxation = Relaxation(size=4, num_steps=10)
    wanted = np.array([[2, 0, 3, 1], [0, 1, 2, 3]])
    for step in (0, 5, 10, 99):
        state = RelaxationState(np.eye(4)[wanted], step)
        np.testing.assert_array_equal(relaxation.finish(state), wanted)


def test_torch_learns_a_permutation_in_a_training_loop(torch: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(64, 5, generator=generator)
    hidden = torch.tensor([3, 0, 4, 1, 2])
    targets = features[:, hidden]
    relaxation = Relaxation(size=5, num_steps=40)
    state = relaxation.init(seed=0, xp=torch, dtype=torch.float32)
    parameter = torch.nn.Parameter(state.log_weights)
    state = state._replace(log_weights=parameter)
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    losses = []
    for _ in range(40):
        mixed = features @ relaxation.matrix(state).matrix.T
        loss = torch.nn.functional.mse_loss(mixed, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = relaxation.step(state)
        losses.append(loss.item())
    np.testing.assert_array_equal(relaxation.finish(state), hidden.numpy())
    assert losses[-1] < 0.05 * losses[0]
    assert relaxation.matrix(state).marginal_error < 0.02


def test_torch_gradients_are_those_of_sinkhorn(torch: Any) -> None:
    relaxation = Relaxation(size=4, num_steps=10)
    cotangent = torch.tensor(np.random.default_rng(0).normal(size=(4, 4)))
    state = relaxation.init(seed=0, xp=torch, dtype=torch.float64)
    state = RelaxationState(state.log_weights.requires_grad_(), 4)
    (relaxation.matrix(state).matrix * cotangent).sum().backward()
    settings = convergent_schedule(4, 10)
    values = state.log_weights.detach().numpy()
    matrix, tape = _relax._sinkhorn_with_tape(values, settings)
    expected = _relax._back_through(tape, matrix, cotangent.numpy())
    np.testing.assert_allclose(state.log_weights.grad.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_jax_gradients_under_jit_are_those_of_numpy() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")

    def short(step: int, num_steps: int) -> RelaxationSettings:
        # Iterations are unrolled: 20 of them compile in 5 s, 40 in a minute (jax 0.10, CPU).
        return RelaxationSettings(1.0 - 0.5 * step / num_steps, 3)

    relaxation = Relaxation(size=4, num_steps=10, schedule=short)
    state = relaxation.init(seed=0, xp=jax.numpy, dtype=jax.numpy.float32)
    cotangent = np.random.default_rng(0).normal(size=(4, 4))

    def cost(log_weights: Any) -> Any:  # the step sets how many iterations: a constant
        now = RelaxationState(log_weights, 4)
        return jax.numpy.sum(relaxation.matrix(now, xp=jax.numpy).matrix * cotangent)

    found = jax.jit(jax.grad(cost))(state.log_weights)
    values = np.asarray(state.log_weights, dtype=np.float64)
    matrix, tape = _relax._sinkhorn_with_tape(values, short(4, 10))
    expected = _relax._back_through(tape, matrix, cotangent)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-3, atol=1e-5)  # float32


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 0}, ValueError, "`size` must be >= 1, got 0"),
        ({"size": 2.0}, TypeError, r"`size` must be an integer, got 2\.0"),
        ({"num_steps": 0}, ValueError, "`num_steps` must be >= 1, got 0"),
        ({"num_steps": True}, TypeError, "`num_steps` must be an integer, got True"),
        ({"schedule": "paper"}, TypeError, "`schedule` must be callable, got str"),
    ],
)
def test_bad_settings_are_named(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Relaxation(**({"size": 3, "num_steps": 5} | options))


@pytest.mark.parametrize(
    ("log_weights", "step", "error", "message"),
    [
        (np.zeros((2, 2)), 0, ValueError, r"`state\.log_weights` .* n=3, n\), got \(2, 2\)"),
        (np.zeros((3, 4)), 0, ValueError, r"`state\.log_weights` must have shape .* \(3, 4\)"),
        (np.zeros(3), 0, ValueError, r"`state\.log_weights` must have shape .* got \(3,\)"),
        (np.zeros((3, 3), int), 0, TypeError, r"`state\.log_weights` .* got int64"),
        ([[0.0] * 3] * 3, 0, TypeError, r"`state.log_weights` must be an array of .* got list"),
        (np.zeros((3, 3)), -1, ValueError, r"`state\.step` must be >= 0, got -1"),
        (np.zeros((3, 3)), 0.5, TypeError, r"`state\.step` must be an integer, got 0\.5"),
    ],
)
def test_bad_states_are_named(
    log_weights: Any, step: Any, error: type[Exception], message: str
) -> None:
    relaxation = Relaxation(size=3, num_steps=5)
    state = RelaxationState(log_weights, step)
    for use in (relaxation.matrix, relaxation.finish):
        with pytest.raises(error, match=message):
            use(state)


def test_bad_noise_and_seeds_are_named() -> None:
    relaxation = Relaxation(size=3, num_steps=5)
    state = relaxation.init(seed=0, xp=np, dtype=np.float64)
    with pytest.raises(ValueError, match="`noise` must have the shape of `log_weights`"):
        relaxation.matrix(state, noise=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="`seed` must be >= 0, got -1"):
        relaxation.init(seed=-1, xp=np, dtype=np.float64)
    no_seed: Any = None
    with pytest.raises(TypeError, match="`seed` must be an integer, got None"):
        relaxation.init(seed=no_seed, xp=np, dtype=np.float64)


@pytest.mark.parametrize("mistake", ["nan", "list", "batch", "integers"])
def test_other_mistakes_are_named(mistake: str) -> None:
    relaxation = Relaxation(size=3, num_steps=5)
    batch: Any = 3
    lists: Any = [[0.0] * 3] * 3
    with pytest.raises((TypeError, ValueError)) as caught:  # noqa: PT012  # one of four
        if mistake == "nan":
            relaxation.finish(RelaxationState(np.full((3, 3), np.nan), 0))
        if mistake == "list":
            relaxation.matrix(RelaxationState(lists, 0))
        if mistake == "batch":
            relaxation.init(seed=0, xp=np, dtype=np.float64, batch=batch)
        if mistake == "integers":  # all of U(-0.05, 0.05) becomes 0
            relaxation.init(seed=0, xp=np, dtype=np.int64)
    names = {"batch": "`batch`", "integers": "`dtype`", "nan": "`matrix` must be finite"}
    assert names.get(mistake, "`state.log_weights`") in str(caught.value)


def test_what_is_no_state_or_no_setting_is_named() -> None:
    relaxation = Relaxation(size=3, num_steps=5)
    state = relaxation.init(seed=0, xp=np, dtype=np.float64)
    array: Any = state.log_weights
    with pytest.raises(TypeError, match="`state` must be a RelaxationState, got ndarray"):
        relaxation.matrix(array)
    with pytest.raises(ValueError, match=r"`state.log_weights` must have shape .*n=3, n\), got"):
        relaxation.step(state, np.ones((2, 2)))
    schedule: Any = lambda _step, _num_steps: 0.1  # noqa: E731
    with pytest.raises(TypeError, match=r"`schedule` must return RelaxationSettings, got 0\.1"):
        Relaxation(size=3, num_steps=5, schedule=schedule).matrix(state)
