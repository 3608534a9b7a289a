"""Learn a permutation by gradient descent through Sinkhorn: the paper's search, and a better one.

NumPy throughout, for objectives that bring their own gradient. In a training loop, where an
automatic differentiation library has the gradient, use `Relaxation` instead.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._assign import assign
from moe_localsearch._checks import (
    FloatArray,
    IntArray,
    check_callable,
    check_count,
    check_nonnegative,
    check_seed,
    starting_permutation,
)
from moe_localsearch._descent import Incumbent
from moe_localsearch._objective import SupportsRelaxation
from moe_localsearch._penalty import EPSILON
from moe_localsearch._progress import ProgressCallback, SearchStopped
from moe_localsearch._questions import Questions
from moe_localsearch._relaxation import INITIAL_RANGE
from moe_localsearch._result import Outcome, SearchResult, StopReason
from moe_localsearch._run import run
from moe_localsearch._schedule import (
    RelaxationSettings,
    Schedule,
    checked_settings,
    convergent_schedule,
)

RELAX = "relax"


def relax(
    objective: SupportsRelaxation,
    start: ArrayLike | None = None,
    *,
    schedule: Schedule = convergent_schedule,
    num_steps: int = 100,
    learning_rate: float = 0.3,
    penalty_weight: float = 1e-4,
    noise_scale: float = 0.0,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> SearchResult:
    """Learn log weights by Adam on the relaxed cost of their Sinkhorn matrix, and round it.

    The search that the paper makes beside training, on all rows in each step. It is here to
    be compared with: `frank_wolfe` needs the same gradients and a tenth of them.

    Parameters
    ----------
    objective : SupportsRelaxation
        Cost to minimise, with `differentiable` True.
    start : array, shape (n,), integer, optional
        What the result has to beat; the identity by default. The path does not depend on it.
    schedule : callable
        ``schedule(step, num_steps) -> RelaxationSettings``: `convergent_schedule`, or
        `paper_schedule`, with which gradients vanish.
    num_steps : int
        Steps of Adam, >= 1.
    learning_rate : float
        Step size in nats, >= 0.
    penalty_weight : float
        Weight of `permutation_penalty` in the unit of the cost, >= 0; the paper's is 1e-4.
    noise_scale : float
        Factor on the standard Gumbel noise that is added to the log weights in each step, >= 0.
        The paper's code has it with factor 0.
    seed : int
        Of the initial log weights, from U(-0.05, 0.05), and of the noise.
    progress : callable, optional
        Called with a `SearchProgress` before each step; may raise StopIteration.

    Returns
    -------
    SearchResult
        Never worse than `start`: the Hungarian rounding of the last log weights' matrix at the
        last temperature, without noise, or `start`. It stops with `StopReason.MAX_ROUNDS`
        whenever it goes well: nothing says that it has converged.

    Raises
    ------
    TypeError
        If `objective` is not differentiable, or an option has the wrong type.
    ValueError
        If an option is out of range, or an answer has the wrong shape.

    References
    ----------
    Ibrahim et al., KDD 2023, arXiv:2306.02824, supplement. Mena et al., ICLR 2018,
    arXiv:1802.08665. Adam: Kingma and Ba, ICLR 2015, arXiv:1412.6980.

    Examples
    --------
    >>> from moe_localsearch import paper_schedule
    >>> from moe_localsearch.testing import planted_problem
    >>> problem = planted_problem(num_rows=900, size=8, num_nonzero=2, seed=0)
    >>> int((relax(problem.objective).permutation == problem.permutation).sum())
    8
    >>> published = relax(problem.objective, schedule=paper_schedule, learning_rate=1e-3)
    >>> int((published.permutation == problem.permutation).sum()) < 8
    True
    """
    check_callable("schedule", schedule)
    num_steps = check_count("num_steps", num_steps, minimum=1)
    check_nonnegative("learning_rate", learning_rate)
    check_nonnegative("penalty_weight", penalty_weight)
    check_nonnegative("noise_scale", noise_scale)
    check_seed(seed)
    questions = Questions(objective, progress=progress)
    first = starting_permutation(start, questions.size)
    descend = partial(
        _relax_outcome,
        settings=[checked_settings(schedule(step, num_steps)) for step in range(num_steps + 1)],
        learning_rate=learning_rate,
        penalty_weight=penalty_weight,
        noise_scale=noise_scale,
        rng=np.random.default_rng(seed),
    )
    return run(questions, first, [(RELAX, descend)])


def _relax_outcome(
    questions: Questions,
    start: IntArray,
    cost: float,
    *,
    settings: list[RelaxationSettings],
    learning_rate: float,
    penalty_weight: float,
    noise_scale: float,
    rng: np.random.Generator,
) -> Outcome:
    """Descend on the log weights, and return the rounding or `start`.

    `settings` are those of each step, and of the rounding after the last.
    """
    if np.isnan(cost):
        return Outcome(start, cost, StopReason.NON_FINITE_COST)
    shape = (questions.size, questions.size)
    log_weights = rng.uniform(-INITIAL_RANGE, INITIAL_RANGE, shape)
    adam, last = _Adam(learning_rate), settings[0]
    stop_reason = StopReason.MAX_ROUNDS
    try:
        for each in settings[:-1]:
            noise = noise_scale * rng.gumbel(size=shape)
            matrix, tape = _sinkhorn_with_tape(log_weights + noise, each)
            relaxed, gradient = questions.relaxed_cost(matrix)
            if not (np.isfinite(relaxed) and np.isfinite(gradient).all()):
                return Outcome(start, cost, StopReason.NON_FINITE_COST)
            gradient = gradient + penalty_weight * _penalty_gradient(matrix)
            log_weights = log_weights - adam.step(_back_through(tape, matrix, gradient))
            last = settings[-1]
    except SearchStopped:
        stop_reason = StopReason.STOPPED
    best = Incumbent(questions, start, cost)
    matrix, _ = _sinkhorn_with_tape(log_weights, last)
    best.meet(assign(-matrix), quietly=True)
    return Outcome(best.permutation, best.cost, stop_reason)


class _Adam:
    """Adam with its published constants."""

    def __init__(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._mean = self._square = np.zeros(())
        self._count = 0

    def step(self, gradient: FloatArray) -> FloatArray:
        """Return what to subtract from the parameters."""
        self._count += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.999 * self._square + 0.001 * gradient**2
        mean = self._mean / (1 - 0.9**self._count)
        square = self._square / (1 - 0.999**self._count)
        step: FloatArray = self._learning_rate * mean / (np.sqrt(square) + 1e-8)
        return step


class _Tape(NamedTuple):
    """What the gradient through Sinkhorn needs: vectors, not matrices, of each iteration."""

    log_weights: FloatArray  # (n, n), divided by the temperature
    potentials: list[tuple[int, FloatArray]]  # the axis, and what was subtracted along it
    temperature: float


def _sinkhorn_with_tape(
    log_weights: FloatArray, settings: RelaxationSettings
) -> tuple[FloatArray, _Tape]:
    """Return the matrix that `sinkhorn` returns, and what leads back."""
    scaled = log_weights / settings.temperature
    log_matrix, potentials = scaled, []
    for _ in range(settings.num_iterations):
        for axis in (-1, -2):
            largest = log_matrix.max(axis=axis, keepdims=True)
            total = np.exp(log_matrix - largest).sum(axis=axis, keepdims=True)
            potential = largest + np.log(total)
            log_matrix = log_matrix - potential
            potentials.append((axis, potential))
    return np.exp(log_matrix), _Tape(scaled, potentials, settings.temperature)


def _back_through(tape: _Tape, matrix: FloatArray, gradient: FloatArray) -> FloatArray:
    """Return the gradient of the log weights from that of the matrix."""
    result = gradient * matrix
    log_matrix = tape.log_weights - sum(potential for _, potential in tape.potentials)
    for axis, potential in reversed(tape.potentials):
        # After a normalisation along an axis, exp(log_matrix) is the softmax along it.
        result = result - np.exp(log_matrix) * result.sum(axis=axis, keepdims=True)
        log_matrix = log_matrix + potential
    return result / tape.temperature


def _penalty_gradient(matrix: FloatArray) -> FloatArray:
    """Return the gradient of `permutation_penalty`."""
    row_sums = matrix.sum(axis=-1, keepdims=True)
    divisors = np.where(row_sums > 0, row_sums, 1.0)
    shares = matrix / divisors
    of_shares = _entropy_gradient(shares)
    through_sums = np.sum(of_shares * shares, axis=-1, keepdims=True)
    gradient: FloatArray = _entropy_gradient(matrix) + (of_shares - through_sums) / divisors
    return gradient


def _entropy_gradient(matrix: FloatArray) -> FloatArray:
    """Return the gradient of ``sum(-P log(P + 1e-6))``."""
    gradient: FloatArray = -np.log(matrix + EPSILON) - matrix / (matrix + EPSILON)
    return gradient
