"""Schedules start and end where they say, and go one way."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_gates import (
    check_gamma,
    cosine_schedule,
    exponential_schedule,
    linear_schedule,
)

SCHEDULES = [linear_schedule, cosine_schedule, exponential_schedule]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
values = st.floats(1e-30, 1e30)


@each_schedule
@given(start=values, end=values, num_steps=st.integers(1, 50), hold=st.integers(0, 5))
def test_starts_holds_goes_one_way_and_ends_exactly(
    schedule: Callable[..., float], start: float, end: float, num_steps: int, hold: int
) -> None:
    options = {"start": start, "end": end, "num_steps": num_steps, "num_hold_steps": hold}
    path = [schedule(step, **options) for step in range(hold + num_steps + 3)]
    assert path[: hold + 1] == [start] * (hold + 1)
    assert path[hold + num_steps :] == [end] * 3
    for here, there in itertools.pairwise(path):
        # Rounding may turn the last digit.
        assert (there - here) * (end - start) >= 0 or math.isclose(here, there, rel_tol=1e-13)


def test_follow_their_formulas() -> None:
    options: dict[str, Any] = {"start": 8.0, "end": 2.0, "num_steps": 10}
    for step in range(11):
        share = step / 10
        assert math.isclose(linear_schedule(step, **options), 8 - 6 * share)
        assert math.isclose(exponential_schedule(step, **options), 8 * 0.25**share)
        cosine = 2 + 6 * (1 + math.cos(math.pi * share)) / 2
        assert math.isclose(cosine_schedule(step, **options), cosine)


def test_integers_of_numpy_do_not_wrap_around() -> None:
    options: dict[str, Any] = {"start": 0.0, "end": 1.0, "num_steps": 10, "num_hold_steps": 5}
    assert linear_schedule(np.uint32(3), **options) == 0.0  # type: ignore[arg-type]


def test_linear_and_cosine_reach_0_and_below() -> None:
    options: dict[str, Any] = {"start": 1.0, "end": -1.0, "num_steps": 2}
    assert [linear_schedule(step, **options) for step in range(3)] == [1, 0, -1]
    assert [round(cosine_schedule(step, **options), 15) for step in range(3)] == [1, 0, -1]


def test_every_step_of_an_extreme_gamma_is_a_gamma() -> None:
    for step in range(12):
        check_gamma(exponential_schedule(step, start=1e30, end=1e-30, num_steps=10))
