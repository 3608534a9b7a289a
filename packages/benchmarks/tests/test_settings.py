from typing import Any

import pytest

from moe_benchmarks import QuickstartSettings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 17}, r"`k` must be in \[1, num_experts=16\], got 17"),
        ({"k": 0}, r"`k` must be in \[1, num_experts=16\], got 0"),
        ({"num_experts": 1}, "`num_experts` must be >= 2, got 1"),
        ({"epochs": 1}, r"`search_epoch` must be in \[0, epochs - 1=0\], got 1"),
        ({"num_test": 99}, "`num_test` must be >= 100, got 99"),
        ({"seed": -1}, "`seed` must be >= 0|`seed` must be in"),
        ({"search_rows": 20_001}, r"`search_rows` must be in \[4, num_train=20000\], got 20001"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be finite and > 0, got nan"),
        ({"epochs": 2.5}, r"`epochs` must be an integer, got 2\.5"),
        ({"epochs": True}, "`epochs` must be an integer, got True"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuickstartSettings(**changes)
