"""What a study tries: variants, and the settings of each of their trials."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import optuna

from moe_benchmarks._checks import LARGEST_SEED, check_range, refuse
from moe_benchmarks._data._share import check_share
from moe_benchmarks._experiments._catalog import EXPERIMENTS
from moe_benchmarks._experiments._gates import GATES
from moe_benchmarks._experiments._search_names import SEARCHES
from moe_benchmarks._experiments._settings import TrialSettings

SAMPLERS = ("random", "tpe")


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
    owner: str = ""  # of the trials that are begun from this folder; no two folders have one

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
                refuse(name, f"among {list(known)}", unknown or "none")
        for name in ("trials", "epochs", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                refuse(name, ">= 1", value)
        check_share(self.share)
        check_range("seed", self.seed, 0, LARGEST_SEED)
        if not self.variants:
            refuse("searches", "something that one of the gates can do", list(self.searches))

    @property
    def variants(self) -> tuple[tuple[str, str], ...]:
        """Gates with each search that they can do."""
        return tuple(
            (gate, search)
            for gate in self.gates
            for search in self.searches
            if search != "ids" or gate == "hash"
        )

    @property
    def fixed(self) -> dict[str, Any]:
        """What a study cannot change: more trials or variants are more of the same."""
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in ("trials", "gates", "searches", "owner")
        }

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
    return TrialSettings.for_experiment(
        experiment,
        gate=gate,
        search=search,
        epochs=plan.epochs,
        patience=plan.patience,
        learning_rate=float(np.exp(generator.uniform(*np.log(experiment.learning_rates)))),
        gamma=experiment.gammas[generator.integers(len(experiment.gammas))],
        entropy_weight=experiment.entropy_weights[
            generator.integers(len(experiment.entropy_weights))
        ],
        search_epochs=int(generator.integers(low, high + 1)),
        seed=int(generator.integers(LARGEST_SEED + 1)),
    )


def suggested_settings(
    plan: StudyPlan, gate: str, search: str, number: int, trial: optuna.Trial
) -> TrialSettings:
    """Let Optuna's sampler choose what matters to the variant; the seed is as in a random study."""
    experiment = EXPERIMENTS[plan.experiment]
    drawn = sampled_settings(plan, gate, search, number)
    rate = trial.suggest_float("learning_rate", *experiment.learning_rates, log=True)
    settings = replace(drawn, learning_rate=rate)
    if GATES[gate].has_smooth_step:
        gamma = _suggest(trial, "gamma", experiment.gammas)
        entropy_weight = _suggest(trial, "entropy_weight", experiment.entropy_weights)
        settings = replace(settings, gamma=gamma, entropy_weight=entropy_weight)
    if search not in ("identity", "random"):
        search_epochs = trial.suggest_int("search_epochs", *experiment.search_epochs)
        settings = replace(settings, search_epochs=search_epochs)
    return settings


def _suggest(trial: optuna.Trial, name: str, values: tuple[float, ...]) -> float:
    chosen = trial.suggest_categorical(name, values)
    assert isinstance(chosen, float)
    return chosen
