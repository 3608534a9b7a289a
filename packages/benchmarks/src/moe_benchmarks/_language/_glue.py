"""Read the files of GLUE, in the layout in which they are published."""

from pathlib import Path
from typing import NamedTuple

from moe_benchmarks._data._dataset import DataError
from moe_benchmarks._language._tasks import Task

FOLDER = "glue"


class Sentences(NamedTuple):
    """Rows of a task: sentences, or pairs of them, and their labels."""

    first: list[str]
    second: list[str] | None
    labels: list[float]  # the number of the class, or the number to predict

    def __len__(self) -> int:
        """Return the number of rows; of a tuple it would be that of its fields."""
        return len(self.labels)

    def take(self, rows: list[int]) -> "Sentences":
        """Return some of the rows."""
        second = None if self.second is None else [self.second[row] for row in rows]
        return Sentences(
            [self.first[row] for row in rows], second, [self.labels[row] for row in rows]
        )


def read_glue(task: Task, data_dir: Path) -> tuple[Sentences, Sentences]:
    """Read the training and the development rows; those of the test have no labels.

    Raises
    ------
    DataError
        If a file is missing or is not one of this task; it is named, with the line.
    """
    folder = data_dir / FOLDER / task.name
    return _read(folder / "train.tsv", task), _read(folder / task.dev_file, task)


def _read(path: Path, task: Task) -> Sentences:
    try:
        # Quotation marks are part of the sentences, and only "\n" ends a row.
        lines = path.read_bytes().decode("utf-8").rstrip("\n").split("\n")
    except FileNotFoundError:
        msg = (
            f"{task.name} needs {path}, which is not there: the files are those of "
            "https://gluebenchmark.com/tasks; --data-dir or MOE_BENCH_DATA name the folder that "
            f"holds {FOLDER}/{task.name}."
        )
        raise DataError(msg) from None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read: {error}."
        raise DataError(msg) from error
    rows = [line.rstrip("\r").split("\t") for line in lines]
    places = [column for column in (*task.columns, task.label) if isinstance(column, int)]
    if not places:
        header = rows.pop(0)
        missing = [column for column in (*task.columns, task.label) if column not in header]
        if missing:
            msg = f"{path} has no column {missing} in its header, {header}."
            raise DataError(msg)
        places = [header.index(str(column)) for column in (*task.columns, task.label)]
    *columns, label = places
    for number, row in enumerate(rows):
        if len(row) <= max(places):
            msg = f"{path}, row {number + 1}: {len(row)} columns, {max(places) + 1} are needed."
            raise DataError(msg)
    if not rows:
        msg = f"{path} has no rows."
        raise DataError(msg)
    second = [row[columns[1]] for row in rows] if len(columns) > 1 else None
    labels = [_label(path, number, row[label], task) for number, row in enumerate(rows)]
    return Sentences([row[columns[0]] for row in rows], second, labels)


def _label(path: Path, number: int, text: str, task: Task) -> float:
    try:
        return float(task.labels.index(text)) if task.labels else float(text)
    except ValueError:
        wanted = f"one of {list(task.labels)}" if task.labels else "a number"
        msg = f"{path}, row {number + 1}: the label must be {wanted}, got {text!r}."
        raise DataError(msg) from None
