"""Permutation searches beside training, as a learning-rate scheduler stands beside it.

Axes: T rows, R rows of a block, O output features.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import moe_localsearch
from moe_runtime._checks import check_number, check_positive, check_tensor, check_type
from moe_runtime._mixture import MultiGateMixtureOfExperts
from moe_runtime._modes import evaluating
from moe_runtime._search import (
    Per,
    RowLoss,
    SearchRows,
    check_search_options,
    router_of,
    search_permutations,
)

# Forward and backward of a row take about three times its forward pass.
TRAINING_PASSES = 3
# Row losses a row that a search is expected to ask for while there has been none; that of
# moe_localsearch took 53 to 144 with a gradient, for 16 to 32 positions.
FIRST_PASSES = 100
COUNTERS = ("step", "trained_rows", "work", "last_work", "first_rows")
CLOCKS = ("search_seconds", "training_seconds")


class SearchRecord(NamedTuple):
    """What one search did for one gate; losses are means, in the unit of the row loss."""

    step: int  # training steps before it
    gate: int
    cost_before: float  # on the rows that were searched
    cost_after: float
    standard_error: float  # of their paired difference
    confirm_cost_before: float  # on the rows that confirm
    confirm_cost_after: float
    gain: float  # the paired difference of these
    gain_standard_error: float
    accepted: bool  # whether the permutations were changed
    num_moved: int  # positions, over all slots, that stand for another expert than before
    seconds: float  # wall time, without that of the rows and the experts' outputs


class PermutationSearch:
    """Search a mixture's permutations every so many training steps, within a budget.

    Call `step` once a training step. Where a search is due, it takes rows of the training data,
    searches the permutations that lower their loss, keeps what other rows confirm, and
    returns what was gained. The model is in evaluation mode meanwhile, without autocast; then
    each module is in the mode that it was in. Parameters, gradients, the optimizer and torch's
    random numbers are left alone.

    Parameters
    ----------
    mixture
        The layer; all of its gates are searched.
    rows
        ``rows(step) -> SearchRows``: rows of the training data, 2048 or more. Let it depend on
        nothing but the step and the model, so that a resumed run sees the same rows.
    every
        Training steps from one search to the next.
    model
        What is put in evaluation mode: all that `rows` and the loss use. The mixture by default.
    per, method, confirm_share, move_standard_errors, num_standard_errors
        As in `search_permutations`.
    max_share
        About the largest share of the training's work that searches may be. A search that would
        exceed it waits for another `every` steps; one that does after all ends with what it has
        found, which is then confirmed. The first is expected to take 100 passes of its rows and
        one for each expert: 2048 rows with 16 experts wait until 1.6 million rows were trained
        on. None never waits.

    Notes
    -----
    Work is counted in forward passes of a row: 3 for a row of training, 1 for each expert's
    output and for each row loss, 3 with its gradient. On one thread of a CPU the share of the
    time was 0.09 (a linear head behind 16 small experts) to 0.94 (a block as wide as the experts
    behind them) of the share of the work. Where little follows the mixture, a larger
    `max_share` is still little time; `time_share` says what it was. The searches run in NumPy on
    the CPU: beside a GPU their time weighs more.

    A clock would bound the time anywhere, but searches would then come at other steps in each
    run, and on each process of a distributed one.

    Examples
    --------
    >>> import torch, moe_runtime
    >>> router = moe_runtime.TopKRouter(6, 4, k=1, renormalize=False)
    >>> mixture = moe_runtime.MixtureOfExperts(router, moe_runtime.Experts(4, (6, 3)))
    >>> x = torch.randn(400, 6)
    >>> targets = mixture(x).output.detach()
    >>> router.set_permutation(torch.tensor([[1, 2, 3, 0]]))
    >>> def rows(step):
    ...     loss = lambda output, rows: (output - targets[rows]).square().sum(-1)
    ...     return moe_runtime.SearchRows(x, loss)
    >>> search = moe_runtime.PermutationSearch(mixture, rows, every=10, max_share=None)
    >>> for step in range(10):  # train on 32 rows, then
    ...     found = search.step(32)
    >>> found[0].accepted, found[0].num_moved, router.permutation.tolist()
    (True, 4, [[0, 1, 2, 3]])

    A mixture inside a model: let `rows` run the model up to it, and the loss the rest of it.

    >>> lower, head = torch.nn.Linear(5, 6), torch.nn.Linear(3, 2)
    >>> def rows(step):
    ...     picked = torch.randint(100, (64,), generator=torch.Generator().manual_seed(step))
    ...     data, labels = torch.ones(100, 5)[picked], torch.zeros(100, dtype=torch.int64)[picked]
    ...     cross_entropy = torch.nn.functional.cross_entropy
    ...     loss = lambda output, rows: cross_entropy(head(output), labels[rows], reduction="none")
    ...     return moe_runtime.SearchRows(lower(data), loss)
    >>> model = torch.nn.ModuleList([lower, mixture, head])
    >>> search = moe_runtime.PermutationSearch(mixture, rows, every=10, model=model)
    """

    def __init__(
        self,
        mixture: MultiGateMixtureOfExperts,
        rows: Callable[[int], SearchRows],
        *,
        every: int,
        model: nn.Module | None = None,
        per: Per = "slot",
        method: moe_localsearch.Method = "auto",
        confirm_share: float = 0.5,
        move_standard_errors: float = 1.0,
        num_standard_errors: float = 1.0,
        max_share: float | None = 0.05,
    ) -> None:
        check_type("mixture", mixture, MultiGateMixtureOfExperts, "a mixture")
        check_type("rows", rows, Callable, "a function")  # type: ignore[arg-type]
        check_positive("every", every)
        model = mixture if model is None else model
        check_type("model", model, nn.Module, "a torch.nn.Module")
        if all(each is not mixture for each in model.modules()):
            msg = f"`model` must contain `mixture`, got a {type(model).__name__} without it."
            raise ValueError(msg)
        check_search_options(per, method, confirm_share, move_standard_errors, num_standard_errors)
        if max_share is not None:
            check_number("max_share", max_share)
            if not 0 < max_share < float("inf"):
                msg = f"`max_share` must be finite and > 0, or None, got {max_share!r}."
                raise ValueError(msg)
        self._mixture = mixture
        self._rows = rows
        self._every = every
        self._model = model
        self._per: Per = per
        self._method: moe_localsearch.Method = method
        self._confirm_share = confirm_share
        self._move_standard_errors = move_standard_errors
        self._num_standard_errors = num_standard_errors
        self._max_share = max_share
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._clocks = dict.fromkeys(CLOCKS, 0.0)
        self._records: list[SearchRecord] = []
        self._last_time: float | None = None

    @property
    def records(self) -> tuple[SearchRecord, ...]:
        """What the searches so far did, one record a gate and search."""
        return tuple(self._records)

    @property
    def work_share(self) -> float:
        """Forward passes of searches, as a share of training's; what `max_share` bounds."""
        return self._counters["work"] / max(1, self._training_work())

    @property
    def time_share(self) -> float:
        """Wall time of searches, as a share of the time between the calls of `step`."""
        training = self._clocks["training_seconds"]
        return self._clocks["search_seconds"] / training if training else 0.0

    def step(self, num_rows: int) -> list[SearchRecord]:
        """Count a training step, and search if it is time to.

        Parameters
        ----------
        num_rows
            Rows that the step trained the mixture on; the same on every process.

        Returns
        -------
        list of SearchRecord
            One a gate; empty where there was no search.
        """
        check_positive("num_rows", num_rows, minimum=0)
        began = time.perf_counter()
        if self._last_time is not None:
            self._clocks["training_seconds"] += began - self._last_time
        self._counters["step"] += 1
        self._counters["trained_rows"] += num_rows
        found = []
        is_due = self._counters["step"] % self._every == 0
        if is_due and self._expected_work() <= self._affordable_work():
            found = self._search()
            self._records += found
        self._last_time = time.perf_counter()
        self._clocks["search_seconds"] += self._last_time - began
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs to search at the same steps, as tensors."""
        state = {name: torch.tensor(value) for name, value in self._counters.items()}
        state |= {
            name: torch.tensor(value, dtype=torch.float64) for name, value in self._clocks.items()
        }
        width = len(SearchRecord._fields)
        records = torch.tensor(self._records, dtype=torch.float64).reshape(-1, width)
        return {**state, "records": records}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` returned.

        Raises
        ------
        ValueError
            If names or shapes are not those of `state_dict`; nothing is changed then.
        """
        check_type("state", state, Mapping, "a mapping of names to tensors")
        names = {*COUNTERS, *CLOCKS, "records"}
        if state.keys() != names:
            msg = f"`state` must hold {sorted(names)}, got {sorted(state)}."
            raise ValueError(msg)
        for name, tensor in state.items():
            check_tensor(f"state[{name!r}]", tensor)
            shape = (len(tensor), len(SearchRecord._fields)) if name == "records" else ()
            if tensor.shape != shape:
                msg = f"`state[{name!r}]` must have shape {shape}, got {tuple(tensor.shape)}."
                raise ValueError(msg)
        self._counters = {name: int(state[name]) for name in COUNTERS}
        self._clocks = {name: float(state[name]) for name in CLOCKS}
        self._records = [_record(row) for row in state["records"].tolist()]
        self._last_time = None

    def _training_work(self) -> int:
        return TRAINING_PASSES * self._counters["trained_rows"]

    def _affordable_work(self) -> float:
        if self._max_share is None:
            return math.inf
        return self._max_share * self._training_work() - self._counters["work"]

    def _expected_work(self) -> int:
        """Return the work of the last search, or a guess that takes the first rows."""
        if self._counters["last_work"] or self._max_share is None:
            return self._counters["last_work"]
        if not self._counters["first_rows"]:
            with _undisturbed(self._model):
                num_rows = self._rows(self._counters["step"]).x.shape[0]
            # Asked for once: what they are may be the model's work below the mixture.
            self._counters["first_rows"] = num_rows
            self._counters["work"] += num_rows
        return self._counters["first_rows"] * (self._mixture.experts.num_experts + FIRST_PASSES)

    def _search(self) -> list[SearchRecord]:
        routers = [router_of(self._mixture, gate) for gate in range(len(self._mixture.routers))]
        before = [router.permutation.cpu().numpy().copy() for router in routers]
        with _undisturbed(self._model):
            rows = self._rows(self._counters["step"])
            outputs_work = rows.x.shape[0] * self._mixture.experts.num_experts
            work = _Work(self._affordable_work() - outputs_work)
            results = search_permutations(
                self._mixture,
                rows._replace(row_loss=work.counting(rows.row_loss)),
                per=self._per,
                method=self._method,
                confirm_share=self._confirm_share,
                move_standard_errors=self._move_standard_errors,
                num_standard_errors=self._num_standard_errors,
                progress=work.check,
            )
        done = work.num_passes + outputs_work
        self._counters["work"] += done
        # One that was cut has not shown what a whole one takes.
        self._counters["last_work"] = 2 * done if work.was_cut else done
        return [
            _record_of(self._counters["step"], gate, before[gate], result)
            for gate, result in results.items()
        ]


