"""The relaxed search on NumPy: never worse, faithful to its parts, and stopped at any time."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_localsearch import (
    RelabelingObjective,
    Relaxation,
    RelaxationSettings,
    RelaxedCost,
    StopReason,
    convergent_schedule,
    frank_wolfe,
    paper_schedule,
    permutation_penalty,
    relax,
)
from moe_localsearch.testing import planted_problem

FEW: Any = {"num_steps": 6}


class Recording:
    """An objective that remembers which matrices it was asked about."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.size = objective.size
        self.differentiable = True
        self.matrices: list[Any] = []

    def __call__(self, batch: Any) -> Any:
        return self.objective(batch)

    def relaxed_cost(self, matrix: Any) -> RelaxedCost:
        self.matrices.append(matrix.copy())
        cost: RelaxedCost = self.objective.relaxed_cost(matrix)
        return cost


def recording(seed: int = 0, size: int = 5) -> Recording:
    problem = planted_problem(num_rows=60, size=size, num_nonzero=2, seed=seed)
    return Recording(problem.objective)


def path(**options: Any) -> Any:
    objective = recording()
    relax(objective, **({"num_steps": 5} | options))
    return np.array(objective.matrices)


class TestRelax:
    @given(
        size=st.integers(1, 5),
        seed=st.integers(0, 10_000),
        schedule=st.sampled_from([convergent_schedule, paper_schedule]),
        noise_scale=st.sampled_from([0.0, 1.0]),
        data=st.data(),
    )
    def test_it_is_never_worse_than_its_start(
        self, size: int, seed: int, schedule: Any, noise_scale: float, data: st.DataObject
    ) -> None:
        objective = planted_problem(
            num_rows=12, size=size, num_nonzero=data.draw(st.integers(1, size)), seed=seed
        ).objective
        start = np.array(data.draw(st.permutations(range(size))))
        result = relax(
            objective, start, schedule=schedule, noise_scale=noise_scale, seed=seed, num_steps=3
        )
        assert result.cost_before == objective(start[None])[0]
        assert result.cost_after == objective(result.permutation[None])[0]
        assert result.cost_after <= result.cost_before
        assert result.permutation.dtype == np.int64
        assert (result.method, result.stop_reason) == ("relax", StopReason.MAX_ROUNDS)
        assert not result.converged
        assert result.num_evaluations == 1 + 3 + 1

    def test_the_convergent_schedule_recovers_most_of_a_planted_gap_and_the_papers_little(
        self,
    ) -> None:
        shares: dict[str, list[float]] = {"convergent": [], "published": [], "faster": []}
        for seed in range(5):
            problem = planted_problem(num_rows=500, size=8, num_nonzero=2, seed=seed)
            objective, planted = problem.objective, problem.permutation
            start = np.roll(planted, 1)
            best, before = objective(np.array([planted, start]))
            for name, options in (
                ("convergent", {}),
                ("published", {"schedule": paper_schedule, "learning_rate": 1e-3}),
                ("faster", {"schedule": paper_schedule}),
            ):
                result = relax(objective, start, num_steps=40, **options)
                shares[name].append((before - result.cost_after) / (before - best))
        assert min(shares["convergent"]) > 0.95
        # PAPER.md section 5: 15 to 29 % of the gap.
        assert np.mean(shares["published"]) < 0.5
        assert np.mean(shares["faster"]) < 0.5

    def test_frank_wolfe_needs_a_tenth_of_the_gradients(self) -> None:
        objective = recording(seed=3, size=6)
        slow = relax(objective)
        num_gradients = len(objective.matrices)
        objective.matrices.clear()
        assert frank_wolfe(objective).cost_after <= slow.cost_after
        assert 10 * len(objective.matrices) <= num_gradients == 100

    def test_equal_seeds_repeat_and_others_do_not(self) -> None:
        options = {"noise_scale": 0.5, "seed": 3}
        np.testing.assert_array_equal(path(**options), path(**options))
        assert not np.allclose(path(**options)[0], path(noise_scale=0.5, seed=4)[0])
        assert not np.allclose(path(seed=3)[0], path(seed=4)[0])

    def test_the_path_does_not_depend_on_the_start(self) -> None:
        objective = recording()
        relax(objective, [4, 3, 2, 1, 0], num_steps=5)
        np.testing.assert_array_equal(objective.matrices, path())

    def test_noise_changes_the_path_but_not_where_it_begins(self) -> None:
        silent, noisy, louder = (path(noise_scale=scale) for scale in (0.0, 1e-3, 1.0))
        np.testing.assert_allclose(noisy[0], silent[0], atol=0.01)
        assert np.all(np.abs(noisy - silent).max(axis=(1, 2)) > 1e-9)
        assert np.abs(louder[0] - silent[0]).max() > 0.1

    def test_the_noise_is_gumbel_noise_on_the_log_weights(self) -> None:
        # One temperature throughout, learning rate 0: what differs from step to step is noise.
        def still(_step: int, _num_steps: int) -> RelaxationSettings:
            return RelaxationSettings(1.0, 1)

        objective = planted_problem(num_rows=5, size=2, num_nonzero=1, seed=0).objective
        recorded = Recording(objective)
        options: Any = {"schedule": still, "learning_rate": 0.0, "num_steps": 3000}
        relax(recorded, **options, noise_scale=1.0)
        # Columns last: the log ratios in a column are those of rows already normalised, and
        # the cross ratio of the four is left alone by both normalisations.
        logs = np.log(np.array(recorded.matrices))
        cross = logs[:, 0, 0] - logs[:, 0, 1] - logs[:, 1, 0] + logs[:, 1, 1]
        # Of four independent Gumbels with signs: mean 0, variance 4 pi^2 / 6.
        assert cross.mean() == pytest.approx(0, abs=0.3)  # 0.1 from U(-0.05, 0.05), 0.05 noise
        assert cross.var() == pytest.approx(4 * np.pi**2 / 6, rel=0.15)

    def test_the_penalty_alone_pulls_towards_a_permutation(self) -> None:
        class Flat(Recording):
            def relaxed_cost(self, matrix: Any) -> RelaxedCost:
                return RelaxedCost(0.0, 0 * super().relaxed_cost(matrix).gradient)

        for weight in (0.0, 1.0):
            objective = Flat(recording().objective)
            relax(
                objective, penalty_weight=weight, schedule=lambda _s, _n: RelaxationSettings(0.5, 9)
            )
            first, *_, last = [float(permutation_penalty(each)) for each in objective.matrices]
            assert first == pytest.approx(2 * 5 * np.log(5), rel=0.01)
            assert last == first if weight == 0 else last < 1

    def test_it_asks_for_the_settings_of_each_step_in_order(self) -> None:
        asked = []

        def schedule(step: int, num_steps: int) -> RelaxationSettings:
            asked.append((step, num_steps))
            return RelaxationSettings(0.5, 2)

        relax(recording(), schedule=schedule, num_steps=4)
        assert asked == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]  # the last for the rounding

    @pytest.mark.parametrize("schedule", [convergent_schedule, paper_schedule])
    def test_it_is_a_relaxation_trained_with_adam(self, torch: Any, schedule: Any) -> None:
        objective, num_steps = recording(), 8
        relax(objective, schedule=schedule, num_steps=num_steps, penalty_weight=0.02, seed=7)
        relaxation = Relaxation(size=5, num_steps=num_steps, schedule=schedule)
        state = relaxation.init(seed=7, xp=torch, dtype=torch.float64)
        state.log_weights.requires_grad_()
        optimizer = torch.optim.Adam([state.log_weights], lr=0.3)
        for seen in objective.matrices:
            matrix = relaxation.matrix(state).matrix
            # Through temperatures of 1e-7, rounding in the 16th digit becomes one in the 9th.
            np.testing.assert_allclose(matrix.detach().numpy(), seen, rtol=1e-4, atol=1e-7)
            gradient = objective.objective.relaxed_cost(seen).gradient
            optimizer.zero_grad()
            cost = (matrix * torch.tensor(gradient)).sum()
            (cost + 0.02 * permutation_penalty(matrix)).backward()
            optimizer.step()
            state = relaxation.step(state)

    def test_the_last_step_counts(self) -> None:
        objective = planted_problem(num_rows=60, size=6, num_nonzero=1, seed=0).objective
        start = relax(objective, num_steps=1, learning_rate=0.0)
        moved = [relax(objective, num_steps=1, learning_rate=rate) for rate in (0.3, 3.0, 30.0)]
        assert any(not np.array_equal(m.permutation, start.permutation) for m in moved)

    def test_the_start_is_not_changed_in_place(self) -> None:
        start = np.array([2, 1, 0, 3, 4])
        result = relax(recording(), start, **FEW)
        result.permutation[:] = 0
        np.testing.assert_array_equal(start, [2, 1, 0, 3, 4])


