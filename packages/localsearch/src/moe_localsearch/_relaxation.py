"""A permutation that a training loop learns with its own gradients, step by step."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from moe_localsearch._checks import IntArray, check_callable, check_count, check_seed
from moe_localsearch._namespace import ArrayT, check_matrices, resolve
from moe_localsearch._rounding import round_to_permutation
from moe_localsearch._schedule import Schedule, checked_settings, convergent_schedule
from moe_localsearch._sinkhorn import SinkhornResult, sinkhorn

INITIAL_RANGE = 0.05
"""Half width of the uniform distribution of the first log weights, in nats, as in the paper."""


class RelaxationState(NamedTuple):
    """What a relaxation has to remember: save both, and it resumes exactly.

    `log_weights`, shape (*batch, n, n), real floating, in nats, is what is trained. `step` is how
    many steps are done; it sets the temperature.
    """

    log_weights: Any
    step: int


@dataclass(frozen=True)
class Relaxation:
    """A relaxed permutation that gets colder with each step of a training loop.

    It holds settings only; the state is a value that its methods take and return. Let the
    optimiser train ``state.log_weights``, use ``matrix(state).matrix`` in the model, call
    `step` once a training step, and `finish` at the end. A state read back from a file needs a
    Python integer as its step.

    `jax.jit` unrolls the iterations of Sinkhorn and compiles for each number of them anew, for
    minutes with the default schedule: call it outside of what is compiled, or with a schedule of
    few iterations and a state whose step is static.

    Parameters
    ----------
    size : int
        Positions n, >= 1.
    num_steps : int
        Steps in which the permutation is learned, >= 1. Later steps stay at the last
        temperature.
    schedule : callable
        ``schedule(step, num_steps) -> RelaxationSettings``: `convergent_schedule` by default,
        or `paper_schedule`.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If `size` or `num_steps` is below 1.

    References
    ----------
    Ibrahim et al., KDD 2023, arXiv:2306.02824, supplement, where the temperature falls over
    the first 1 to 10 epochs and the rounded permutation is used from then on.

    Examples
    --------
    >>> import numpy as np
    >>> relaxation = Relaxation(size=3, num_steps=10)
    >>> state = relaxation.init(seed=0, xp=np, dtype=np.float64)
    >>> for _ in range(10):
    ...     soft = relaxation.matrix(state)  # use soft.matrix in the model's loss,
    ...     gradient = -np.eye(3)[[2, 0, 1]]  # take its gradient,
    ...     state = relaxation.step(state, state.log_weights - 0.5 * gradient)
    >>> relaxation.finish(state)
    array([2, 0, 1])
    """

    size: int
    num_steps: int
    schedule: Schedule = convergent_schedule

    def __post_init__(self) -> None:
        check_count("size", self.size, minimum=1)
        check_count("num_steps", self.num_steps, minimum=1)
        check_callable("schedule", self.schedule)

    def init(
        self,
        *,
        seed: int,
        xp: ModuleType,
        dtype: object,
        device: object = None,
        batch: tuple[int, ...] = (),
    ) -> RelaxationState:
        """Return the state before the first step: log weights from U(-0.05, 0.05).

        The same `seed` gives the same numbers in every array library. `batch` is the leading
        shape, such as one permutation a slot.
        """
        if not isinstance(batch, tuple):
            msg = f"`batch` must be a tuple of lengths, got {batch!r}."
            raise TypeError(msg)
        rng = np.random.default_rng(check_seed(seed))
        values = rng.uniform(-INITIAL_RANGE, INITIAL_RANGE, (*batch, self.size, self.size))
        log_weights = xp.asarray(values, dtype=dtype, device=device)
        check_matrices("dtype", log_weights, resolve(None, dtype=log_weights))
        return RelaxationState(log_weights, step=0)

    def matrix(
        self,
        state: RelaxationState,
        *,
        noise: ArrayT | None = None,
        xp: ModuleType | None = None,
    ) -> SinkhornResult:
        """Return the relaxed permutation at the state's temperature, differentiable.

        `noise`, shape (*batch, n, n), is added to the log weights: standard Gumbel noise samples
        permutations. `xp` is as in `sinkhorn`.
        """
        self._check(state, xp)
        step = min(state.step, self.num_steps)
        settings = checked_settings(self.schedule(step, self.num_steps))
        return sinkhorn(
            state.log_weights,
            temperature=settings.temperature,
            num_iterations=settings.num_iterations,
            noise=noise,
            xp=xp,
        )

    def step(self, state: RelaxationState, log_weights: ArrayT | None = None) -> RelaxationState:
        """Return the state one step later, with `log_weights` where the loop replaces them.

        A framework that trains parameters in place, such as PyTorch, leaves them out.
        """
        self._check(state, None)
        kept = state.log_weights if log_weights is None else log_weights
        later = RelaxationState(kept, state.step + 1)
        self._check(later, None)
        return later

    def finish(self, state: RelaxationState, *, xp: ModuleType | None = None) -> IntArray:
        """Return the nearest permutation, shape (*batch, n), int64, NumPy.

        Raises
        ------
        ValueError
            If the relaxed matrix holds NaN: training has diverged.
        """
        return round_to_permutation(self.matrix(state, xp=xp).matrix)

    def _check(self, state: RelaxationState, xp: ModuleType | None) -> None:
        if not isinstance(state, RelaxationState):
            msg = f"`state` must be a RelaxationState, got {type(state).__name__}."
            raise TypeError(msg)
        check_count("state.step", state.step, minimum=0)
        namespace = resolve(xp, **{"state.log_weights": state.log_weights})
        check_matrices("state.log_weights", state.log_weights, namespace)
        if state.log_weights.shape[-1] != self.size:
            got = tuple(state.log_weights.shape)
            msg = f"`state.log_weights` must have shape (*batch, n={self.size}, n), got {got}."
            raise ValueError(msg)
