"""What runs on the CPU runs on another device, too: see `check_second_device.py`."""

import subprocess
import sys
from pathlib import Path

CHECKS = Path(__file__).with_name("check_second_device.py")


def test_everything_runs_on_a_second_device() -> None:
    """In a process of its own: PyTorch does not forget a device that it has been told of."""
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
