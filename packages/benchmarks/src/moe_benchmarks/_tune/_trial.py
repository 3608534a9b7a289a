"""A waiting trial of a study: taken from the storage, and told how it ended."""

import json
from typing import NamedTuple

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from moe_benchmarks._experiments._row import Row
from moe_benchmarks._experiments._settings import TrialSettings
from moe_benchmarks._tune._plan import StudyPlan, sampled_settings, suggested_settings
from moe_benchmarks._tune._storage import NUMBER, OWNER, ROW, sampler, study_name


class TakenTrial(NamedTuple):
    """A trial that is this process's to run."""

    study: optuna.Study
    trial: optuna.Trial
    number: int  # within its variant
    settings: TrialSettings

    def finish(self, row: Row) -> None:
        """Keep its row and end it."""
        # The row first: a trial that is finished has one.
        self.trial.set_user_attr(ROW, json.dumps(row, allow_nan=False))
        if row["state"] == "complete":
            self.study.tell(self.trial, row["metrics"]["validation"]["trained"]["loss"])
        else:
            self.study.tell(self.trial, state=TrialState.FAIL)


def take_trial(storage: BaseStorage, plan: StudyPlan, gate: str, search: str) -> TakenTrial | None:
    """Take a waiting trial of a variant; None if another process took the last one meanwhile."""
    study = optuna.load_study(
        storage=storage,
        study_name=study_name(storage, plan, gate, search),
        sampler=sampler(plan, 0),
    )
    trial = study.ask()
    if NUMBER not in trial.user_attrs:
        # There was none, and Optuna made a new one.
        study.tell(trial, state=TrialState.FAIL)
        return None
    trial.set_user_attr(OWNER, plan.owner)
    number = int(trial.user_attrs[NUMBER])
    study.sampler = sampler(plan, number)
    if plan.sampler == "random":
        settings = sampled_settings(plan, gate, search, number)
    else:
        settings = suggested_settings(plan, gate, search, number, trial)
    return TakenTrial(study, trial, number, settings)


def count_trials(storage: BaseStorage, plan: StudyPlan, gate: str, search: str) -> tuple[int, int]:
    """Return how many trials of a variant wait, and how many have begun."""
    study = optuna.load_study(storage=storage, study_name=study_name(storage, plan, gate, search))
    trials = study.get_trials(deepcopy=False)
    waiting = sum(trial.state is TrialState.WAITING for trial in trials)
    return waiting, len(trials) - waiting
