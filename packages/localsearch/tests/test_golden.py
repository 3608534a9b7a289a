"""The numbers of the authors' released Sinkhorn, in float32."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np
import pytest

from moe_localsearch import (
    permutation_matrix,
    permutation_penalty,
    round_to_permutation,
    sinkhorn,
)

# The source distribution holds these tests too, and may be unpacked near the root.
ABOVE_THE_REPOSITORY = [*Path(__file__).parents[4:5], Path()][0]
SHARED = Path(os.environ.get("MOE_SHARED_DIR", ABOVE_THE_REPOSITORY / "shared"))
FILES = sorted((SHARED / "golden").glob("sinkhorn_*.npz"))
NO_FILES = f"no reference values in {SHARED.name}/golden; MOE_SHARED_DIR names the folder"


@pytest.fixture(params=["numpy", "torch"])
def xp(request: pytest.FixtureRequest) -> Any:
    library = pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return array_api_compat.array_namespace(library.ones(1))


@pytest.mark.skipif(not FILES, reason=NO_FILES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_sinkhorn_rounding_and_penalty_are_those_of_the_release(path: Path, xp: ModuleType) -> None:
    golden = np.load(path)
    log_weights = xp.asarray(golden["log_weights"])
    cases = [name for name in golden if name.startswith("P_")]
    assert len(cases) == 4
    for name in cases:
        temperature, num_iterations = name.removeprefix("P_tau").split("_iters")
        matrix, _ = sinkhorn(
            log_weights, temperature=float(temperature), num_iterations=int(num_iterations)
        )
        np.testing.assert_allclose(np.asarray(matrix), golden[name], rtol=0, atol=2e-6)
        hard = permutation_matrix(round_to_permutation(matrix), xp=np, dtype=np.float32)
        np.testing.assert_array_equal(hard, golden[name.replace("P_", "hard_")])
        # Sums of 2 n^2 float32 terms, of matrices that may differ by 2e-6 an entry.
        penalty = float(permutation_penalty(matrix)[0])
        assert penalty == pytest.approx(golden[name.replace("P_", "entropy_")], rel=1e-5, abs=1e-4)
