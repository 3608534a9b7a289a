"""What a search tells while it runs."""

from collections.abc import Callable
from typing import NamedTuple


class SearchProgress(NamedTuple):
    """Where a running search stands.

    `method` is the method that runs now, `cost` the best cost on the search rows so far, in
    the objective's unit, `num_evaluations` as in `SearchResult`, and `seconds` the wall time
    since the search began.
    """

    method: str
    cost: float
    num_evaluations: int
    seconds: float


ProgressCallback = Callable[[SearchProgress], object]
"""Called before each question to the objective. It may raise StopIteration, as SciPy's
callbacks may: the search then returns the best that it has, with `StopReason.STOPPED`."""


class SearchStopped(Exception):  # noqa: N818  not an error: it ends a search early
    """Raised inside a search where the callback asked it to stop; never leaves the package."""
