"""Where the numbers of each epoch go: a line on the screen, a table, and TensorBoard."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from moe_benchmarks._experiments._run import Epoch
from moe_runtime import CsvWriter, TensorBoardWriter

CSV, TENSORBOARD = "epochs.csv", "tensorboard"


class EpochLog:
    """Write epochs, counted from 1; a run that continues writes what it has done again.

    Parameters
    ----------
    folder
        Of the run: the table is `epochs.csv` there.
    tasks
        Names of the tasks.
    num_rows
        Training rows of an epoch.
    tensorboard
        Whether to write to the folder `tensorboard` too.

    Raises
    ------
    ModuleNotFoundError
        If TensorBoard is asked for and not installed.
    ValueError
        If there is another table in the place of this one.
    """

    def __init__(
        self, folder: Path, tasks: Sequence[str], num_rows: int, *, tensorboard: bool
    ) -> None:
        self._tasks, self._num_rows = tuple(tasks), num_rows
        self._writers: list[CsvWriter | TensorBoardWriter] = []
        self._open = ExitStack()
        if tensorboard:
            writer = TensorBoardWriter(folder / TENSORBOARD, resume_step=1)
            self._writers.append(self._open.enter_context(writer))
        self._writers.append(CsvWriter(folder / CSV))

    def write(self, number: int, epoch: Epoch) -> str:
        """Write an epoch, and return it as a line for the screen."""
        numbers = self._numbers(epoch)
        for writer in self._writers:
            writer.write(number, numbers)
        dead = " + ".join(str(count) for count in epoch.dead_experts)
        return (
            f"epoch {number}: training {epoch.train_loss:.4f}, penalty {epoch.penalty:.4f}, "
            f"validation {epoch.validation_loss:.4f}, {epoch.experts_per_row:.2f} experts a row, "
            f"{dead} dead, busiest {max(epoch.largest_load):.0%}, {self.speed(epoch)}"
        )

    def speed(self, epoch: Epoch) -> str:
        """Say how fast an epoch was trained."""
        return f"{self._num_rows / epoch.seconds:,.0f} rows/s"

    def close(self) -> None:
        """Close what is open."""
        self._open.close()

    def _numbers(self, epoch: Epoch) -> dict[str, float]:
        numbers: dict[str, float] = {
            "train_loss": epoch.train_loss,
            "penalty": epoch.penalty,
            "validation_loss": epoch.validation_loss,
            "experts_per_row": epoch.experts_per_row,
            "union_per_row": epoch.union_per_row,
        }
        for task, dead, load in zip(
            self._tasks, epoch.dead_experts, epoch.largest_load, strict=True
        ):
            numbers |= {f"{task}/dead_experts": dead, f"{task}/largest_load": load}
        return {**numbers, "rows_per_second": self._num_rows / epoch.seconds}
