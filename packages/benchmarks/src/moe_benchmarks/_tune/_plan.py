"""What a study tries: variants, and the settings of each of their trials."""

from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import numpy as np
import optuna

from moe_benchmarks._experiments._catalog import EXPERIMENTS, Experiment
from moe_benchmarks._experiments._gates import GATES
from moe_benchmarks._experiments._search_names import SEARCHES
from moe_benchmarks._experiments._settings import TrialSettings

SAMPLERS = ("random", "tpe")
TRIAL_SEEDS = 2**31


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What determines the rows of a study, whatever machine and how many processes run it."""

    experiment: str
    gates: tuple[str, ...]
    searches: tuple[str, ...]
    trials: int  # of each variant
    share: float = 1.0  # of the users, or of the rows of pictures
    epochs: int | None = None  # at most; the experiment's own if None
    patience: int | None = None  # the experiment's own if None
    sampler: str = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse plans that cannot work, by name."""
        for name, values, known in (
            ("experiment", (self.experiment,), EXPERIMENTS),
            ("gates", self.gates, GATES),
            ("searches", self.searches, SEARCHES),
            ("sampler", (self.sampler,), SAMPLERS),
        ):
            unknown = [value for value in values if value not in known]
            if unknown or not values:
                _refuse(name, f"among {list(known)}", unknown or "none")
        for name in ("trials", "epochs", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                _refuse(name, ">= 1", value)
        if not 0 < self.share <= 1:
            _refuse("share", "in (0, 1]", self.share)
        if not 0 <= self.seed < TRIAL_SEEDS:
            _refuse("seed", f"in [0, {TRIAL_SEEDS})", self.seed)
        if not self.variants:
            _refuse("searches", "something that one of the gates can do", list(self.searches))

    @property
    def variants(self) -> tuple[tuple[str, str], ...]:
        """Gates with each search that they can do."""
        return tuple(
            (gate, search)
            for gate in self.gates
            for search in self.searches
            if search != "ids" or gate == "hash"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON can hold it."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def sampled_settings(plan: StudyPlan, gate: str, search: str, trial: int) -> TrialSettings:
    """Draw a trial's settings at random, as the paper does.

    The same number gives all variants the same rate, gamma, entropy weight, search epochs and
    seed, so that they can be compared in pairs.
    """
    experiment = EXPERIMENTS[plan.experiment]
    generator = np.random.default_rng((plan.seed, trial))
    low, high = experiment.search_epochs
    return _settings(
        plan,
        gate,
        search,
        learning_rate=float(np.exp(generator.uniform(*np.log(experiment.learning_rates)))),
        gamma=experiment.gammas[generator.integers(len(experiment.gammas))],
        entropy_weight=experiment.entropy_weights[
            generator.integers(len(experiment.entropy_weights))
        ],
        search_epochs=int(generator.integers(low, high + 1)),
        seed=int(generator.integers(TRIAL_SEEDS)),
    )


def suggested_settings(
    plan: StudyPlan, gate: str, search: str, number: int, trial: optuna.Trial
) -> TrialSettings:
    """Let Optuna's sampler choose what matters to the variant; the seed is as in a random study."""
    experiment: Experiment = EXPERIMENTS[plan.experiment]
    drawn = sampled_settings(plan, gate, search, number)
    gamma, entropy_weight, search_epochs = drawn.gamma, drawn.entropy_weight, drawn.search_epochs
    learning_rate = trial.suggest_float("learning_rate", *experiment.learning_rates, log=True)
    if GATES[gate].has_smooth_step:
        gamma = _suggest(trial, "gamma", experiment.gammas)
        entropy_weight = _suggest(trial, "entropy_weight", experiment.entropy_weights)
    if search not in ("identity", "random"):
        search_epochs = trial.suggest_int("search_epochs", *experiment.search_epochs)
    return _settings(
        plan,
        gate,
        search,
        learning_rate=learning_rate,
        gamma=gamma,
        entropy_weight=entropy_weight,
        search_epochs=search_epochs,
        seed=drawn.seed,
    )


def _suggest(trial: optuna.Trial, name: str, values: tuple[float, ...]) -> float:
    chosen = trial.suggest_categorical(name, values)
    assert isinstance(chosen, float)
    return chosen


def _settings(
    plan: StudyPlan,
    gate: str,
    search: str,
    *,
    learning_rate: float,
    gamma: float,
    entropy_weight: float,
    search_epochs: int,
    seed: int,
) -> TrialSettings:
    experiment = EXPERIMENTS[plan.experiment]
    return TrialSettings(
        gate=gate,
        search=search,
        seed=seed,
        learning_rate=learning_rate,
        gamma=gamma,
        entropy_weight=entropy_weight,
        search_epochs=search_epochs,
        epochs=experiment.epochs if plan.epochs is None else plan.epochs,
        patience=experiment.patience if plan.patience is None else plan.patience,
        batch_size=experiment.batch_size,
        num_experts=experiment.num_experts,
        k=experiment.k,
        task_weights=experiment.task_weights,
    )


def _refuse(name: str, allowed: str, value: object) -> NoReturn:
    msg = f"`{name}` must be {allowed}, got {value!r}."
    raise ValueError(msg)
