"""The benchmark that a GPU is needed for runs, checks itself and writes its numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs the extra: pip install 'moe-runtime[gpu]'")

SCRIPT = Path(__file__).parents[1] / "bench" / "gpu.py"


def test_all_of_it_runs_at_toy_sizes(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--toy", "--tune", "--output", str(tmp_path)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run(command, capture_output=True, check=True, env=environment)
    report = json.loads((tmp_path / "gpu_toy.json").read_text(encoding="utf-8"))
    assert [part for part in report.values() if isinstance(part, dict) and "failed" in part] == []
    assert len(report["checks"]) == 6
    assert all(row["right"] and row["repeats"] for row in report["checks"])
    for name in ("as shipped 0", "as shipped 1", "tuned 0", "tuned 1"):
        assert {"triton", "grouped_mm"} <= set(report[name]["forward_milliseconds"])
        assert max(report[name]["difference_from_triton"].values()) < 0.02
