"""The assertion that others rely on can fail."""

from typing import Any

import numpy as np
import pytest

from moe_gates.testing import assert_on_simplex


def test_accepts_points_of_the_simplex(lib: Any) -> None:
    assert_on_simplex(lib.asarray(np.eye(4)), k=1, xp=lib.xp)
    assert_on_simplex(lib.asarray(np.full((2, 3, 4), 0.25)), xp=lib.xp)
    assert_on_simplex(lib.asarray(np.zeros((0, 4))), k=1, xp=lib.xp)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1.5, -0.5, 0.0], "1 of 2 rows have a negative or NaN weight."),
        ([np.nan, 0.5, 0.5], "1 of 2 rows have a negative or NaN weight."),
        ([0.5, 0.499, 0.0], "1 of 2 rows do not sum to 1 within"),
        ([0.5, 0.25, 0.25], "1 of 2 rows have more than k=2 non-zero weights."),
    ],
)
def test_refuses_anything_else(lib: Any, row: list[float], message: str) -> None:
    weights = lib.asarray(np.asarray([[0.5, 0.5, 0.0], row]))
    with pytest.raises(AssertionError) as failure:
        assert_on_simplex(weights, k=2, xp=lib.xp)
    assert message in str(failure.value)
