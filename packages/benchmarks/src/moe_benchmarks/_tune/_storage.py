"""A study on disk or in a database: Optuna's trials, each with the row that it gave.

A trial has a number of its own within its variant. One that a kill interrupted is marked as
failed, and its number is tried again by a new trial of Optuna's: a row exists in the storage
exactly if its trial is finished. Several folders may work on a study in a database: each trial
says which folder it was begun from.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from moe_benchmarks._files import DamagedFileError, read_json, write_json, write_text
from moe_benchmarks._tune._errors import StudyError
from moe_benchmarks._tune._plan import StudyPlan
from moe_benchmarks._tune._remote import open_url
from moe_benchmarks._workers import LOCK, only_one

JOURNAL, ROWS, PLAN = "journal.log", "rows.jsonl", "plan.json"
NUMBER, ROW, OWNER = "number", "row", "owner"
# A trial says whose it is right after it was begun.
SOON = timedelta(minutes=1)
# Keys that every row of a trial has.
TRIAL = frozenset({"gate", "search", "trial", "state"})

Row = dict[str, Any]


def open_storage(folder: Path, url: str | None = None) -> BaseStorage:
    """Open the journal in a folder, or what several machines share at a URL."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is not None:
        return open_url(url)
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


@contextmanager
def hold_study(folder: Path, plan: StudyPlan) -> Iterator[StudyPlan]:
    """Make the folder this study's, hold it against a second command, and say whose trials are."""
    check_folder(folder)  # before a lock is left in it
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder):
        yield claim_study(folder, plan)


def check_folder(folder: Path) -> None:
    """Refuse a file, and a folder of something else."""
    if folder.exists() and not folder.is_dir():
        msg = f"`--out` must be a folder, got the file {folder}."
        raise StudyError(msg)
    if not folder.exists() or (folder / PLAN).exists():
        return
    if any(path.name != LOCK for path in folder.iterdir()):
        msg = f"`--out` must be a new or empty folder or one of a study, got {folder}."
        raise StudyError(msg)


def claim_study(folder: Path, plan: StudyPlan) -> StudyPlan:
    """Make the folder this study's, let it have more trials, or refuse another one's."""
    check_folder(folder)
    path = folder / PLAN
    found = read_json(path, "experiment") if path.exists() else plan.to_dict()
    changes = ", ".join(
        f"{name} is {found.get(name)!r} there and {value!r} here"
        for name, value in plan.fixed.items()
        if found.get(name) != value
    )
    if changes:
        msg = f"{folder} holds another study ({changes}); choose another folder with --out."
        raise StudyError(msg)
    plan = replace(plan, owner=found.get("owner") or uuid.uuid4().hex)
    write_json(path, plan.to_dict())
    return plan


def study_name(storage: BaseStorage, plan: StudyPlan, gate: str, search: str) -> str:
    """Name a variant's study in the storage; a database may have those of other plans too."""
    name = f"{plan.experiment}/{gate}/{search}"
    if isinstance(storage, JournalStorage):
        return name
    fixed = json.dumps(plan.fixed, sort_keys=True)
    return f"{name}/{hashlib.sha256(fixed.encode()).hexdigest()[:16]}"


def open_study(folder: Path, plan: StudyPlan, url: str | None = None) -> BaseStorage:
    """Open the storage of a folder that is held, and prepare it.

    Raises
    ------
    DamagedFileError
        If the rows are damaged.
    StudyError
        If the journal is.
    """
    journal = folder / JOURNAL
    if url is None:
        _mend_journal(journal)
    try:
        storage = open_storage(folder, url)
    except (ValueError, KeyError) as error:
        if url is not None:
            raise
        msg = f"{journal} is damaged ({error}); delete it and run again: {ROWS} is continued."
        raise StudyError(msg) from error
    prepare(storage, plan, folder)
    return storage


def prepare(storage: BaseStorage, plan: StudyPlan, folder: Path) -> None:
    """Create the studies, take over rows of another machine, and queue what is not done.

    Trials that run by now and are this folder's were left by a process that was killed: the
    folder is held.
    """
    foreign = _rows_by_variant(folder / ROWS)
    for gate, search in plan.variants:
        study = optuna.create_study(
            storage=storage,
            study_name=study_name(storage, plan, gate, search),
            sampler=sampler(plan, 0),
            load_if_exists=True,
        )
        trials = study.get_trials(deepcopy=False)
        left = {trial.number for trial in trials if _was_left(trial, storage, plan)}
        for number in left:
            study.tell(number, state=TrialState.FAIL)
        known = {
            trial.user_attrs[NUMBER]
            for trial in trials
            if NUMBER in trial.user_attrs
            and (
                ROW in trial.user_attrs  # whose process may have been killed before it ended it
                or (not trial.state.is_finished() and trial.number not in left)
            )
        }
        rows = foreign.get((gate, search), {})
        _finish_waiting(storage, study, rows)
        for number, row in rows.items():
            if number not in known:
                study.add_trial(_finished(number, row))
                known.add(number)
        for number in range(plan.trials):
            if number not in known:
                study.enqueue_trial({}, user_attrs={NUMBER: number})