class TestStopping:
    @pytest.mark.parametrize("last", range(6))
    def test_at_any_call_with_the_best_so_far(self, last: int) -> None:
        seen = []

        def stop(now: Any) -> None:
            seen.append(now)
            if len(seen) > last:
                raise StopIteration

        objective = recording()
        result = relax(objective, [4, 3, 2, 1, 0], progress=stop, **FEW)
        assert len(objective.matrices) == last  # it is told before the question is asked
        assert len(seen) == last + 1
        assert result.stop_reason is StopReason.STOPPED
        assert not result.converged
        assert result.cost_after == objective(result.permutation[None])[0]
        assert result.cost_after <= result.cost_before
        assert result.num_evaluations == 1 + last + 1

    def test_the_rounding_of_the_stopped_step_is_returned_where_it_is_better(self) -> None:
        problem = planted_problem(num_rows=500, size=6, num_nonzero=2, seed=0)

        def stop(now: Any) -> None:
            if now.num_evaluations > 80:
                raise StopIteration

        result = relax(problem.objective, progress=stop)
        np.testing.assert_array_equal(result.permutation, problem.permutation)
        assert result.stop_reason is StopReason.STOPPED

    def test_progress_says_where_it_stands(self) -> None:
        seen: list[Any] = []
        objective = recording()
        result = relax(objective, progress=seen.append, **FEW)
        assert [now.method for now in seen] == ["relax"] * 6
        assert [now.num_evaluations for now in seen] == [1, 2, 3, 4, 5, 6]
        assert {now.cost for now in seen} == {result.cost_before}
        seconds = [now.seconds for now in seen]
        assert seconds == sorted(seconds)
        assert seconds[-1] <= result.seconds


