"""The device that models are trained on, and its name."""

import platform
import sys
from functools import cache
from pathlib import Path

import torch

CPU = torch.device("cpu")


def find_device(name: str) -> torch.device:
    """Return a device by PyTorch's name for it.

    Raises
    ------
    ValueError
        If this machine, or this PyTorch, has none of that name.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        msg = f"`device` must be one that PyTorch {torch.__version__} can use here, got {name!r}: "
        raise ValueError(msg + reason) from None
    return device


@cache
def describe_device(device: torch.device) -> str:
    """Name a device as a reader knows it, with the number of threads of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
