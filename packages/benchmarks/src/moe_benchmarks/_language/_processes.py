"""Train the models of a study one after the other, or several at once in processes of their own."""

import multiprocessing
import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait

from moe_benchmarks._experiments._row import Row
from moe_benchmarks._language._students import DENSE
from moe_benchmarks._language._study import Cell, LanguageStudy
from moe_benchmarks._workers import become_worker, running, threads_of_each

# Of a cell: what is being done, how many steps of it are done, and how many there are.
OnStep = Callable[[Cell, str, int, int], None]


def train_here(
    study: LanguageStudy, cells: Sequence[Cell], on_step: OnStep, on_row: Callable[[Row], None]
) -> None:
    """Train models one after the other and hand over each one's row."""
    for cell in cells:
        on_row(study.train(cell, partial(on_step, cell)))


def train_in_workers(
    make_study: Callable[[], LanguageStudy],
    num_workers: int,
    cells: Sequence[Cell],
    on_step: OnStep,
    on_row: Callable[[Row], None],
) -> None:
    """Do the same in processes; a seed's dense model comes before its others.

    Raises
    ------
    Exception
        What a worker raised.
    ChildProcessError
        If a worker ended without a word.
    """
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(min(num_workers, len(cells)))]
    settings = (threads_of_each(num_workers), os.getpid())
    workers = [
        context.Process(target=_work, args=(make_study, there, *settings)) for _, there in pipes
    ]
    with running(workers):
        for _, there in pipes:
            there.close()  # so that a worker's end is seen here
        _share_out([here for here, _ in pipes], cells, on_step, on_row)


def next_cell(waiting: Sequence[Cell], in_work: Collection[Cell]) -> Cell | None:
    """Return the cell to begin: dense models first, others once their seed's is done."""
    unfinished = {cell.seed for cell in (*waiting, *in_work) if cell.variant == DENSE}
    dense = (cell for cell in waiting if cell.variant == DENSE)
    ready = (cell for cell in waiting if cell.seed not in unfinished)
    return next(dense, None) or next(ready, None)


def _share_out(
    idle: list[Connection],
    cells: Sequence[Cell],
    on_step: OnStep,
    on_row: Callable[[Row], None],
) -> None:
    waiting, in_work = list(cells), dict[Connection, Cell]()
    while waiting or in_work:
        while idle and (cell := next_cell(waiting, in_work.values())):
            waiting.remove(cell)
            worker = idle.pop(0)
            worker.send(cell)
            in_work[worker] = cell
        heard = wait(list(in_work))
        for worker in [each for each in in_work if each in heard]:
            try:
                message = worker.recv()
            except EOFError:
                msg = f"the worker of {in_work[worker]} was killed; the same command continues."
                raise ChildProcessError(msg) from None
            if isinstance(message, Exception):
                raise message
            if isinstance(message, tuple):
                on_step(in_work[worker], *message)
            else:
                on_row(message)
                del in_work[worker]
                idle.append(worker)


def _work(
    make_study: Callable[[], LanguageStudy], parent: Connection, threads: int, parent_id: int
) -> None:
    become_worker(parent_id, threads)
    study = make_study()
    while True:
        cell = parent.recv()
        try:
            message: object = study.train(cell, lambda *step: parent.send(step))
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent says it
            message = error
        parent.send(message)