class _Work:
    """Forward passes that row losses have taken, and may take."""

    def __init__(self, budget: float) -> None:
        self.num_passes = 0
        self.was_cut = False
        self._budget = budget

    def check(self, _progress: object) -> None:
        """End a search that has no more passes left."""
        if self.num_passes >= self._budget:
            self.was_cut = True
            raise StopIteration

    def counting(
        self, row_loss: RowLoss | Sequence[RowLoss | None]
    ) -> RowLoss | list[RowLoss | None]:
        """Return the losses as they are, but counted."""
        if isinstance(row_loss, Sequence):
            return [None if each is None else self._counted(each) for each in row_loss]
        return self._counted(row_loss)

    def _counted(self, row_loss: RowLoss) -> RowLoss:
        def counted(output_RO: Tensor, rows_R: Tensor) -> Tensor:
            self.num_passes += len(rows_R) * (TRAINING_PASSES if output_RO.requires_grad else 1)
            return row_loss(output_RO, rows_R)

        return counted


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate a model inside, and leave its modes, autocast and random numbers as they were."""
    devices = {parameter.device for parameter in model.parameters()} - {torch.device("cpu")}
    kind = next(iter(devices)).type if devices else "cuda"
    with (
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast(kind, enabled=False),
        torch.random.fork_rng([each.index for each in devices], device_type=kind),
        evaluating(model),
    ):
        yield


def _record_of(
    step: int, gate: int, before: np.ndarray, result: moe_localsearch.SearchResult
) -> SearchRecord:
    confirmation = result.confirmation
    assert confirmation is not None
    assert result.standard_error is not None
    num_moved = int(np.sum(result.permutation != before))
    return SearchRecord(
        step=step,
        gate=gate,
        cost_before=result.cost_before,
        cost_after=result.cost_after,
        standard_error=float(result.standard_error),
        confirm_cost_before=confirmation.cost_before,
        confirm_cost_after=confirmation.cost_after,
        gain=confirmation.gain,
        gain_standard_error=float(confirmation.standard_error),
        accepted=num_moved > 0,
        num_moved=num_moved,
        seconds=result.seconds,
    )


def _record(row: list[float]) -> SearchRecord:
    """Return a record from a row of numbers, each in its own type."""
    types = SearchRecord.__annotations__.values()
    return SearchRecord(*(kind(value) for kind, value in zip(types, row, strict=True)))