class TestNumericalTrouble:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("part", ["cost", "gradient"])
    @pytest.mark.parametrize("step", [0, 3, 5])
    def test_a_relaxed_cost_that_is_not_finite_returns_the_start(
        self, bad: float, part: str, step: int
    ) -> None:
        class Broken(Recording):
            def relaxed_cost(self, matrix: Any) -> RelaxedCost:
                cost, gradient = super().relaxed_cost(matrix)
                if len(self.matrices) > step:
                    gradient[1, 2] = bad if part == "gradient" else 0.0
                    cost = bad if part == "cost" else cost
                return RelaxedCost(cost, gradient)

        objective = Broken(recording().objective)
        result = relax(objective, [4, 3, 2, 1, 0], **FEW)
        np.testing.assert_array_equal(result.permutation, [4, 3, 2, 1, 0])
        assert result.stop_reason is StopReason.NON_FINITE_COST
        assert result.cost_after == result.cost_before
        assert len(objective.matrices) == step + 1

    def test_a_nan_start_is_returned(self) -> None:
        class Broken(Recording):
            def __call__(self, batch: Any) -> Any:
                return np.full(len(batch), np.nan)

        result = relax(Broken(recording().objective), [4, 3, 2, 1, 0], **FEW)
        np.testing.assert_array_equal(result.permutation, [4, 3, 2, 1, 0])
        assert result.stop_reason is StopReason.NON_FINITE_COST

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_an_unusable_cost_of_the_rounding_keeps_the_start(self, bad: float) -> None:
        class Broken(Recording):
            def __call__(self, batch: Any) -> Any:
                return np.where(np.all(batch == [4, 3, 2, 1, 0], axis=1), 1.0, bad)

        result = relax(Broken(recording().objective), [4, 3, 2, 1, 0], **FEW)
        np.testing.assert_array_equal(result.permutation, [4, 3, 2, 1, 0])
        assert result.cost_after == 1


class TestBadArguments:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"schedule": 3}, TypeError, "`schedule` must be callable, got int"),
            ({"num_steps": 0}, ValueError, "`num_steps` must be >= 1, got 0"),
            ({"num_steps": 1.5}, TypeError, r"`num_steps` must be an integer, got 1\.5"),
            ({"learning_rate": -1.0}, ValueError, "`learning_rate` must be finite and >= 0"),
            ({"learning_rate": np.inf}, ValueError, "`learning_rate` must be finite .* got inf"),
            ({"penalty_weight": np.nan}, ValueError, "`penalty_weight` must be finite .* got nan"),
            ({"penalty_weight": "1"}, TypeError, "`penalty_weight` must be a real number"),
            ({"noise_scale": -1e-9}, ValueError, "`noise_scale` must be finite and >= 0"),
            ({"seed": -1}, ValueError, "`seed` must be >= 0, got -1"),
            ({"seed": None}, TypeError, "`seed` must be an integer, got None"),
            ({"progress": 1}, TypeError, "`progress` must be callable, got int"),
            ({"start": [0, 1]}, ValueError, r"`start` must have shape \(\.\.\., n=5\), got \(2,\)"),
            ({"start": [0, 1, 2, 3, 3]}, ValueError, "`start` must hold each of 0, ..., 4 once"),
        ],
    )
    def test_options(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            relax(recording(), **(FEW | change))

    def test_an_objective_without_a_gradient(self) -> None:
        problem = planted_problem(num_rows=20, size=3, num_nonzero=2, seed=0)
        rough = RelabelingObjective(problem.slot_weights, problem.outputs, problem.row_loss)
        bare: Any = lambda batch: np.zeros(len(batch))  # noqa: E731
        bare.size = 3
        for objective in (rough, bare):
            with pytest.raises(TypeError, match="must offer a differentiable `relaxed_cost`"):
                relax(objective)
        with pytest.raises(TypeError, match="`objective` must be callable and have a `size`"):
            relax(rough.size)  # type: ignore[arg-type]

    def test_a_gradient_of_the_wrong_shape(self) -> None:
        class Wrong(Recording):
            def relaxed_cost(self, _matrix: Any) -> RelaxedCost:
                return RelaxedCost(0.0, np.zeros((5, 4)))

        with pytest.raises(ValueError, match=r"relaxed_cost\(\.\.\.\)\.gradient` .* got \(5, 4\)"):
            relax(Wrong(recording().objective))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ((-1.0, 5), "`temperature` must be finite and > 0"),
            ((0.0, 5), "`temperature` must be finite and > 0"),
            ((1.0, 0), "`num_iterations` must be >= 1"),
        ],
    )
    def test_what_the_schedule_returns(self, settings: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            relax(recording(), schedule=lambda _s, _n: RelaxationSettings(*settings), **FEW)
