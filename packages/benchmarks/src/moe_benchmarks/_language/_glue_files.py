"""Read the files of GLUE, in the layout in which they are published."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from moe_benchmarks._data._dataset import DataError

FOLDER = "glue"


@dataclass(frozen=True)
class Layout:
    """Where the files of a task have what.

    Attributes
    ----------
    name : str
        Of the task, as the GLUE benchmark writes it, and of the folder of its files.
    columns : tuple of str or int
        Where the sentences are: one or two columns, by name, or by place where the file has no
        header.
    label : str or int
        Where the label is.
    labels : tuple of str
        What the file may have there, in the order of the classes; none where it is a number.
    dev_file : str
        The development rows.
    """

    name: str
    columns: tuple[str | int, ...]
    label: str | int
    labels: tuple[str, ...]
    dev_file: str = "dev.tsv"


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


def read_glue(layout: Layout, data_dir: Path) -> tuple[Sentences, Sentences]:
    """Read the training and the development rows; those of the test have no labels.

    Raises
    ------
    DataError
        If a file is missing or is not one of this task; it is named, with the line.
    """
    folder = data_dir / FOLDER / layout.name
    return _read(folder / "train.tsv", layout), _read(folder / layout.dev_file, layout)


def _read(path: Path, layout: Layout) -> Sentences:
    try:
        # Quotation marks are part of the sentences, and only "\n" ends a row.
        lines = path.read_bytes().decode("utf-8-sig").rstrip("\n").split("\n")
    except FileNotFoundError:
        msg = (
            f"{layout.name} needs {path}, which is not there: the files are those of "
            "https://gluebenchmark.com/tasks; --data-dir or MOE_BENCH_DATA name the folder that "
            f"holds {FOLDER}/{layout.name}."
        )
        raise DataError(msg) from None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read: {error}."
        raise DataError(msg) from error
    rows = [line.rstrip("\r").split("\t") for line in lines]
    places = [column for column in (*layout.columns, layout.label) if isinstance(column, int)]
    if not places:
        header = rows.pop(0)
        missing = [column for column in (*layout.columns, layout.label) if column not in header]
        if missing:
            msg = f"{path} has no column {missing} in its header, {header}."
            raise DataError(msg)
        places = [header.index(str(column)) for column in (*layout.columns, layout.label)]
    *columns, label = places
    for number, row in enumerate(rows):
        if len(row) <= max(places):
            msg = f"{path}, row {number + 1}: {len(row)} columns, {max(places) + 1} are needed."
            raise DataError(msg)
    if not rows:
        msg = f"{path} has no rows."
        raise DataError(msg)
    second = [row[columns[1]] for row in rows] if len(columns) > 1 else None
    labels = [_label(path, number, row[label], layout) for number, row in enumerate(rows)]
    return Sentences([row[columns[0]] for row in rows], second, labels)


def _label(path: Path, number: int, text: str, layout: Layout) -> float:
    try:
        return float(layout.labels.index(text)) if layout.labels else float(text)
    except ValueError:
        wanted = f"one of {list(layout.labels)}" if layout.labels else "a number"
        msg = f"{path}, row {number + 1}: the label must be {wanted}, got {text!r}."
        raise DataError(msg) from None
