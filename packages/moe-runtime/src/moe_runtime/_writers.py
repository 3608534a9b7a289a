"""Where numbers go step by step: a CSV file or TensorBoard."""

import csv
import importlib
import io
import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, Self

from moe_runtime._checks import check_number, check_positive, check_type
from moe_runtime._requirements import require

STEP = "step"


class CsvWriter:
    """Append numbers to a CSV file, a line a step, under a header of their names.

    Steps increase from line to line, however often a run is interrupted: a step that the file
    has already takes the place of its line and of all that follow, as a resumed run comes by
    them again. A last line that a killed process left unfinished is dropped.

    Parameters
    ----------
    path
        File to begin or to continue; its folder must exist.

    Raises
    ------
    ValueError
        If there is a file that is no such table; it is not changed.

    Examples
    --------
    >>> import os, tempfile, moe_runtime
    >>> folder = tempfile.TemporaryDirectory()
    >>> writer = moe_runtime.CsvWriter(os.path.join(folder.name, "watch.csv"))
    >>> for step in (10, 20, 30, 20):  # interrupted after 30, resumed from 10
    ...     writer.write(step, {"moe/dead_experts": 3, "moe/largest_load": 1 / step})
    >>> print(writer.path.read_text(), end="")
    step,moe/dead_experts,moe/largest_load
    10,3,0.1
    20,3,0.05
    >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        check_type("path", path, (str, os.PathLike), "a path")
        self.path = Path(path)
        self._names: list[str] | None = None
        # Where the line of each step begins, in bytes.
        self._begins: dict[int, int] = {}
        self._end = 0
        if self.path.exists():
            self._read()

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a step; floats so that they are read back exactly.

        Raises
        ------
        ValueError
            If the names are not those of the header.
        """
        check_positive("step", step, minimum=0)
        for name, number in numbers.items():
            check_number(f"numbers[{name!r}]", number)
        if self._names is None:
            self._names = list(numbers)
            self._append([STEP, *self._names])
        if numbers.keys() != set(self._names):
            new, gone = numbers.keys() - set(self._names), set(self._names) - numbers.keys()
            msg = (
                f"`numbers` must have the names in {self.path}, "
                f"got {sorted(new)} more and {sorted(gone)} less."
            )
            raise ValueError(msg)
        replaced = [begin for each, begin in self._begins.items() if each >= step]
        self._end = min(replaced, default=self._end)
        self._begins = {each: begin for each, begin in self._begins.items() if each < step}
        self._begins[step] = self._end
        self._append([step, *(_cell(numbers[name]) for name in self._names)])

    def _append(self, cells: list[object]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        line = text.getvalue().encode()
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.truncate(self._end)
            file.seek(self._end)
            file.write(line)
        self._end += len(line)

    def _read(self) -> None:
        *lines, unfinished = self.path.read_bytes().split(b"\n")
        header = f"{STEP},".encode()
        begun = unfinished.startswith(header) or header.startswith(unfinished)
        if not lines and not begun:
            raise self._no_table(1)
        for index, line in enumerate(lines):
            cells = next(csv.reader([line.decode(errors="replace")]), [])
            if index == 0:
                self._names = cells[1:]
                fits = cells[:1] == [STEP]
            else:
                fits = len(cells) == 1 + len(self._names or []) and cells[0].isdecimal()
                fits = fits and int(cells[0]) > max(self._begins, default=-1)
            if not fits:
                raise self._no_table(index + 1)
            if index:
                self._begins[int(cells[0])] = self._end
            self._end += len(line) + 1

    def _no_table(self, line: int) -> ValueError:
        msg = f"`path` must be a table of increasing steps, got line {line} of {self.path}."
        return ValueError(msg)


def _cell(number: Any) -> str:  # noqa: ANN401 - a number of Python's or NumPy's
    """Write a number as it is read back exactly, NumPy's own as well."""
    return repr(int(number) if isinstance(number, Integral) else float(number))


class TensorBoardWriter:
    """Write numbers where TensorBoard reads them; needs the ``tensorboard`` extra.

    Parameters
    ----------
    folder
        Log folder of the run.
    resume_step
        First step that a resumed run writes again; what the folder has from there on is hidden.

    Raises
    ------
    ModuleNotFoundError
        If tensorboard is not installed; the message has the command.
    """

    def __init__(self, folder: str | os.PathLike[str], *, resume_step: int | None = None) -> None:
        check_type("folder", folder, (str, os.PathLike), "a path")
        if resume_step is not None:
            check_positive("resume_step", resume_step, minimum=0)
        require("tensorboard", extra="tensorboard", purpose="TensorBoardWriter")
        tensorboard = importlib.import_module("torch.utils.tensorboard")
        self._writer = tensorboard.SummaryWriter(os.fspath(folder), purge_step=resume_step)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a step, each under its name."""
        check_positive("step", step, minimum=0)
        for name, number in numbers.items():
            check_number(f"numbers[{name!r}]", number)
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the log file."""
        self._writer.close()

    def __enter__(self) -> Self:
        """Write within the block."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the log file."""
        self.close()
