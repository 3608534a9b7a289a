"""What is trained on the CPU can be trained on another device: see `check_second_device.py`."""

import subprocess
import sys
from pathlib import Path

from _language import require_transformers

CHECKS = Path(__file__).with_name("check_second_device.py")


def check(selected: str) -> None:
    """Check in a process of its own: PyTorch does not forget a device that it was told of."""
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", selected)
    done = subprocess.run((*command, str(CHECKS)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_trials_run_on_a_second_device() -> None:
    check("not language")


def test_models_of_language_are_distilled_on_a_second_device() -> None:
    require_transformers()
    check("language")