def _was_left(trial: FrozenTrial, storage: BaseStorage, plan: StudyPlan) -> bool:
    """Whether nobody runs a trial any more that was begun and has not ended."""
    if trial.state is not TrialState.RUNNING:
        return False
    owner = trial.user_attrs.get(OWNER)
    if isinstance(storage, JournalStorage) or owner == plan.owner:
        return True
    began = trial.datetime_start
    return owner is None and (began is None or datetime.now() - began > SOON)  # noqa: DTZ005 - Optuna's


def sampler(plan: StudyPlan, trial: int) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler; random settings are drawn by the trial's number, not by it."""
    if plan.sampler == "tpe":
        # Several processes at once, each aware of what the others try.
        return optuna.samplers.TPESampler(seed=plan.seed + trial, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=plan.seed + trial)


def rows_of(storage: BaseStorage, plan: StudyPlan) -> list[Row]:
    """Return the rows of all finished trials, by variant and number."""
    rows = []
    for gate, search in plan.variants:
        study = optuna.load_study(
            storage=storage, study_name=study_name(storage, plan, gate, search)
        )
        finished = [trial for trial in study.get_trials(deepcopy=False) if ROW in trial.user_attrs]
        finished.sort(key=lambda trial: int(trial.user_attrs[NUMBER]))
        rows += [json.loads(trial.user_attrs[ROW]) for trial in finished if _is_finished(trial)]
    return rows


def write_rows(storage: BaseStorage, plan: StudyPlan, folder: Path) -> list[Row]:
    """Write the rows of all finished trials to the folder, whole or not at all, and return them.

    Rows that are there and not the storage's follow them: of variants that the plan leaves out,
    and of trials that another machine ran meanwhile.
    """
    rows, path = rows_of(storage, plan), folder / ROWS
    ours = set(map(_identity, rows))
    others = [row for row in _rows_there(path) if _identity(row) not in ours]
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in [*rows, *others])
    write_text(path, text)
    return rows


def read_rows(path: Path, *forms: frozenset[str]) -> list[Row]:
    """Read result rows, naming the file and the line where one is damaged.

    Each must have all the keys of one of the `forms`: those of a trial by default.
    """
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}."
        raise DamagedFileError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"{path} is damaged ({error})."
        raise DamagedFileError(msg) from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not any(form <= set(row) for form in forms or (TRIAL,)):
                msg = "it is no result row"
                raise ValueError(msg)  # noqa: TRY301 - told with the line, below
        except ValueError as error:
            msg = f"{path}, line {number}, is damaged ({error})."
            raise DamagedFileError(msg) from error
        rows.append(row)
    return rows


def _mend_journal(journal: Path) -> None:
    """Cut what a kill left of a last line, behind which Optuna would write on, and its lock.

    The folder is held: nobody else has the lock, for which Optuna would wait half a minute.
    """
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists():
        content = journal.read_bytes()
        os.truncate(journal, content.rfind(b"\n") + 1)


def _is_finished(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.FAIL)


def _rows_there(path: Path) -> list[Row]:
    return read_rows(path) if path.exists() else []


def _identity(row: Row) -> tuple[str, str, int]:
    return row["gate"], row["search"], row["trial"]


def _rows_by_variant(path: Path) -> dict[tuple[str, str], dict[int, Row]]:
    by_variant: dict[tuple[str, str], dict[int, Row]] = {}
    for row in _rows_there(path):
        by_variant.setdefault((row["gate"], row["search"]), {})[row["trial"]] = row
    return by_variant


def _finish_waiting(storage: BaseStorage, study: optuna.Study, rows: Mapping[int, Row]) -> None:
    """Finish waiting trials that another machine has run, which Optuna's own `tell` refuses."""
    study_id = storage.get_study_id_from_name(study.study_name)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        row = rows.get(trial.user_attrs[NUMBER])
        if row is not None:
            done = _finished(row["trial"], row)
            trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
            storage.set_trial_user_attr(trial_id, ROW, done.user_attrs[ROW])
            storage.set_trial_state_values(trial_id, done.state, done.values)


def _finished(number: int, row: Row) -> FrozenTrial:
    """Return a row as a finished trial of Optuna's."""
    complete = row["state"] == "complete"
    try:
        loss = row["metrics"]["validation"]["trained"]["loss"] if complete else None
    except (KeyError, TypeError) as error:
        msg = f"{ROWS} is damaged: trial {number} of {row['gate']}, {row['search']}, has no loss."
        raise DamagedFileError(msg) from error
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if complete else TrialState.FAIL,
        value=loss,
        user_attrs={NUMBER: number, ROW: json.dumps(row)},
    )
